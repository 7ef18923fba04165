"""Ranks of processes, broadcasts from the main process, and random states."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nlp_transfer.utils.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """Return the rank of this process; 0 without a launcher, even if RANK is set.

    Raises:
        UserError: a launcher's variable is not a number.
    """
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without a launcher.

    Raises:
        UserError: a launcher's variable is not a number.
    """
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the rank among the processes of this machine; the rank among all processes if LOCAL_RANK is not set.

    Raises:
        UserError: a launcher's variable is not a number.
    """
    return _number("LOCAL_RANK", rank())


def _number(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise UserError(f"{name}: found {value!r} in the environment; allowed: a number; without a launcher, unset it")
    return int(value)


def broadcast_from_main(value: T) -> T:
    """Return the value of rank 0 in all processes, for decisions that could differ between processes.

    Every process must call this. Without a process group, the value is returned unchanged.
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return value
    from accelerate.utils import broadcast_object_list

    values: list[T] = broadcast_object_list([value], from_process=0)
    return values[0]


def compute_on_main(accelerator: Any, compute: Callable[[], T]) -> T:
    """Call `compute` in the main process and return its result in every process of the Accelerator.

    Raises:
        UserError: in every process, if `compute` raised it in the main process.
    """
    if accelerator.num_processes == 1:
        return compute()
    value, failure = None, None
    if accelerator.is_main_process:
        try:
            value = compute()
        except UserError as error:
            failure = (str(error), error.problems)
    value, failure = broadcast_from_main((value, failure))
    if failure is not None:
        raise UserError(*failure)
    return value  # type: ignore[return-value]


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and PyTorch at the end of the block."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
