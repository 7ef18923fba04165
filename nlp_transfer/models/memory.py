"""Recognize out-of-memory errors, free cached memory, and let the C library retain freed memory."""

import ctypes
import sys
from functools import cache

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
RETAINED = 2**30  # bytes
OUT_OF_MEMORY = (
    "out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "allocation_failed", "can't allocate memory",
    "not enough memory",
)  # fmt: skip
"""Lower-case messages of CUDA, HIP and MPS; cuBLAS; cuDNN before and since version 9; the CPU allocator (Linux, Windows)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or this process ran out of memory.

    PyTorch's allocator raises `OutOfMemoryError`. Errors of drivers and libraries are recognized by their messages, of which
    Accelerate's `should_reduce_batch_size` knows only some.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return any(words in message for words in OUT_OF_MEMORY) or should_reduce_batch_size(error)


def free_cached_memory() -> None:
    """Collect garbage and empty the device's cache.

    Call it after the `except` clause of an out-of-memory error: within the clause, the traceback still references tensors.
    """
    clear_device_cache(garbage_collection=True)


@cache
def keep_freed_memory() -> bool:
    """Let glibc retain up to 1 GiB of freed memory in this process, which saves up to 20 % of a training step on a CPU.

    PyTorch frees the activations of each step and allocates them again in the next one. By default glibc returns large blocks to
    the system at once, and the system must clear each page again.

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
