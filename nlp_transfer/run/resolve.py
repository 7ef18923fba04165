"""Validate a raw document and create its task and strategy; report all problems at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nlp_transfer.data.bad_rows import check_filter
from nlp_transfer.data.sources.aligned_files import check_no_aligned
from nlp_transfer.data.splits import check_shares
from nlp_transfer.data.unused_settings import Unused, find_unused
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.run.document import as_document
from nlp_transfer.run.run import Run
from nlp_transfer.run.validation_fit import check_calibration
from nlp_transfer.settings import registry
from nlp_transfer.settings.applicability import refuse_unused
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.extensions import load_function
from nlp_transfer.settings.schema import RunConfig, TrainingConfig, expand_name
from nlp_transfer.settings.validation import validate
from nlp_transfer.strategies import Strategy, check_strategy, nested_tasks, parts_of, strategy_from
from nlp_transfer.tasks import Task, task_from, task_name
from nlp_transfer.training.callbacks import Callback, callback_class, check_callbacks
from nlp_transfer.training.optimizer import find_optimizer
from nlp_transfer.training.trackers import check_trackers
from nlp_transfer.utils.errors import Problems, UserError, did_you_mean

SEARCH_SPACE = "tune"  # a section of settings files that only the command of this name uses


def resolve(
    config: RunConfig | Document | str | Path | None = None,
    *,
    shared: bool = False,
    metrics: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Validate the settings of a run and create its task and strategy.

    Args:
        config: a file, a document or typed settings. `task` and `strategy` may be documents or objects, or classes without
            required settings.
        shared: whether several strategies share the settings. If so, data settings without effect are allowed.
        metrics: user metrics in addition to `training.metrics`, see `fine_tune`. If there are any, `best_metric` is not checked,
            since the names of their values are not known yet.
        callbacks: user callbacks, see `fine_tune`.
        settings: settings by name, which override those in `config`.

    Raises:
        UserError: settings are invalid. The message lists all problems.
    """
    UserMetrics(metrics)  # report wrong arguments first
    callbacks = check_callbacks(callbacks)
    raw = as_document(config) | settings
    has_space = raw.pop(SEARCH_SPACE, None) is not None
    problems = Problems("settings")
    checked = validate(RunConfig, {name: as_plain(value) for name, value in raw.items()}, problems)
    task: Any = _build(task_from, None if isinstance(raw.get("task"), list) else raw.get("task"), problems)
    strategy: Any = _build(strategy_from, raw.get("strategy", "full"), problems)
    user_metrics = UserMetrics([*metrics, *(_load_metrics(checked, problems) if checked is not None else ())])
    if checked is not None:
        _check_together(checked, task, problems, bool(user_metrics) or bool(checked.training.metrics))
    unused = Unused()
    if checked is not None and task is not None and strategy is not None:
        nested = nested_tasks(strategy)
        for each_task in (task, *(inner_task for _, inner_task in nested.values())):
            _check_columns(each_task, problems)
        task = check_strategy(strategy, checked.data, task, problems)
        check_calibration(task, checked.data.splits, {name: inner for name, (_, inner) in nested.items()}, problems)
        unused = find_unused(checked, task, strategy, parts_of(strategy), nested)
        accepted = {name for name in unused.refused if shared and name.startswith("data.")}
        unused.reported |= {name: unused.refused.pop(name) for name in accepted}
        refuse_unused(unused.refused, unused.refused, problems)
    if has_space:
        unused.reported[SEARCH_SPACE] = "it is the search space of `nlp-transfer tune`"
    problems.raise_if_any()
    assert checked is not None
    return Run(checked, task, strategy, unused.reported, user_metrics, callbacks)


def _load_metrics(config: RunConfig, problems: Problems) -> list[Any]:
    metrics = []
    for name in config.training.metrics:
        try:
            metrics.append(registry.load_metric(name))
        except UserError as error:
            problems.absorb(error)
    return metrics


def as_plain(value: Any) -> Any:
    """Return the document of a task, a strategy, a class of these, a list of strategies or typed settings; other values as is."""
    named = _named(value)
    if isinstance(named, (Task, Strategy)):
        return named.document()
    if isinstance(named, list):
        return [as_plain(part) for part in named]
    return named.model_dump(exclude_unset=True) if hasattr(named, "model_dump") else named


def _named(value: Any) -> Any:
    """Replace task and strategy classes with documents that name them."""
    if isinstance(value, type) and issubclass(value, (Task, Strategy)):
        return {"name": registry.name_of(value)}
    if isinstance(value, Mapping) and isinstance(value.get("name"), type):
        return {**value, "name": registry.name_of(value["name"])}
    return [_named(part) for part in value] if isinstance(value, list) else value


def _build(build: Any, value: Any, problems: Problems) -> Any:
    if isinstance(value, (Task, Strategy)):
        return value
    document = expand_name(_named(value))
    if isinstance(document, list):
        if not all(isinstance(part, (Mapping, Strategy)) for part in document):
            return None
    elif not isinstance(document, Mapping):  # missing, or of a wrong type, which the schema has reported
        return None
    try:
        return build(document)
    except UserError as error:
        problems.absorb(error)
        return None


def _check_together(config: RunConfig, task: Task | None, problems: Problems, user_metrics: bool = False) -> None:
    """Check settings that depend on each other."""
    data, training = config.data, config.training
    check_shares(data, problems)
    if training.early_stopping and data.train is not None and "validation" not in data.splits:
        problems.add("training.early_stopping: needs a validation split; set data.validation or data.validation_share")
    check_trackers(training.trackers, problems)
    _check_code(training, problems)
    if task is not None:
        if not user_metrics:
            check_best_metric(training.best_metric, task, problems)
        task.fit(None, problems, training)
        check_filter(data, task.traits.filters, problems)
        if not task.traits.aligned:
            check_no_aligned(data, [*task.inputs, *task.targets], problems)


def _check_columns(task: Task, problems: Problems) -> None:
    """Check that no input column has the name of an output column of `predictions/SPLIT.parquet`."""
    added = ["reference", "prediction", *(["probability"] if task.traits.has_probabilities else [])]
    for name in task.inputs:
        if name in added:
            problems.add(
                f"task: the input column {name!r} has the name of an output column of `predictions/SPLIT.parquet`; rename it "
                "in the data"
            )


def check_best_metric(name: str | None, task: Task, problems: Problems) -> None:
    """Report a `training.best_metric` that is not a metric of the task."""
    known = [*task.traits.metrics, "loss"]
    if name is not None and name not in known:
        problems.add(
            f"training.best_metric: found {name!r}, which {task_name(task)} does not compute{did_you_mean(name, known)}; "
            f"allowed: {', '.join(known)}; and metrics of training.metrics, or in Python of fine_tune(metrics=[...])"
        )


def _check_code(training: TrainingConfig, problems: Problems) -> None:
    """Check that the classes and functions that training settings name can be loaded."""
    checks: list[Callable[[], object]] = [
        lambda: find_optimizer(training.optimizer),
        *(partial(callback_class, i, name) for i, name in enumerate(training.callbacks)),
        *(
            partial(load_function, f"training.{name}", value)
            for name, value in (("schedule", training.schedule), ("augment", training.augment))
            if isinstance(value, str) and ":" in value
        ),
    ]
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.absorb(error)
