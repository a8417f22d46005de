"""Release pages of mapped files that a process no longer needs.

A loader maps a file and returns tensors on its pages. The mapping, with all pages that were read,
stays in memory until the last of these tensors is dropped. Without a release, memory would hold
both packed weights and the tensors that they were packed from.
"""

import ctypes
import mmap
import sys

from torch import Tensor

PAGE_OUT = 21  # MADV_PAGEOUT, Linux 5.4: contents stay in the file or in swap
LEAST_BYTES = 1 << 16


def page_out(tensor: Tensor) -> None:
    """Let the system release the pages of a contiguous tensor on the CPU. The tensor stays
    readable: the system reads its pages again from the file. Does nothing if the system is not
    Linux."""
    if not sys.platform.startswith("linux") or not tensor.is_cpu or not tensor.is_contiguous():
        return
    if tensor.nbytes < LEAST_BYTES:
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    # An older kernel returns an error and changes nothing.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), PAGE_OUT)
