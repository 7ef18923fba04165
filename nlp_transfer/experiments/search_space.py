"""The search space of a hyperparameter search: ranges and choices for settings, by dotted name."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from nlp_transfer.settings.applicability import NO_STEPS, UsedWith, unused_fields
from nlp_transfer.settings.base_settings import Document, Settings
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Strategy, strategy_from
from nlp_transfer.utils.errors import Problems, UserError, shorten

FACTOR = "learning_rate_factor"  # factor by which the strategy's default learning rate is multiplied
FORMS = "a list of values, or {low: NUMBER, high: NUMBER} with low below high (log: true: a logarithmic scale, above 0)"
SECTIONS = ("data.", "task.", "strategy.", "training.")


class Range(Settings):
    """A range of numbers. If both ends are whole numbers, so are the values."""

    low: Annotated[int, Field(strict=True)] | float
    high: Annotated[int, Field(strict=True)] | float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low below high, and above 0 with log: true")
        return self


Space = Mapping[str, Range | list[Any]]


def read_space(document: Any) -> Space:
    """Check a search space.

    Raises:
        UserError: a name or value is invalid. The message lists all problems.
    """
    problems = Problems("tune")
    if not isinstance(document, Mapping) or not document:
        raise UserError(f"tune: found {shorten(document)}; allowed: settings by dotted name, each with {FORMS}")
    space: dict[str, Range | list[Any]] = {}
    for name, value in document.items():
        if name != FACTOR and not str(name).startswith(SECTIONS):
            problems.add(f"tune: found {shorten(name)}; allowed: {FACTOR}, or a dotted name such as training.learning_rate")
        elif isinstance(value, list) and value and all(isinstance(each, (str, int, float, type(None))) for each in value):
            space[name] = value
        elif isinstance(value, Mapping):
            try:
                space[name] = Range(**{str(key): each for key, each in value.items()})
            except ValidationError:
                problems.add(f"tune: {name}: found {shorten(value)}; allowed: {FORMS}")
        else:
            problems.add(f"tune: {name}: found {shorten(value)}; allowed: {FORMS}")
    if FACTOR in space and "training.learning_rate" in space:
        problems.add(f"tune: found both {FACTOR} and training.learning_rate; allowed: one of them")
    problems.raise_if_any()
    return space


def default_space(strategy: Strategy, training: Mapping[str, Any], with_classes: bool = True) -> Document:
    """Return the default search space of a strategy: what all strategies share, and what its traits add.

    Settings that the user changed are not searched. Default values in `training` are searched even if the user gives them, since
    `init` writes the first ones into its file.

    Args:
        strategy: the strategy with the settings of the user.
        training: the training settings of the user.
        with_classes: whether the rows of the task have classes.
    """
    changed = {f"training.{name}" for name, value in training.items() if value != _default(name)}
    changed |= {f"strategy.{name}" for name in strategy.model_fields_set}
    space: Document = {}
    if strategy.traits.takes_steps:
        space = {
            FACTOR: {"low": 0.25, "high": 4.0, "log": True},
            "training.epochs": ["auto", 5, 10],
            "training.batch_size": [16, 32, 64],
        }
        if "training.learning_rate" in changed:
            del space[FACTOR]
    space |= {**strategy.traits.search_space, **(strategy.traits.classes_space if with_classes else {})}
    changed |= {"training.epochs"} if training.get("max_steps") is not None else set()
    space = {name: value for name, value in space.items() if name not in changed}
    searched = {name.removeprefix("strategy.") for name in space}
    conditions = {
        f"strategy.{name}": condition.values.keys()
        for name, field in type(strategy).model_fields.items()
        for condition in field.metadata
        if isinstance(condition, UsedWith)
    }
    unused = unused_fields(strategy, "strategy")  # such as the penalty of a classifier that the user did not choose
    return {name: value for name, value in space.items() if name not in unused or conditions[name] & searched}


def _default(name: str) -> Any:
    return TrainingConfig.model_fields[name].get_default(call_default_factory=True)


def defaults_in(space: Space, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the default settings as a point of the space. None: the space does not contain them.

    Args:
        settings: the default settings as a document, with sections.
    """
    point: dict[str, Any] = {}
    for name, spec in space.items():
        section, _, key = name.partition(".")
        value = 1.0 if name == FACTOR else settings.get(section, {}).get(key)
        is_inside = value in spec if isinstance(spec, list) else _is_number(value) and spec.low <= value <= spec.high
        if not is_inside:
            return None
        point[name] = value
    return point


def used(values: Mapping[str, Any], strategy: Any) -> dict[str, Any]:
    """Return the values without those that have no effect together with the others.

    Args:
        strategy: the document of the strategy. A list of strategies has no settings in a search space.
    """
    if not isinstance(strategy, Mapping):
        return dict(values)
    of_strategy = {name.removeprefix("strategy."): value for name, value in values.items() if name.startswith("strategy.")}
    built = strategy_from({**strategy, **of_strategy})
    unused = {*unused_fields(built, "strategy")}
    if not built.traits.takes_steps:
        unused |= {FACTOR, *(f"training.{name}" for name in NO_STEPS)}
    return {name: value for name, value in values.items() if name not in unused}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def examples(space: Space) -> list[tuple[str, Any]]:
    """Return every choice, and both ends of every range, to check them before the first run."""
    return [
        (name, value)
        for name, spec in space.items()
        if name != FACTOR
        for value in (spec if isinstance(spec, list) else [spec.low, spec.high])
    ]


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Return the values of an `optuna.Trial`. Values that it has already are not drawn again."""
    values = {}
    for name, spec in space.items():
        if isinstance(spec, list):
            values[name] = trial.suggest_categorical(name, spec)
        else:
            is_whole = isinstance(spec.low, int) and isinstance(spec.high, int)
            draw = trial.suggest_int if is_whole else trial.suggest_float
            values[name] = draw(name, spec.low, spec.high, log=spec.log)
    return values
