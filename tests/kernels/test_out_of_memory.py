"""Native code that gets no memory says so, on however many threads it runs."""

import os
import subprocess
import sys

import pytest

from lowbit.kernels import native

INPUTS = 1 << 19

# Address space grows by half a megabyte from call to call, until one succeeds: each allocation of
# the call is the first to fail in one of them. Rows of bfloat16 are widened in memory of each
# thread's own.
PROGRAM = f"""
import resource
import numpy as np
import torch
from lowbit.formats import group
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.packed_layout import PackedLayout
from tests.stored import affine

torch.set_num_threads(8)  # more than quantize: the others wait
torch.ones({INPUTS}).mul_(2)  # threads have started
codes = np.zeros((1, {INPUTS}), np.uint8)
q = affine(codes, np.ones((1, {INPUTS} // 128), np.float32), None, 4, group(128)).q
form = PackedLayout(q.layout, *q.shape)
packed, x = form.pack(q), torch.ones(1, {INPUTS}, dtype=torch.bfloat16)
product = LinearProduct(form, "dynamic", "scalar")
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
failed = 0
for more in range(64):
    resource.setrlimit(resource.RLIMIT_AS, (used + (more << 19), most))
    try:
        product(x, packed, None)
        break
    except (MemoryError, RuntimeError):
        failed += 1
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print("failed", failed)
"""


@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does")
def test_a_call_whose_memory_runs_out_anywhere_ends_on_all_threads():
    # What is freed goes back, and no thread has memory in reserve: the limit alone decides.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=env, timeout=60, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert 0 < int(ran.stdout.removeprefix("failed ")) < 64
