"""Summarize the runs of a comparison: one row for each strategy and number of shots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlp_transfer.evaluation.intervals import StrategyScores, compare_strategies, estimate_strategy
from nlp_transfer.evaluation.metrics.scorer import Scorer
from nlp_transfer.evaluation.resampling import ResampledMetric
from nlp_transfer.experiments.advice import Candidate, advise
from nlp_transfer.experiments.plan import Plan, PlannedRun, Variant
from nlp_transfer.experiments.runs import Outcome
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.tasks import Task, task_from

# (label, shots, seed) -> the run at the selected learning rate, and its outcome.
Chosen = Mapping[tuple[str, int | None, int], tuple[PlannedRun, Outcome]]


@dataclass(frozen=True)
class SummaryRow:
    """Results of a strategy over its seeds, for one number of shots (None: all rows). `note` says why missing values are None."""

    label: str
    shots: int | None
    seeds: list[int] = field(default_factory=list)
    mean: float | None = None
    """Mean of the metric over the seeds, with its 95 % interval from `low` to `high`."""
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    """Standard deviation over the folds of a cross-validation."""
    difference: float | None = None
    """Mean difference from the first strategy over common seeds. The interval needs at least two common seeds."""
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    """P-value of the paired test against the first strategy; `p_best` is against the best. Needs two or more common seeds."""
    p_best: float | None = None
    trainable_parameters: int | None = None
    seconds: float | None = None
    """Mean training time over the seeds. Memory and sizes are maxima over the seeds."""
    peak_memory_bytes: int | None = None
    model_bytes: int | None = None
    stored_bytes: int | None = None
    rate: float = 1.0
    """Factor by which the strategy's default learning rate is multiplied."""
    note: str = ""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Means of all metrics by split."""


@dataclass(frozen=True)
class Summary:
    """The rows of a comparison, the metric and the split that they are compared by, and the advice."""

    rows: list[SummaryRow]
    advice: str
    metric: str
    split: str
    higher: bool
    """Whether higher values of the metric are better."""
    name: str = "comparison"
    """Name of the files of the results."""


def summarize(plan: Plan, chosen: Chosen, run: Any) -> Summary:
    """Summarize all runs. Rows are ordered by shots, then by strategy; the advice uses the largest number of shots.

    Args:
        run: any resolved run of the comparison; only the data and the metric, which all runs share, are used.
    """
    split = split_of(run.config.data)
    results = [outcome.result for _, outcome in chosen.values() if outcome.result is not None]
    task: Task = task_from(results[0]["task"]) if results else run.task
    scorer = task.scorer
    metric = scorer.compare_by(run.config.training.best_metric)
    higher = scorer.higher_is_better(metric)
    same_rows = getattr(run.config.data, split) is not None
    by_shots = {shots: _rows(plan.variants, shots, plan.seeds, chosen, scorer, metric, split, same_rows) for shots in plan.shots}
    candidates = [
        Candidate(row.label, row.mean, row.seconds, row.stored_bytes, row.p_best, len(row.seeds))
        for row in by_shots[largest(plan.shots)]
        if row.mean is not None and row.seconds is not None and row.stored_bytes is not None
    ]
    advice = advise(candidates, metric, higher, split, len(plan.variants))
    return Summary([row for rows in by_shots.values() for row in rows], advice, metric, split, higher)


def largest(shots: Sequence[int | None]) -> int | None:
    """Return the largest number of shots; None means all rows."""
    return None if None in shots else max(number for number in shots if number is not None)


def split_of(data: DataConfig) -> str:
    """Return the name of the split on which strategies are compared."""
    return "test" if "test" in data.splits else "validation"


def _rows(
    variants: Sequence[Variant], shots: int | None, seeds: Sequence[int], chosen: Chosen, scorer: Scorer, metric: str, split: str,
    same_rows: bool,
) -> list[SummaryRow]:  # fmt: skip
    """Return the row of each strategy at one number of shots."""
    ended = {
        variant.label: {seed: chosen[key] for seed in seeds if (key := (variant.label, shots, seed)) in chosen}
        for variant in variants
    }
    scored = {
        label: {seed: outcome.scored(split) for seed, (_, outcome) in by_seed.items() if outcome.result is not None}
        for label, by_seed in ended.items()
    }
    resampled = ResampledMetric(scorer, metric, [run for by_seed in scored.values() for run in by_seed.values()])
    runs = {label: StrategyScores(resampled, by_seed, same_rows) for label, by_seed in scored.items() if by_seed}
    sign = 1 if resampled.higher_is_better else -1
    means = {label: sign * float(np.mean(list(strategy.values.values()))) for label, strategy in runs.items()}
    best = max((label for label in means if math.isfinite(means[label])), key=means.__getitem__, default=None)
    return [_row(label, shots, by_seed, runs, variants[0].label, best) for label, by_seed in ended.items()]


def _row(
    label: str, shots: int | None, ended: Mapping[int, tuple[PlannedRun, Outcome]], runs: Mapping[str, StrategyScores],
    first: str, best: str | None,
) -> SummaryRow:  # fmt: skip
    """Return the row of one strategy.

    Args:
        ended: the runs of the strategy by seed.
        runs: the scores of all strategies by label.
        first: label of the first strategy.
        best: label of the best strategy.
    """
    outcomes = {seed: outcome for seed, (_, outcome) in ended.items()}
    reasons = dict.fromkeys(outcome.impossible for outcome in outcomes.values() if outcome.impossible)
    notes = [f"not possible: {first_characters(reason)}" for reason in reasons]
    notes += [f"seed {seed} failed: {first_characters(run.failed)}" for seed, run in outcomes.items() if run.failed]
    if label not in runs:
        return SummaryRow(label, shots, note="; ".join(notes) or "not run")
    done = {seed: outcome for seed, outcome in outcomes.items() if outcome.result is not None}
    results = [outcome.result for outcome in done.values() if outcome.result is not None]
    train = [result["train"] for result in results]
    total = estimate_strategy(runs[label])
    to_first, to_best = (
        compare_strategies(runs[label], runs[other]) if other and other in runs and other != label else None
        for other in (first, best)
    )
    return SummaryRow(
        label,
        shots,
        list(done),
        mean=_finite(total.value),
        low=_finite(total.low),
        high=_finite(total.high),
        difference=_finite(to_first.estimate.value) if to_first else None,
        difference_low=_finite(to_first.estimate.low) if to_first else None,
        difference_high=_finite(to_first.estimate.high) if to_first else None,
        p=to_first.p if to_first else None,
        p_best=to_best.p if to_best else None,
        trainable_parameters=max(run["trainable_parameters"] for run in train),
        seconds=float(np.mean([run["seconds"] for run in train])),
        peak_memory_bytes=max(run["peak_memory_bytes"] for run in train),
        model_bytes=max(outcome.model_bytes for outcome in done.values()),
        stored_bytes=max(outcome.stored_bytes for outcome in done.values()),
        rate=ended[next(iter(done))][0].rate,
        note="; ".join(notes),
        metrics=mean_metrics(results),
    )


def first_characters(text: str, limit: int = 200) -> str:
    """Return the first `limit` characters of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def mean_metrics(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean over the runs of each metric that all runs have, by split and metric."""
    return {
        split: {
            name: float(np.mean([result["metrics"][split][name] for result in results]))
            for name in metrics
            if all(name in result["metrics"].get(split, {}) for result in results)
        }
        for split, metrics in results[0]["metrics"].items()
    }
