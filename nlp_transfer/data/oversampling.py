"""Oversampling: repeat rows of rare classes within an epoch."""

from dataclasses import dataclass

import numpy as np


def class_repeats(labels: np.ndarray | None, oversample: float | str | None) -> "Repeats | None":
    """Return how `training.oversample` repeats rows.

    Args:
        labels: Label ids, int64 of shape (rows,), or 0 or 1 for each row and label, float32 of shape (rows, labels). In the
            second case, the class of a row is its rarest label, as in Gupta et al. 2019, "LVIS", 1908.03195. With labels of
            other types, rows have no classes.
        oversample: The value of the setting: the power of `Repeats`, or `balanced` for a power of 1.

    Returns:
        None: Oversampling is off, or rows have no classes.
    """
    power = 1.0 if isinstance(oversample, str) else oversample
    if labels is None or not power:
        return None
    if labels.ndim == 2:
        return Repeats(rarest_labels(labels), labels.sum(0).astype(np.int64), power)
    return Repeats(labels, np.bincount(labels), power) if labels.dtype == np.int64 else None


def rarest_labels(hot: np.ndarray) -> np.ndarray:
    """Return the rarest label of each row, int64 of shape (rows,), -1 for a row without labels.

    Args:
        hot: 0 or 1 for each row and label, of shape (rows, labels).
    """
    rarity = np.where(hot > 0, hot.sum(0), np.inf)
    return np.where(hot.any(1), rarity.argmin(1), -1).astype(np.int64)


@dataclass(frozen=True)
class Repeats:
    """Number of occurrences of each row in an epoch.

    A row of a class with n rows occurs (m / n) ** power times on average, where m is the size of the largest class. A power of 1
    balances the classes, and smaller powers balance them partly. With a negative power, rows of large classes are repeated, and m
    is the size of the smallest class.

    Attributes:
        classes: Class of each row, int64 of shape (rows,). Rows of class -1 occur once.
        frequency: Number of rows of each class, int64 of shape (classes,). A row with several classes counts for each of them.
    """

    classes: np.ndarray
    frequency: np.ndarray
    power: float = 1.0

    def factors(self) -> np.ndarray:
        """Return the mean number of occurrences of a row of each class, at least 1; float64 of shape (classes,)."""
        frequency = np.maximum(self.frequency, 1)
        reference = frequency.max(initial=1) if self.power >= 0 else frequency.min()
        return (reference / frequency) ** self.power

    def totals(self) -> np.ndarray:
        """Return the number of rows of each class in an epoch, with repetitions; int64 of shape (classes,)."""
        classes = self.classes[self.classes >= 0]
        return np.rint(np.bincount(classes, minlength=len(self.frequency)) * self.factors()).astype(np.int64)

    def times(self) -> np.ndarray:
        """Return the mean number of occurrences of each row, float64 of shape (rows,)."""
        rows = np.bincount(self.classes[self.classes >= 0], minlength=len(self.frequency))
        return np.where(self.classes < 0, 1.0, (self.totals() / np.maximum(rows, 1))[self.classes])

    def __len__(self) -> int:
        """Return the number of rows in an epoch, with repetitions."""
        return int(self.totals().sum()) + int((self.classes < 0).sum())

    def rows(self, generator: np.random.Generator) -> np.ndarray:
        """Return the row indices (int64) of an epoch, unshuffled.

        Each row occurs at least once. The numbers of occurrences within a class differ by at most one; the rows that occur once
        more are drawn at random.
        """
        drawn = [np.flatnonzero(self.classes < 0)]
        totals = self.totals()
        # Sort rows by class, shuffled within each class.
        shuffled = generator.permutation(len(self.classes))
        shuffled = shuffled[np.argsort(self.classes[shuffled], kind="stable")]
        starts = np.searchsorted(self.classes[shuffled], np.arange(len(totals) + 1))
        for first, end, total in zip(starts[:-1].tolist(), starts[1:].tolist(), totals.tolist(), strict=True):
            if end > first:
                drawn.append(np.resize(shuffled[first:end], total))  # repeats the shuffled rows until there are `total`
        return np.concatenate(drawn).astype(np.int64)
