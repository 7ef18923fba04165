"""A metric, computed on thousands of resampled splits.

Most metrics are functions of sums over rows: for those a resampled split is a vector of how often each row was drawn, and all
draws are one matrix product. The task may say what is summed (`Task.sums`); any other metric is recomputed by the task
on the rows that were drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlp_transfer.tasks import Arrays, Task

DRAWS, FEW_DRAWS = 1000, 200
MANY_ROWS = 20_000
CHUNK = 100  # draws at a time: memory is this times the rows
AVERAGED = {f"{kind}_{average}" for kind in ("precision", "recall", "f1") for average in ("micro", "macro", "weighted")}


SHARES = AVERAGED | {"accuracy", "auc", "token_accuracy"}


@dataclass(frozen=True)
class Scored:
    """What a run answered for a split, and what it should have; arrays with one row each."""

    answers: Arrays
    references: Arrays

    def __len__(self) -> int:
        return len(self.answers["prediction"])


class Figure:
    """One metric of a task, for `runs` that are compared."""

    def __init__(self, task: Task, metric: str, runs: Sequence[Scored]) -> None:
        self.task, self.metric = task, metric
        self._of_sums: Callable[[np.ndarray], np.ndarray] | None = None
        self.higher = task.higher_is_better(metric)
        labels = [run.references["labels"] for run in runs if "labels" in run.references]
        self.multilabel = any(array.ndim == 2 for array in labels)
        ids = [*labels, *(run.answers["prediction"] for run in runs)] if labels and metric in AVERAGED else []
        self.classes = labels[0].shape[1] if self.multilabel else max((int(array.max()) + 1 for array in ids), default=0)
        self.fast = bool(runs) and self.columns(runs[0]) is not None
        self.draws = DRAWS if self.fast and max(map(len, runs)) <= MANY_ROWS else FEW_DRAWS

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that the metric can be."""
        if self.metric in ("mcc", "pearson", "spearman"):
            return -1.0, 1.0
        most = {"bleu": 100.0, "chrf": 100.0, "ter": np.inf, "mse": np.inf, "rmse": np.inf, "mae": np.inf}
        if self.metric == "r2":
            return -np.inf, 1.0
        return (0.0, most.get(self.metric, 1.0)) if self.metric in most or self.metric in SHARES else (-np.inf, np.inf)

    def value(self, run: Scored) -> float:
        """The metric over all rows of a run."""
        columns = self.columns(run)
        if columns is None:
            return self._slow(run.answers, run.references)
        return float(self.of_sums(np.ones((1, len(run))) @ columns)[0])

    def _slow(self, answers: Arrays, references: Arrays) -> float:
        return self.task.metrics(answers, references).get(self.metric, np.nan)

    def columns(self, run: Scored) -> Any:
        """What is summed over rows: an array or sparse matrix of shape (rows, sums); None: the metric is no function of sums."""
        if (summed := self.task.sums(self.metric, run.answers, run.references)) is not None:
            columns, self._of_sums = summed
            return columns
        found, wanted = run.answers["prediction"], run.references.get("labels")
        if wanted is None or found.dtype.kind not in "biuf":
            return None
        if self.metric == "accuracy":
            right = found == wanted
            return np.stack([right.all(1) if right.ndim == 2 else right, np.ones(len(right))], 1).astype(float)
        if self.metric in ("mse", "rmse"):
            return np.stack([(found.astype(float) - wanted) ** 2, np.ones(len(found))], 1)
        if self.metric == "mae":
            return np.stack([np.abs(found.astype(float) - wanted), np.ones(len(found))], 1)
        if self.metric == "r2":
            apart = wanted.astype(float) - float(wanted.mean())  # near the mean, so that no digits are lost in the squares
            return np.stack([(found.astype(float) - wanted) ** 2, np.ones(len(found)), apart, apart * apart], 1)
        if self.metric == "pearson":
            centre = float(wanted.mean())  # near the mean, so that no digits are lost in the squares
            x, y = found.astype(float) - centre, wanted.astype(float) - centre
            return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1)
        return self._by_class(found, wanted) if self.metric in AVERAGED else None

    def _by_class(self, found: np.ndarray, wanted: np.ndarray) -> Any:
        from scipy.sparse import csr_matrix, hstack

        def hot(array: np.ndarray) -> Any:
            if array.ndim == 2:
                return csr_matrix(array.astype(float))
            return csr_matrix((np.ones(len(array)), (np.arange(len(array)), array)), shape=(len(array), self.classes))

        given, true = hot(found), hot(wanted)
        return hstack([given.multiply(true), given, true]).tocsr()

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """The metric of sums over rows, (draws, sums) to (draws,)."""
        if self._of_sums is not None:
            return self._of_sums(sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.metric == "pearson":
                n, x, y, xx, yy, xy = sums.T
                spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
                return np.where(spread > 1e-12, (n * xy - x * y) / spread, np.nan)
            if self.metric == "r2":
                errors, n, y, yy = sums.T
                spread = yy - y * y / n
                return np.where(spread > 1e-12 * yy, 1 - errors / spread, np.nan)
            if self.metric == "rmse":
                return np.asarray(np.sqrt(sums[:, 0] / sums[:, 1]))
            if self.metric in AVERAGED:
                return self._averaged(*np.split(sums, 3, axis=1))
            return np.asarray(sums[:, 0] / sums[:, 1])

    def _averaged(self, hits: np.ndarray, given: np.ndarray, true: np.ndarray) -> np.ndarray:
        """As scikit-learn averages: over the labels that occur (multi-label: over all); 0 where a denominator is 0."""
        kind, _, average = self.metric.partition("_")
        of = {"precision": given, "recall": true, "f1": (given + true) / 2}[kind]
        if average == "micro":
            return np.nan_to_num(hits.sum(1) / of.sum(1))
        ratio = np.nan_to_num(hits / of)
        if average == "weighted":
            return np.nan_to_num((ratio * true).sum(1) / true.sum(1))
        occurs = np.ones_like(ratio) if self.multilabel else (given + true) > 0
        return np.asarray((ratio * occurs).sum(1) / occurs.sum(1))

    def replicates(self, run: Scored, stream: int) -> np.ndarray:
        """The metric on `draws` resamples of a run's rows, float64 of shape (draws,).

        Equal `stream` and number of rows give equal draws: that is what pairs the strategies.
        """
        rows, columns = len(run), self.columns(run)
        draws = row_draws(rows, self.draws, stream)
        if columns is None:
            return np.array([self._slow(_pick(run.answers, chosen), _pick(run.references, chosen)) for chosen in draws])
        found = []
        for chunk in _chunks(draws):
            counts = np.stack([np.bincount(chosen, minlength=rows) for chosen in chunk]).astype(float)
            found.append(self.of_sums(counts @ columns))
        return np.concatenate(found)


def row_draws(rows: int, draws: int, stream: int) -> Iterator[np.ndarray]:
    """Row indices drawn with replacement, int64 of shape (rows,), `draws` times; the same for the same arguments."""
    generator = np.random.default_rng([1, rows, stream])
    return (generator.integers(rows, size=rows) for _ in range(draws))


def _chunks(draws: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    chunk: list[np.ndarray] = []
    for draw in draws:
        chunk.append(draw)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _pick(arrays: Arrays, chosen: np.ndarray) -> Arrays:
    return {name: array[chosen] for name, array in arrays.items()}
