"""Compute metrics on bootstrap resamples of the rows of a split.

Most metrics are functions of sums over rows. For these, a resample is a vector of row counts, and one matrix product computes all
resamples. Tasks can provide the sums of their metrics (`Task.sums`). All other metrics are computed by the task on the resampled
rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from nlp_transfer.evaluation.metrics import LABEL_KEYS
from nlp_transfer.tasks import Arrays, Task

RESAMPLES, FEW_RESAMPLES = 1000, 200  # few for more than `MANY_ROWS` rows, and for metrics that are not functions of sums
MANY_ROWS = 20_000
CHUNK = 100  # resamples computed at once; takes memory for CHUNK x rows counts
AVERAGED = {key for key in LABEL_KEYS if "_" in key}
BOUNDS = (
    dict.fromkeys((*LABEL_KEYS, "token_accuracy"), (0.0, 1.0))
    | dict.fromkeys(("mcc", "pearson", "spearman"), (-1.0, 1.0))
    | dict.fromkeys(("bleu", "chrf"), (0.0, 100.0))
    | dict.fromkeys(("mse", "rmse", "mae", "ter"), (0.0, np.inf))
    | {"r2": (-np.inf, 1.0)}
)

Sums = tuple[Any, Callable[[np.ndarray], np.ndarray]]
"""A matrix of shape (rows, statistics), dense or sparse, and a function from sums (resamples, statistics) to (resamples,)."""


@dataclass(frozen=True)
class ScoredSplit:
    """Predictions of a run for a split, and its references; arrays whose first dimension is rows."""

    predictions: Arrays
    references: Arrays

    def __len__(self) -> int:
        return len(self.predictions["prediction"])


class ResampledMetric:
    """Computes a metric of a task on all rows and on resampled rows.

    Args:
        task: The task.
        metric: Key of the metric.
        splits: The splits of several runs, which determine the number of labels and of resamples.

    Attributes:
        bounds: Smallest and largest possible value.
        fast: Whether the metric is a function of sums over rows.
        resamples: Number of resamples.
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
        return self.task.metrics(predictions, references).get(self.metric, np.nan)

    def _sums(self, split: ScoredSplit) -> Sums | None:
        """Return the statistics of each row and the function of their sums; None if the metric is not a function of sums."""
        if (sums := self.task.sums(self.metric, split.predictions, split.references)) is not None:
            return sums
        predicted, true = split.predictions["prediction"], split.references.get("labels")
        if true is None or predicted.dtype.kind not in "biuf":
            return None
        if self.metric in AVERAGED:
            return self._label_counts(predicted, true), self._average
        ones = np.ones(len(predicted))
        if self.metric == "accuracy":
            correct = predicted == true
            return np.stack([correct.all(1) if correct.ndim == 2 else correct, ones], 1), lambda sums: sums[:, 0] / sums[:, 1]
        if self.metric not in ("mse", "rmse", "mae", "r2", "pearson"):
            return None
        center = float(true.mean())  # centered, so that sums of squares keep their precision
        error, x, y = predicted.astype(float) - true, predicted.astype(float) - center, true.astype(float) - center
        return np.stack([ones, error**2, np.abs(error), x, y, x * x, y * y, x * y], 1), self._regression

    def _regression(self, sums: np.ndarray) -> np.ndarray:
        """Return a regression metric from the sums of `_sums`, float64 of shape (resamples, 8); NaN where it is undefined."""
        squared, absolute, x, y, xx, yy, xy = sums[:, 1:].T / sums[:, 0]
        variance, spread = yy - y * y, np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "mse": squared, "rmse": np.sqrt(squared), "mae": absolute,
                "r2": np.where(variance > 1e-12 * yy, 1 - squared / variance, np.nan),
                "pearson": np.where(spread > 1e-12, (xy - x * y) / spread, np.nan),
            }  # fmt: skip
        return values[self.metric]

    def _label_counts(self, predicted: np.ndarray, true: np.ndarray) -> Any:
        """Return a sparse 0/1 matrix of shape (rows, 3 x labels): label correctly predicted, predicted, true."""
        from scipy.sparse import csr_matrix, hstack

        def one_hot(labels: np.ndarray) -> Any:
            if labels.ndim == 2:
                return csr_matrix(labels.astype(float))
            return csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), self._num_labels))

        hot_predicted, hot_true = one_hot(predicted), one_hot(true)
        return hstack([hot_predicted.multiply(hot_true), hot_predicted, hot_true]).tocsr()

    def _average(self, sums: np.ndarray) -> np.ndarray:
        """Average like scikit-learn: over the labels that occur (multi-label: over all labels), with 0 for 0 / 0.

        `sums` are the sums of `_label_counts`, float64 of shape (resamples, 3 x labels); the result has shape (resamples,).
        """
        correct, predicted, true = np.split(sums, 3, axis=1)
        kind, _, average = self.metric.partition("_")
        denominator = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[kind]
        with np.errstate(divide="ignore", invalid="ignore"):
            if average == "micro":
                return np.nan_to_num(correct.sum(1) / denominator.sum(1))
            ratio = np.nan_to_num(correct / denominator)
            if average == "weighted":
                return np.nan_to_num((ratio * true).sum(1) / true.sum(1))
            occurs = np.ones_like(ratio) if self._multilabel else (predicted + true) > 0
            return np.asarray((ratio * occurs).sum(1) / occurs.sum(1))


def resample_rows(rows: int, resamples: int, stream: int) -> Iterator[np.ndarray]:
    """Draw `resamples` samples of row indices with replacement, each int64 of shape (rows,), with a fixed seed."""
    generator = np.random.default_rng([1, rows, stream])
    return (generator.integers(rows, size=rows) for _ in range(resamples))


def _take(arrays: Arrays, rows: np.ndarray) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}
