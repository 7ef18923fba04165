"""Compare strategies: fine-tune with each strategy and seed on the same data, and recommend one."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_transfer.experiments.experiment import (
    STRATEGY_SETTINGS,
    Experiment,
    open_experiment,
    output_folder,
    raw_settings,
    strategy_documents,
)
from nlp_transfer.experiments.plan import Plan, PlannedRun, make_plan
from nlp_transfer.experiments.results_table import notes, table, write_tables
from nlp_transfer.experiments.runs import Outcome
from nlp_transfer.experiments.summary_rows import Chosen, Summary, SummaryRow, split_of, summarize
from nlp_transfer.run.run import Run
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.schema import RunConfig
from nlp_transfer.utils.console import Level, console, say, show_table
from nlp_transfer.utils.errors import UserError

FULL_TABLE_WIDTH = 130  # columns of the terminal


@dataclass(frozen=True)
class Comparison:
    """A finished comparison, with a row for each strategy and number of shots, and the advice."""

    output_dir: Path
    rows: list[SummaryRow]
    advice: str
    metric: str
    split: str
    failed: list[str] = field(default_factory=list)
    """Name and error of each run that crashed. The log is in the run's folder."""


def compare(
    config: RunConfig | Document | str | Path | None = None,
    strategies: Sequence[Any] = ("full", "lora"),
    seeds: Sequence[int] = (0, 1, 2),
    shots: Sequence[int | str | None] | None = None,
    rates: Sequence[float] | None = None,
    output_dir: str | Path | None = None,
    keep_models: bool = False,
    verbose: bool = False,
    **settings: Any,
) -> Comparison:
    """Fine-tune with each strategy and each seed, every run in a separate process, and recommend a strategy.

    Finished runs in `output_dir` are reused, so a comparison can be interrupted and resumed, and strategies and seeds can be
    added later.

    Args:
        config: as for `fine_tune`; `settings` override it.
        strategies: each is a name, a mapping with a name and settings, or a list of these. The first one is the baseline.
        shots: numbers of training rows per label, one for each point of the learning curves. `"all"` or None means all rows.
        rates: factors to try on each strategy's default learning rate. The factor with the best validation metric for the first
            seed is used for all seeds.
        output_dir: output folder. None means the `output_dir` of the settings, followed by `-comparison`.
        keep_models: whether to keep the models of the runs. Predictions are always kept.
        verbose: whether to show the output of the runs.

    Returns:
        The rows of the table and the advice. They are also written to `output_dir`, as `comparison.csv`, `.json` and `.html`.

    Raises:
        UserError: a setting or the data is invalid, or `output_dir` contains a comparison with other settings.
    """
    raw = raw_settings(config, settings, "compare")
    folder = output_folder(raw, output_dir, "-comparison")
    plan, runs = make_plan(raw, strategies, seeds, shots, rates)
    first = runs[0]
    split = split_of(first.config.data)
    if split not in first.config.data.splits:
        raise UserError("compare: found no rows to compare on; set data.test, data.test_share or data.validation_share")
    needs_validation = split == "validation" or len(plan.rates) > 1
    options: Any = {"needs_validation": needs_validation, "keep_models": keep_models, "verbose": verbose}
    with open_experiment(plan, runs, folder, split, **options) as experiment:
        chosen = run_all(plan, runs, experiment)
        summary = summarize(plan, chosen, first)
        lines = notes(summary, plan.seeds, len(plan.shots) > 1)
        write_results(folder, summary, plan.seeds, lines)
    show_results(folder, summary, lines, len(plan.shots) > 1)
    return Comparison(folder, summary.rows, summary.advice, summary.metric, summary.split, experiment.failed)


def run_all(plan: Plan, runs: Sequence[Run], experiment: Experiment) -> Chosen:
    """Execute all runs, seed by seed, so that every strategy has results early. The first seed selects the rate.

    Args:
        runs: a resolved run of each strategy.
    """
    chosen: dict[tuple[str, int | None, int], tuple[PlannedRun, Outcome]] = {}
    documents = strategy_documents(plan, runs)
    higher = runs[0].task.scorer.higher_is_better(experiment.metric)

    def execute(run: PlannedRun) -> tuple[PlannedRun, Outcome]:
        strategy = {STRATEGY_SETTINGS: documents[run.variant.label]}
        title = run.describe(len(plan.shots) > 1)
        return run, experiment.execute(title, plan.document(run, experiment.folder), strategy, run.rate)

    def rank(finished: tuple[PlannedRun, Outcome]) -> tuple[bool, float, float]:
        """Return a sort key for runs at several rates: the validation metric, then how close the rate is to the default."""
        run, outcome = finished
        value = outcome.metric("validation", experiment.metric)
        better = -math.inf if value is None else value if higher else -value
        return outcome.result is not None, better, -abs(math.log(run.rate))

    for seed in plan.seeds:
        for shots in plan.shots:
            for variant in plan.variants:
                first_seed = chosen.get((variant.label, shots, plan.seeds[0]))
                rates = plan.rates_of(variant) if first_seed is None else [first_seed[0].rate]
                finished = [execute(PlannedRun(variant, shots, seed, rate)) for rate in rates]
                chosen[variant.label, shots, seed] = best = max(finished, key=rank)
                if len(rates) > 1 and best[1].result is not None:
                    say(f"{variant.label}: {best[0].rate:g} times its default learning rate is best on validation")
    return chosen


def write_results(folder: Path, summary: Summary, seeds: Sequence[int], lines: Sequence[str], **page: Any) -> None:
    """Write the tables and the page of an experiment.

    Args:
        lines: notes below the table.
        page: further arguments of `write_page`.
    """
    write_tables(folder, summary, seeds, summary.name)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if it cannot cache its list of fonts
    from nlp_transfer.experiments.comparison_page import write_page  # loads matplotlib

    write_page(folder / f"{summary.name}.html", summary, lines, **page)


def show_results(folder: Path, summary: Summary, lines: Sequence[str], with_shots: bool = False) -> None:
    """Print the table of an experiment, its notes, where the files are, and the advice."""
    show_table(summary.name, *table(summary, with_shots, brief=console.width < FULL_TABLE_WIDTH))
    say(*lines, f"all metrics: {folder / f'{summary.name}.csv'}, .json and .html")
    say(summary.advice, level=Level.QUIET)
