"""Oversampling: rows of rare classes stand more than once in an epoch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Repeats:
    """How often each row stands in an epoch.

    A row of a class with n rows stands (m / n) ** power times on average, m being the rows of the largest class: 1 evens the
    classes out, smaller powers temper that; below 0 the rows of large classes stand more often, m being those of the smallest.
    `classes` is int64 of shape (rows,); a row of class -1 stands once. `frequency`
    is int64 of shape (classes,): the rows of each class, which is more than are counted in `classes` where a row has several.
    """

    classes: np.ndarray
    frequency: np.ndarray
    power: float = 1.0

    def factors(self) -> np.ndarray:
        """How often a row of each class stands in an epoch, on average: float64 of shape (classes,), 1 or more."""
        frequency = np.maximum(self.frequency, 1)
        most = frequency.max(initial=1) if self.power >= 0 else frequency.min()
        return (most / frequency) ** self.power

    def totals(self) -> np.ndarray:
        """How often the rows of each class stand in an epoch together: int64 of shape (classes,), the same in every epoch."""
        own = self.classes[self.classes >= 0]
        return np.rint(np.bincount(own, minlength=len(self.frequency)) * self.factors()).astype(np.int64)

    def times(self) -> np.ndarray:
        """How often each row stands in an epoch, on average: float64 of shape (rows,)."""
        rows = np.bincount(self.classes[self.classes >= 0], minlength=len(self.frequency))
        return np.where(self.classes < 0, 1.0, (self.totals() / np.maximum(rows, 1))[self.classes])

    def __len__(self) -> int:
        """Rows of an epoch."""
        return int(self.totals().sum()) + int((self.classes < 0).sum())

    def rows(self, generator: np.random.Generator) -> np.ndarray:
        """The rows of an epoch (int64) in no useful order: each at least once, and which of a class stand once more than others
        is drawn."""
        found = [np.flatnonzero(self.classes < 0)]
        totals = self.totals()
        # Rows by class, shuffled within it: one pass over the rows, however many classes there are.
        shuffled = generator.permutation(len(self.classes))
        shuffled = shuffled[np.argsort(self.classes[shuffled], kind="stable")]
        starts = np.searchsorted(self.classes[shuffled], np.arange(len(totals) + 1))
        for first, end, total in zip(starts[:-1].tolist(), starts[1:].tolist(), totals.tolist(), strict=True):
            if end > first:
                found.append(np.resize(shuffled[first:end], total))  # round and round, so the first ones once more
        return np.concatenate(found).astype(np.int64)
