"""What glibc does with the memory that a process frees."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 1 << 30  # bytes
SET_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let it stay in the process, unless the environment says how much may.

    glibc returns large blocks to the system. In training they are asked for again in the next
    layer, and the system clears each page first (docs/LOG.md has the times).
    """
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in SET_BY):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, KEPT)
