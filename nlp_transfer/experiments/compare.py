"""Compare strategies: fine-tune with each strategy and seed on the same data, and recommend one."""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.sources.portable_paths import mapping, portable, replaced
from nlp_transfer.data.splits import Splits
from nlp_transfer.experiments.advice import show, show_seconds
from nlp_transfer.experiments.plan import Plan, PlannedRun, make_plan
from nlp_transfer.experiments.results_table import notes, table, write_tables
from nlp_transfer.experiments.runs import LOG, Outcome, RunServer, locked_folder, read_outcome
from nlp_transfer.experiments.summary_rows import Chosen, Summary, SummaryRow, first_characters, split_of, summarize
from nlp_transfer.run.document import as_document
from nlp_transfer.run.folder import differences, is_location
from nlp_transfer.run.provenance import compare_content, describe_changes, hash_inputs, hash_strategy, record_inputs
from nlp_transfer.run.resolve import as_plain
from nlp_transfer.run.run import Run
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.extensions import files_for_child
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.settings.schema import RunConfig
from nlp_transfer.strategies import Strategy
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.console import Level, console, say, show_table
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten

SHARED_SETTINGS = "settings.json"  # in the folder of a comparison
STRATEGY_SETTINGS = "strategy.json"  # in the folder of each run
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
    if world_size() > 1:
        raise UserError(f"compare: found WORLD_SIZE={world_size()}; allowed: a single process, which starts the runs")
    check_launch()
    raw = {name: as_plain(value) for name, value in (as_document(config) | settings).items()}
    if output_dir is None and not isinstance(raw.get("output_dir"), (str, Path)):
        raise UserError("--output: is required because the document has no output_dir")
    folder = expand(output_dir or f"{raw['output_dir']}-comparison")
    plan, runs = make_plan(raw, strategies, seeds, shots, rates)
    code = files_for_child(
        [part for run in runs for part in (run.task.document(), run.strategy.document(), run.config.training.model_dump())]
    )
    first = runs[0]
    if split_of(first.config.data) not in first.config.data.splits:
        raise UserError("compare: found no rows to compare on; set data.test, data.test_share or data.validation_share")
    find_model(first.config.model)
    needs_validation = split_of(first.config.data) == "validation" or len(plan.rates) > 1
    needs_validation = needs_validation or any(run.strategy.traits.needs_validation for run in runs)
    with RunServer(verbose, code) as server:
        splits = server.read(plan.document(_all_runs(plan)[0], folder), plan.seeds[0], needs_validation)
        say(*splits.notes)
        if splits.validation_share is not None:  # every run must make the same splits
            plan.base["data"] = {**plan.base["data"], "validation_share": splits.validation_share}
        with locked_folder(folder):
            documents = strategy_documents(plan, runs)
            _check_same(folder, plan, first, splits, documents)
            runner = _Runner(plan, folder, server, first, documents, keep_models)
            chosen = runner.run_all()
            summary = summarize(plan, chosen, first)
            write_tables(folder, summary, plan.seeds)
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if it cannot cache its list of fonts
            from nlp_transfer.experiments.comparison_page import write_page  # loads matplotlib

            write_page(folder / "comparison.html", summary, plan.seeds)
    _show(summary, plan, folder)
    return Comparison(folder, summary.rows, summary.advice, summary.metric, summary.split, runner.failed)


def _check_same(folder: Path, plan: Plan, run: Run, splits: Splits, strategies: dict[str, Any]) -> None:
    """Check that earlier runs in the folder have the same settings and data, so that they belong in one table.

    Args:
        run: any run of the comparison; only settings that all runs share are used.
        strategies: the settings of each strategy by label.

    Raises:
        UserError: settings or data differ. The message lists all differences.
    """
    problems = Problems(
        f"--output: {folder} contains a comparison with other settings; use another folder, or restore these settings"
    )
    config = run.config
    current: Document = {
        "model": config.model, "task": run.task.document(),
        "data": {name: portable(value) for name, value in config.data.model_dump().items() if name != "shots"},
        "training": {name: value for name, value in config.training.model_dump().items() if name != "seed"},
    }  # fmt: skip
    current = record_inputs(current, hash_inputs(run, find_model(config.model), splits.rows), splits.provenance())
    current = json.loads(json.dumps(current, default=str))
    path = folder / SHARED_SETTINGS
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        same, changed = compare_content(mapping(earlier.get("provenance")), current["provenance"])
        problems.extend(describe_changes(changed))
        for name, before, now in differences(earlier, current):
            if not is_location(name, [*same, *changed]):
                problems.add(f"{name}: {shorten(before)} before, {shorten(now)} now")
    for planned in _all_runs(plan):
        label, strategy_file = planned.variant.label, folder / "runs" / planned.name / STRATEGY_SETTINGS
        if strategy_file.exists():
            earlier = json.loads(strategy_file.read_text(encoding="utf-8"))
            for name, before, now in differences({"strategy": earlier}, {"strategy": strategies[label]}):
                message = f"--strategies {label}: {name}: {shorten(before)} before, {shorten(now)} now"
                if message not in problems.messages:
                    problems.add(message)
    problems.raise_if_any()
    if not path.exists():
        write_json(path, current)


def strategy_documents(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """Return the settings of each strategy as JSON, by label. Local models are replaced by their hashes."""
    labels = [variant.label for variant in plan.variants]
    return {label: json.loads(json.dumps(_portable_document(run.strategy))) for label, run in zip(labels, runs, strict=True)}


def _portable_document(strategy: Strategy) -> Any:
    document = {"strategy": strategy.document()}
    for name, files in hash_strategy(strategy).items():
        document = replaced(document, name, lambda _, files=files: [f"sha256:{digest}" for _, digest in files])
    return document["strategy"]


def _all_runs(plan: Plan) -> list[PlannedRun]:
    """Return every run that the plan can contain: for each seed, number of shots, strategy and rate."""
    return [
        PlannedRun(variant, shots, seed, rate)
        for seed in plan.seeds
        for shots in plan.shots
        for variant in plan.variants
        for rate in plan.rates_of(variant)
    ]


@dataclass
class _Runner:
    """Executes the runs of a plan one after the other and prints progress.

    Attributes:
        first: the resolved run of the first strategy, of which only settings that all runs share are used.
        strategies: the settings of each strategy by label.
        number: number of the current run, counted from 1.
        done: number of runs that this call has executed; `seconds` is their total duration.
        failed: name and error of each run that crashed.
    """

    plan: Plan
    folder: Path
    server: RunServer
    first: Run
    strategies: dict[str, Any]
    keep_models: bool
    number: int = 0
    done: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric by which strategies and rates are compared."""
        return self.first.task.scorer.compare_by(self.first.config.training.best_metric)

    def run_all(self) -> Chosen:
        """Execute all runs, seed by seed, so that every strategy has results early. The first seed selects the rate."""
        chosen: dict[tuple[str, int | None, int], tuple[PlannedRun, Outcome]] = {}
        for seed in self.plan.seeds:
            for shots in self.plan.shots:
                for variant in self.plan.variants:
                    first_seed = chosen.get((variant.label, shots, self.plan.seeds[0]))
                    rates = self.plan.rates_of(variant) if first_seed is None else [first_seed[0].rate]
                    runs = [PlannedRun(variant, shots, seed, rate) for rate in rates]
                    chosen[variant.label, shots, seed] = best = max(((run, self.execute(run)) for run in runs), key=self.rank)
                    if len(rates) > 1 and best[1].result is not None:
                        say(f"{variant.label}: {best[0].rate:g} times its default learning rate is best on validation")
        return chosen

    def rank(self, finished: tuple[PlannedRun, Outcome]) -> tuple[bool, float, float]:
        """Return a sort key for runs at several rates: the validation metric, then how close the rate is to the default."""
        run, outcome = finished
        value = outcome.metric("validation", self.metric)
        sign = 1 if self.first.task.scorer.higher_is_better(self.metric) else -1
        return outcome.result is not None, -math.inf if value is None else sign * value, -abs(math.log(run.rate))

    def execute(self, run: PlannedRun) -> Outcome:
        """Execute a run, unless it is already finished, and return its outcome."""
        self.number += 1
        document = self.plan.document(run, self.folder)
        title = f"run {self.number} of {self.plan.run_count}: {run.describe(len(self.plan.shots) > 1)}"
        outcome = read_outcome(Path(document["output_dir"]))
        if outcome is not None and outcome.result is not None:
            say(f"{title}: already finished")
            return outcome
        left = (self.plan.run_count - self.number + 1) * self.seconds / max(1, self.done)
        say(title + (f" (about {show_seconds(left)} left)" if self.done else ""))
        started = time.monotonic()
        outcome = self.server.run(document, run.rate, self.keep_models, {STRATEGY_SETTINGS: self.strategies[run.variant.label]})
        self.seconds += time.monotonic() - started
        self.done += 1
        if outcome.failed:
            self.failed.append(f"{run.name}: {first_characters(outcome.failed)}")
            say(f"warning: failed: {first_characters(outcome.failed)}; see {outcome.folder / LOG}")
        elif outcome.impossible:
            say(f"warning: not possible: {first_characters(outcome.impossible)}")
        else:
            split = split_of(self.first.config.data)
            value = outcome.metric(split, self.metric)
            say(f"  {self.metric} {'undefined' if value is None else show(value)} on {split}")
        return outcome


def _show(summary: Summary, plan: Plan, folder: Path) -> None:
    with_shots = len(plan.shots) > 1
    show_table("comparison", *table(summary, with_shots, brief=console.width < FULL_TABLE_WIDTH))
    say(*notes(summary, plan.seeds, with_shots), f"all metrics: {folder / 'comparison.csv'}, .json and .html")
    say(summary.advice, level=Level.QUIET)
