"""Many stories, one table: the same data with several strategies and seeds, and which of them to take."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.sources.portable_paths import mapping, portable, replaced
from nlp_transfer.data.splits import Splits, read_splits
from nlp_transfer.experiments.advice import show, show_seconds
from nlp_transfer.experiments.comparison_page import write_page
from nlp_transfer.experiments.plan import Job, Plan, make_plan
from nlp_transfer.experiments.results_table import notes, table, write_tables
from nlp_transfer.experiments.runs import LOG, Outcome, Server, claimed, read_outcome
from nlp_transfer.experiments.summary_rows import Measured, Row, make_rows, one_line, split_of
from nlp_transfer.run.document import read_document
from nlp_transfer.run.folder import differences, is_location
from nlp_transfer.run.provenance import compare_content, describe_changes, hash_inputs, hash_strategy, record_inputs
from nlp_transfer.run.resolve import Run
from nlp_transfer.settings.extensions import files_for_child
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.settings.schema import Document, RunConfig
from nlp_transfer.strategies import Strategy
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.console import console, say, show_table
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten

BASE, SETTINGS = "settings.json", "strategy.json"
WIDE = 130  # columns of a terminal that has room for the whole table
Chosen = dict[tuple[str, int | None, int], tuple[Job, Outcome]]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its rows (one for each strategy and number of shots), and the advice that follows from them."""

    output_dir: Path
    rows: list[Row]
    advice: str
    metric: str
    split: str
    failed: list[str] = field(default_factory=list)
    """What was run and crashed; each run's log is in its folder."""


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
    """Fine-tunes with each strategy and each seed, every run in a process of its own, and says which strategy to take.

    What is finished in `output_dir` is not run again, so that a comparison can be interrupted and gone on with, and strategies
    and seeds can be added.

    Args:
        config: as for `fine_tune`; `settings` win over it.
        strategies: names, documents, or lists of these; the first is the one that all are compared with.
        shots: rows of each label to learn from, one learning curve point each; `"all"` or None in it: all rows.
        rates: factors on each strategy's own learning rate; validation of the first seed decides, for the other seeds too.
        output_dir: None: the document's own with `-comparison` behind it.
        keep_models: whether the models of the runs stay; else only their answers do.
        verbose: whether what a run prints is shown.

    Raises:
        UserError: something in the settings or the data is wrong, or `output_dir` holds a comparison of other settings.
    """
    if world_size() > 1:
        raise UserError(f"compare: found {world_size()} processes; allowed: one, which gives each run a process")
    check_launch()
    raw = _raw(config, settings)
    if output_dir is None and not isinstance(raw.get("output_dir"), (str, Path)):
        raise UserError("--output: is required where the document has no output_dir")
    folder = expand(output_dir or f"{raw['output_dir']}-comparison")
    plan, runs = make_plan(raw, strategies, seeds, shots, rates)
    code = files_for_child([part.document() for run in runs for part in (run.task, run.strategy)])
    first = runs[0]
    if split_of(first.config.data) not in first.config.data.splits:
        raise UserError("compare: needs rows to compare on; set data.test, data.test_share or data.validation_share")
    find_model(first.config.model)
    decides = split_of(first.config.data) == "validation" or len(plan.rates) > 1
    decides = decides or any(run.strategy.needs_validation() for run in runs)
    splits, _ = read_splits(first.config.data, first.task, first.config.training, plan.seeds[0], decides)
    say(*splits.notes)
    if splits.validation_share is not None:  # every run makes the same splits, whatever settings its strategy leaves out
        plan.base["data"] = {**plan.base["data"], "validation_share": splits.validation_share}
    with claimed(folder):
        documents = strategy_documents(plan, runs)
        _check_same(folder, plan, first, splits, documents)
        with Server(verbose, code) as server:
            runner = _Runner(plan, folder, server, first, documents, keep_models)
            chosen = runner.all()
        measured = make_rows(plan, chosen, first)
        write_tables(folder, measured, plan.seeds)
        write_page(folder / "comparison.html", measured, plan.seeds)
    _show(measured, plan, folder)
    return Comparison(folder, measured.rows, measured.advice, measured.metric, measured.split, runner.failed)


def _raw(config: RunConfig | Document | str | Path | None, settings: dict[str, Any]) -> Document:
    if isinstance(config, RunConfig):
        raw: Document = {name: getattr(config, name) for name in config.model_fields_set}
    else:
        raw = read_document(config) if isinstance(config, (str, Path)) else dict(config or {})
    raw |= settings
    for name, value in raw.items():
        if name in ("data", "training") and hasattr(value, "model_dump"):
            raw[name] = value.model_dump(exclude_unset=True)
        elif name in ("task", "strategy") and hasattr(value, "document"):
            raw[name] = value.document()
    return raw


def _check_same(folder: Path, plan: Plan, run: Run, splits: Splits, strategies: dict[str, Any]) -> None:
    """Figures of other settings must not stand in one table: what is written down must be what holds now.

    Args:
        run: any one of the comparison, for what all of them share.
        strategies: every setting of each, by label.
    """
    problems = Problems(
        f"--output: {folder} holds a comparison of other settings; give another folder, or restore these settings"
    )
    config = run.config
    now: Document = {
        "model": config.model, "task": run.task.document(),
        "data": {name: portable(value) for name, value in config.data.model_dump().items() if name != "shots"},
        "training": {name: value for name, value in config.training.model_dump().items() if name != "seed"},
    }  # fmt: skip
    now = record_inputs(now, hash_inputs(run, find_model(config.model), splits.rows), splits.provenance())
    now = json.loads(json.dumps(now, default=str))
    path = folder / BASE
    if path.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        same, others = compare_content(mapping(then.get("provenance")), now["provenance"])
        problems.extend(describe_changes(others))
        for name, before, found in differences(then, now):
            if not is_location(name, [*same, *others]):
                problems.add(f"{name}: {shorten(before)} before, {shorten(found)} now")
    for job in _jobs(plan):
        written = folder / "runs" / job.name / SETTINGS
        if written.exists():
            kept = json.loads(written.read_text(encoding="utf-8"))
            for name, before, found in differences({"strategy": kept}, {"strategy": strategies[job.way.label]}):
                message = f"--strategies {job.way.label}: {name}: {shorten(before)} before, {shorten(found)} now"
                if message not in problems.messages:
                    problems.add(message)
    problems.raise_if_any()
    if not path.exists():
        write_json(path, now)


def strategy_documents(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """By label, every setting of a strategy, as JSON has it; local models by what is in them."""
    return {way.label: json.loads(json.dumps(_document(run.strategy))) for way, run in zip(plan.ways, runs, strict=True)}


def _document(strategy: Strategy) -> Any:
    document = {"strategy": strategy.document()}
    for name, files in hash_strategy(strategy).items():
        document = replaced(document, name, lambda _, files=files: [f"sha256:{digest}" for _, digest in files])
    return document["strategy"]


def _jobs(plan: Plan) -> list[Job]:
    """Every run there may be: at each rate for the first seed, and for the others at the one that will have been chosen."""
    return [
        Job(way, shots, seed, rate)
        for seed in plan.seeds
        for shots in plan.shots
        for way in plan.ways
        for rate in plan.rates_of(way)
    ]


@dataclass
class _Runner:
    """Does the runs of a plan, and says where it stands."""

    plan: Plan
    folder: Path
    server: Server
    first: Run
    strategies: dict[str, Any]
    keep_models: bool
    number: int = 0
    done: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric that strategies and rates are compared by."""
        return self.first.task.metric_to_compare(self.first.config.training.best_metric)

    def all(self) -> Chosen:
        """Seed by seed, so that an early stop leaves figures of every strategy; the first seed chooses the rate."""
        chosen: Chosen = {}
        for seed in self.plan.seeds:
            for shots in self.plan.shots:
                for way in self.plan.ways:
                    known = chosen.get((way.label, shots, self.plan.seeds[0]))
                    rates = self.plan.rates_of(way) if known is None else [known[0].rate]
                    ended = [(job, self.one(job)) for job in (Job(way, shots, seed, rate) for rate in rates)]
                    chosen[way.label, shots, seed] = best = max(ended, key=self.rank)
                    if len(rates) > 1 and best[1].result is not None:
                        say(f"{way.label}: validation chose {best[0].rate:g} times its own learning rate")
        return chosen

    def rank(self, ended: tuple[Job, Outcome]) -> tuple[bool, float, float]:
        """Runs at several rates by their figure on validation; of equal ones the rate nearest to the strategy's own."""
        job, outcome = ended
        figure = outcome.figure("validation", self.metric)
        sign = 1 if self.first.task.higher_is_better(self.metric) else -1
        return outcome.result is not None, -math.inf if figure is None else sign * figure, -abs(math.log(job.rate))

    def one(self, job: Job) -> Outcome:
        """A run, unless it is done."""
        self.number += 1
        document = self.plan.document(job, self.folder)
        title = f"run {self.number} of {self.plan.runs}: {job.describe(len(self.plan.shots) > 1)}"
        outcome = read_outcome(Path(document["output_dir"]))
        if outcome is not None and outcome.result is not None:
            say(f"{title}: is done")
            return outcome
        left = (self.plan.runs - self.number + 1) * self.seconds / max(1, self.done)
        say(title + (f" (about {show_seconds(left)} left)" if self.done else ""))
        started = time.monotonic()
        outcome = self.server.run(document, job.rate, self.keep_models, {SETTINGS: self.strategies[job.way.label]})
        self.seconds += time.monotonic() - started
        self.done += 1
        if outcome.failed:
            self.failed.append(f"{job.name}: {one_line(outcome.failed)}")
            say(f"warning: failed: {one_line(outcome.failed)}; its log is {outcome.folder / LOG}")
        elif outcome.impossible:
            say(f"warning: not possible: {one_line(outcome.impossible)}")
        else:
            split = split_of(self.first.config.data)
            figure = outcome.figure(split, self.metric)
            say(f"  {self.metric} {'undefined' if figure is None else show(figure)} on {split}")
        return outcome


def _show(measured: Measured, plan: Plan, folder: Path) -> None:
    with_shots = len(plan.shots) > 1
    show_table("comparison", *table(measured, with_shots, brief=console.width < WIDE))
    say(*notes(measured, plan.seeds, with_shots), f"all figures: {folder / 'comparison.csv'}, .json and .html", measured.advice)
