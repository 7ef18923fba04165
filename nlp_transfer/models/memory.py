"""Recognize out-of-memory errors and free cached memory."""

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

OUT_OF_MEMORY = (
    "out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "allocation_failed", "can't allocate memory",
    "not enough memory",
)  # fmt: skip
"""Parts of lower-case error messages. In this order they come from: CUDA, HIP and MPS; cuBLAS; cuDNN before and since version 9;
and the CPU allocator on Linux and on Windows."""


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
