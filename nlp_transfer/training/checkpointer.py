"""Saves and resumes training runs, and restores the best weights when training ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from nlp_transfer.models.verification.weight_files import stored_shapes
from nlp_transfer.security.file_locks import read_record
from nlp_transfer.training import checkpoints
from nlp_transfer.training.callback_states import check_states
from nlp_transfer.training.checkpoints import Tensors
from nlp_transfer.training.optimizer import MovingAverage
from nlp_transfer.training.position import Position, read_position
from nlp_transfer.utils.atomic_files import retry_while_full
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import broadcast_from_main, rank
from nlp_transfer.utils.errors import UserError


class Checkpointer:
    """Saves and restores weights, optimizer state and position of a run.

    Without a folder, it keeps only the best weights, in memory. With several processes, one process writes and all processes
    read.

    Args:
        model: the model. Its trained parameters are saved, and restored in place.
        folder: `checkpoints/` of the run.
        ema: decay of the moving average of the weights. None: no moving average.
        writes: whether this process writes.
        number: number of newest checkpoints to keep. The checkpoint that each of them records as the best so far is kept too.
    """

    def __init__(self, model: nn.Module, folder: Path | None, ema: float | None, writes: bool = True, number: int = 2) -> None:
        self.model, self.folder, self.ema, self.writes, self.number = model, folder, ema, writes, number
        self.saved_step = -1
        """Step of the newest checkpoint."""
        self.optimizer_state: Tensors = {}
        """Optimizer state of all phases so far, under names of the form `PARAMETER/KEY`."""
        self.average: MovingAverage | None = None
        """Moving average of the weights."""
        self.callback_tensors: Tensors = {}
        """Tensors from the states of callbacks. All other values of these states are in `Position.callbacks`."""
        self._best: Tensors = {}
        self._untrained: Tensors = {}

    def begin_phase(self, position: Position, names: list[str]) -> None:
        """Record the parameters that a phase trains.

        Parameters that earlier phases did not train are copied before they change. If the best weights turn out to be those of an
        earlier phase, these parameters are restored from the copies. Without the copies, the result would mix weights of
        different steps.
        """
        if position.touched:
            self._untrained |= self._copy(set(names) - set(position.touched))
        position.touched = sorted({*position.touched, *names})

    def resume(self, check: Callable[[Position], object] = id) -> Position:
        """Load the newest intact checkpoint and return its position. If there is none, return a new position.

        Args:
            check: function that raises a ValueError if a position is impossible in this run.
        """

        def fault(path: Path) -> str | None:
            return self._fault(path) or self._fault_of_position(path, check)

        newest, notes = checkpoints.newest_intact(self.folder, fault) if self.folder else (None, [])
        say(*notes)
        position = self._read(newest) if newest else Position()
        has_older_best = position.best is not None and self._best_folder(position) != newest
        best_fault = self._fault(self._best_folder(position)) if has_older_best else None
        # Processes that resume from different checkpoints would silently train different models.
        name, best_fault = broadcast_from_main((newest.name if newest else None, best_fault))
        if name is None or self.folder is None:
            return Position()
        folder = self.folder / name
        if folder != newest:
            if reason := fault(folder):
                raise UserError(
                    f"output_dir: rank 0 resumes from {folder}, which rank {rank()} cannot read: {reason}; allowed: a folder "
                    "that all processes share"
                )
            position = self._read(folder)
        self.saved_step = position.step
        if best_fault:
            say(
                f"warning: the best weights so far (step {position.best_step}) are lost: {best_fault}; the next evaluation "
                "counts as the best"
            )
            position.best, position.best_step, position.phase_rank, position.worse = None, 0, [], 0
        if position.best is not None:
            best = checkpoints.tensor_names(self._best_folder(position), "model")
            self._untrained = self._copy(set(position.touched) - set(best))
        self._load(checkpoints.read_tensors(folder, "model"))
        self.optimizer_state = checkpoints.read_tensors(folder, "optimizer")
        self.callback_tensors = checkpoints.read_tensors(folder, "callbacks")
        if self.ema:
            self.average = MovingAverage(self.ema)
            self.average.weights = checkpoints.read_tensors(folder, "average")
            self.average.steps = position.average_steps
        say(f"resuming from {folder} (step {position.step})")
        return position

    def _read(self, path: Path) -> Position:
        return read_position(read_record(path / "state.json"), int(path.name.removeprefix("step-")))

    def _fault(self, path: Path) -> str | None:
        """Return why the tensors of a checkpoint cannot be used with this model. None: they can be used."""
        if damage := checkpoints.find_damage(path):
            return damage
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        try:
            for name in ("model", "optimizer", *(["average"] if self.ema else [])):
                for key, shape in stored_shapes(path / f"{name}.safetensors").items():
                    parameter, _, state = key.rpartition("/") if name == "optimizer" else (key, "", "")
                    if parameter not in shapes or (state in ("", "exp_avg", "exp_avg_sq") and shape != shapes[parameter]):
                        return f"{name}.safetensors: found {key} of shape {shape}; the model has {shapes.get(parameter, 'none')}"
        except UserError as error:
            return f"{name}.safetensors cannot be read: {error}"
        return None

    def _fault_of_position(self, path: Path, check: Callable[[Position], object]) -> str | None:
        """Return why the position of a checkpoint is impossible in this run. None: it is possible."""
        try:
            position = self._read(path)
            if position.average_steps != (steps := position.step if self.ema else 0):
                return f"state.json: average_steps: found {position.average_steps}; allowed: {steps}"
            if position.touched != sorted(stored_shapes(path / "model.safetensors")):
                return "state.json: touched: found other names than those in model.safetensors"
            check_states(position.callbacks, checkpoints.tensor_names(path, "callbacks"))
            check(position)
        except (OSError, ValueError) as error:
            return f"state.json: {error}"
        return None

    def save(self, position: Position, best: bool, give_up: Callable[[], bool] = bool) -> Path | None:
        """Write a checkpoint and return its folder. Call it in every process, between two optimizer steps.

        Args:
            position: the progress so far.
            best: whether these are the best weights so far.
            give_up: function that is called while the disk is full. If it returns true, waiting ends.

        Raises:
            DiskFullError: the disk remained full for ten minutes, or until `give_up` returned true.
        """
        weights = self._weights(position)
        average = self.average.weights if self.average else {}
        if self.folder is None:
            if best:
                self._best = {name: tensor.clone() for name, tensor in (weights | average).items()}
            return None
        self.saved_step = position.step
        if not self.writes:
            return self.folder / f"step-{position.step}"
        position.average_steps = self.average.steps if self.average else 0
        optional = {"average": average, "callbacks": self.callback_tensors}
        tensors = {"model": weights, "optimizer": self.optimizer_state} | {name: each for name, each in optional.items() if each}
        folder, state = self.folder, asdict(position)
        return retry_while_full(
            lambda: checkpoints.write_checkpoint(folder, position.step, tensors, state, best, self.number),
            f"the checkpoint of step {position.step}", folder, give_up,
        )  # fmt: skip

    def restore_best(self, position: Position) -> None:
        """Load the weights of the best evaluation. If there was no evaluation, load the moving average, if there is one."""
        if position.best is None:
            self._load(self.average.weights if self.average else {})
        elif self.folder is None:
            self._load(self._untrained | self._best)
        else:
            path = self._best_folder(position)
            if fault := self._fault(path):
                raise RuntimeError(f"{path}: the best weights cannot be restored: {fault}; run the same command again to resume")
            best = checkpoints.read_tensors(path, "model") | checkpoints.read_tensors(path, "average")
            self._load(self._untrained | best)

    @contextmanager
    def best_weights(self, position: Position) -> Iterator[None]:
        """Context in which the model has the best weights (see `restore_best`). On exit, the current weights are loaded again."""
        current = self._copy(set(position.touched))
        try:
            self.restore_best(position)
            yield
        finally:
            self._load(current)

    def _best_folder(self, position: Position) -> Path:
        """Return the folder of the best weights.

        The file `best` is not read, since it may name a later checkpoint, one that `resume` skipped because of a fault.
        """
        assert self.folder is not None
        return self.folder / f"step-{position.best_step}"

    def _weights(self, position: Position) -> Tensors:
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach() for name in position.touched}

    def _copy(self, names: set[str]) -> Tensors:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters() if name in names}

    def _load(self, weights: Tensors) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
