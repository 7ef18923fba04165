"""Trials of the candidates for the strategy of a run, fold by fold, and the decision between them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlp_transfer.evaluation.intervals import StrategyScores, compare_strategies, estimate_strategy
from nlp_transfer.evaluation.resampling import ResampledMetric, ScoredSplit
from nlp_transfer.run.run import Run
from nlp_transfer.run.strategy_trials import FOLDS, HeldOutFolds, Speed, TooSlow, measure, pooled, train_and_score
from nlp_transfer.training.gradient import TrainingError
from nlp_transfer.utils.console import duration, number, say
from nlp_transfer.utils.errors import UserError

FEWEST_ROWS = 256  # smallest sample to train on, if there are more rows
SLACK = 2.0, 20.0  # a trial may take this factor of its estimate, and these seconds more
STANDARD_ERROR = 0.3173  # two-sided p-value of a difference of one standard error
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Candidate:
    """A strategy that was considered, with what is known about it."""

    label: str
    strategy: Any
    """Its document."""
    seconds: float | None = None
    """Estimated duration of training on all rows."""
    value: float | None = None
    """The metric on the held-out rows, with its 95 % interval from `low` to `high`."""
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    """Difference from the best candidate, with its 95 % interval and p-value over the held-out rows."""
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    note: str = ""
    """Why it has no metric, or was dropped early."""


class Race:
    """The trials of the candidates that are left.

    Args:
        allowed: seconds for the trials, from now on.
    """

    def __init__(self, possible: Mapping[str, Run], folds: HeldOutFolds, allowed: float) -> None:
        self.possible, self.folds, self.ends = possible, folds, time.monotonic() + allowed
        self.left = list(possible)
        self.notes: dict[str, str] = {}
        self.dropped: dict[str, Candidate] = {}
        self.parts: dict[str, list[ScoredSplit]] = {label: [] for label in possible}
        self.durations: dict[str, list[float]] = {label: [] for label in possible}
        self.speeds: dict[str, Speed] = {}
        self.rows = folds.training_rows
        first = next(iter(possible.values()))
        self.metric = first.task.scorer.compare_by(first.config.training.best_metric)
        self.scorer = first.task.scorer

    def measure(self) -> None:
        """Measure the speed of each candidate; drop those that cannot be trained."""
        for label in list(self.left):
            try:
                self.speeds[label] = measure(self.possible[label], self.folds)
            except (UserError, TrainingError) as error:
                self.drop(label, f"failed: {error}")

    def drop(self, label: str, note: str) -> None:
        """Leave out a candidate."""
        self.left.remove(label)
        self.notes[label] = note

    def seconds(self, label: str) -> float | None:
        """Estimate the duration of training with all rows, from the trials of the candidate if there are any."""
        if (speed := self.speeds.get(label)) is None:
            return None
        whole = speed.seconds(len(self.folds.train))
        if not (durations := self.durations[label]):
            return whole
        return float(np.mean(durations)) * whole / speed.seconds(self.rows)

    def drop_slow(self, allowed: float) -> None:
        """Drop candidates whose training takes longer than the seconds allowed, but not the fastest one."""
        estimates = {label: self.speeds[label].seconds(len(self.folds.train)) for label in self.left}
        for label in sorted(estimates, key=estimates.__getitem__)[1:]:
            if estimates[label] > allowed:
                self.drop(label, f"too slow: about {duration(estimates[label])}")

    def fit_sample(self) -> None:
        """Choose how many rows the trials are trained on, so that all of them fit in the time; drop the slowest if none do."""
        while len(self.left) > 1:
            rows = self.folds.training_rows
            while self._round(rows) > self.ends - time.monotonic() and rows > FEWEST_ROWS:
                rows = max(FEWEST_ROWS, rows // 2)
            self.rows = rows
            if self._round(rows) <= self.ends - time.monotonic():
                return
            slowest = max(self.left, key=lambda label: self.speeds[label].seconds(rows))
            self.drop(slowest, f"no time for a trial, which takes about {duration(self.speeds[slowest].seconds(rows))}")

    def _round(self, rows: int) -> float:
        return sum(self.speeds[label].seconds(rows) for label in self.left)

    def run(self) -> int:
        """Score every candidate on one fold after another, while there is time and a choice; return the number of folds."""
        for fold in range(FOLDS):
            left = self.ends - time.monotonic()
            if fold > 0 and (len(self.left) < 2 or sum(np.mean(self.durations[label]) for label in self.left) > left):
                return fold
            splits = self.folds.splits(self.rows, fold)
            for label in list(self.left):
                try:
                    limit = SLACK[0] * self.speeds[label].seconds(self.rows) + SLACK[1]
                    part, seconds = train_and_score(self.possible[label], splits, limit)
                except TooSlow:
                    self.drop(label, f"its trial was ended after {duration(limit)}, twice its estimate")
                    continue
                except (UserError, TrainingError) as error:
                    self.drop(label, f"failed: {' '.join(str(error).split())}")
                    continue
                self.parts[label].append(part)
                self.durations[label].append(seconds)
                value = self.scorer.compute(part.predictions, part.references).get(self.metric, np.nan)
                say(f"trial of {label}, fold {fold + 1}: {self.metric} {number(value)}, {duration(seconds)}")
            for label, row in self.table(self.left)[0].items():
                if row.p is not None and row.p < SIGNIFICANT and len(self.left) > 1:
                    self.drop(label, f"measurably worse after fold {fold + 1}")
                    self.dropped[label] = row
        return FOLDS

    def table(self, labels: Sequence[str]) -> tuple[dict[str, Candidate], str]:
        """Return metrics and differences from the best of some candidates, over the folds that they have in common, and the best.

        Candidates without a trial are omitted.
        """
        labels = [label for label in labels if self.parts[label]]
        if not labels:
            return {}, ""
        common = min(len(self.parts[label]) for label in labels)
        splits = {label: pooled(self.parts[label][:common]) for label in labels}
        metric = ResampledMetric(self.scorer, self.metric, list(splits.values()))
        scores = {label: StrategyScores(metric, {0: split}, shared=True) for label, split in splits.items()}
        sign = 1 if metric.higher_is_better else -1
        defined = {label: sign * each.values[0] for label, each in scores.items() if np.isfinite(each.values[0])}
        best = max(defined, key=defined.__getitem__, default=labels[0])
        rows = {}
        for label in labels:
            total = estimate_strategy(scores[label])
            to_best = compare_strategies(scores[label], scores[best], rows_only=True) if label != best else None
            facts = {"value": total.value, "low": total.low, "high": total.high}
            if to_best is not None:
                each = to_best.estimate
                facts |= {"difference": each.value, "difference_low": each.low, "difference_high": each.high}
            finite: dict[str, Any] = {name: float(value) for name, value in facts.items() if np.isfinite(value)}
            p = None if to_best is None else to_best.p
            rows[label] = Candidate(label, self.possible[label].strategy.document(), self.seconds(label), p=p, **finite)
        return rows, best


def decide(rows: Mapping[str, Candidate], best: str, metric: str, notes: Mapping[str, str]) -> tuple[str, str]:
    """Return the label of the fastest candidate that is within one standard error of the best one, and the reason.

    Args:
        notes: why the candidates that are not in `rows` were left out, by label.
    """
    if len(rows) < 2:
        tried = f"{metric} {number(rows[best].value or 0)}; " if best in rows else ""
        return best, tried + "; ".join(f"{label}: {note}" for label, note in notes.items())
    equal = [label for label, row in rows.items() if label != best and row.p is not None and row.p >= STANDARD_ERROR]
    label = min([best, *equal], key=lambda each: rows[each].seconds or 0.0)
    score = f"{metric} {number(rows[label].value or 0)}"
    if label != best:
        return label, (
            f"{score} is within one standard error of the best, {best} ({number(rows[best].value or 0)}), and it is faster "
            f"({duration(rows[label].seconds or 0)} instead of {duration(rows[best].seconds or 0)})"
        )
    faster = f", and the fastest of those within one standard error: {', '.join(equal)}" if equal else ""
    return label, f"{score} is the best{faster or ', by more than one standard error'}"
