"""Pages of files that a process has read and does not need any more.

A loader maps a file and hands out tensors on its pages. The mapping lasts until the last of them is
dropped, and what was read of it stays resident until then. Packed weights would so be in memory
beside what they were packed of.
"""

import ctypes
import mmap
import sys

from torch import Tensor

PAGE_OUT = 21  # MADV_PAGEOUT, Linux 5.4: contents are kept, in the file or in swap
LEAST_BYTES = 1 << 16


def page_out(tensor: Tensor) -> None:
    """Let the system take back the pages of a contiguous tensor on the CPU. It may be read
    afterwards: pages come back from the file. Elsewhere than on Linux nothing happens."""
    if not sys.platform.startswith("linux") or not tensor.is_cpu or not tensor.is_contiguous():
        return
    if tensor.nbytes < LEAST_BYTES:
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    # It is advice: a kernel that does not know it returns an error, and all is as before.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), PAGE_OUT)
