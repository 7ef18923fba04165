"""Error analysis of a scored split: metrics by class and by slice, confusions, the worst errors, and calibration.

Everything is computed from predictions and references through the `Scorer` of the task.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlp_transfer.evaluation.intervals import Estimate, estimate
from nlp_transfer.evaluation.metrics.calibration_metrics import Reliability, reliability
from nlp_transfer.evaluation.metrics.scorer import Scorer
from nlp_transfer.evaluation.resampling import FEW_RESAMPLES, ResampledMetric, ScoredSplit, resample_rows

QUANTILES = 5
MAX_SLICES = 20  # rarer values of a column are one slice
SLOW_CELLS = 10_000  # rows x labels up to which metrics that are not functions of sums get intervals
OTHER_VALUES, EMPTY = "(other values)", "(empty)"


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of a class, and its numbers of correct, predicted and true occurrences. 0 / 0 counts as 0."""

    name: str
    correct: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the predicted occurrences that are correct."""
        return self.correct / max(1, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the true occurrences that were predicted."""
        return self.correct / max(1, self.true)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / max(1, self.predicted + self.true)


@dataclass(frozen=True)
class Confusion:
    """A label that was often predicted in place of another one.

    Attributes:
        share: Share of the rows with the true label.
    """

    true: str
    predicted: str
    rows: int
    share: float


@dataclass(frozen=True)
class Slice:
    """A metric on a part of the rows. The interval is NaN if it is unknown."""

    name: str
    rows: int
    estimate: Estimate


@dataclass(frozen=True)
class Slicing:
    """A division of the rows: names of the slices, and the index of the slice of each row, int64 of shape (rows,)."""

    names: list[str]
    slice_of: np.ndarray


def class_scores(scorer: Scorer, split: ScoredSplit) -> list[ClassScore]:
    """Return the scores of the classes that occur in references or predictions, worst F1 first. Empty without classes."""
    if (counted := scorer.class_counts(split.predictions, split.references)) is None:
        return []
    names, counts = counted
    scores = [ClassScore(name, *column) for name, column in zip(names, counts.T.tolist(), strict=True) if column[1] or column[2]]
    return sorted(scores, key=lambda score: (score.f1, -score.true))


def largest_confusions(scorer: Scorer, split: ScoredSplit, most: int) -> list[Confusion]:
    """Return up to `most` confusions by number of rows, largest first."""
    matrix, scored = scorer.confusions(split.predictions, split.references), class_scores(scorer, split)
    if matrix is None:
        return []
    np.fill_diagonal(matrix, 0)
    support = {score.name: score.true for score in scored}
    order = [cell for cell in np.argsort(-matrix, axis=None, kind="stable")[:most] if matrix.flat[cell]]
    found = []
    for cell in order:
        true, predicted = (scorer.labels[i] for i in divmod(int(cell), len(matrix)))
        rows = int(matrix.flat[cell])
        found.append(Confusion(true, predicted, rows, rows / support[true]))
    return found


def worst_rows(scorer: Scorer, split: ScoredSplit, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of up to `most` wrong rows, worst first, and how wrong they are (`Scorer.error_sizes`)."""
    sizes = scorer.error_sizes(split.predictions, split.references)
    if sizes is None:
        return np.zeros(0, np.int64), np.zeros(0)
    order = np.argsort(-sizes, kind="stable")[:most]
    order = order[sizes[order] > 0]
    return order, sizes[order]


def reliability_and_brier(scorer: Scorer, split: ScoredSplit) -> tuple[Reliability, float | None] | None:
    """Return bins of the probabilities of predictions, and the Brier score, which is None if some probabilities are not known.

    None instead of both: the task has no probabilities.
    """
    if (known := scorer.confidences(split.predictions, split.references)) is None:
        return None
    confidence, correct, brier = known
    return reliability(confidence, correct), brier


def metric_intervals(scorer: Scorer, split: ScoredSplit, metrics: Sequence[str]) -> dict[str, Estimate]:
    """Return the value of metrics on a split with their 95 % intervals over rows.

    Metrics that the file of predictions is not sufficient for, or that are too slow to resample, are missing in the result.
    """
    found: dict[str, Estimate] = {}
    slow = []
    for name in metrics:
        try:
            metric = ResampledMetric(scorer, name, [split])
        except KeyError:  # such as the number of correct tokens, which is not in the file
            continue
        if metric.fast:
            found[name] = _estimate(*metric.scores(split, 0), metric.bounds, len(split))
        else:
            slow.append(name)
    if slow and len(split) * max(1, len(scorer.labels)) <= SLOW_CELLS:
        try:
            value = scorer.compute(split.predictions, split.references)
        except KeyError:
            return found
        if not (slow := [name for name in slow if name in value]):  # resampling can take seconds
            return found
        samples = [split.select(rows) for rows in resample_rows(len(split), FEW_RESAMPLES, 0)]
        replicates = [scorer.compute_only(slow, sample.predictions, sample.references) for sample in samples]
        for name in slow:
            values = np.array([replicate.get(name, np.nan) for replicate in replicates])
            found[name] = _estimate(value[name], values, scorer.bounds(name), len(split))
    return found


def slice_metric(scorer: Scorer, split: ScoredSplit, metric: str, slicing: Slicing) -> list[Slice]:
    """Return a metric for each slice that is not empty."""
    slices = []
    for i, name in enumerate(slicing.names):
        rows = np.flatnonzero(slicing.slice_of == i)
        if not len(rows):
            continue
        part = split.select(rows)
        resampled = ResampledMetric(scorer, metric, [part])
        if resampled.fast:
            found = _estimate(*resampled.scores(part, 0), resampled.bounds, len(part))
        else:
            found = Estimate(scorer.compute(part.predictions, part.references).get(metric, np.nan), np.nan, np.nan)
        slices.append(Slice(name, len(part), found))
    return slices


def quantile_slices(values: np.ndarray) -> Slicing:
    """Divide rows by numbers into up to `QUANTILES` slices with about equally many rows, in ascending order."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES + 1)))
    slice_of = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(0, len(edges) - 2))
    names, form = [], ".6g" if np.issubdtype(values.dtype, np.integer) or (values == np.round(values)).all() else ".3g"
    for i in range(max(1, len(edges) - 1)):
        inside = values[slice_of == i]
        low, high = (inside.min(), inside.max()) if len(inside) else (edges[i], edges[i])
        names.append(f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}")
    return Slicing(names, slice_of)


def column_slices(values: Sequence[object]) -> Slicing:
    """Divide rows by the values of a column: many different numbers by quantile, texts by value; rare ones share a slice."""
    texts = [EMPTY if value in (None, "") else str(value) for value in values]
    counts = Counter(texts)
    if len(counts) > MAX_SLICES and (numbers := _numbers(texts)) is not None:
        return quantile_slices(numbers)
    names = [name for name, _ in counts.most_common()]
    if len(names) > MAX_SLICES:
        names = [*names[: MAX_SLICES - 1], OTHER_VALUES]
    position = {name: i for i, name in enumerate(names)}
    return Slicing(names, np.array([position.get(text, len(names) - 1) for text in texts]))


def _numbers(texts: Sequence[str]) -> np.ndarray | None:
    """Return texts as finite numbers, float64 of shape (texts,). None: some are not."""
    try:
        numbers = np.array(texts, np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _estimate(value: float, replicates: np.ndarray, bounds: tuple[float, float], rows: int) -> Estimate:
    return estimate(np.array([value]), replicates[None], rows, bounds)
