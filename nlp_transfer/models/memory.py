"""Memory: knowing when it ran out, giving back what can be given back, and keeping what will be needed again."""

import ctypes
import sys
from functools import cache

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30  # bytes
OUT_OF_MEMORY = (
    "out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "allocation_failed", "can't allocate memory",
    "not enough memory",
)  # fmt: skip
"""In lower case: of CUDA, HIP and MPS; of cuBLAS; of cuDNN before and since version 9; of the CPU's allocator (two systems)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this process had no memory left.

    PyTorch's allocator has a type of error for that; errors of the driver and of the libraries are recognized by their messages.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return any(words in message for words in OUT_OF_MEMORY) or should_reduce_batch_size(error)


def free_cached_memory() -> None:
    """Frees what nothing refers to any more. Called after the `except` clause: until then the error holds its tensors."""
    clear_device_cache(garbage_collection=True)


@cache
def keep_freed_memory() -> bool:
    """Lets this process keep up to a GiB of freed memory; false where the C library is not glibc.

    PyTorch frees a step's activations and asks for the same again in the next one. glibc gives large blocks back to the system at
    once, which then hands out each page anew, filled with zeros: up to a fifth of a training step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))
