"""The training loop."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from nlp_transfer.data.windows import Window
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.models.accelerator import in_any_process, is_lost_process
from nlp_transfer.models.preparation import enable_gradient_checkpointing
from nlp_transfer.settings.registry import is_user_defined
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, Strategy, Tables, View
from nlp_transfer.tasks import Objective, Task
from nlp_transfer.training.automatic_settings import ResolvedSettings, resolve_settings
from nlp_transfer.training.callback_states import load_states
from nlp_transfer.training.callbacks import Callback, Callbacks, Step, callbacks_from, check_callbacks
from nlp_transfer.training.checkpointer import Checkpointer
from nlp_transfer.training.gradient import NotFiniteError, TrainingError, WindowGradient
from nlp_transfer.training.interruption import active_signals
from nlp_transfer.training.optimizer import rate_factor, set_rate
from nlp_transfer.training.phase_plan import PhasePlanner
from nlp_transfer.training.phase_setup import prepared_phase
from nlp_transfer.training.position import Position
from nlp_transfer.training.run_log import RunLog
from nlp_transfer.training.standard_callbacks import Checkpoints, in_order
from nlp_transfer.training.step import PhaseOptimizer
from nlp_transfer.utils.console import say


class Flags(NamedTuple):
    """What at least one process reports before an optimizer step, and the mean loss over all processes."""

    not_finite: bool = False
    signal: bool = False
    overdue: bool = False
    """Whether it is time for a checkpoint."""
    loss: float = 0.0


class Trainer:
    """Trains a model on token tables. After `train`, the model has the best weights.

    Args:
        model: the model with its head, already prepared by the strategy.
        task: computes the loss and the validation metrics.
        data: token tables by split: `train` and, if there is one, `validation`.
        strategy: training strategy; None: full fine-tuning.
        settings: training settings, with or without `auto` values; None: the defaults.
        callbacks: your callbacks. They run after those of `settings.callbacks`; see `Callback`.
        output_dir: folder for `checkpoints/` and `log.jsonl`; None: nothing is written, and an interrupted run cannot resume.
        objectives: objectives by name; a phase can use one of them instead of the task's loss.
        user_metrics: additional validation metrics.

    Raises:
        UserError: the model or the device does not support a training setting, or a callback cannot be used.
    """

    optimizer: torch.optim.Optimizer
    """Optimizer of the current phase."""
    phase_optimizer: PhaseOptimizer

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        data: Tables,
        strategy: Strategy | None = None,
        settings: TrainingConfig | ResolvedSettings | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        output_dir: Path | None = None,
        objectives: Mapping[str, Objective] | None = None,
        user_metrics: UserMetrics | None = None,
    ) -> None:
        self.model, self.task, self.data, self.strategy = model, task, data, strategy or Strategy()
        if not isinstance(settings, ResolvedSettings):
            settings = resolve_settings(model, data.get("train"), settings or TrainingConfig(), output_dir)
        self.resolved, self.settings, self.accelerator = settings, settings.training, settings.accelerator
        self.precision, self.is_main_process = settings.precision, self.accelerator.is_main_process
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.objectives, self.user_metrics, self.signals = dict(objectives or {}), user_metrics, active_signals()
        self.planner = PhasePlanner(task, data, self.strategy, self.settings, self.accelerator.num_processes, model)
        folder = self.output_dir / "checkpoints" if self.output_dir else None
        self.checkpointer = Checkpointer(model, folder, self.settings.ema, self.is_main_process, self.settings.keep_checkpoints)
        self.run_log, self.checkpoints = RunLog(self.accelerator, self.output_dir), Checkpoints()
        users = [*callbacks_from(self.settings.callbacks), *check_callbacks(callbacks)]
        self.callbacks = Callbacks(in_order(self, users))
        self.position, self.flags, self.total_steps, self.should_stop = Position(), Flags(), 0, False
        self.may_be_stopped = any(map(is_user_defined, users))
        if self.settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)

    def train(self) -> Position:
        """Train all phases, then load the best weights. Resume from the last checkpoint, if there is one.

        Raises:
            TrainingError: the loss is not finite, memory is insufficient, or another process has ended.
            Interrupted: a signal arrived; a checkpoint has been written.
            DiskFullError: the disk is too full for a checkpoint.
        """
        try:
            return self._train()
        except BaseException as error:
            final = self._lost_process(error) if is_lost_process(error) else error
            self.callbacks.call_all("on_exception", self, final)
            if final is error:
                raise
            raise final from error

    def stop(self) -> None:
        """End training after the current step, in all processes; the run is evaluated, saved and finished normally."""
        self.should_stop = True

    def log(self, **values: float) -> None:
        """Write numbers of the current step to `log.jsonl` and to the trackers."""
        self.run_log.write(self.position.step, **values)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return copies of the clipped gradients that the optimizer applies, by parameter name."""
        return self.phase_optimizer.gradients()

    def update_weights(self) -> None:
        """Apply the pending updates of embedding tables to the weights."""
        self.phase_optimizer.sync()

    def _train(self) -> Position:
        self.position = position = self.checkpointer.resume(self._check_position)
        if position.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(position.scaler)
        load_states(self.callbacks.named(), position.callbacks, self.checkpointer.callback_tensors)
        self.may_be_stopped = in_any_process(self.accelerator, self.may_be_stopped)
        self.callbacks.call("on_fit_start", self)
        while phase := position.phase or self._next_phase():
            self._run_phase(phase)
            position.strategy.finished.append(phase.name)
            position.phase = None
        self.checkpointer.restore_best(position)
        self.callbacks.call("on_fit_end", self)
        return position

    def _lost_process(self, error: BaseException) -> TrainingError:
        return TrainingError(
            f"step {self.position.step + 1}: another process has ended or did not respond for "
            f"{self.settings.process_timeout} seconds (training.process_timeout): {error}. Run the same command again to "
            f"resume from the checkpoint of step {max(self.checkpointer.saved_step, 0)}"
        )

    def _check_position(self, position: Position) -> None:
        """Raise a ValueError if the position of a checkpoint is impossible in this run."""
        self.planner.check_position(position, self.objectives)
        if position.ended and not self.may_be_stopped:
            raise ValueError("ended: found true; allowed: false, since this run has no user callback that could have stopped it")
        scaler = self.accelerator.scaler
        names = {} if scaler is None else scaler.state_dict()
        if position.scaler.keys() != names.keys():
            allowed = f"numbers for {', '.join(names)}" if names else "no numbers"
            raise ValueError(f"scaler: found {position.scaler}; allowed: {allowed}")

    def _next_phase(self) -> Phase | None:
        """Return the next phase of the strategy and move the position to its start; None: training is finished."""
        position, began = self.position, time.monotonic()
        phase = self.strategy.next_phase(position.strategy, self._view())
        position.seconds += time.monotonic() - began
        if phase is None:
            return None
        if phase.trainable is None:
            phase = replace(phase, trainable=tuple(name for name, p in self.model.named_parameters() if p.requires_grad))
        position.phase, position.phase_step, position.epoch, position.window = phase, 0, 0, 0
        position.phase_rank, position.worse, position.stopped = [], 0, False
        return phase

    def _run_phase(self, phase: Phase) -> None:
        position, finished = self.position, len(self.position.strategy.finished)
        self.plan = plan = self.planner.window_plan(phase, finished)
        self.total_steps = self.planner.steps(phase, finished, position.step - position.phase_step)
        if self.total_steps == 0 or (position.ended and position.phase_step == 0):
            reason = f"training.max_steps {self.settings.max_steps} leaves no steps for it"
            say(f"warning: phase {phase.name} is skipped: {'a callback stopped training' if position.ended else reason}")
            return
        with prepared_phase(self, phase) as gradient, self.signals.held():
            self.began = time.monotonic() - position.seconds
            self.callbacks.call("on_phase_start", self, phase)
            for window in plan.windows_from(position.epoch, position.window):
                if position.phase_step >= self.total_steps or position.stopped or position.ended:
                    break
                self.callbacks.call("on_step", self, self._take_step(window, gradient))
            self.callbacks.call("on_phase_end", self, phase)

    def _take_step(self, window: Window, gradient: WindowGradient) -> Step:
        """Take the optimizer step of a window, and move the position past it."""
        position, started = self.position, time.monotonic()
        rate = set_rate(self.optimizer, rate_factor(position.phase_step, self.total_steps, self.settings))
        values = gradient.compute(window, position)
        norm = self.phase_optimizer.clip()
        self.flags = self._reduce_flags(norm, values["loss"])
        epoch = window.epoch + (window.index + 1) / window.of
        step = Step(position.step + 1, epoch, window.rows, self.flags.loss, float(norm), rate, values)
        if self.flags.not_finite:
            self._stop_on_nan(step)
        self.callbacks.call("on_before_optimizer_step", self, step)
        self.phase_optimizer.step()
        position.step, position.phase_step = position.step + 1, position.phase_step + 1
        position.epoch, position.window = window.epoch, window.index + 1
        position.examples += len(window.rows)
        position.tokens += int(self.plan.lengths[window.rows].sum())
        position.step_seconds += time.monotonic() - started
        return step

    def _reduce_flags(self, norm: Any, loss: torch.Tensor) -> Flags:
        """Return the mean loss, and whether any process has a non-finite loss or gradient, a signal or an overdue checkpoint."""
        # In fp16 only the loss must be finite: if gradients overflow, the scaler skips the step.
        values = loss if self.precision == "fp16" else torch.as_tensor(norm).to(loss.device) + loss
        overdue = self.is_main_process and self.checkpoints.overdue
        received = self.signals.received is not None
        if self.accelerator.num_processes == 1:  # synchronizes with the GPU only once
            total, mean = torch.stack([values.reshape(()), loss]).tolist()
            return Flags(not math.isfinite(total), received, overdue, mean)
        local = torch.tensor([float(received), float(overdue)], device=loss.device)
        flags = [(~torch.isfinite(values)).float().reshape(1), local, loss.reshape(1).float()]
        not_finite, stop, late, mean = self.accelerator.reduce(torch.cat(flags), "sum").tolist()
        return Flags(not_finite > 0, stop > 0, late > 0, mean)

    def _stop_on_nan(self, step: Step) -> None:
        if self.checkpointer.saved_step != self.position.step:
            self.checkpoints.save(self, best=False)
        phase = self.position.phase
        is_of_train = phase is not None and phase.objective is None
        rows = step.rows[step.rows < len(self.data["train"])] if is_of_train else step.rows[:0]
        raise NotFiniteError(step.number, step.loss, step.grad_norm, rows)

    def _view(self) -> View:
        def predict(table: Any) -> dict[str, Any]:
            self.model.to(self.accelerator.device)
            with self.checkpointer.best_weights(self.position):
                return predict_table(self.model, self.task, table, precision=self.precision, accelerator=self.accelerator)[0]

        epochs, windows = (
            (self.planner.epochs(), self.planner.window_plan().windows_in_epoch) if "train" in self.data else (0.0, 0)
        )
        max_steps = self.settings.max_steps
        remaining = None if max_steps is None else max_steps - self.position.step
        return View(self.model, self.data, self.position.history, predict, epochs, windows, max_steps, remaining)
