"""Running out of memory: knowing it when it happens, and giving back what can be given back."""

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this process had no memory left."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and should_reduce_batch_size(error))


def give_back() -> None:
    """Frees what nothing refers to any more. Called after the `except` clause: until then the error holds its tensors."""
    clear_device_cache(garbage_collection=True)
