"""The training loop."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.models.accelerator import in_fp32, is_lost_process, release_model
from nlp_transfer.models.preparation import enable_gradient_checkpointing, train_mode
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, Strategy, Tables, View
from nlp_transfer.tasks import Objective, Task
from nlp_transfer.training.automatic_settings import ResolvedSettings, resolve_settings
from nlp_transfer.training.checkpointer import Checkpointer
from nlp_transfer.training.gradient import Augment, TrainingError, WindowGradient
from nlp_transfer.training.interruption import Signals
from nlp_transfer.training.optimizer import (
    MovingAverage,
    make_optimizer,
    named_groups,
    rate_factor,
    restore_state,
    set_rate,
    state_by_name,
)
from nlp_transfer.training.phase_plan import PhasePlanner
from nlp_transfer.training.position import Position
from nlp_transfer.training.run_log import RunLog
from nlp_transfer.training.step import PhaseOptimizer
from nlp_transfer.training.validation_scores import score_validation
from nlp_transfer.utils.console import Steps, number, say
from nlp_transfer.utils.interrupts import Interrupted

CHECKPOINT_SECONDS = 900.0  # longest time between checkpoints


class Trainer:
    """Trains a model on token tables. After `train`, the model has the best weights.

    Args:
        model: with its head, as prepared by the strategy.
        task: computes the loss and the validation metrics.
        tables: `train` and, if there is one, `validation`.
        strategy: training strategy; None: full fine-tuning.
        training: training settings; None: the defaults.
        resolved: resolved `auto` settings; None: they are resolved here.
        output_dir: folder of `checkpoints/` and `log.jsonl`; None: nothing is written, and an interrupted run cannot resume.
        describe: names training rows by their indices, in the message about a loss that is not finite.
        objectives: objectives by name, which a phase can use instead of the task.
        augment: changes the training batches of phases that use the task.
        signals: signal handler, entered by the caller; None: signals are not handled.
        user_metrics: additional validation metrics.

    Raises:
        UserError: the model or the device does not support a training setting.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        tables: Tables,
        *,
        strategy: Strategy | None = None,
        training: TrainingConfig | None = None,
        resolved: ResolvedSettings | None = None,
        output_dir: Path | None = None,
        describe: Callable[[np.ndarray], str] = str,
        objectives: Mapping[str, Objective] | None = None,
        augment: Augment | None = None,
        signals: Signals | None = None,
        user_metrics: UserMetrics | None = None,
    ) -> None:
        self.model, self.task, self.tables = model, task, tables
        self.strategy, self.training = strategy or Strategy(), training or TrainingConfig()
        if resolved is None:
            resolved = resolve_settings(model, tables.get("train"), self.training, output_dir)
            self.training = resolved.training
        self.resolved, self.accelerator, self.precision = resolved, resolved.accelerator, resolved.precision
        self.output_dir, self.describe, self.objectives = output_dir, describe, dict(objectives or {})
        self.augment, self.signals, self.user_metrics = augment, signals or Signals(), user_metrics
        self.planner = PhasePlanner(task, tables, self.strategy, self.training, self.accelerator.num_processes, model)
        checkpoints = output_dir / "checkpoints" if output_dir else None
        self.checkpointer = Checkpointer(
            model, checkpoints, self.training.ema, self.accelerator.is_main_process, self.training.keep_checkpoints
        )
        self.log = RunLog(self.accelerator, output_dir)
        self.position = Position()
        self._saved_at = time.monotonic()
        if self.training.gradient_checkpointing:
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
        except Exception as error:
            if not is_lost_process(error):
                raise
            raise TrainingError(
                f"step {self.position.step + 1}: another process has ended or did not respond for "
                f"{self.training.process_timeout} seconds (training.process_timeout): {error}. Run the same command again to "
                f"resume from the checkpoint of step {max(self.checkpointer.saved_step, 0)}"
            ) from error

    def _train(self) -> Position:
        self.position = position = self.checkpointer.resume(self._check_position)
        self.log.drop_after(position.step, not position.unjudged)
        if position.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(position.scaler)
        while phase := position.phase or self._next_phase():
            self._run_phase(phase)
            position.strategy.finished.append(phase.name)
            position.phase = None
        self.checkpointer.restore_best(position)
        return position

    def _check_position(self, position: Position) -> None:
        """Raise a ValueError if the position of a checkpoint is impossible in this run."""
        self.planner.check_position(position, self.objectives)
        scaler = self.accelerator.scaler
        names = {} if scaler is None else scaler.state_dict()
        if position.scaler.keys() != names.keys():
            raise ValueError(f"scaler: found {position.scaler}; allowed: numbers for {', '.join(names) or 'nothing'}")

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
        position, training, accelerator = self.position, self.training, self.accelerator
        finished = len(position.strategy.finished)
        table, plan = self.planner.table(phase), self.planner.window_plan(phase, finished)
        total = self.planner.steps(phase, finished, position.step - position.phase_step)
        if total == 0:
            say(f"warning: phase {phase.name} is skipped: no steps are left of training.max_steps {training.max_steps}")
            return
        names = set(phase.trainable or ())
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        self.model.to(accelerator.device)
        groups = named_groups(self.model, training, self.strategy)
        optimizer = make_optimizer(self.model, groups, self.planner.learning_rate() * phase.learning_rate_scale)
        self.checkpointer.begin_phase(position, [name for group in groups for name in group.names])
        if not phase.keep_optimizer and position.phase_step == 0:
            self.checkpointer.optimizer_state = {}
        restore_state(optimizer, self.checkpointer.optimizer_state)
        if training.ema:
            self.checkpointer.average = self.checkpointer.average or MovingAverage(training.ema)
            self.checkpointer.average.include(self.model)
        # Prepare each phase again: gradients of parameters that are unfrozen after wrapping would not be synchronized.
        forward_before = vars(self.model).get("forward")
        model, prepared = accelerator.prepare(self.model, optimizer)
        fast = self.resolved.kernels == "fast"
        self.phase_optimizer = PhaseOptimizer(self.model, prepared, accelerator, training, self.strategy, phase, fast)
        objective = self.objectives[phase.objective] if phase.objective else self.task.objective(self.training, table)
        augment = self.augment if phase.split == "train" and phase.objective is None else None
        gradient = WindowGradient(model, objective, table, plan, self.phase_optimizer, augment)
        evaluate_every = training.evaluate_every or plan.windows_in_epoch
        train_mode(self.model)
        began, unlogged = time.monotonic() - position.seconds, []
        title = "training" if phase.name == "train" else f"training ({phase.name})"
        with Steps(title, total, position.phase_step) as progress, self.signals.held():
            if position.unjudged and self._evaluate(phase):
                self._save(optimizer, True)
            for window in plan.windows_from(position.epoch, position.window):
                if position.phase_step >= total or position.stopped:
                    break
                started = time.monotonic()
                rate = set_rate(optimizer, rate_factor(position.phase_step, total, training))
                values = gradient.compute(window, position)
                norm = self.phase_optimizer.clip()
                not_finite, stop, overdue = self._reduce_flags(norm, values["loss"])
                if not_finite:
                    rows = window.rows[window.rows < len(self.tables["train"])] if phase.objective is None else window.rows[:0]
                    self._stop_on_nan(norm, values["loss"], rows, optimizer)
                self.phase_optimizer.step()
                if self.checkpointer.average is not None:
                    self.checkpointer.average.update(self.model)

                position.step, position.phase_step, position.epoch, position.window = (
                    position.step + 1,
                    position.phase_step + 1,
                    window.epoch,
                    window.index + 1,
                )
                position.examples += len(window.rows)
                position.tokens += int(plan.lengths[window.rows].sum())
                position.step_seconds += time.monotonic() - started
                unlogged.append(values)
                last = position.phase_step == total
                if position.step % training.logging_steps == 0 or last:
                    means = {
                        name: float(accelerator.reduce(torch.stack([step[name] for step in unlogged]).mean(), "sum"))
                        for name in values
                    }
                    unlogged.clear()
                    speed = position.examples / position.step_seconds
                    epoch = window.epoch + (window.index + 1) / window.of
                    fields = {"epoch": epoch, **means, "learning_rate": rate, "grad_norm": float(norm)}
                    self.log.write(position.step, **fields, examples_per_second=speed)
                    progress.note(f"loss {number(means['loss'], 3)}, {number(speed, 1)} examples/s")
                progress.advance()
                evaluate = position.phase_step % evaluate_every == 0 or last
                position.unjudged = evaluate and phase.evaluate and "validation" in self.tables
                better = position.unjudged and not stop and self._evaluate(phase)
                due = position.step % training.checkpoint_every == 0 if training.checkpoint_every else evaluate
                position.seconds = time.monotonic() - began
                stop = stop or (self.signals.received is not None and accelerator.num_processes == 1)
                if better or due or last or overdue or stop:
                    self._save(optimizer, better)
                if stop:
                    raise Interrupted(self.signals.received or signal.SIGTERM, self._how_to_resume())
        self.phase_optimizer.update_all_rows()
        self.checkpointer.optimizer_state |= state_by_name(optimizer)
        release_model(accelerator, self.model, forward_before)

    def _reduce_flags(self, norm: Any, loss: torch.Tensor) -> tuple[bool, bool, bool]:
        """Return three flags, true if true in any process: loss not finite, signal arrived, checkpoint overdue."""
        # In fp16 only the loss must be finite: if gradients overflow, the scaler skips the step.
        values = loss if self.precision == "fp16" else torch.as_tensor(norm).to(loss.device) + loss
        overdue = self.accelerator.is_main_process and time.monotonic() - self._saved_at > CHECKPOINT_SECONDS
        received = self.signals.received is not None
        if self.accelerator.num_processes == 1:  # synchronizes with the GPU only once
            return not bool(torch.isfinite(values)), received, overdue
        local = torch.tensor([float(received), float(overdue)], device=loss.device)
        flags = self.accelerator.reduce(torch.cat([(~torch.isfinite(values)).float().reshape(1), local]), "sum")
        not_finite, stop, late = flags.tolist()
        return not_finite > 0, stop > 0, late > 0

    def _stop_on_nan(self, norm: Any, loss: torch.Tensor, rows: np.ndarray, optimizer: torch.optim.Optimizer) -> None:
        if self.checkpointer.saved_step != self.position.step:
            self._save(optimizer, False)
        raise TrainingError(
            f"step {self.position.step + 1}: the loss or its gradient is not a number (loss {float(loss)}, gradient norm "
            f"{float(norm)}) for these rows: {self.describe(rows)}. A smaller training.learning_rate or training.precision fp32 "
            "may help. The checkpoints are from before this step"
        )

    def _save(self, optimizer: torch.optim.Optimizer, best: bool) -> None:
        """Save a checkpoint; without an output folder, the best weights in memory."""
        scaler = self.accelerator.scaler
        self.position.scaler = dict(scaler.state_dict()) if scaler is not None else {}
        self.checkpointer.optimizer_state |= state_by_name(optimizer)
        self.checkpointer.save(self.position, best, give_up=lambda: self.signals.received is not None)
        self._saved_at = time.monotonic()
        self.accelerator.wait_for_everyone()

    def _how_to_resume(self) -> str:
        saved = f"step {self.position.step} is saved; run the same command again to resume"
        return saved if self.output_dir is not None else "nothing is saved: there is no output folder"

    def _evaluate(self, phase: Phase) -> bool:
        """Evaluate on validation and return whether these are the best weights so far.

        A resumed run repeats an evaluation that was interrupted by a signal.
        """
        position = self.position
        try:
            metrics, best_metric, higher = self._score_validation()
        except Interrupted:
            return False
        self.log.write(position.step, validation=metrics)
        position.unjudged = False
        return position.record_evaluation(metrics, best_metric, higher, phase.patience or self.training.early_stopping)

    def _score_validation(self) -> tuple[dict[str, float], str, bool]:
        average = self.checkpointer.average
        self.phase_optimizer.update_all_rows()
        if average is not None:
            average.swap(self.model)
        try:
            # A signal must not interrupt one of several processes here, or the others would hang.
            with self.signals.held(self.accelerator.num_processes > 1), in_fp32(self.model):
                return score_validation(
                    self.model, self.task, self.tables["validation"], self.strategy, self.training, self.accelerator,
                    self.user_metrics,
                )  # fmt: skip
        finally:
            if average is not None:
                average.swap(self.model)
            train_mode(self.model)

    def _view(self) -> View:
        def predict(table: Any) -> dict[str, Any]:
            self.model.to(self.accelerator.device)
            with self.checkpointer.best_weights(self.position):
                return predict_table(self.model, self.task, table, precision=self.precision, accelerator=self.accelerator)[0]

        epochs, windows = (
            (self.planner.epochs(), self.planner.window_plan().windows_in_epoch) if "train" in self.tables else (0.0, 0)
        )
        max_steps = self.training.max_steps
        remaining = None if max_steps is None else max_steps - self.position.step
        return View(self.model, self.tables, self.position.history, predict, epochs, windows, max_steps, remaining)
