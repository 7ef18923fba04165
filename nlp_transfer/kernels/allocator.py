"""Let the C library retain freed memory."""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
RETAINED = 2**30  # bytes


@cache
def keep_freed_memory() -> bool:
    """Let glibc retain up to 1 GiB of freed memory in this process, which saves up to 20 % of a training step on a CPU.

    PyTorch frees the activations of each step and allocates them again in the next one. By default, glibc returns large blocks
    to the operating system immediately, which must then clear each page again.

    Returns:
        False if the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, RETAINED) and mallopt(M_TRIM_THRESHOLD, RETAINED))
