"""Metrics of the user's own, in Python: functions of a whole split, and metrics of `evaluate`."""

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from nlp_transfer.utils.distributed import same_random_state
from nlp_transfer.utils.errors import UserError, did_you_mean

RESERVED = ("loss", "mean", "step", "epoch", "rows")  # names that stand beside metrics in the log


Tried = tuple[list[dict[str, str]], list[bool]]
"""By metric: the shown name by each key that it gives, and whether it is given ids."""


class OwnMetrics:
    """What `fine_tune(metrics=[...])` is given: functions `f(predictions, references) -> {name: value}` and objects with
    `compute(predictions=, references=)`, as those of `evaluate`.

    Each gets whole splits as lists, with labels as the user wrote them and in their type (multi-label: a list of labels a row),
    numbers as floats and translations as texts. An object that does not accept labels that are texts gets their ids.
    """

    def __init__(self, metrics: Sequence[Any]) -> None:
        if isinstance(metrics, (str, bytes)) or not isinstance(metrics, Sequence):
            raise UserError(f"metrics: found {metrics!r}; allowed: a list of functions or of metrics of evaluate")
        self._metrics = list(metrics)
        self._taken = set(RESERVED)
        self._names: list[dict[str, str]] = []  # by metric: the key that it gives, and the name under which it is shown
        self._with_ids: list[bool] = []
        for metric in self._metrics:
            if not (callable(metric) or hasattr(metric, "compute")) or isinstance(metric, type):
                raise UserError(
                    f"metrics: found {metric!r}; allowed: a function f(predictions, references) -> {{name: value}}, or an object "
                    "with compute(predictions=, references=)"
                )

    def __bool__(self) -> bool:
        return bool(self._metrics)

    @property
    def names(self) -> list[str]:
        """The names of all values, known after `try_out`."""
        return [name for names in self._names for name in names.values()]

    def higher_is_better(self, name: str) -> bool:
        """Whether more is better: yes, unless the metric has an attribute `higher_is_better` that says no."""
        owner = next(m for m, names in zip(self._metrics, self._names, strict=True) if name in names.values())
        said = getattr(owner, "higher_is_better", True)
        return bool(said.get(name, True) if isinstance(said, Mapping) else said)

    def adopt(self, tried: Tried) -> None:
        """Remember what `try_out` returned in another process."""
        self._names, self._with_ids = tried

    def try_out(self, values: list[Any], ids: list[Any], taken: Collection[str] = ()) -> Tried:
        """Call each metric with a few rows, and remember the names that it gives.

        Args:
            values: targets as the user wrote them.
            ids: the same as label ids, numbers or texts.
            taken: names that other metrics have.

        Returns:
            What was learned, for `adopt`.

        Raises:
            UserError: a metric raises an error, gives something else than numbers by name, or a name that is taken.
        """
        self._names, self._with_ids, self._taken = [], [], {*RESERVED, *taken}
        for metric in self._metrics:
            with_ids = hasattr(metric, "compute") and values != ids and not _accepts(metric, values)
            self._with_ids.append(with_ids)
            rows = ids if with_ids else values
            right = _call(metric, rows, rows)
            names = {key: self._name(metric, key) for key in right}
            self._names.append(names)
            shifted = _call(metric, rows[1:] + rows[:1], rows)  # some predictions are wrong
            _check_names(metric, names, shifted)
        return self._names, self._with_ids

    def _name(self, metric: Any, key: str) -> str:
        """A name of its own: that which the metric gives; of a metric of evaluate, where it is taken, METRIC/KEY."""
        title = getattr(metric, "name", None)
        if key in self._taken and hasattr(metric, "compute") and isinstance(title, str):
            key = f"{title}/{key}"
        if key in self._taken or key in self.names:
            raise UserError(
                f"metrics: {_describe(metric)} gives {key!r}, which another metric is called; allowed: a name of its own"
            )
        return key

    def check_best(self, asked: str | None, known: Sequence[str]) -> None:
        """Raise a UserError where `training.best_metric` is neither a known metric nor one of these."""
        allowed = [*known, "loss", *self.names]
        if asked is not None and asked not in allowed:
            raise UserError(
                f"training.best_metric: found {asked!r}, which nothing computes{did_you_mean(asked, allowed)}; allowed: "
                f"{', '.join(allowed)}"
            )

    def compute(self, values: tuple[list[Any], list[Any]], ids: tuple[list[Any], list[Any]]) -> dict[str, float]:
        """Return the values over whole splits; undefined ones (not finite) are left out.

        Args:
            values: predictions and references as the user writes them.
            ids: the same as label ids, numbers or texts.

        Raises:
            UserError: a metric raises an error, or gives other names than before training.
        """
        found: dict[str, float] = {}
        for metric, names, with_ids in zip(self._metrics, self._names, self._with_ids, strict=True):
            result = _call(metric, *(ids if with_ids else values))
            _check_names(metric, names, result)
            found |= {names[key]: value for key, value in result.items() if math.isfinite(value)}
        return found


def _accepts(metric: Any, values: list[Any]) -> bool:
    """Whether a metric of evaluate computes with labels as they are written."""
    try:
        _call(metric, values, values)
    except UserError:
        return False
    return True


def _call(metric: Any, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    """Call a metric with copies; what it gives, as floats. Random states stay as they are."""
    given = {"predictions": _copied(predictions), "references": _copied(references)}
    try:
        with same_random_state():
            result = metric.compute(**given) if hasattr(metric, "compute") else metric(*given.values())
    except Exception as error:
        raise UserError(
            f"metrics: {_describe(metric)} raised {type(error).__name__}: {error}{_line(metric, error)} for "
            f"{len(references)} rows (the first reference is {references[0]!r})"
        ) from error
    if not isinstance(result, Mapping) or not result:
        raise UserError(f"metrics: {_describe(metric)} gave {result!r}; allowed: numbers by name, such as {{'score': 0.5}}")
    return {_checked_name(metric, key): _number(metric, key, value) for key, value in result.items()}


def _copied(rows: list[Any]) -> list[Any]:
    return [list(row) if isinstance(row, list) else row for row in rows]


def _checked_name(metric: Any, key: Any) -> str:
    if not isinstance(key, str) or not key.strip():
        raise UserError(f"metrics: {_describe(metric)} gave the name {key!r}; allowed: text")
    return key


def _number(metric: Any, key: str, value: Any) -> float:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # an array or a tensor without axes
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"metrics: {_describe(metric)} gave {key}: {value!r} ({type(value).__name__}); allowed: a number")
    return float(value)


def _check_names(metric: Any, names: Mapping[str, str], result: Mapping[str, float]) -> None:
    if result.keys() != names.keys():
        raise UserError(
            f"metrics: {_describe(metric)} gave {', '.join(names)} before training and {', '.join(result)} now; allowed: the "
            "same names in each call (a value that is not defined can be float('nan'))"
        )


def _describe(metric: Any) -> str:
    code = getattr(inspect.unwrap(metric) if callable(metric) else metric, "__code__", None)
    name = getattr(metric, "__name__", None) or getattr(metric, "name", None) or type(metric).__name__
    return f"{name} ({code.co_filename}, line {code.co_firstlineno})" if code else str(name)


def _line(metric: Any, error: Exception) -> str:
    """The line of the metric's own file in which an error came up."""
    code = getattr(metric, "__code__", None)
    line, trace = None, error.__traceback__
    while trace is not None:
        if code is not None and trace.tb_frame.f_code.co_filename == code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""
