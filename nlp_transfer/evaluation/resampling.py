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

    def select(self, rows: np.ndarray) -> "ScoredSplit":
        """Return the split with only these rows (int64 indices)."""
        predictions, references = (
            {name: array[rows] for name, array in arrays.items()} for arrays in (self.predictions, self.references)
        )
        return ScoredSplit(predictions, references)


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
        self.fast = bool(splits) and self._sums(splits[0].select(np.arange(1))) is not None  # one row is enough to know
        self.resamples = RESAMPLES if self.fast and max(map(len, splits)) <= MANY_ROWS else FEW_RESAMPLES

    def scores(self, split: ScoredSplit, stream: int) -> tuple[float, np.ndarray]:
        """Return the metric on all rows, NaN if it is undefined, and on resampled rows, float64 of shape (resamples,).

        Splits with the same number of rows and the same `stream` get the same resamples, so their replicates are paired.
        """
        resamples = resample_rows(len(split), self.resamples, stream)
        if (sums := self._sums(split)) is None:
            replicates = [self._compute(split.select(rows)) for rows in resamples]
            return self._compute(split), np.array(replicates)
        statistics, function = sums
        value = float(function(np.ones((1, len(split))) @ statistics)[0])
        chunks = []
        while chunk := list(islice(resamples, CHUNK)):
            counts = np.stack([np.bincount(rows, minlength=len(split)) for rows in chunk]).astype(float)
            chunks.append(function(counts @ statistics))
        return value, np.concatenate(chunks)

    def _compute(self, split: ScoredSplit) -> float:
        return self.scorer.compute_only([self.metric], split.predictions, split.references).get(self.metric, np.nan)

    def _sums(self, split: ScoredSplit) -> Sums | None:
        return self.scorer.sums(self.metric, split.predictions, split.references)


def resample_rows(rows: int, resamples: int, stream: int) -> Iterator[np.ndarray]:
    """Draw `resamples` samples of row indices with replacement. Each is int64 of shape (rows,). The seed is fixed."""
    generator = np.random.default_rng([1, rows, stream])
    return (generator.integers(rows, size=rows) for _ in range(resamples))
