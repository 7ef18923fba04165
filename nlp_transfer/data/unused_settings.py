"""Find settings that the user set but that have no effect in a run, and refuse or report them."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import HUB_DATA, wheels
from nlp_transfer.data.sources.file_reading import format_of, has_lines
from nlp_transfer.data.splits import UNLABELLED
from nlp_transfer.settings.applicability import FORMAT, NO_STEPS, given_fields, refuse_unused, unused_fields
from nlp_transfer.settings.schema import DataConfig, RunConfig
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

_BY_EXTENSION = {
    ".csv": FORMAT, ".tsv": FORMAT, ".jsonl": FORMAT[:1], ".json": FORMAT[:1], ".txt": FORMAT[:1], ".parquet": (),
}  # fmt: skip


@dataclass
class Unused:
    """Settings without effect that the user set. The attributes map the dotted name of each setting to the reason.

    Attributes:
        refused: Settings that contradict the strategy.
        reported: Settings that are harmless, for example in a file that is shared by several strategies and datasets.
    """

    refused: dict[str, str] = field(default_factory=dict)
    reported: dict[str, str] = field(default_factory=dict)


def find_unused(
    config: RunConfig, task: Any, strategy: Any, parts: Mapping[str, Any], nested: Mapping[str, tuple[DataConfig, Any]]
) -> Unused:
    """Return the settings without effect that the user changed from their defaults.

    Args:
        parts: Each strategy of a list, or the single strategy, under its dotted name (`strategies.parts_of`).
        nested: Data and task of each additional task in the strategy's settings. The key is the dotted name of the additional
            task.
    """
    unused = Unused()
    set_by_user = given_fields(config.data, "data") | given_fields(config.training, "training") | given_fields(task, "task")
    for name, reason in without_effect(config, task, strategy).items():
        if name in set_by_user:  # without data.train, data.unlabelled does not contradict the strategy
            refused = name == f"data.{UNLABELLED}" and config.data.train is not None
            (unused.refused if refused else unused.reported)[name] = reason
    by_strategy = unused_by_strategy(config.data, task, strategy)
    for place, part in parts.items():
        fields = given_fields(part, place)
        unused.refused |= {name: why for name, why in (unused_fields(part, place) | by_strategy).items() if name in fields}
    for prefix, (data, inner_task) in nested.items():
        fields = given_fields(data, f"{prefix}.data") | given_fields(inner_task, f"{prefix}.task")
        reasons = _unused_data(data, f"{prefix}.data", uses_unlabelled=False)
        for name, why in (reasons | unused_fields(inner_task, f"{prefix}.task")).items():
            if name in fields:
                (unused.refused if name.endswith(f".{UNLABELLED}") else unused.reported)[name] = why
    return unused


def unused_by_strategy(data: DataConfig, task: Any, strategy: Any) -> dict[str, str]:
    """Return the settings that have no effect with a strategy, as a mapping from their dotted names to the reasons."""
    strategy.check(data, task, checked := Problems())
    return checked.unused


def without_effect(config: RunConfig, task: Any, strategy: Any) -> dict[str, str]:
    """Return the settings in `data`, `training` and `task` that would have no effect if the user set them, with the reasons."""
    training = config.training
    reasons = _unused_data(config.data, "data", strategy.traits.uses_unlabelled)
    reasons |= unused_fields(training, "training") | unused_fields(task, "task") | unused_by_strategy(config.data, task, strategy)
    if not strategy.traits.takes_steps:
        reasons |= {f"training.{setting}": "the strategy takes no optimizer steps" for setting in NO_STEPS}
    if "validation" not in config.data.splits:
        reasons |= {f"task.{setting}": "there is no validation split" for setting in task.traits.validation_settings}
        reasons.setdefault("training.best_metric", "there is no validation split")
        only = "" if training.checkpoint_every else "; it only determines when checkpoints are written"
        reasons.setdefault("training.evaluate_every", f"there is no validation split{only}")
    return {setting: reason for setting, reason in reasons.items() if setting not in strategy.traits.always_used}


def _unused_data(data: DataConfig, prefix: str, uses_unlabelled: bool) -> dict[str, str]:
    reasons = unused_fields(data, prefix)
    if not uses_unlabelled:
        reasons[f"{prefix}.{UNLABELLED}"] = "the strategy, with these settings, does not use unlabeled rows"
    if data.train is None:
        reasons |= {
            f"{prefix}.{name}": "there is no data.train"
            for name in ("validation_share", "test_share", "shots", "group", "weight")
        }
    elif not any(getattr(data, role) is None and getattr(data, f"{role}_share") for role in ("validation", "test")):
        reasons[f"{prefix}.group"] = "no split is created: validation and test are given, or their shares are 0"
    sources = [getattr(data, role) for role in ("train", "validation", "test", UNLABELLED)]
    used = format_settings(source for source in sources if source is not None)
    for name in FORMAT:
        if name not in used:
            reasons[name.replace("data", prefix, 1)] = "no data source has a format with this setting"
    return reasons


def format_settings(sources: Iterable[Any]) -> set[str]:
    """Return the settings of `FORMAT` that affect how the sources are read.

    Returns all of them if the format of a source is not known in advance, as for a glob without an extension.
    """
    return {name for source in sources for name in _format_settings(source)}


def _format_settings(source: Any) -> Iterable[str]:
    if isinstance(source, Mapping):  # line-aligned files
        return _BY_EXTENSION[".txt"]
    if not isinstance(source, (str, Path)):
        return ()
    try:
        inner = wheels.parse(str(source)).path if wheels.is_wheel(str(source)) else str(source)
    except UserError:  # reported when the source is read
        return FORMAT
    path = expand(inner)
    if inner == str(source) and (os.path.isdir(path) or has_lines(path)):  # class folders, or a text file
        return _BY_EXTENSION[".txt"]
    if extension := format_of(path):
        return _BY_EXTENSION[extension]
    is_hub = inner == str(source) and HUB_DATA.match(inner) and not (os.path.exists(path) or inner.startswith("."))
    return () if is_hub else FORMAT


def unused_columns(task: Any, source: Any) -> list[str]:
    """Return a line about column names that were overridden at loading, if the source has no column names."""
    if not isinstance(source, Mapping) and (Path(source).suffix.lower() in task.traits.readers or not has_lines(source)):
        return []
    names = sorted(f"task.{name}" for name in task._changed if getattr(task, name) in [*task.inputs, *task.targets])
    return [f"no effect: {', '.join(names)} (the columns of {source} have no names)"] if names else []


def check_format_settings(data: DataConfig, source: Any, problems: Problems) -> None:
    """Add a problem for each setting of `FORMAT` that the user set but that does not affect how a source is read."""
    used = format_settings([source])
    reasons = {name: f"the format of {source} does not have this setting" for name in FORMAT if name not in used}
    refuse_unused(reasons, given_fields(data, "data"), problems)


def describe_unused(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each reason, from pairs of a dotted name and a reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(reasons):
        by_reason.setdefault(reason, []).append(name)
    return [f"no effect: {', '.join(names)} ({reason})" for reason, names in by_reason.items()]
