"""Where a run stands, and keeping it: checkpoints on optimiser steps, going on from the last one, the best weights."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlp_transfer.console import say
from nlp_transfer.training import checkpoints
from nlp_transfer.training.checkpoints import Tensors
from nlp_transfer.training.optimizers import MovingAverage


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
    """The best value of the metric with the sign that makes more better, and minus its loss."""
    best_step: int = 0
    worse: int = 0
    """Evaluations since the best one."""
    stopped: bool = False
    """Whether training was stopped early."""
    touched: list[str] = field(default_factory=list)
    """Names of all parameters that any phase has trained."""
    average_steps: int = 0
    examples: int = 0
    tokens: int = 0
    """Real tokens (no padding) that this process has trained on."""
    seconds: float = 0.0
    step_seconds: float = 0.0


class Keeper:
    """Keeps a run's weights, moments and position; in `folder` where there is one, else the best weights in memory."""

    def __init__(self, model: nn.Module, folder: Path | None, ema: float | None) -> None:
        self.model, self.folder, self.ema = model, folder, ema
        self.moments: Tensors = {}
        self.average: MovingAverage | None = None
        self._best: Tensors = {}

    def resume(self) -> Position:
        """The position of the newest whole checkpoint, its weights put back; a fresh one where there is none."""
        folder, notes = checkpoints.newest_whole(self.folder) if self.folder else (None, [])
        say(*notes)
        if folder is None:
            return Position()
        position = Position(**checkpoints.read_state(folder))
        self._put(checkpoints.read_tensors(folder, "model"))
        self.moments = checkpoints.read_tensors(folder, "optimizer")
        if self.ema:
            self.average = MovingAverage(self.model, self.ema)
            self.average.shadow = checkpoints.read_tensors(folder, "average")
            self.average.steps = position.average_steps
        say(f"going on from {folder} (step {position.step})")
        return position

    def keep(self, position: Position, best: bool) -> None:
        """Writes a checkpoint. Called in the main process only, between two optimiser steps."""
        weights = self._weights(position)
        average = self.average.shadow if self.average else {}
        if self.folder is None:
            if best:
                self._best = {name: tensor.clone() for name, tensor in (weights | average).items()}
            return
        position.average_steps = self.average.steps if self.average else 0
        tensors = {"model": weights, "optimizer": self.moments} | ({"average": average} if average else {})
        checkpoints.write_checkpoint(self.folder, position.step, tensors, asdict(position), best)

    def restore_best(self, position: Position) -> None:
        """Puts the weights of the best evaluation into the model; without validation the last ones (or their average)."""
        if position.best is None:
            self._put(self.average.shadow if self.average else {})
        elif self.folder is None:
            self._put(self._best)
        else:
            name = checkpoints.pointed(self.folder, "best")
            assert name is not None, "an evaluation that was best leaves a checkpoint"
            path = self.folder / name
            self._put(checkpoints.read_tensors(path, "model") | checkpoints.read_tensors(path, "average"))

    def _weights(self, position: Position) -> Tensors:
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach() for name in position.touched}

    def _put(self, weights: Tensors) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
