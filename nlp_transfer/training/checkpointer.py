"""Keeping where a run stands: checkpoints on optimiser steps, going on from the last one, the best weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from nlp_transfer.models.verification.weight_files import stored_shapes
from nlp_transfer.security.file_locks import read_own
from nlp_transfer.training import checkpoints
from nlp_transfer.training.checkpoints import Tensors
from nlp_transfer.training.optimizer import MovingAverage
from nlp_transfer.training.position import Position, read_position
from nlp_transfer.utils.atomic_files import patiently
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import from_main, rank
from nlp_transfer.utils.errors import UserError


class Checkpointer:
    """Keeps a run's weights, moments and position; in `folder` where there is one, else the best weights in memory.

    Of several processes one writes, and all read.

    Args:
        number: the newest so many checkpoints are kept, and the best weights that each of them knows.
    """

    def __init__(self, model: nn.Module, folder: Path | None, ema: float | None, writes: bool = True, number: int = 2) -> None:
        self.model, self.folder, self.ema, self.writes, self.number = model, folder, ema, writes, number
        self.saved_step = -1
        """Step of the newest checkpoint."""
        self.optimizer_state: Tensors = {}
        self.average: MovingAverage | None = None
        self._best: Tensors = {}
        self._untrained: Tensors = {}

    def begin_phase(self, position: Position, names: list[str]) -> None:
        """Takes down what a phase trains.

        What no phase has trained before is kept as it is: should the best evaluation turn out to lie before this phase, a
        mix of its weights and later ones would be a model that nobody has scored.
        """
        if position.touched:
            self._untrained |= self._copy(set(names) - set(position.touched))
        position.touched = sorted({*position.touched, *names})

    def resume(self, check: Callable[[Position], object] = id) -> Position:
        """The position of the newest checkpoint without a fault, its weights put back; a fresh one where there is none.

        Args:
            check: raises a ValueError where a position cannot be one of this run.
        """

        def fault(path: Path) -> str | None:
            return self._fault(path) or self._fault_of_position(path, check)

        own, notes = checkpoints.newest_intact(self.folder, fault) if self.folder else (None, [])
        say(*notes)
        position = self._read(own) if own else Position()
        broken = self._fault(self._best_folder(position)) if position.best is not None else None
        # From two checkpoints, processes would train two models without a sign of it.
        name, broken = from_main((own.name if own else None, broken))
        if name is None or self.folder is None:
            return Position()
        folder = self.folder / name
        if folder != own:
            if reason := fault(folder):
                raise UserError(
                    f"output_dir: rank 0 resumes from {folder}, which rank {rank()} cannot read: {reason}; allowed: a folder "
                    "which all processes share"
                )
            position = self._read(folder)
        self.saved_step = position.step
        if broken:
            say(f"warning: the best weights so far (step {position.best_step}) are lost: {broken}; the next evaluation is best")
            position.best, position.best_step, position.phase_rank, position.worse = None, 0, [], 0
        if position.best is not None:
            self._untrained = self._copy(
                set(position.touched) - set(checkpoints.read_tensors(self._best_folder(position), "model"))
            )
        self._put(checkpoints.read_tensors(folder, "model"))
        self.optimizer_state = checkpoints.read_tensors(folder, "optimizer")
        if self.ema:
            self.average = MovingAverage(self.ema)
            self.average.shadow = checkpoints.read_tensors(folder, "average")
            self.average.steps = position.average_steps
        say(f"going on from {folder} (step {position.step})")
        return position

    def _read(self, path: Path) -> Position:
        return read_position(read_own(path / "state.json"), int(path.name.removeprefix("step-")))

    def _fault(self, path: Path) -> str | None:
        """Why the tensors of a checkpoint cannot be used with this model, or None."""
        if broken := checkpoints.find_damage(path):
            return broken
        own = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        try:
            for name in ("model", "optimizer", *(["average"] if self.ema else [])):
                for key, shape in stored_shapes(path / f"{name}.safetensors").items():
                    parameter, _, state = key.rpartition("/") if name == "optimizer" else (key, "", "")
                    if parameter not in own or (state in ("", "exp_avg", "exp_avg_sq") and shape != own[parameter]):
                        return f"{name}.safetensors: found {key} of shape {shape}; the model has {own.get(parameter, 'none')}"
        except UserError as error:
            return f"{name}.safetensors cannot be read: {error}"
        return None

    def _fault_of_position(self, path: Path, check: Callable[[Position], object]) -> str | None:
        """Why a checkpoint's position cannot be one of this run, or None."""
        try:
            position = self._read(path)
            if position.average_steps != (steps := position.step if self.ema else 0):
                return f"state.json: average_steps: found {position.average_steps}; allowed: {steps}"
            if position.touched != sorted(stored_shapes(path / "model.safetensors")):
                return "state.json: touched: found other names than model.safetensors has"
            check(position)
        except (OSError, ValueError) as error:
            return f"state.json: {error}"
        return None

    def save(self, position: Position, best: bool, give_up: Callable[[], bool] = bool) -> None:
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
        self.saved_step = position.step
        if not self.writes:
            return
        position.average_steps = self.average.steps if self.average else 0
        tensors = {"model": weights, "optimizer": self.optimizer_state} | ({"average": average} if average else {})
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
            self._put(self._untrained | self._best)
        else:
            path = self._best_folder(position)
            if broken := self._fault(path):
                raise RuntimeError(f"{path}: the best weights cannot be restored: {broken}; start the run again to go on")
            best = checkpoints.read_tensors(path, "model") | checkpoints.read_tensors(path, "average")
            self._put(self._untrained | best)

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
