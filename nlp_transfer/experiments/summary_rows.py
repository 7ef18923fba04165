"""From outcomes to the rows of the table: one for each strategy and number of shots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlp_transfer.evaluation.intervals import StrategyScores, compare_strategies, estimate_strategy
from nlp_transfer.evaluation.resampling import ResampledMetric
from nlp_transfer.experiments.advice import Candidate, advise
from nlp_transfer.experiments.plan import Job, Plan, Way
from nlp_transfer.experiments.runs import Outcome
from nlp_transfer.tasks import Task, task_from


@dataclass(frozen=True)
class Row:
    """A strategy at a number of shots (None: all rows), over its seeds.

    `mean` of the metric with its 95 % interval `low` to `high`; `difference` to the first strategy, over the seeds that both
    have, with its interval and the p-value of a paired test; `p_best` is the p-value of the same test against the best strategy.
    With one common seed there is neither such an interval nor a p-value. `rate`: the factor on its own learning rate. `metrics`:
    the means of all metrics by split. What was not measured is None; why is in `note`.
    """

    label: str
    shots: int | None
    seeds: list[int] = field(default_factory=list)
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_best: float | None = None
    trainable_parameters: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    model_bytes: int | None = None
    stored_bytes: int | None = None
    rate: float = 1.0
    note: str = ""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """All rows, and what they are of."""

    rows: list[Row]
    advice: str
    metric: str
    split: str
    higher: bool


def make_rows(plan: Plan, chosen: Mapping[tuple[str, int | None, int], tuple[Job, Outcome]], run: Any) -> Measured:
    """The rows in the order of strategies, those of one number of shots together.

    Args:
        chosen: the outcome that counts for each (label, shots, seed), at the rate that validation chose.
        run: a resolved run of the comparison, for its data and its metric.
    """
    split = split_of(run.config.data)
    shared = getattr(run.config.data, split) is not None
    done = [outcome for _, outcome in chosen.values() if outcome.result is not None]
    task: Task = task_from(done[0].result["task"]) if done and done[0].result else run.task
    metric = task.metric_to_compare(run.config.training.best_metric)
    rows: list[Row] = []
    advice = ""
    for shots in plan.shots:
        part, said = _rows_of(plan, shots, chosen, task, metric, split, shared)
        rows += part
        advice = said if shots == most(plan.shots) else advice
    return Measured(rows, advice, metric, split, task.higher_is_better(metric))


def most(shots: Sequence[int | None]) -> int | None:
    """The largest number of shots; None means all rows."""
    return None if None in shots else max(number for number in shots if number is not None)


def split_of(data: Any) -> str:
    return "test" if "test" in data.splits else "validation"


def _rows_of(
    plan: Plan, shots: int | None, chosen: Mapping[tuple[str, int | None, int], tuple[Job, Outcome]], task: Task, metric: str,
    split: str, shared: bool,
) -> tuple[list[Row], str]:  # fmt: skip
    outcomes = {
        way.label: {seed: chosen[key][1] for seed in plan.seeds if (key := (way.label, shots, seed)) in chosen}
        for way in plan.ways
    }
    scored = {
        label: {seed: outcome.scored(split) for seed, outcome in by_seed.items() if outcome.result is not None}
        for label, by_seed in outcomes.items()
    }
    resampled = ResampledMetric(task, metric, [run for by_seed in scored.values() for run in by_seed.values()])
    runs = {label: StrategyScores(resampled, by_seed, shared) for label, by_seed in scored.items() if by_seed}
    means = {label: float(np.mean(list(found.values.values()))) for label, found in runs.items()}
    finite = {label: mean for label, mean in means.items() if math.isfinite(mean)}
    sign = 1 if resampled.higher_is_better else -1
    best = max(finite, key=lambda label: sign * finite[label], default=None)
    first = plan.ways[0].label
    rows = [_row(way, shots, outcomes[way.label], runs, first, best, chosen) for way in plan.ways]
    candidates = [
        Candidate(row.label, row.mean, row.seconds, row.stored_bytes, row.p_best, len(row.seeds))
        for row in rows
        if row.mean is not None and row.seconds is not None and row.stored_bytes is not None
    ]
    return rows, advise(candidates, metric, resampled.higher_is_better, split, len(rows))


def _row(
    way: Way, shots: int | None, outcomes: Mapping[int, Outcome], runs: Mapping[str, StrategyScores], first: str,
    best: str | None, chosen: Mapping[tuple[str, int | None, int], tuple[Job, Outcome]],
) -> Row:  # fmt: skip
    notes = [
        f"not possible: {one_line(reason)}" for reason in dict.fromkeys(one.impossible for one in outcomes.values()) if reason
    ]
    notes += [f"seed {seed} failed: {one_line(one.failed)}" for seed, one in outcomes.items() if one.failed]
    own = runs.get(way.label)
    if own is None:
        return Row(way.label, shots, note="; ".join(notes) or "not run")
    seeds = list(own.values)
    results = [one.result for seed, one in outcomes.items() if one.result is not None]
    total = estimate_strategy(own)
    to_first = compare_strategies(own, runs[first]) if first in runs and first != way.label else None
    to_best = compare_strategies(own, runs[best]) if best is not None and best != way.label else None
    train = [result["train"] for result in results]
    done = [outcomes[seed] for seed in seeds]
    return Row(
        way.label,
        shots,
        seeds,
        mean=_known(total.value),
        low=_known(total.low),
        high=_known(total.high),
        difference=_known(to_first.estimate.value) if to_first else None,
        difference_low=_known(to_first.estimate.low) if to_first else None,
        difference_high=_known(to_first.estimate.high) if to_first else None,
        p=to_first.p if to_first else None,
        p_best=to_best.p if to_best else None,
        trainable_parameters=max(one["trainable_parameters"] for one in train),
        seconds=float(np.mean([one["seconds"] for one in train])),
        peak_memory_bytes=max(one["peak_memory_bytes"] for one in train),
        model_bytes=max(one.model_bytes for one in done),
        stored_bytes=max(one.stored_bytes for one in done),
        rate=chosen[way.label, shots, seeds[0]][0].rate,
        note="; ".join(notes),
        metrics=_means(results),
    )


def one_line(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _known(value: float) -> float | None:
    """JSON and CSV have no word for what is not a number."""
    return float(value) if math.isfinite(value) else None


def _means(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean over runs of every figure that all of them have."""
    found: dict[str, dict[str, float]] = {}
    for split, figures in results[0]["metrics"].items():
        names = [name for name in figures if all(name in result["metrics"].get(split, {}) for result in results)]
        found[split] = {name: float(np.mean([result["metrics"][split][name] for result in results])) for name in names}
    return found
