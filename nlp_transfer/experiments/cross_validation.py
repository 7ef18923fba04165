"""Cross-validate: every training row is predicted by a model that was trained without it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.evaluation.metrics.scorer import Scorer
from nlp_transfer.evaluation.resampled_t_test import FoldMean, fold_mean
from nlp_transfer.experiments.advice import show, show_p
from nlp_transfer.experiments.compare import show_results, write_results
from nlp_transfer.experiments.experiment import (
    STRATEGY_SETTINGS,
    open_experiment,
    output_folder,
    raw_settings,
    strategy_documents,
)
from nlp_transfer.experiments.plan import Plan, make_plan
from nlp_transfer.experiments.runs import Outcome
from nlp_transfer.experiments.summary_rows import Summary, SummaryRow, first_characters, mean_metrics
from nlp_transfer.saved_models.layout import OUT_OF_FOLD, PREDICTIONS
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.schema import RunConfig
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, shorten

TEST = "test"
Outcomes = Mapping[tuple[str, int, int], Outcome]
"""The outcome of each run by strategy label, seed and fold."""


@dataclass(frozen=True)
class CrossValidation:
    """A finished cross-validation.

    Attributes:
        output_dir: Folder of the results; `out_of_fold.parquet` has the prediction of each row.
        rows: Mean and spread of each strategy.
        metric: The metric of the rows.
        scores: All metrics of each run: one dictionary for each repetition and fold, by strategy.
        failed: Name and error of each run that crashed.
    """

    output_dir: Path
    rows: list[SummaryRow]
    metric: str
    scores: dict[str, list[dict[str, float]]]
    failed: list[str] = field(default_factory=list)


def cross_validate(
    config: RunConfig | Document | str | Path | None = None,
    folds: int = 5,
    repeats: int = 1,
    strategies: Sequence[Any] | None = None,
    output_dir: str | Path | None = None,
    keep_models: bool = False,
    verbose: bool = False,
    **settings: Any,
) -> CrossValidation:
    """Train once for each fold without its rows, and test on its rows.

    The folds are stratified; rows with the same text or the same `data.group` are in the same fold. The validation split of each
    run is taken from its training rows. `data.test` and `data.test_share` are not used. Interrupted cross-validations are
    resumed.

    Args:
        config: as for `fine_tune`; `settings` override it.
        folds: number of folds, at least 2.
        repeats: number of repetitions. Each has other folds and another training seed, counted up from `training.seed`.
        strategies: strategies to compare, as for `compare`. None: the strategy of the settings.
        output_dir: output folder. None means the `output_dir` of the settings, followed by `-cross-validation`.
        keep_models: whether to keep the models.
        verbose: whether to show the output of the runs.

    Raises:
        UserError: a setting or the data is invalid, or `output_dir` contains a cross-validation with other settings.
    """
    raw = raw_settings(config, settings, "cross-validate")
    folder = output_folder(raw, output_dir, "-cross-validation")
    for name, value, least in (("folds", folds, 2), ("repeats", repeats, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"--{name}: found {shorten(value)}; allowed: a whole number from {least}")
    raw, first_seed = _without_test(raw)
    seeds = list(range(first_seed, first_seed + repeats))
    chosen = [raw.get("strategy", "full")] if strategies is None else strategies
    plan, runs = make_plan(raw, chosen, seeds, None, None, folds, "cross-validate")
    if runs[0].config.data.train is None:
        raise UserError("cross-validate: found no data.train; allowed: labeled training rows, which are divided into folds")
    documents, scorer = strategy_documents(plan, runs), runs[0].task.scorer
    options: Any = {"needs_validation": False, "keep_models": keep_models, "verbose": verbose}
    outcomes: dict[tuple[str, int, int], Outcome] = {}
    with open_experiment(plan, runs, folder, TEST, **options) as experiment:
        for run in plan.all_runs():
            assert run.fold is not None
            notes = {STRATEGY_SETTINGS: documents[run.variant.label]}
            title = run.describe(with_shots=False)
            outcomes[run.variant.label, run.seed, run.fold] = experiment.execute(title, plan.document(run, folder), notes)
        rows = _rows(plan, outcomes, scorer, experiment.metric)
        higher = scorer.higher_is_better(experiment.metric)
        advice = _advice(rows, experiment.metric, higher, folds, repeats)
        summary = Summary(rows, advice, experiment.metric, TEST, higher, "cross_validation")
        lines = _notes(plan, rows, folder)
        write_results(folder, summary, seeds, lines, heading="Cross-validation")
        _write_predictions(folder, plan, outcomes)
    show_results(folder, summary, lines)
    scores = {
        variant.label: [
            outcome.result["metrics"][TEST]
            for (label, _, _), outcome in outcomes.items()
            if label == variant.label and outcome.result is not None
        ]
        for variant in plan.variants
    }
    return CrossValidation(folder, rows, experiment.metric, scores, experiment.failed)


def _without_test(raw: Document) -> tuple[Document, int]:
    """Return the settings without a test split, and the seed of the first repetition."""
    data, training = raw.get("data"), raw.get("training")
    seed = training.get("seed", 0) if isinstance(training, Mapping) else 0
    if isinstance(seed, int) and isinstance(training, Mapping):
        raw = {**raw, "training": {name: value for name, value in training.items() if name != "seed"}}
    if isinstance(data, Mapping):
        unused = [name for name in ("test", "test_share", "fold") if data.get(name)]
        say(*(f"no effect: data.{name} (every row of data.train is tested in its fold)" for name in unused))
        raw = {**raw, "data": {name: value for name, value in data.items() if name not in unused}}
    return raw, seed if isinstance(seed, int) else 0


def _rows(plan: Plan, outcomes: Outcomes, scorer: Scorer, metric: str) -> list[SummaryRow]:
    """Return the row of each strategy."""
    values: dict[str, dict[tuple[int, int], float]] = {variant.label: {} for variant in plan.variants}
    for (label, seed, fold), outcome in outcomes.items():
        value = outcome.metric(TEST, metric)
        if value is not None:
            values[label][seed, fold] = value
    sign = 1 if scorer.higher_is_better(metric) else -1
    means = {label: sign * float(np.mean(list(found.values()))) for label, found in values.items() if found}
    best = max(means, key=means.__getitem__, default=None)
    return [_row(variant.label, plan, outcomes, values, best, scorer.bounds(metric)) for variant in plan.variants]


def _row(
    label: str, plan: Plan, outcomes: Outcomes, values: Mapping[str, Mapping[tuple[int, int], float]], best: str | None,
    bounds: tuple[float, float],
) -> SummaryRow:  # fmt: skip
    """Return the row of one strategy.

    Args:
        values: the metric of each strategy by seed and fold.
        best: label of the best strategy.
        bounds: smallest and largest possible value of the metric.
    """
    ended = {(seed, fold): outcome for (name, seed, fold), outcome in outcomes.items() if name == label}
    note = "; ".join(
        dict.fromkeys(
            f"not possible: {first_characters(outcome.impossible)}" if outcome.impossible
            else f"seed {seed}, fold {fold + 1} failed: {first_characters(outcome.failed)}"
            for (seed, fold), outcome in ended.items() if outcome.result is None
        )
    )  # fmt: skip
    results = [outcome.result for outcome in ended.values() if outcome.result is not None]
    if not values[label]:
        return SummaryRow(label, None, note=note or "the metric is undefined")

    def difference(other: str | None) -> FoldMean | None:
        common = [key for key in values[label] if other and other != label and key in values[other]]
        return fold_mean(np.array([values[label][key] - values[str(other)][key] for key in common]), plan.folds or 2)

    first, to_best = difference(plan.variants[0].label), difference(best)
    array = np.array(list(values[label].values()))
    total = fold_mean(array, plan.folds or 2, bounds)
    return SummaryRow(
        label,
        None,
        list(plan.seeds),
        mean=float(array.mean()),
        low=total.estimate.low if total else None,
        high=total.estimate.high if total else None,
        deviation=total.deviation if total else None,
        difference=first.estimate.value if first else None,
        difference_low=first.estimate.low if first else None,
        difference_high=first.estimate.high if first else None,
        p=first.p if first else None,
        p_best=to_best.p if to_best else None,
        trainable_parameters=max(result["train"]["trainable_parameters"] for result in results),
        seconds=float(np.mean([result["train"]["seconds"] for result in results])),
        peak_memory_bytes=max(result["train"]["peak_memory_bytes"] for result in results),
        model_bytes=max(outcome.model_bytes for outcome in ended.values()),
        stored_bytes=max(outcome.stored_bytes for outcome in ended.values()),
        note=note,
        metrics=mean_metrics(results),
    )


def _notes(plan: Plan, rows: Sequence[SummaryRow], folder: Path) -> list[str]:
    repeated = "" if len(plan.seeds) == 1 else f", repeated {len(plan.seeds)} times (seeds {', '.join(map(str, plan.seeds))})"
    lines = [
        f"means over {plan.folds} folds{repeated}; sd: standard deviation over the folds",
        "95 % intervals and p with the variance of Nadeau and Bengio (2003), since the training rows of the folds overlap",
        "this test is conservative: in simulations, equal strategies differed significantly in 1 to 2 % of the cases, not in 5 %",
        f"the prediction of each row is in {folder / OUT_OF_FOLD}",
    ]
    return lines + [f"{row.label}: {row.note}" for row in rows if row.note]


def _advice(rows: Sequence[SummaryRow], metric: str, higher: bool, folds: int, repeats: int) -> str:
    """Return the result in one sentence."""
    scored = [row for row in rows if row.mean is not None]
    if not scored:
        return "No strategy has metrics."
    best = (max if higher else min)(scored, key=lambda row: row.mean or 0.0)
    over = f"{folds} folds" + (f" x {repeats} repetitions" if repeats > 1 else "")
    text = f"{best.label}: {metric} {show(best.mean or 0.0)}" + (
        f" (standard deviation {show(best.deviation)} over {over})" if best.deviation is not None else ""
    )
    others = [f"{row.label} ({show(row.mean or 0.0)}, p {show_p(row.p_best)})" for row in scored if row.p_best is not None]
    significant = all(row.p_best is None or row.p_best < 0.05 for row in scored)
    if not others:
        return text + "."
    verdict = "measurably better than" if significant else "the best mean, though not measurably better than each of the others:"
    return f"{text}, {verdict} {', '.join(others)}."


def _write_predictions(folder: Path, plan: Plan, outcomes: Outcomes) -> None:
    """Write `out_of_fold.parquet`: the predictions of all runs, in the order of the rows in the data.

    The columns are those of `predictions/test.parquet`, and `strategy`, `repeat` and `fold`, both counted from 1. Each of the
    three gets the prefix `run_` if the data has a column of that name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for (label, seed, fold), outcome in outcomes.items():
        path = outcome.folder / PREDICTIONS / f"{TEST}.parquet"
        if outcome.result is None:
            continue
        if not path.exists():
            say(f"warning: {path} is missing, so {OUT_OF_FOLD} does not contain its rows")
            continue
        table = pq.read_table(path)
        for name, value in (("strategy", label), ("repeat", plan.seeds.index(seed) + 1), ("fold", fold + 1)):
            column = pa.array([value] * len(table), pa.string() if isinstance(value, str) else pa.int64())
            table = table.append_column(f"run_{name}" if name in table.column_names else name, column)
        tables.append(table)
    if not tables:
        return
    combined = pa.concat_tables(tables, promote_options="permissive")
    names = combined.column_names
    by = [f"run_{name}" if f"run_{name}" in names else name for name in ("strategy", "repeat")]
    by += [f"source_{name}" if f"source_{name}" in names else name for name in ("file", "row")]
    file = io.BytesIO()
    pq.write_table(combined.sort_by([(name, "ascending") for name in by]), file)
    write_bytes(folder / OUT_OF_FOLD, file.getvalue())
