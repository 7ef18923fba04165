"""Metrics that users pass in Python: functions, or metric objects such as those of `evaluate`."""

import inspect
import math
import traceback
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from numbers import Real
from typing import Any

from nlp_transfer.utils.distributed import same_random_state
from nlp_transfer.utils.errors import UserError, did_you_mean

RESERVED = ("loss", "mean", "step", "epoch", "rows")  # names of other fields in the log

Trials = list[tuple[dict[str, str], bool]]
"""For each metric, the displayed names of its keys, and whether it takes label ids."""


class UserMetrics:
    """The metrics of `fine_tune(metrics=[...])`.

    Metrics are functions `f(predictions, references) -> {name: value}` or objects with `compute(predictions=, references=)`.
    They get lists with one item for each row of a split. The items are labels as in the data of the user (for multi-label
    tasks, lists of labels), floats, or translated texts. Objects that do not accept labels as text get label ids.

    Attributes:
        trials: The results of `try_out`. The main process sends them to the other processes.
    """

    def __init__(self, metrics: Sequence[Any]) -> None:
        if isinstance(metrics, (str, bytes)) or not isinstance(metrics, Sequence):
            raise UserError(f"metrics: found {metrics!r}; allowed: a list of functions or of metrics of evaluate")
        for metric in metrics:
            if not (callable(metric) or hasattr(metric, "compute")) or isinstance(metric, type):
                raise UserError(
                    f"metrics: found {metric!r}; allowed: a function f(predictions, references) -> {{name: value}}, or an object "
                    "with compute(predictions=, references=)"
                )
        self._metrics = list(metrics)
        self.trials: Trials = []

    def __bool__(self) -> bool:
        return bool(self._metrics)

    @property
    def names(self) -> list[str]:
        """Displayed names of all values of the metrics. Empty before `try_out`."""
        return [name for names, _ in self.trials for name in names.values()]

    def higher_is_better(self, name: str) -> bool:
        """Return whether higher values are better: the attribute `higher_is_better` of the metric, or True if it has none."""
        metric = next(m for m, (names, _) in zip(self._metrics, self.trials, strict=True) if name in names.values())
        higher = getattr(metric, "higher_is_better", True)
        return bool(higher.get(name, True) if isinstance(higher, Mapping) else higher)

    def try_out(
        self, values: list[Any], ids: list[Any], taken: Collection[str] = (),
        perfect: tuple[list[Any], list[Any]] | None = None,
    ) -> Trials:  # fmt: skip
        """Call each metric on a few rows, and record the names of its values in `trials`.

        Args:
            values: References as in the data of the user.
            ids: The same references as label ids, numbers or texts.
            taken: Names of other metrics, which must not be repeated.
            perfect: Predictions that agree with the references, in both forms. None: the references.

        Raises:
            UserError: A metric raises an error, or returns something other than numbers, or uses a name that is taken.
        """
        self.trials = []
        predictions = (values, ids) if perfect is None else perfect
        for metric in self._metrics:
            with_ids = hasattr(metric, "compute") and values != ids and not _accepts(metric, predictions[0], values)
            rows, predicted = (ids, predictions[1]) if with_ids else (values, predictions[0])
            names: dict[str, str] = {}
            for key in _call(metric, predicted, rows):
                names[key] = self._display_name(metric, key, {*RESERVED, *taken, *self.names})
            _check_names(metric, names, _call(metric, predicted[1:] + predicted[:1], rows))  # with wrong predictions
            self.trials.append((names, with_ids))
        return self.trials

    @staticmethod
    def _display_name(metric: Any, key: str, taken: set[str]) -> str:
        """Return `key`, or METRIC/KEY if `key` is taken and the metric has a name."""
        title = getattr(metric, "name", None)
        if key in taken and hasattr(metric, "compute") and isinstance(title, str):
            key = f"{title}/{key}"
        if key in taken:
            raise UserError(f"metrics: {_describe(metric)} returned {key!r}, a name that is taken; allowed: a unique name")
        return key

    def check_best(self, best_metric: str | None, known: Sequence[str]) -> None:
        """Raise a UserError if `training.best_metric` is neither in `known` nor a name of a user metric."""
        allowed = [*known, "loss", *self.names]
        if best_metric is not None and best_metric not in allowed:
            raise UserError(
                f"training.best_metric: found {best_metric!r}, which no metric returns{did_you_mean(best_metric, allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )

    def compute(self, values: tuple[list[Any], list[Any]], ids: tuple[list[Any], list[Any]]) -> dict[str, float]:
        """Return the finite values of all metrics for a split.

        Args:
            values: Predictions and references as in the data of the user.
            ids: The same as label ids, numbers or texts.

        Raises:
            UserError: A metric raises an error, or returns different names than in `try_out`.
        """
        metrics: dict[str, float] = {}
        for metric, (names, with_ids) in zip(self._metrics, self.trials, strict=True):
            result = _call(metric, *(ids if with_ids else values))
            _check_names(metric, names, result)
            metrics |= {names[key]: value for key, value in result.items() if math.isfinite(value)}
        return metrics


def _accepts(metric: Any, predictions: list[Any], references: list[Any]) -> bool:
    """Return whether a metric object accepts labels as in the data of the user."""
    try:
        _call(metric, predictions, references)
    except UserError:
        return False
    return True


def _call(metric: Any, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    """Call a metric with copies of the lists, restore the random states, and check the result."""
    inputs = deepcopy({"predictions": predictions, "references": references})
    try:
        with same_random_state():
            result = metric.compute(**inputs) if hasattr(metric, "compute") else metric(*inputs.values())
    except Exception as error:
        raise UserError(
            f"metrics: {_describe(metric)} raised {type(error).__name__}: {error}{_line(metric, error)} for "
            f"{len(references)} rows (the first reference is {references[0]!r})"
        ) from error
    if not isinstance(result, Mapping) or not result:
        raise UserError(f"metrics: {_describe(metric)} returned {result!r}; allowed: numbers by name, such as {{'score': 0.5}}")
    values: dict[str, float] = {}
    for key, value in result.items():
        if not isinstance(key, str) or not key.strip():
            raise UserError(f"metrics: {_describe(metric)} returned the name {key!r}; allowed: text")
        number = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value  # array or tensor
        if isinstance(number, bool) or not isinstance(number, Real):
            raise UserError(
                f"metrics: {_describe(metric)} returned {key}: {number!r} ({type(number).__name__}); allowed: a number"
            )
        values[key] = float(number)
    return values


def _check_names(metric: Any, names: Mapping[str, str], result: Mapping[str, float]) -> None:
    """Raise a UserError if a metric returns different names than in its first call."""
    if result.keys() != names.keys():
        raise UserError(
            f"metrics: {_describe(metric)} returned {', '.join(names)} before training and {', '.join(result)} now; allowed: the "
            "same names in each call (an undefined value can be float('nan'))"
        )


def _describe(metric: Any) -> str:
    """Return the name of a metric, with file and line if it is a function."""
    code = getattr(inspect.unwrap(metric) if callable(metric) else metric, "__code__", None)
    name = getattr(metric, "__name__", None) or getattr(metric, "name", None) or type(metric).__name__
    return f"{name} ({code.co_filename}, line {code.co_firstlineno})" if code else str(name)


def _line(metric: Any, error: Exception) -> str:
    """Return the number of the last traceback line that is in the file of the metric, as text."""
    code = getattr(metric, "__code__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if code and frame.filename == code.co_filename]
    return f" (line {lines[-1]})" if lines else ""
