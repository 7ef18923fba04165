"""Where a run stands, and reading it back from a checkpoint: strictly, since a wrong position would train another model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from nlp_transfer.utils.console import number, say
from nlp_transfer.utils.errors import shorten

FEW = 5  # further figures that are shown beside the one that decides

Count = Annotated[int, Field(ge=0, le=2**53)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Number = Annotated[int | float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
T = TypeVar("T")


@dataclass
class Position:
    """Where a run stands. With the weights and the optimiser's moments, all there is to go on from: JSON."""

    __pydantic_config__ = ConfigDict(strict=True)

    step: Count = 0
    """Optimiser steps taken."""
    phase: dict[str, Any] | None = None
    """The phase under way, as data."""
    phase_step: Count = 0
    """Optimiser steps taken in this phase."""
    epoch: Count = 0
    window: Count = 0
    """The next window of the epoch."""
    strategy: dict[str, Any] = field(default_factory=dict)
    """The strategy's state."""
    history: list[dict[str, Whole | float]] = field(default_factory=list)
    """Validation figures, the oldest first."""
    best: float | None = None
    best_rank: list[float] = field(default_factory=list)
    """The best value of the metric with the sign that makes more better, and minus its loss; minus the loss alone where the
    metric is undefined."""
    best_step: Count = 0
    phase_rank: list[float] = field(default_factory=list)
    """The best rank in this phase: what was reached before does not decide when it is stopped."""
    worse: Count = 0
    """Evaluations of this phase since its best one."""
    stopped: bool = False
    """Whether the phase was stopped early."""
    unjudged: bool = False
    """Whether the evaluation after this step is still to be done."""
    pieces: Count = 1
    """Into how many pieces micro-batches are cut, because memory did not suffice for whole ones."""
    scaler: dict[str, Number] = field(default_factory=dict)
    """The state of fp16's loss scale."""
    touched: list[str] = field(default_factory=list)
    """Names of all parameters that any phase has trained."""
    average_steps: Count = 0
    examples: Count = 0
    tokens: Count = 0
    """Real tokens (no padding), over all processes."""
    seconds: Seconds = 0.0
    step_seconds: Seconds = 0.0

    def judge(self, metrics: dict[str, float], metric: str, higher: bool, patience: int | None) -> bool:
        """Takes down an evaluation; true when it is the best so far. After `patience` that are not, the phase is stopped."""
        value = metrics.get(metric, math.nan)
        sign = 1 if higher else -1
        # On a small split many evaluations tie; of two that do, the one with the smaller loss is better.
        rank = [sign * value] * math.isfinite(value) + [-metrics["loss"]]
        self.history.append({"step": self.step, **metrics})
        better = self.best is None or _is_better(rank, self.best_rank)
        if better:
            self.best, self.best_rank, self.best_step = value, rank, self.step
        if not self.phase_rank or _is_better(rank, self.phase_rank):
            self.phase_rank, self.worse = rank, 0
        else:
            self.worse += 1
            self.stopped = patience is not None and self.worse >= patience
        others = {name: figure for name, figure in metrics.items() if name not in (metric, "loss")}
        shown = "".join(f", {name} {figure:.4g}" for name, figure in others.items() if len(others) <= FEW)
        say(
            f"step {self.step}: validation {metric} {number(value)}, loss {number(metrics['loss'])}{shown}"
            + (" (best so far)" if better else f" (best {number(self.best or 0.0)} at step {self.best_step})")
            + (f"; no better for {self.worse} evaluations, so training stops" if self.stopped else "")
        )
        return better


def _is_better(rank: list[float], than: list[float]) -> bool:
    """Whether an evaluation is better than another. Where the metric of one of them is undefined, as a correlation with a
    constant is, the loss decides."""
    return rank > than if len(rank) == len(than) else (rank[-1], len(rank)) > (than[-1], len(than))


def read_strictly(kind: type[T], content: str | bytes, where: str = "") -> T:
    """Make a dataclass of JSON in which every field stands, with its type, and nothing else.

    Args:
        where: what stands before the names of fields in messages.

    Raises:
        ValueError: something is wrong; the message names the field, what was found and what is allowed.
    """
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    try:
        raw = from_json(content)
        if not isinstance(raw, dict):
            raise ValueError(f"{where or 'content'}: found {shorten(raw)}; allowed: an object with {', '.join(sorted(names))}")
        if different := sorted(names ^ raw.keys()):
            found = shorten(raw[different[0]]) if different[0] in raw else "nothing"
            raise ValueError(f"{where}{different[0]}: found {found}; allowed: {', '.join(sorted(names))}, each of them")
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = where + ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: found {shorten(first['input'])}; {first['msg']}") from None


def read_position(content: str | bytes, step: int) -> Position:
    """Read the position of a checkpoint's `state.json`.

    Args:
        step: the step that the checkpoint's folder is called after.

    Raises:
        ValueError: a field is missing, has another type or is out of its range, or two of them contradict each other.
    """
    at = read_strictly(Position, content)
    check = checker(at)
    check(at.step == step, "step", f"{step}, as the checkpoint is called")
    check(at.phase_step <= step, "phase_step", f"0 to {step}")
    steps = [entry.get("step", math.nan) for entry in at.history]
    check(steps == sorted({*steps}), "history", "evaluations at steps that increase")
    check(all(isinstance(each, int) and 0 < each <= step for each in steps), "history", f"evaluations at steps from 1 to {step}")
    check(all("loss" in entry for entry in at.history), "history", "evaluations with their loss")
    check(not at.unjudged or step not in steps, "unjudged", f"false, since step {step} was evaluated")
    entry = dict(zip(steps, at.history, strict=True)).get(at.best_step)
    if at.best is None:
        check(at.best_step == 0, "best_step", "0 where there is no best evaluation")
    else:
        check(entry is not None, "best_step", "the step of an evaluation in history")
        check(_as_text(at.best_rank) in _ranks(entry or {}), "best_rank", f"that of the evaluation at step {at.best_step}")
        check(
            _as_text([at.best]) in [_as_text([value]) for value in (math.nan, *(entry or {}).values())],
            "best",
            f"a value at step {at.best_step}",
        )
        check(math.isfinite(at.best) == (len(at.best_rank) == 2), "best", "a number, or NaN where the metric is undefined")
        check(len(at.best_rank) < 2 or abs(at.best_rank[0]) == abs(at.best), "best", "the value of best_rank")
    check(at.worse < max(1, len(at.history)), "worse", f"less than {max(1, len(at.history))}, the evaluations so far")
    if at.phase_rank:
        ranks = _ranks(at.history[-1 - at.worse]) if at.history else set()
        check(_as_text(at.phase_rank) in ranks, "phase_rank", f"that of the evaluation {at.worse} before the last")
    else:
        check(at.worse == 0, "worse", "0 before the first evaluation of a phase")
        late = [each for each in steps if each > step - at.phase_step]
        check(at.best is None or not late, "phase_rank", "that of the best evaluation of the phase")
    check(at.pieces & (at.pieces - 1) == 0 < at.pieces, "pieces", "a power of 2")
    check(at.touched == sorted({*at.touched}), "touched", "sorted names, each once")
    return at


def checker(values: object) -> Callable[[bool, str, str], None]:
    """Return a function that raises a ValueError about a field of `values` where something does not hold."""

    def check(holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name}: found {shorten(getattr(values, name))}; allowed: {allowed}")

    return check


def _ranks(entry: Mapping[str, int | float]) -> set[str]:
    """Every rank that an evaluation may have, whichever metric decides."""
    if "loss" not in entry:
        return set()
    loss = -entry["loss"]
    return {_as_text([loss]), *(_as_text([sign * value, loss]) for value in entry.values() for sign in (1, -1))}


def _as_text(numbers: list[float]) -> str:
    """Numbers in a form in which NaN is equal to itself, and 0 to -0."""
    return str([float(value) + 0.0 for value in numbers])


def as_json(value: object) -> bytes:
    """JSON of a value that JSON was read to, with NaN and infinities as they are."""
    return to_json(value, inf_nan_mode="constants")
