"""Which settings have an effect where: for each command in one table, and for fields that depend on others as metadata."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from nlp_transfer.utils.errors import Problems

FORMAT = ("data.encoding", "data.columns", "data.delimiter", "data.quoting")
_TEXT = ("task.text", "task.text_pair")
_INPUT = (*_TEXT, "task.source", "task.max_length", "task.longest_source")
_LANGUAGES = ("task.source_language", "task.target_language")
_SEARCH = ("task.prefix", "task.beams", "task.length_penalty", "task.length_ratio")
_SCORED = ("task.label", "task.label_format", "task.target", "task.separator", "task.threshold")

COMMAND_SETTINGS: dict[str, tuple[str, ...]] = {
    "train": ("*",),
    "compare": ("*", "!training.seed"),
    "evaluate": ("data.test", "data.on_bad_rows", *FORMAT, *_INPUT, *_LANGUAGES, *_SEARCH, *_SCORED),
    "predict": (*FORMAT, *_TEXT, "task.max_length", "task.label_type", "task.separator", "task.threshold"),
    "translate": (*FORMAT, "task.source", "task.max_length", "task.longest_source", *_LANGUAGES, *_SEARCH),
    "push": (),
    "load_predictor": (*_INPUT, *_LANGUAGES, *_SEARCH, *_SCORED, "task.label_type", "task.translated_rows"),
}
"""By command, and for `load_predictor(settings=)`: the dotted names of the settings that have an effect there. `*` stands for
any name; a name behind `!` is taken out again."""

IDENTITY = ("task.name", "task.labels", "task.architecture")
"""What a saved model was trained for. Loading refuses any other value than the saved one."""

NO_STEPS = frozenset(
    "epochs max_steps batch_size batch_tokens gradient_accumulation_steps learning_rate weight_decay schedule warmup "
    "max_grad_norm label_smoothing class_weights focal_gamma oversample augment dropout attention_dropout kernels "
    "gradient_checkpointing evaluate_every checkpoint_every keep_checkpoints early_stopping best_metric ema trackers "
    "logging_steps".split()
)
"""Settings of `training` that have no effect where a strategy takes no optimizer step."""


def takes(command: str, name: str) -> bool:
    """Whether a command uses the setting with this dotted name."""
    patterns = COMMAND_SETTINGS[command]
    return any(fnmatchcase(name, pattern) for pattern in patterns) and f"!{name}" not in patterns


def check_arguments(command: str, document: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse settings that a command does not use.

    Args:
        document: what the command line gave, by part (`data`, `task`) and name.
        known: the dotted names of all settings. Names outside of it are left to the schema, which suggests the nearest one.

    Raises:
        UserError: some of the settings have no effect on this command; all of them are listed.
    """
    known, problems = set(known), Problems()
    allowed = ", ".join(f"--{name}" for name in COMMAND_SETTINGS[command])
    for part, settings in document.items():
        for setting in settings if isinstance(settings, Mapping) else ():
            name = f"{part}.{setting}"
            if name in known and name not in IDENTITY and not takes(command, name):
                problems.add(f"--{name}: has no effect on {command}, {_why(command, name)}; allowed: {allowed}")
    problems.raise_if_any()


def _why(command: str, name: str) -> str:
    if name.startswith("data."):
        return "which reads --data.test alone" if command == "evaluate" else "which reads the file of --input"
    if takes("load_predictor", name):
        return "which does not use it"
    return "since it was settled when the model was trained"


class UsedWith:
    """Metadata of a field that has an effect only where other fields of the same settings have certain values.

    >>> Annotated[float, UsedWith(classifier="logistic_regression")]    # doctest: +SKIP

    Each keyword is a field and the value that it must have: a plain value, or `Not(value)` for any other one.
    """

    def __init__(self, **values: Any) -> None:
        self.values = values

    def unmet(self, settings: Any) -> str | None:
        """Why the field has no effect, or None where it has one."""
        for name, wanted in self.values.items():
            value = getattr(settings, name)
            if isinstance(wanted, Not) and value == wanted.value:
                return f"{{}}{name} is {_as_yaml(value)}"
            if wanted is None and value is not None:
                return f"{{}}{name} takes its place"
            if not isinstance(wanted, Not) and value != wanted:
                return f"it is used with {{}}{name} {_as_yaml(wanted)} alone"
        return None


class Not:
    """Any other value than this one, in `UsedWith`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _as_yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def unused_fields(settings: Any, prefix: str) -> dict[str, str]:
    """The fields of some settings that have no effect beside the values of the others: by dotted name, the reason."""
    reasons = {
        name: condition.unmet(settings)
        for name, field in type(settings).model_fields.items()
        for condition in field.metadata
        if isinstance(condition, UsedWith)
    }
    return {f"{prefix}.{name}": reason.replace("{}", f"{prefix}.", 1) for name, reason in reasons.items() if reason is not None}


def given_fields(settings: Any, prefix: str) -> set[str]:
    """The dotted names of the fields that were set, and to another value than the default."""
    fields = type(settings).model_fields
    return {f"{prefix}.{name}" for name in settings.model_fields_set if _differ(getattr(settings, name), fields[name].default)}


def _differ(value: Any, default: Any) -> bool:
    return type(value) is not type(default) or bool(value != default)  # a data frame is compared by its type alone


def refuse_unused(reasons: Mapping[str, str], given: Iterable[str], problems: Problems) -> None:
    """Add the settings among `given` that have no effect."""
    for name in sorted(set(given) & reasons.keys()):
        problems.add(f"{name}: has no effect: {reasons[name]}; leave it out")


def check_used(task: Any, scored: bool) -> None:
    """Refuse settings that were given when a model was loaded (`Task.changed`) and change nothing of what it predicts.

    Args:
        scored: whether its predictions may be scored as well.

    Raises:
        UserError: some have no effect; all are listed.
    """
    problems = Problems()
    reasons = unused_fields(task, "task") | {f"task.{name}": why for name, why in task.unused_by_model(scored).items()}
    refuse_unused(reasons, (f"task.{name}" for name in task.changed), problems)
    problems.raise_if_any()
