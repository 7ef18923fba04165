"""Compute metrics on bootstrap resamples of the rows of a split.

Most metrics are functions of sums over rows (`Scorer.sums`). For these, a resample is a vector of row counts, and one matrix
product computes all resamples. All other metrics are computed by the scorer on the resampled rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer, Sums

RESAMPLES, FEW_RESAMPLES = 1000, 200  # fewer if there are more than `MANY_ROWS` rows, or if the metric is not a function of sums
MANY_ROWS = 20_000
CHUNK = 100  # number of resamples computed at once; CHUNK x rows counts must fit in memory


@dataclass(frozen=True)
class ScoredSplit:
    """Predictions of a run for a split, and the references of the split. The first dimension of each array is rows."""

    predictions: Arrays
    references: Arrays

    def __len__(self) -> int:
        return len(self.predictions["prediction"])


class ResampledMetric:
    """Computes a metric on all rows and on resampled rows.

    Args:
        scorer: The scorer of the task.
        metric: Key of the metric.
        splits: The splits of several runs. Their size determines the number of resamples.

    Attributes:
        bounds: Smallest and largest possible value.
        fast: Whether the metric is a function of sums over rows.
        resamples: Number of resamples.
    """

    def __init__(self, scorer: Scorer, metric: str, splits: Sequence[ScoredSplit]) -> None:
        self.scorer, self.metric = scorer, metric
        self.higher_is_better = scorer.higher_is_better(metric)
        self.bounds = scorer.bounds(metric)
        self.fast = bool(splits) and self._sums(splits[0]) is not None
        self.resamples = RESAMPLES if self.fast and max(map(len, splits)) <= MANY_ROWS else FEW_RESAMPLES

    def value(self, split: ScoredSplit) -> float:
        """Return the metric on all rows; NaN if it is undefined."""
        if (sums := self._sums(split)) is None:
            return self._compute(split.predictions, split.references)
        statistics, function = sums
        return float(function(np.ones((1, len(split))) @ statistics)[0])

    def replicates(self, split: ScoredSplit, stream: int) -> np.ndarray:
        """Return the metric on resampled rows, float64 of shape (resamples,).

        Splits with the same number of rows and the same `stream` get the same resamples, so their replicates are paired.
        """
        resamples = resample_rows(len(split), self.resamples, stream)
        if (sums := self._sums(split)) is None:
            return np.array([self._compute(_take(split.predictions, rows), _take(split.references, rows)) for rows in resamples])
        statistics, function = sums
        replicates = []
        while chunk := list(islice(resamples, CHUNK)):
            counts = np.stack([np.bincount(rows, minlength=len(split)) for rows in chunk]).astype(float)
            replicates.append(function(counts @ statistics))
        return np.concatenate(replicates)

    def _compute(self, predictions: Arrays, references: Arrays) -> float:
        return self.scorer.compute(predictions, references).get(self.metric, np.nan)

    def _sums(self, split: ScoredSplit) -> Sums | None:
        return self.scorer.sums(self.metric, split.predictions, split.references)


def resample_rows(rows: int, resamples: int, stream: int) -> Iterator[np.ndarray]:
    """Draw `resamples` samples of row indices with replacement. Each is int64 of shape (rows,). The seed is fixed."""
    generator = np.random.default_rng([1, rows, stream])
    return (generator.integers(rows, size=rows) for _ in range(resamples))


def _take(arrays: Arrays, rows: np.ndarray) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}
