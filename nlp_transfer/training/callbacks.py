"""Callbacks: code that runs at fixed points of training.

At every hook, callbacks run in the same order (`in_order`): the moving average of the weights, the log, the progress bar, early
stopping, those of `training.callbacks`, those passed in Python, evaluation, and checkpoints. Changes that a user's callback makes
are therefore included in the checkpoint of the same step.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED
from nlp_transfer.settings.extensions import load_class
from nlp_transfer.settings.registry import name_of
from nlp_transfer.strategies import Phase
from nlp_transfer.utils.errors import UserError

Trainer = Any  # nlp_transfer.training.Trainer, which imports this module
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """Number of the step in the run, counted from 1."""
    epoch: float
    """Epochs of the phase completed by this step, including a fraction of the current one."""
    rows: np.ndarray
    """Indices of the step's rows, from all processes, in the table of the phase; int64."""
    loss: float
    """Mean loss of the rows, over all processes."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate, without the factors of parameter groups."""
    values: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """This process's share of the mean loss and of each mean step metric of the task; all shares add up to the means."""


class Callback:
    """Base class of callbacks. Override the hooks that you need; each does nothing by default.

    Every hook runs in every process of a distributed run; for side effects such as messages, test `trainer.is_main_process`.
    An exception in a hook ends the run like any other error; its checkpoints remain, and the run can be resumed.

    Attributes of the trainer that hooks can read: `model`, `task`, `data` (token tables by split), `strategy`, `settings`
    (`TrainingConfig`), `position` (progress: `step`, `phase`, `epoch`, `history`, `best`, ...), `optimizer`, `total_steps` (of
    the phase), `output_dir`, `accelerator`, `is_main_process`.

    Methods that hooks can call:
        `trainer.stop()`: end training after the current step; the run is evaluated, saved and finished normally. It is enough
            to call it in one process. In `on_checkpoint`, it takes effect after the next step.
        `trainer.log(name=value)`: write numbers to `log.jsonl` and to the trackers.
        `trainer.gradients()`: in `on_before_optimizer_step`, the gradients that the optimizer applies.
        `trainer.update_weights()`: apply the pending updates of embedding tables. With the fast kernels, table rows that
            recent batches did not look up lag behind; call this before reading weights in `on_step` or `on_checkpoint`.
        To change the learning rate, set `group["lr"]` of `trainer.optimizer.param_groups` in `on_before_optimizer_step`.

    Resuming: PyTorch's random numbers depend on the seed and the step only. A callback that remembers something between steps
    must return it from `state_dict`; it is saved with each checkpoint.

    Example:
        class StopAtLoss(Callback):
            def on_step(self, trainer, step):
                if step.loss < 0.01:
                    trainer.stop()
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Called once, after a checkpoint (if any) was loaded and before the first phase."""

    def on_phase_start(self, trainer: Trainer, phase: Phase) -> None:
        """Called before the steps of a phase. Most strategies have a single phase. A resumed run calls it again."""

    def on_batch(self, trainer: Trainer, batch: Batch, rows: np.ndarray) -> Batch | None:
        """Called with each collated training batch of this process, before it is moved to the device.

        If memory runs out, it is called again with smaller batches of the same rows.

        Args:
            batch: tensors with one row per example, such as `input_ids`, `attention_mask` and `labels`.
            rows: indices of the examples in the table of the phase; int64.

        Returns:
            The changed batch; None: unchanged. The number of rows and of targets must not change.
        """
        return None

    def on_before_optimizer_step(self, trainer: Trainer, step: Step) -> None:
        """Called between the backward pass and each optimizer step, after clipping. `trainer.gradients()` works here."""

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Called after each optimizer step."""

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Called after each validation, with its metrics; `trainer.position.best_step` is the best step so far."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Called after each checkpoint was written to the folder `path`."""

    def on_phase_end(self, trainer: Trainer, phase: Phase) -> None:
        """Called after the last step of a phase."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Called if training ends with an exception or a signal (`KeyboardInterrupt`). The exception is then raised again."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Called once, after the best weights were restored. Not called after an exception."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save with each checkpoint: JSON values and tensors. The main process's state is saved."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned. Called in every process of a resumed run, before `on_fit_start`."""


class Callbacks:
    """The callbacks of a run, in order. Hooks are called by name, and only on the callbacks that override them."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.all = list(callbacks)
        hooks = [name for name in vars(Callback) if name.startswith("on_")]
        self._of_hook = {hook: [each for each in self.all if _overrides(each, hook)] for hook in hooks}

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks."""
        for callback in self._of_hook[hook]:
            getattr(callback, hook)(*arguments)

    def call_all(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks, even if some of them raise an exception. The last exception is raised at the end."""
        with ExitStack() as stack:
            for callback in reversed(self._of_hook[hook]):
                stack.callback(getattr(callback, hook), *arguments)

    def change_of_batches(self, trainer: Trainer) -> Callable[[Batch, np.ndarray, int], Batch] | None:
        """Return a function that applies all `on_batch` hooks to a batch. None: no callback has this hook.

        While these hooks run, `random` and NumPy are seeded from the seed, the step and the process, like PyTorch.

        The function raises a ValueError if a callback changes the number of rows or targets, since the loss is divided by it.
        """
        if not self._of_hook["on_batch"]:
            return None

        def change(batch: Batch, rows: np.ndarray, step: int) -> Batch:
            seed = np.random.SeedSequence([trainer.settings.seed, step, trainer.accelerator.process_index, int(rows[0])])
            number = int(seed.generate_state(1)[0])
            random.seed(number)
            np.random.seed(number)
            for callback in self._of_hook["on_batch"]:
                changed = callback.on_batch(trainer, dict(batch), rows)
                if changed is not None:
                    _check_batch(callback, batch, changed)
                    batch = changed
            return batch

        return change

    def named(self) -> dict[str, Callback]:
        """Return the callbacks that have a state, by name. The names are the same when the run is resumed."""
        named: dict[str, Callback] = {}
        for callback in self.all:
            if _overrides(callback, "state_dict"):
                name = name_of(type(callback))
                count = sum(other.partition("#")[0] == name for other in named)
                named[f"{name}#{count + 1}" if count else name] = callback
        return named


def _overrides(callback: Callback, method: str) -> bool:
    return getattr(type(callback), method) is not getattr(Callback, method)


def _check_batch(callback: Callback, before: Batch, after: Any) -> None:
    place = f"callbacks: {name_of(type(callback))}.on_batch"
    if not isinstance(after, dict) or not all(isinstance(value, torch.Tensor) for value in after.values()):
        raise ValueError(f"{place}: found {type(after).__name__}; allowed: a dict of tensors, or None")
    if missing := sorted(before.keys() - after.keys()):
        raise ValueError(f"{place}: the batch has no {', '.join(missing)} any more; allowed: the same tensors, or more")
    for name in before:
        if len(after[name]) != len(before[name]):
            raise ValueError(f"{place}: found {len(after[name])} rows of {name}; allowed: {len(before[name])}, as before")
    if "labels" in before:
        counts = [int((batch["labels"] != IGNORED).sum()) for batch in (before, after)]
        if counts[0] != counts[1]:
            raise ValueError(f"{place}: found {counts[1]} targets; allowed: {counts[0]}, as before")


def check_callbacks(callbacks: Iterable[Any]) -> list[Callback]:
    """Return callbacks as a list.

    Raises:
        UserError: an object is not a callback, or saves a state that it does not load.
    """
    if isinstance(callbacks, (str, bytes, Callback)) or not isinstance(callbacks, Iterable):
        raise UserError(f"callbacks: found {callbacks!r}; allowed: a list of objects of subclasses of nlp_transfer.Callback")
    checked = list(callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            hint = f"; create an object: {callback.__name__}()" if isinstance(callback, type) else ""
            raise UserError(f"callbacks: found {callback!r}; allowed: objects of subclasses of nlp_transfer.Callback{hint}")
        if _overrides(callback, "state_dict") and not _overrides(callback, "load_state_dict"):
            raise UserError(
                f"callbacks: {name_of(type(callback))} defines state_dict without load_state_dict; allowed: both or neither"
            )
    return checked


def note_on_callbacks(callbacks: Sequence[Callback]) -> list[str]:
    """Return a line about callbacks that `config.yaml` cannot contain."""
    names = ", ".join(type(callback).__name__ for callback in callbacks)
    note = (
        "note: callbacks that are passed as objects are not recorded in config.yaml; to repeat the run, pass them again, or name"
    )
    return [f"{note} their classes in training.callbacks: {names}"] if names else []


def callback_class(index: int, name: str) -> type[Callback]:
    """Return the class that `training.callbacks` names at an index.

    Raises:
        UserError: the class cannot be loaded, or is not a callback.
    """
    kind: type[Callback] = load_class(f"training.callbacks.{index}", name, Callback)
    return kind


def callbacks_from(names: Sequence[str]) -> list[Callback]:
    """Create the callbacks that `training.callbacks` names.

    Raises:
        UserError: a class cannot be loaded, is not a callback, or cannot be created without arguments.
    """
    callbacks = []
    for i, name in enumerate(names):
        kind = callback_class(i, name)
        try:
            callbacks.append(kind())
        except Exception as error:
            raise UserError(
                f"training.callbacks.{i}: found {name}, which cannot be created without arguments ({type(error).__name__}: "
                f"{error}); allowed: a class without required arguments; in Python, pass an object: callbacks=[...]"
            ) from error
    return check_callbacks(callbacks)
