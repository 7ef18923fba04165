"""Metrics on bootstrap resamples of the rows of a split.

Most metrics are functions of sums over rows. For these a resample is a vector that says how often each row was drawn, and all
resamples are one matrix product. `Task.sums` can provide the sums for a metric of its own; any other metric is computed by the
task on the resampled rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from nlp_transfer.evaluation.metrics import LABEL_KEYS
from nlp_transfer.tasks import Arrays, Task

RESAMPLES, FEW_RESAMPLES = 1000, 200  # the latter for many rows and for metrics that are no functions of sums
MANY_ROWS = 20_000
CHUNK = 100  # resamples at a time: memory grows with this times the rows
AVERAGED = {key for key in LABEL_KEYS if "_" in key}
BOUNDS = (
    dict.fromkeys((*LABEL_KEYS, "token_accuracy"), (0.0, 1.0))
    | dict.fromkeys(("mcc", "pearson", "spearman"), (-1.0, 1.0))
    | dict.fromkeys(("bleu", "chrf"), (0.0, 100.0))
    | dict.fromkeys(("mse", "rmse", "mae", "ter"), (0.0, np.inf))
    | {"r2": (-np.inf, 1.0)}
)

Sums = tuple[Any, Callable[[np.ndarray], np.ndarray]]
"""An array or sparse matrix of shape (rows, statistics), and the function from sums (resamples, statistics) to (resamples,)."""


@dataclass(frozen=True)
class ScoredSplit:
    """The predictions of one run for a split, and the references; arrays with one entry for each row."""

    predictions: Arrays
    references: Arrays

    def __len__(self) -> int:
        return len(self.predictions["prediction"])


class ResampledMetric:
    """One metric of a task, on all rows and on resampled rows of the `splits` of several runs.

    Attributes:
        bounds: The least and the greatest possible value.
        fast: Whether the metric is a function of sums over rows.
        resamples: The number of resamples.
    """

    def __init__(self, task: Task, metric: str, splits: Sequence[ScoredSplit]) -> None:
        self.task, self.metric = task, metric
        self.higher_is_better = task.higher_is_better(metric)
        self.bounds = BOUNDS.get(metric, (-np.inf, np.inf))
        labels = [split.references["labels"] for split in splits if "labels" in split.references]
        self._multilabel = any(array.ndim == 2 for array in labels)
        ids = [*labels, *(split.predictions["prediction"] for split in splits)] if labels and metric in AVERAGED else []
        self._num_labels = labels[0].shape[1] if self._multilabel else max((int(array.max()) + 1 for array in ids), default=0)
        self.fast = bool(splits) and self._sums(splits[0]) is not None
        self.resamples = RESAMPLES if self.fast and max(map(len, splits)) <= MANY_ROWS else FEW_RESAMPLES

    def value(self, split: ScoredSplit) -> float:
        """Return the metric over all rows; NaN where it is undefined."""
        if (sums := self._sums(split)) is None:
            return self._compute(split.predictions, split.references)
        statistics, function = sums
        return float(function(np.ones((1, len(split))) @ statistics)[0])

    def replicates(self, split: ScoredSplit, stream: int) -> np.ndarray:
        """Return the metric on resamples of the rows, float64 of shape (resamples,).

        Two splits with the same number of rows and the same `stream` get the same resamples, which pairs them.
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
        return self.task.metrics(predictions, references).get(self.metric, np.nan)

    def _sums(self, split: ScoredSplit) -> Sums | None:
        """Return the statistics of each row and the function of their sums; None if the metric is no such function."""
        if (sums := self.task.sums(self.metric, split.predictions, split.references)) is not None:
            return sums
        predicted, true = split.predictions["prediction"], split.references.get("labels")
        if true is None or predicted.dtype.kind not in "biuf":
            return None
        if self.metric in AVERAGED:
            return self._label_counts(predicted, true), self._average
        ones = np.ones(len(predicted))
        if self.metric == "accuracy":
            right = predicted == true
            return np.stack([right.all(1) if right.ndim == 2 else right, ones], 1).astype(float), _mean
        if self.metric not in ("mse", "rmse", "mae", "r2", "pearson"):
            return None
        error = predicted.astype(float) - true
        center = float(true.mean())  # sums of squares around it lose no digits
        x, y = predicted.astype(float) - center, true.astype(float) - center
        columns, function = {
            "mse": ((error**2, ones), _mean),
            "rmse": ((error**2, ones), _root_mean),
            "mae": ((np.abs(error), ones), _mean),
            "r2": ((error**2, ones, y, y * y), _r2),
            "pearson": ((ones, x, y, x * x, y * y, x * y), _pearson),
        }[self.metric]
        return np.stack(columns, 1), function

    def _label_counts(self, predicted: np.ndarray, true: np.ndarray) -> Any:
        """Return a sparse matrix (rows, 3 x labels) of zeros and ones: label right, label predicted, label true."""
        from scipy.sparse import csr_matrix, hstack

        def one_hot(labels: np.ndarray) -> Any:
            if labels.ndim == 2:
                return csr_matrix(labels.astype(float))
            return csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), self._num_labels))

        hot_predicted, hot_true = one_hot(predicted), one_hot(true)
        return hstack([hot_predicted.multiply(hot_true), hot_predicted, hot_true]).tocsr()

    def _average(self, sums: np.ndarray) -> np.ndarray:
        """Average as scikit-learn: over the labels that occur (multi-label: over all); 0 where a denominator is 0."""
        right, predicted, true = np.split(sums, 3, axis=1)
        kind, _, average = self.metric.partition("_")
        denominator = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[kind]
        with np.errstate(divide="ignore", invalid="ignore"):
            if average == "micro":
                return np.nan_to_num(right.sum(1) / denominator.sum(1))
            ratio = np.nan_to_num(right / denominator)
            if average == "weighted":
                return np.nan_to_num((ratio * true).sum(1) / true.sum(1))
            occurs = np.ones_like(ratio) if self._multilabel else (predicted + true) > 0
            return np.asarray((ratio * occurs).sum(1) / occurs.sum(1))


def _mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[:, 0] / sums[:, 1])


def _root_mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(_mean(sums)))


def _r2(sums: np.ndarray) -> np.ndarray:
    errors, n, y, yy = sums.T
    variation = yy - y * y / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variation > 1e-12 * yy, 1 - errors / variation, np.nan)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-12, (n * xy - x * y) / spread, np.nan)


def resample_rows(rows: int, resamples: int, stream: int) -> Iterator[np.ndarray]:
    """Draw row indices with replacement, int64 of shape (rows,), `resamples` times; equal arguments give equal draws."""
    generator = np.random.default_rng([1, rows, stream])
    return (generator.integers(rows, size=rows) for _ in range(resamples))


def _take(arrays: Arrays, rows: np.ndarray) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}
