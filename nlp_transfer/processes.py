"""What the main process of several does for all of them, and what is done aside without a trace in the random numbers."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from nlp_transfer.errors import UserError
from nlp_transfer.system import from_main

T = TypeVar("T")


def compute_on_main(accelerator: Any, compute: Callable[[], T]) -> T:
    """What `compute` returns in the main process, in every process of an Accelerator. A UserError there is raised in all.

    Raises:
        UserError: as raised by `compute`.
    """
    if accelerator.num_processes == 1:
        return compute()
    value, refused = None, None
    if accelerator.is_main_process:
        try:
            value = compute()
        except UserError as error:  # as its parts: pickled, it would be shortened again
            refused = (str(error), error.problems)
    value, refused = from_main((value, refused))
    if refused is not None:
        raise UserError(*refused)
    result: Any = value
    return result


@contextmanager
def same_random_state() -> Iterator[None]:
    """Afterwards Python, NumPy and PyTorch draw the numbers that they would have drawn without what was done inside."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
