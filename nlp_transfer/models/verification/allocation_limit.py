"""A limit on what code that reads a hostile file may allocate, checked before each allocation and whatever the file says."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nlp_transfer.utils.errors import UserError

MAX_META_OPERATIONS = 500_000  # operations that building a model takes: one of 1,000 layers takes less than half


@contextmanager
def on_meta_device(place: str) -> Iterator[None]:
    """Build models inside on the device `meta`, where they may have any size, since they take no memory; but not forever.

    Args:
        place: the configuration, for messages.
    """
    with torch.device("meta"), AllocationLimit(place, 2**62, MAX_META_OPERATIONS):
        yield


class AllocationLimit(TorchDispatchMode):
    """A context in which tensors are made of no more than `numbers` numbers, by no more than `operations` operations.

    Counted are the operations that take a size, such as `empty`, `zeros`, `randn` and `arange`. What others compute is bounded by
    what they are given.

    Example:
        >>> with AllocationLimit("adapter", numbers=100, operations=10):  # doctest: +SKIP
        ...     torch.zeros(1000, 1000)
        UserError: adapter: describes tensors of 1,000,000 numbers ...
    """

    def __init__(self, place: str, numbers: int, operations: int) -> None:
        super().__init__()
        self.place, self.numbers, self.operations = place, numbers, operations
        self.made = self.done = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.done += 1
        self.made += _numbers_of(func, args, kwargs)
        if self.made > self.numbers:
            raise UserError(
                f"{self.place}: describes tensors of {self.made:,} numbers; allowed: up to {self.numbers:,}, by the size of the "
                "weights that are stored with it"
            )
        if self.done > self.operations:
            raise UserError(
                f"{self.place}: takes more than {self.operations:,} operations to be loaded; allowed: up to that many, by the "
                "number of the model's modules"
            )
        return func(*args, **kwargs)


def _numbers_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many numbers an operation will allocate by the sizes that it is given; 0 where it is given none."""
    names = _factory_arguments(func)
    if names is None:
        return 0
    given = dict(zip(names, args, strict=False)) | kwargs
    if "size" in given:  # empty, zeros, full, randn, new_zeros ...
        return math.prod(given["size"])
    if any(isinstance(value, torch.Tensor) for value in given.values()):
        return 0
    sizes = {name: value for name, value in given.items() if name != "generator"}  # arange, eye, randperm, triu_indices ...
    made: torch.Tensor = func.overloadpacket(**sizes | {"device": "meta"})
    return made.numel()


@cache
def _factory_arguments(func: Any) -> tuple[str, ...] | None:
    """Return the names of an operation's arguments where it makes new tensors; None where it does not."""
    names = tuple(argument.name for argument in func._schema.arguments)
    return names if "device" in names else None
