"""Limit the memory that libraries allocate while they load an untrusted model.

The limit is checked before each allocation. It does not depend on the meaning of settings, so no configuration or adapter can
exhaust memory.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nlp_transfer.utils.errors import UserError

MAX_META_OPERATIONS = 500_000  # for building a model; 1,000 layers need less than half


@contextmanager
def on_meta_device(origin: str) -> Iterator[None]:
    """Inside the context, create models on the device `meta`, where they take no memory, and limit the number of operations.

    Args:
        origin: the configuration file, for messages.
    """
    with torch.device("meta"), AllocationLimit(origin, 2**62, MAX_META_OPERATIONS):
        yield


class AllocationLimit(TorchDispatchMode):
    """A context that limits the number of elements in new tensors and the number of operations.

    Elements are counted for operations that take a size, such as `empty`, `zeros`, `randn` and `arange`. The results of other
    operations are bounded by their inputs.

    Args:
        origin: the file that is loaded, for messages.
        numbers: maximum number of elements of all new tensors.
        operations: maximum number of operations.

    Example:
        >>> with AllocationLimit("adapter", numbers=100, operations=10):  # doctest: +SKIP
        ...     torch.zeros(1000, 1000)
        UserError: adapter: describes tensors of 1,000,000 numbers ...
    """

    def __init__(self, origin: str, numbers: int, operations: int) -> None:
        super().__init__()
        self.origin, self.numbers, self.operations = origin, numbers, operations
        self.allocated = self.executed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.executed += 1
        self.allocated += _numbers_of(func, args, kwargs)
        if self.allocated > self.numbers:
            raise UserError(
                f"{self.origin}: describes tensors of {self.allocated:,} numbers; allowed: up to {self.numbers:,}, given the "
                "size of the stored weights"
            )
        if self.executed > self.operations:
            raise UserError(
                f"{self.origin}: needs more than {self.operations:,} operations to load; allowed: up to {self.operations:,}, "
                "given the number of modules in the model"
            )
        return func(*args, **kwargs)


def _numbers_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the number of elements that an operation will allocate, computed from its size arguments; 0 if it has none."""
    names = _factory_arguments(func)
    if names is None:
        return 0
    arguments = dict(zip(names, args, strict=False)) | kwargs
    if "size" in arguments:  # empty, zeros, full, randn, new_zeros ...
        return math.prod(arguments["size"])
    if any(isinstance(value, torch.Tensor) for value in arguments.values()):
        return 0
    sizes = {name: value for name, value in arguments.items() if name != "generator"}  # arange, eye, randperm, triu_indices ...
    result: torch.Tensor = func.overloadpacket(**sizes | {"device": "meta"})
    return result.numel()


@cache
def _factory_arguments(func: Any) -> tuple[str, ...] | None:
    """Return the argument names of an operation that creates new tensors; None for all other operations."""
    names = tuple(argument.name for argument in func._schema.arguments)
    return names if "device" in names else None
