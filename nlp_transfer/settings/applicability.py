"""Determine which settings have an effect, depending on the command and on other settings."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from nlp_transfer.settings import registry
from nlp_transfer.settings.annotations import as_yaml
from nlp_transfer.utils.errors import Problems

FORMAT = ("data.encoding", "data.columns", "data.delimiter", "data.quoting")

COMMAND_SETTINGS: dict[str, tuple[str, ...]] = {
    "train": ("*",),
    "init": ("*",),
    "compare": ("*", "!training.seed"),
    "cross-validate": ("*", "!data.test", "!data.test_share", "!data.fold"),
    "tune": ("*", "!training.seed", "!data.fold"),
    "evaluate": ("data.test", "data.on_bad_rows", *FORMAT),
    "predict": FORMAT,
    "translate": FORMAT,
    "embed": FORMAT,
    "export": ("data.validation", "data.on_bad_rows", *FORMAT),
    "serve": (),
    "trim-vocabulary": ("data.validation", *FORMAT),
    "push": (),
}
"""Dotted names of the settings that have an effect, by command, besides those that tasks mark with `UsedBy`. `*` matches any
name; `!NAME` excludes NAME."""

SAME_TASK_SETTINGS = {"serve": ("predict", "translate"), "export": ("evaluate",)}
"""Commands that use the task settings of other commands."""

IDENTITY = ("task.name", "task.labels", "task.architecture")
"""Settings that cannot be changed when a saved model is loaded."""

NO_STEPS = frozenset(
    "epochs max_steps batch_size batch_tokens gradient_accumulation_steps learning_rate optimizer weight_decay schedule warmup "
    "max_grad_norm label_smoothing class_weights focal_gamma oversample augment dropout attention_dropout kernels "
    "gradient_checkpointing evaluate_every checkpoint_every keep_checkpoints early_stopping best_metric ema trackers "
    "logging_steps".split()
)
"""`training` settings that have no effect if the strategy takes no optimizer steps."""


class UsedBy:
    """Field metadata of a task: the setting can be changed when a saved model is loaded, by these commands.

    Example:
        `Annotated[float, UsedBy("evaluate", "predict")]`

    Args:
        commands: literal names of commands, since help is written without importing tasks. `load_predictor(settings=)` takes
            all settings with this marker.
        metrics: whether metrics depend on the setting even where predictions do not.
    """

    def __init__(self, *commands: str, metrics: bool = False) -> None:
        self.commands = commands
        self.metrics = metrics


def usage(settings_class: Any, name: str) -> UsedBy | None:
    """Return which commands use a setting of a task. None: it is fixed when the model is trained."""
    field = settings_class.model_fields.get(name)
    return next((marker for marker in (field.metadata if field else ()) if isinstance(marker, UsedBy)), None)


@cache  # parses the sources of all tasks
def _marked() -> dict[str, set[str]]:
    return registry.marked_settings("task", UsedBy.__name__)


def command_settings(command: str) -> tuple[str, ...]:
    """Return the dotted names of the settings that a command uses, as in `COMMAND_SETTINGS`."""
    users = {command, *SAME_TASK_SETTINGS.get(command, ())}
    return (*COMMAND_SETTINGS[command], *(name for name, commands in _marked().items() if users & commands))


def takes(command: str, name: str) -> bool:
    """Whether a command uses the setting with this dotted name."""
    patterns = command_settings(command)
    return any(fnmatchcase(name, pattern) for pattern in patterns) and f"!{name}" not in patterns


def check_arguments(command: str, document: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check that all settings on the command line have an effect on the command.

    Args:
        document: settings by section (`data`, `task`) and name.
        known: the dotted names of all settings. Unknown names are ignored here; the schema reports them.

    Raises:
        UserError: settings have no effect on this command; lists all of them.
    """
    known, problems = set(known), Problems()
    allowed = ", ".join(f"--{name}" for name in command_settings(command))
    for section, settings in document.items():
        for setting in settings if isinstance(settings, Mapping) else ():
            name = f"{section}.{setting}"
            if name in known and name not in IDENTITY and not takes(command, name):
                problems.add(f"--{name}: has no effect on {command}, {_why(command, name)}; allowed: {allowed}")
    problems.raise_if_any()


def _why(command: str, name: str) -> str:
    if name.startswith("data."):
        return "which only reads --data.test" if command == "evaluate" else "which only reads --input"
    if name in _marked():
        return "which does not use it"
    return "since it was fixed when the model was trained"


class UsedWith:
    """Field metadata: the field has an effect only if other fields of the same settings have certain values.

    Each keyword argument is the name of another field; its value is the required value of that field, or `Not(value)`.

    Example:
        `Annotated[float, UsedWith(classifier="logistic_regression")]`
    """

    def __init__(self, **values: Any) -> None:
        self.values = values

    def unmet(self, settings: Any, prefix: str) -> str | None:
        """Return why the field has no effect, or None if it has an effect; `prefix` is the section of the settings."""
        for name, expected in self.values.items():
            value, dotted = getattr(settings, name), f"{prefix}.{name}"
            if isinstance(expected, Not):
                if value == expected.value:
                    return f"{dotted} is {as_yaml(value)}"
            elif value != expected:
                return f"{dotted} overrides it" if expected is None else f"it is only used with {dotted} {as_yaml(expected)}"
        return None


class Not:
    """A condition of `UsedWith`: any value except this one."""

    def __init__(self, value: Any) -> None:
        self.value = value


def unused_fields(settings: Any, prefix: str) -> dict[str, str]:
    """Return the fields without effect (see `UsedWith`), as a mapping from their dotted names to the reasons."""
    return {
        f"{prefix}.{name}": reason
        for name, field in type(settings).model_fields.items()
        for condition in field.metadata
        if isinstance(condition, UsedWith) and (reason := condition.unmet(settings, prefix)) is not None
    }


def given_fields(settings: Any, prefix: str) -> set[str]:
    """Return the dotted names of the fields that were set to a value other than the default."""

    def differs(value: Any, default: Any) -> bool:
        return type(value) is not type(default) or bool(value != default)  # data frames are only compared by type

    fields = type(settings).model_fields
    return {f"{prefix}.{name}" for name in settings.model_fields_set if differs(getattr(settings, name), fields[name].default)}


def refuse_unused(reasons: Mapping[str, str], given: Iterable[str], problems: Problems) -> None:
    """Add a problem for each setting in `given` that has no effect; `reasons` maps dotted names to reasons."""
    for name in sorted(set(given) & reasons.keys()):
        problems.add(f"{name}: has no effect: {reasons[name]}; leave it out")


def check_used(task: Any, scored: bool) -> None:
    """Check that all settings that override the settings of a loaded model affect its predictions.

    Args:
        scored: whether the predictions may also be scored.

    Raises:
        UserError: settings have no effect; lists all of them.
    """
    problems = Problems()
    reasons = unused_fields(task, "task")
    for name, reason in task._unused.items():
        if not (scored and (used := usage(type(task), name)) and used.metrics):
            reasons[f"task.{name}"] = reason
    refuse_unused(reasons, (f"task.{name}" for name in task._changed), problems)
    problems.raise_if_any()
