"""The position of a run, which is all content of a checkpoint except tensors, and a strict reader for it.

Reading is strict because resuming from a wrong position would silently produce another model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from nlp_transfer.strategies import Phase, State
from nlp_transfer.utils.console import number, say
from nlp_transfer.utils.errors import shorten

MAX_SHOWN = 5  # besides the best metric and the loss, metrics are printed only if there are at most this many

Count = Annotated[int, Field(ge=0, le=2**53)]
Integer = Annotated[int, Field(ge=-(2**53), le=2**53)]
Number = Annotated[int | float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


@dataclass
class Position:
    """The progress of a run, stored as JSON in `state.json`.

    A run resumes from its position, weights and optimizer state.
    """

    __pydantic_config__ = ConfigDict(strict=True)

    step: Count = 0
    """Optimizer steps taken."""
    phase: Phase | None = None
    """The current phase."""
    phase_step: Count = 0
    """Optimizer steps taken in this phase."""
    epoch: Count = 0
    """The epoch of the next window, counted from 0 in each phase."""
    window: Count = 0
    """Index of the next window in its epoch."""
    strategy: State = field(default_factory=State)
    """The strategy's state."""
    history: list[dict[str, Integer | float]] = field(default_factory=list)
    """Validation metrics with their `step`, oldest first."""
    best: float | None = None
    """Value of the best metric in the best evaluation. NaN if it was undefined. None: there was no evaluation."""
    best_rank: list[float] = field(default_factory=list)
    """Rank of the best evaluation. It is [metric, -loss], where the metric is negated if lower is better, or [-loss] if the
    metric is undefined."""
    best_step: Count = 0
    """Step of the best evaluation, or 0 if there is none."""
    phase_rank: list[float] = field(default_factory=list)
    """Best rank within this phase, for early stopping."""
    worse: Count = 0
    """Number of evaluations in this phase after its best one."""
    stopped: bool = False
    """Whether early stopping ended the phase."""
    ended: bool = False
    """Whether a callback ended training."""
    unjudged: bool = False
    """Whether the evaluation after this step has yet to be done."""
    pieces: Count = 1
    """Number of pieces into which each micro-batch is split because memory ran out; 1 if it did not."""
    scaler: dict[str, Number] = field(default_factory=dict)
    """State of the fp16 gradient scaler."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """States of callbacks by name. Their tensors are stored separately."""
    touched: list[str] = field(default_factory=list)
    """Names of all parameters that have been trainable in any phase so far."""
    average_steps: Count = 0
    """Number of updates of the moving average of the weights."""
    examples: Count = 0
    """Number of training examples seen by all processes."""
    tokens: Count = 0
    """Number of tokens seen by all processes, without padding."""
    seconds: Seconds = 0.0
    """Wall time in seconds, evaluations included."""
    step_seconds: Seconds = 0.0
    """Wall time in seconds of the optimizer steps only."""

    def record_evaluation(self, metrics: dict[str, float], metric: str, higher: bool) -> bool:
        """Add an evaluation to the history, and return whether it is the best so far.

        Args:
            metrics: validation metrics by name.
            metric: name of the metric by which evaluations are compared. Ties are broken by the loss.
            higher: whether a higher value of the metric is better.
        """
        value = metrics.get(metric, math.nan)
        sign = 1 if higher else -1
        rank = [sign * value] * math.isfinite(value) + [-metrics["loss"]]
        self.history.append({"step": self.step, **metrics})
        better = self.best is None or _is_better(rank, self.best_rank)
        if better:
            self.best, self.best_rank, self.best_step = value, rank, self.step
        if not self.phase_rank or _is_better(rank, self.phase_rank):
            self.phase_rank, self.worse = rank, 0
        else:
            self.worse += 1
        others = {name: other for name, other in metrics.items() if name not in (metric, "loss")}
        shown = "".join(f", {name} {other:.4g}" for name, other in others.items() if len(others) <= MAX_SHOWN)
        say(
            f"step {self.step}: validation {metric} {number(value)}, loss {number(metrics['loss'])}{shown}"
            + (" (best so far)" if better else f" (best {number(self.best or 0.0)} at step {self.best_step})")
        )
        return better


def _is_better(rank: list[float], than: list[float]) -> bool:
    """Return whether one rank is better than another. If the metric is undefined in one of them, compare the losses."""
    return rank > than if len(rank) == len(than) else (rank[-1], len(rank)) > (than[-1], len(than))


def read_position(content: str | bytes, step: int) -> Position:
    """Read `state.json` of a checkpoint.

    Args:
        content: JSON with exactly the fields of `Position`, its phase and its state.
        step: the step in the name of the checkpoint folder.

    Raises:
        ValueError: a field is missing, has the wrong type, is out of range, or contradicts another field. The message names the
            field.
    """
    position = _parse(content)
    check = checker(position)
    check(position.step == step, "step", f"{step}, as in the name of the checkpoint")
    check(position.phase_step <= step, "phase_step", f"0 to {step}")
    steps = [entry.get("step", math.nan) for entry in position.history]
    check(steps == sorted({*steps}), "history", "evaluations at increasing steps")
    check(all(isinstance(each, int) and 0 < each <= step for each in steps), "history", f"evaluations at steps from 1 to {step}")
    check(all("loss" in entry for entry in position.history), "history", "evaluations with their loss")
    check(not position.unjudged or step not in steps, "unjudged", f"false, since step {step} was evaluated")
    entry = dict(zip(steps, position.history, strict=True)).get(position.best_step)
    if position.best is None:
        check(position.best_step == 0, "best_step", "0 without a best evaluation")
    else:
        check(entry is not None, "best_step", "the step of an evaluation in history")
        check(
            _as_text(position.best_rank) in _ranks(entry or {}),
            "best_rank",
            f"that of the evaluation at step {position.best_step}",
        )
        check(
            _as_text([position.best]) in [_as_text([value]) for value in (math.nan, *(entry or {}).values())],
            "best",
            f"a value at step {position.best_step}",
        )
        check(
            math.isfinite(position.best) == (len(position.best_rank) == 2), "best", "a number, or NaN if the metric is undefined"
        )
        check(len(position.best_rank) < 2 or abs(position.best_rank[0]) == abs(position.best), "best", "the value of best_rank")
    check(
        position.worse < max(1, len(position.history)),
        "worse",
        f"less than {max(1, len(position.history))}, the evaluations so far",
    )
    if position.phase_rank:
        ranks = _ranks(position.history[-1 - position.worse]) if position.history else set()
        check(_as_text(position.phase_rank) in ranks, "phase_rank", f"that of the evaluation {position.worse} before the last")
    else:
        check(position.worse == 0, "worse", "0 before the first evaluation of a phase")
        late = [each for each in steps if each > step - position.phase_step]
        check(position.best is None or not late, "phase_rank", "that of the best evaluation of the phase")
    check(position.pieces & (position.pieces - 1) == 0 < position.pieces, "pieces", "a power of 2")
    check(position.touched == sorted({*position.touched}), "touched", "sorted names, each once")
    return position


def _parse(content: str | bytes) -> Position:
    try:
        raw = from_json(content)
        _check_keys(Position, raw, "")
        position = TypeAdapter(Position).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name}: found {shorten(first['input'])}; {first['msg']}") from None
    for name, value in vars(position).items():
        if is_dataclass(value):
            _check_keys(type(value), raw[name], f"{name}.")
    return position


def _check_keys(kind: type, raw: Any, prefix: str) -> None:
    names = {attribute.name for attribute in fields(kind)}
    if not isinstance(raw, dict):
        raise ValueError(f"content: found {shorten(raw)}; allowed: an object with {', '.join(sorted(names))}")
    if different := sorted(names ^ raw.keys()):
        value = shorten(raw[different[0]]) if different[0] in raw else "nothing"
        raise ValueError(
            f"{prefix}{different[0]}: found {value}; allowed: exactly {', '.join(sorted(names))}, "
            "as this version of nlp_transfer writes them"
        )


def checker(values: object, prefix: str = "") -> Callable[[bool, str, str], None]:
    """Return a function that raises a ValueError if a condition is false. The message names a field of `values`."""

    def check(holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{prefix}{name}: found {shorten(getattr(values, name))}; allowed: {allowed}")

    return check


def _ranks(entry: Mapping[str, int | float]) -> set[str]:
    """Return the ranks that an evaluation can have, for each of its metrics as the best metric, as text."""
    if "loss" not in entry:
        return set()
    loss = -entry["loss"]
    return {_as_text([loss]), *(_as_text([sign * value, loss]) for value in entry.values() for sign in (1, -1))}


def _as_text(numbers: list[float]) -> str:
    """Format numbers so that NaN equals NaN and 0 equals -0."""
    return str([float(value) + 0.0 for value in numbers])
