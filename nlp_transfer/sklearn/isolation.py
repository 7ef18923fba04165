"""Keep the side effects of a training run away from the program that calls an estimator: its output and its random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from nlp_transfer.saved_models.load import quiet
from nlp_transfer.utils.console import messages_as_warnings


@contextmanager
def isolated(verbose: int) -> Iterator[None]:
    """Restore the global random states at the end. If `verbose` is 0, print nothing, and raise Python warnings for warnings.

    Without this, the seed of a run would also determine the random numbers that other steps of a search draw after it.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            if verbose:
                yield
            else:
                with messages_as_warnings(), quiet():
                    yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
