"""Freed memory stays in a process that asked for it: the system counts its page faults."""

import os
import subprocess
import sys

import pytest

from lowbit.cli.freed_memory import SET_BY

# How many pages are faulted in by the second of two blocks of 64 MiB, one after the other.
COUNT = """
import ctypes, platform, resource
from lowbit.cli.freed_memory import keep_freed_memory
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size, faults = 64 << 20, []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(platform.libc_ver()[0], *faults)
"""


def faults(call: str, **env: str) -> tuple[int, int]:
    plain = {name: value for name, value in os.environ.items() if name not in SET_BY}
    run = [sys.executable, "-c", COUNT.format(call=call)]
    done = subprocess.run(run, env=plain | env, capture_output=True, text=True, check=True)
    libc, first, second = done.stdout.split(" ")
    if libc != "glibc":
        pytest.skip("only glibc has these settings")
    return int(first), int(second)


def test_freed_memory_is_used_again():
    first, second = faults("")
    assert second > first / 2
    first, second = faults("keep_freed_memory()")
    assert second < first / 10


def test_what_the_environment_says_counts():
    first, second = faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")
    assert second > first / 2
