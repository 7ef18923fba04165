"""Where a run stands, and keeping it: checkpoints on optimiser steps, going on from the last one, the best weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlp_transfer.console import number, say
from nlp_transfer.disk import patiently
from nlp_transfer.errors import UserError
from nlp_transfer.system import from_main, rank
from nlp_transfer.training import checkpoints
from nlp_transfer.training.checkpoints import Tensors
from nlp_transfer.training.optimizers import MovingAverage

FEW = 5  # further figures that are shown beside the one that decides


@dataclass
class Position:
    """Where a run stands. With the weights and the optimiser's moments, all there is to go on from: JSON."""

    step: int = 0
    """Optimiser steps taken."""
    phase: dict[str, Any] | None = None
    """The phase under way, as data."""
    phase_step: int = 0
    """Optimiser steps taken in this phase."""
    epoch: int = 0
    window: int = 0
    """The next window of the epoch."""
    strategy: dict[str, Any] = field(default_factory=dict)
    """The strategy's state."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Validation figures, the oldest first."""
    best: float | None = None
    best_rank: list[float] = field(default_factory=list)
    """The best value of the metric with the sign that makes more better, and minus its loss; minus the loss alone where the
    metric is undefined."""
    best_step: int = 0
    phase_rank: list[float] = field(default_factory=list)
    """The best rank in this phase: what was reached before does not decide when it is stopped."""
    worse: int = 0
    """Evaluations of this phase since its best one."""
    stopped: bool = False
    """Whether the phase was stopped early."""
    unjudged: bool = False
    """Whether the evaluation after this step is still to be done."""
    pieces: int = 1
    """Into how many pieces micro-batches are cut, because memory did not suffice for whole ones."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The state of fp16's loss scale."""
    touched: list[str] = field(default_factory=list)
    """Names of all parameters that any phase has trained."""
    average_steps: int = 0
    examples: int = 0
    tokens: int = 0
    """Real tokens (no padding), over all processes."""
    seconds: float = 0.0
    step_seconds: float = 0.0

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


class Keeper:
    """Keeps a run's weights, moments and position; in `folder` where there is one, else the best weights in memory.

    Of several processes one writes, and all read.

    Args:
        number: the newest so many checkpoints are kept, and the best weights that each of them knows.
    """

    def __init__(self, model: nn.Module, folder: Path | None, ema: float | None, writes: bool = True, number: int = 2) -> None:
        self.model, self.folder, self.ema, self.writes, self.number = model, folder, ema, writes, number
        self.written = -1
        """Step of the newest checkpoint."""
        self.moments: Tensors = {}
        self.average: MovingAverage | None = None
        self._best: Tensors = {}
        self._before: Tensors = {}

    def begin(self, position: Position, names: list[str]) -> None:
        """Takes down what a phase trains.

        What no phase has trained before is kept as it is: should the best evaluation turn out to lie before this phase, a
        mix of its weights and later ones would be a model that nobody has scored.
        """
        if position.touched:
            self._before |= self._copy(set(names) - set(position.touched))
        position.touched = sorted({*position.touched, *names})

    def resume(self) -> Position:
        """The position of the newest whole checkpoint, its weights put back; a fresh one where there is none."""
        own, notes = checkpoints.newest_whole(self.folder) if self.folder else (None, [])
        say(*notes)
        position = Position(**checkpoints.read_state(own)) if own else Position()
        broken = checkpoints.what_is_broken(self._best_folder(position)) if position.best is not None else None
        # From two checkpoints, processes would train two models without a sign of it.
        name, broken = from_main((own.name if own else None, broken))
        if name is None or self.folder is None:
            return Position()
        folder = self.folder / name
        if folder != own:
            position = self._read_of_main(folder)
        self.written = position.step
        if broken:
            say(f"warning: the best weights so far (step {position.best_step}) are lost: {broken}; the next evaluation is best")
            position.best, position.best_step, position.phase_rank, position.worse = None, 0, [], 0
        if position.best is not None:
            self._before = self._copy(set(position.touched) - set(checkpoints.read_tensors(self._best_folder(position), "model")))
        self._put(checkpoints.read_tensors(folder, "model"))
        self.moments = checkpoints.read_tensors(folder, "optimizer")
        if self.ema:
            self.average = MovingAverage(self.ema)
            self.average.shadow = checkpoints.read_tensors(folder, "average")
            self.average.steps = position.average_steps
        say(f"going on from {folder} (step {position.step})")
        return position

    def _read_of_main(self, folder: Path) -> Position:
        """The position in the checkpoint that rank 0 has chosen, where this process would have chosen another.

        Raises:
            UserError: this process cannot read it.
        """
        if broken := checkpoints.what_is_broken(folder):
            raise UserError(
                f"output_dir: rank 0 resumes from {folder}, which rank {rank()} cannot read: {broken}; allowed: a folder which "
                "all processes share"
            )
        return Position(**checkpoints.read_state(folder))

    def keep(self, position: Position, best: bool, give_up: Callable[[], bool] = bool) -> None:
        """Writes a checkpoint. Called between two optimiser steps, in every process.

        Raises:
            DiskFullError: there was no room for it, and `give_up` or ten minutes ended the wait.
        """
        weights = self._weights(position)
        average = self.average.shadow if self.average else {}
        if self.folder is None:
            if best:
                self._best = {name: tensor.clone() for name, tensor in (weights | average).items()}
            return
        self.written = position.step
        if not self.writes:
            return
        position.average_steps = self.average.steps if self.average else 0
        tensors = {"model": weights, "optimizer": self.moments} | ({"average": average} if average else {})
        folder, state = self.folder, asdict(position)
        patiently(
            lambda: checkpoints.write_checkpoint(folder, position.step, tensors, state, best, self.number),
            f"the checkpoint of step {position.step}", folder, give_up,
        )  # fmt: skip

    def restore_best(self, position: Position) -> None:
        """Puts the weights of the best evaluation into the model; without validation the last ones (or their average)."""
        if position.best is None:
            self._put(self.average.shadow if self.average else {})
        elif self.folder is None:
            self._put(self._before | self._best)
        else:
            path = self._best_folder(position)
            if broken := checkpoints.what_is_broken(path):
                raise RuntimeError(f"{path}: the best weights cannot be restored: {broken}; start the run again to go on")
            best = checkpoints.read_tensors(path, "model") | checkpoints.read_tensors(path, "average")
            self._put(self._before | best)

    @contextmanager
    def best_weights(self, position: Position) -> Iterator[None]:
        """Within it the model has the weights that `restore_best` would leave; afterwards the last ones again."""
        last = self._copy(set(position.touched))
        try:
            self.restore_best(position)
            yield
        finally:
            self._put(last)

    def _best_folder(self, position: Position) -> Path:
        """By the position, not by the pointer file: that may be of a later checkpoint, which was passed over."""
        assert self.folder is not None
        return self.folder / f"step-{position.best_step}"

    def _weights(self, position: Position) -> Tensors:
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach() for name in position.touched}

    def _copy(self, names: set[str]) -> Tensors:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters() if name in names}

    def _put(self, weights: Tensors) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
