"""Execute the runs of an experiment (a comparison, a cross-validation or a search) one after the other, in a locked folder."""

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.sources.portable_paths import mapping, portable, replaced
from nlp_transfer.data.splits import Splits
from nlp_transfer.experiments.advice import show, show_seconds
from nlp_transfer.experiments.plan import Plan
from nlp_transfer.experiments.runs import LOG, Outcome, RunServer, locked_folder, read_outcome
from nlp_transfer.experiments.summary_rows import first_characters
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
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten
from nlp_transfer.utils.interrupts import Interrupted

SHARED_SETTINGS = "settings.json"  # in the folder of an experiment
STRATEGY_SETTINGS = "strategy.json"  # in the folder of each run


def raw_settings(config: RunConfig | Document | str | Path | None, settings: Mapping[str, Any], command: str) -> Document:
    """Return the settings of an experiment as a document, with tasks and strategies as documents.

    Raises:
        UserError: the experiment was started with several processes.
    """
    if world_size() > 1:
        raise UserError(f"{command}: found WORLD_SIZE={world_size()}; allowed: a single process, which starts the runs")
    check_launch()
    return {name: as_plain(value) for name, value in (as_document(config) | dict(settings)).items()}


def output_folder(raw: Document, output_dir: str | Path | None, suffix: str) -> Path:
    """Return the output folder: `output_dir`, or by default that of the settings followed by `suffix`.

    Raises:
        UserError: there is neither.
    """
    if output_dir is None and not isinstance(raw.get("output_dir"), (str, Path)):
        raise UserError("--output: is required because the document has no output_dir")
    return expand(output_dir or f"{raw['output_dir']}{suffix}")


@dataclass
class Experiment:
    """Executes runs and prints progress.

    Attributes:
        folder: output folder.
        server: executes the runs.
        metric: the metric that is printed after each run.
        split: the split whose metric is printed.
        run_count: number of runs.
        keep_models: whether to keep the models of the runs.
        number: number of the current run, counted from 1.
        done: number of runs that this call has executed; `seconds` is their total duration.
        failed: name and error of each run that crashed.
    """

    folder: Path
    server: RunServer
    metric: str
    split: str
    run_count: int
    keep_models: bool = False
    number: int = 0
    done: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def execute(self, title: str, document: Document, notes: dict[str, Any], rate: float = 1.0, **options: Any) -> Outcome:
        """Execute a run, unless it is already finished, and return its outcome.

        Args:
            title: description of the run.
            document: settings of the run.
            notes: JSON documents to write into the run's folder, by file name.
            rate: factor by which the strategy's default learning rate is multiplied.
            options: further options for `RunServer.run`.
        """
        self.number += 1
        title = f"run {self.number} of {self.run_count}: {title}"
        outcome = read_outcome(Path(document["output_dir"]))
        if outcome is not None and (outcome.result is not None or outcome.pruned):
            say(f"{title}: already finished")
            return outcome
        left = (self.run_count - self.number + 1) * self.seconds / max(1, self.done)
        say(title + (f" (about {show_seconds(left)} left)" if self.done else ""))
        started = time.monotonic()
        outcome = self.server.run(document, rate, self.keep_models, notes, **options)
        self.seconds += time.monotonic() - started
        self.done += 1
        if outcome.failed:
            self.failed.append(f"{outcome.folder.name}: {first_characters(outcome.failed)}")
            say(f"warning: failed: {first_characters(outcome.failed)}; see {outcome.folder / LOG}")
        elif outcome.impossible:
            say(f"warning: not possible: {first_characters(outcome.impossible)}")
        elif outcome.pruned:
            say(f"  {outcome.pruned}")
        else:
            value = outcome.metric(self.split, self.metric)
            say(f"  {self.metric} {'undefined' if value is None else show(value)} on {self.split}")
        return outcome


@contextmanager
def open_experiment(
    plan: Plan, runs: Sequence[Run], folder: Path, split: str, *, needs_validation: bool, keep_models: bool = False,
    verbose: bool = False, search: Document | None = None,
) -> Iterator[Experiment]:  # fmt: skip
    """Read the data once for all runs, lock the folder, and check that its earlier runs belong to this experiment.

    Args:
        plan: its base receives the resolved `data.validation_share`, so that every run makes the same splits.
        runs: a resolved run of each strategy.
        split: the split whose metric is printed after each run.
        needs_validation: whether a validation split is required, even a small one.
        search: further settings that earlier runs must have had, such as the search space.

    Raises:
        UserError: the data cannot be used, or the folder contains an experiment with other settings.
    """
    first = runs[0]
    code = files_for_child(
        [part for run in runs for part in (run.task.document(), run.strategy.document(), run.config.training.model_dump())]
    )
    find_model(first.config.model)
    needs_validation = needs_validation or any(run.strategy.traits.needs_validation for run in runs)
    with RunServer(verbose, code) as server:
        splits = server.read(plan.document(plan.all_runs()[0], folder), plan.seeds[0], needs_validation)
        say(*splits.notes)
        if splits.validation_share is not None:
            plan.base["data"] = {**plan.base["data"], "validation_share": splits.validation_share}
        with locked_folder(folder):
            _check_same(folder, plan, first, splits, strategy_documents(plan, runs), search)
            metric = first.task.scorer.compare_by(first.config.training.best_metric)
            try:
                yield Experiment(folder, server, metric, split, plan.run_count, keep_models)
            except KeyboardInterrupt as error:
                kept = f"finished runs are kept in {folder}; to continue, run the same command again"
                raise Interrupted(getattr(error, "number", signal.SIGINT), kept) from error


def _check_same(folder: Path, plan: Plan, run: Run, splits: Splits, strategies: dict[str, Any], search: Document | None) -> None:
    """Check that earlier runs in the folder have the same settings and data, so that they belong in one table.

    Args:
        run: any run of the experiment; only settings that all runs share are used.
        strategies: the settings of each strategy by label.
        search: further settings.

    Raises:
        UserError: settings or data differ. The message lists all differences.
    """
    problems = Problems(
        f"--output: {folder} contains an experiment with other settings; use another folder, or restore these settings"
    )
    config = run.config
    current: Document = {
        "model": config.model, "task": run.task.document(),
        "data": {name: portable(value) for name, value in config.data.model_dump().items() if name not in ("shots", "fold")},
        "training": {name: value for name, value in config.training.model_dump().items() if name != "seed"},
        **({"search": search} if search else {}), **({"folds": plan.folds} if plan.folds else {}),
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
    for planned in plan.all_runs():
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


def strategy_documents(plan: Plan, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the settings of each strategy as JSON, by label. Local models are replaced by their hashes."""
    labels = [variant.label for variant in plan.variants]
    return {label: json.loads(json.dumps(_portable_document(run.strategy))) for label, run in zip(labels, runs, strict=True)}


def _portable_document(strategy: Strategy) -> Any:
    document = {"strategy": strategy.document()}
    for name, files in hash_strategy(strategy).items():
        document = replaced(document, name, lambda _, files=files: [f"sha256:{digest}" for _, digest in files])
    return document["strategy"]
