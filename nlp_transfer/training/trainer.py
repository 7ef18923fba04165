"""The training loop, readable from top to bottom."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.models.accelerator import in_fp32, is_lost_process, release_model
from nlp_transfer.models.preparation import enable_gradient_checkpointing, train_mode
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, State, Strategy, Tables, View
from nlp_transfer.tasks import Objective, Task
from nlp_transfer.training.automatic_settings import Choices, choose
from nlp_transfer.training.checkpointer import Keeper, Position
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
from nlp_transfer.training.phase_plan import Budget
from nlp_transfer.training.run_log import RunLog
from nlp_transfer.training.step import Stepper
from nlp_transfer.training.validation_scores import score_validation
from nlp_transfer.utils.console import Steps, number, say
from nlp_transfer.utils.errors import UserError
from nlp_transfer.utils.interrupts import Interrupted

CHECKPOINT_SECONDS = 900.0  # a checkpoint is written at least this often, however long an epoch is


class Trainer:
    """Trains a model with a head on token tables; `train` leaves the best weights in `model`.

    Args:
        tables: `train`, and `validation` where there is one.
        strategy: null: full fine-tuning.
        accelerator: knows the device, the precision and the other processes; null: made from the training settings.
        choices: made already for this model, with the accelerator; `training` holds the numbers then. null: made here.
        output_dir: for `checkpoints/` and `log.jsonl`; null: nothing is written, and nothing can be gone on with.
        describe: row indices of train to text, for the message about rows that break the loss.
        objectives: what a phase of the strategy may name in place of the task.
        augment: changes the batches of train in a phase that learns the task; null: they stay as they are.
        signals: entered by the caller; null: signals do what they do in Python.
        own_metrics: the user's own, computed whenever validation is scored.

    Raises:
        UserError: the training settings ask for what this model or device cannot do, or `choices` hold another accelerator.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        tables: Tables,
        *,
        strategy: Strategy | None = None,
        training: TrainingConfig | None = None,
        accelerator: Accelerator | None = None,
        choices: Choices | None = None,
        output_dir: Path | None = None,
        describe: Callable[[np.ndarray], str] = str,
        objectives: Mapping[str, Objective] | None = None,
        augment: Augment | None = None,
        signals: Signals | None = None,
        own_metrics: UserMetrics | None = None,
    ) -> None:
        self.model, self.task, self.tables = model, task, tables
        self.strategy, self.training = strategy or Strategy(), training or TrainingConfig()
        if choices is not None and accelerator not in (None, choices.accelerator):
            raise UserError("Trainer: found an accelerator beside choices, which hold another; allowed: one of the two")
        if choices is None:
            choices = choose(model, tables.get("train"), self.training, output_dir, accelerator)
            self.training = choices.training
        self.choices, self.accelerator, self.precision = choices, choices.accelerator, choices.precision
        self.output_dir, self.describe, self.objectives = output_dir, describe, dict(objectives or {})
        self.augment, self.signals, self.own_metrics = augment, signals or Signals(), own_metrics
        self.budget = Budget(task, tables, self.strategy, self.training, self.accelerator.num_processes, model)
        checkpoints = output_dir / "checkpoints" if output_dir else None
        kept = self.training.keep_checkpoints
        self.keeper = Keeper(model, checkpoints, self.training.ema, self.accelerator.is_main_process, kept)
        self.log = RunLog(self.accelerator, output_dir)
        self.position = Position()
        self._kept = time.monotonic()
        if self.training.gradient_checkpointing:
            enable_gradient_checkpointing(model)

    def train(self) -> Position:
        """All phases, then the best weights; a run that was interrupted goes on where its last checkpoint was written."""
        try:
            return self._train()
        except Exception as error:
            if not is_lost_process(error):
                raise
            raise TrainingError(
                f"step {self.position.step + 1}: another process has ended, or did not answer for "
                f"{self.training.process_timeout} seconds (training.process_timeout): {error}. The same command goes on from the "
                f"checkpoint of step {max(self.keeper.written, 0)}"
            ) from error

    def _train(self) -> Position:
        self.position = at = self.keeper.resume(self._check_position)
        self.log.go_on_after(at.step, not at.unjudged)
        if at.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(at.scaler)
        while True:
            if at.phase is None:
                state, began = State(**at.strategy), time.monotonic()
                phase = self.strategy.next_phase(state, self._view())
                at.strategy, at.seconds = asdict(state), at.seconds + time.monotonic() - began
                if phase is None:
                    break
                at.phase, at.phase_step, at.epoch, at.window = asdict(phase), 0, 0, 0
                at.phase_rank, at.worse, at.stopped = [], 0, False
                if phase.trainable is None:
                    at.phase["trainable"] = [name for name, p in self.model.named_parameters() if p.requires_grad]
            self._run_phase(Phase(**at.phase))
            at.strategy["finished"].append(at.phase["name"])
            at.phase = None
        self.keeper.restore_best(at)
        return at

    def _check_position(self, at: Position) -> None:
        """Raise a ValueError where a checkpoint's position cannot be one of this run."""
        self.budget.check_position(at, self.objectives)
        scaler = self.accelerator.scaler
        names = {} if scaler is None else scaler.state_dict()
        if at.scaler.keys() != names.keys():
            raise ValueError(f"scaler: found {at.scaler}; allowed: numbers for {', '.join(names) or 'nothing'}")

    def _run_phase(self, phase: Phase) -> None:
        at, training, accelerator = self.position, self.training, self.accelerator
        finished = len(at.strategy["finished"])
        table, plan = self.budget.table(phase), self.budget.plan(phase, finished)
        total = self.budget.steps(phase, finished, at.step - at.phase_step)
        if total == 0:
            say(f"warning: phase {phase.name}: skipped, since no step is left of training.max_steps {training.max_steps}")
            return
        augment = self.augment if phase.split == "train" and phase.objective is None else None
        objective = self.objectives[phase.objective] if phase.objective else self.task
        names = set(phase.trainable or ())
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        self.model.to(accelerator.device)
        groups = named_groups(self.model, training, self.strategy)
        optimizer = make_optimizer(self.model, groups, self.budget.learning_rate() * phase.learning_rate_scale)
        self.keeper.begin(at, [name for group in groups for name in group.names])
        if not phase.keep_optimizer and at.phase_step == 0:
            self.keeper.moments = {}
        restore_state(optimizer, self.keeper.moments)
        if training.ema:
            self.keeper.average = self.keeper.average or MovingAverage(training.ema)
            self.keeper.average.include(self.model)
        # Prepared anew for each phase: what is set free after wrapping would silently not be synchronised.
        own_forward = vars(self.model).get("forward")
        model, prepared = accelerator.prepare(self.model, optimizer)
        fast = self.choices.kernels == "fast"
        self.stepper = Stepper(self.model, prepared, accelerator, training, self.strategy, phase, fast)
        gradient = WindowGradient(
            model, self.model, objective, self.strategy, table, plan, objective.loss_options(training, table), augment,
            accelerator, self.stepper, training.seed,
        )  # fmt: skip
        evaluate_every = training.evaluate_every or plan.windows_in_epoch
        train_mode(self.model)
        began, logged = time.monotonic() - at.seconds, []
        title = "training" if phase.name == "train" else f"training ({phase.name})"
        with Steps(title, total, at.phase_step) as progress, self.signals.held():
            if at.unjudged and self._judge(phase):
                self._keep(optimizer, True)
            for window in plan.windows_from(at.epoch, at.window):
                if at.phase_step >= total or at.stopped:
                    break
                started = time.monotonic()
                rate = set_rate(optimizer, rate_factor(at.phase_step, total, training))
                found = gradient.of(window, at)
                norm = self.stepper.norm()
                broken, stop, long_ago = self._agree(norm, found["loss"])
                if broken:
                    own = window.rows[window.rows < len(self.tables["train"])] if phase.objective is None else window.rows[:0]
                    self._stop_on_nan(norm, found["loss"], own, optimizer)
                self.stepper.step()
                if self.keeper.average is not None:
                    self.keeper.average.update(self.model)

                at.step, at.phase_step, at.epoch, at.window = at.step + 1, at.phase_step + 1, window.epoch, window.index + 1
                at.examples += len(window.rows)
                at.tokens += int(plan.lengths[window.rows].sum())
                at.step_seconds += time.monotonic() - started
                logged.append(found)
                last = at.phase_step == total
                if at.step % training.logging_steps == 0 or last:
                    watched = {
                        name: float(accelerator.reduce(torch.stack([step[name] for step in logged]).mean(), "sum"))
                        for name in found
                    }
                    logged.clear()
                    rows_a_second = at.examples / at.step_seconds
                    epoch = window.epoch + (window.index + 1) / window.of
                    figures = {"epoch": epoch, **watched, "learning_rate": rate, "grad_norm": float(norm)}
                    self.log.write(at.step, **figures, examples_per_second=rows_a_second)
                    progress.note(f"loss {number(watched['loss'], 3)}, {number(rows_a_second, 1)} rows/s")
                progress.advance()
                evaluate = at.phase_step % evaluate_every == 0 or last
                at.unjudged = evaluate and phase.evaluate and "validation" in self.tables
                better = at.unjudged and not stop and self._judge(phase)
                due = at.step % training.checkpoint_every == 0 if training.checkpoint_every else evaluate
                at.seconds = time.monotonic() - began
                stop = stop or (self.signals.received is not None and accelerator.num_processes == 1)
                if better or due or last or long_ago or stop:
                    self._keep(optimizer, better)
                if stop:
                    raise Interrupted(self.signals.received or signal.SIGTERM, self._how_to_go_on())
        self.stepper.settle()
        self.keeper.moments |= state_by_name(optimizer)
        release_model(accelerator, self.model, own_forward)

    def _agree(self, norm: Any, loss: torch.Tensor) -> tuple[bool, bool, bool]:
        """What holds for all processes when it does for one: the loss is broken; a signal came; it is time for a checkpoint."""
        # In fp16 gradients may overflow: the scaler skips such steps by itself, only the loss must be a number.
        values = loss if self.precision == "fp16" else torch.as_tensor(norm).to(loss.device) + loss
        long_ago = self.accelerator.is_main_process and time.monotonic() - self._kept > CHECKPOINT_SECONDS
        received = self.signals.received is not None
        if self.accelerator.num_processes == 1:  # a GPU is waited for once
            return not bool(torch.isfinite(values)), received, long_ago
        own = torch.tensor([float(received), float(long_ago)], device=loss.device)
        flags = self.accelerator.reduce(torch.cat([(~torch.isfinite(values)).float().reshape(1), own]), "sum")
        broken, stop, late = flags.tolist()
        return broken > 0, stop > 0, late > 0

    def _stop_on_nan(self, norm: Any, loss: torch.Tensor, rows: np.ndarray, optimizer: torch.optim.Optimizer) -> None:
        if self.keeper.written != self.position.step:
            self._keep(optimizer, False)
        raise TrainingError(
            f"step {self.position.step + 1}: the loss or its gradient is not a number (loss {float(loss)}, gradient norm "
            f"{float(norm)}). Its rows: {self.describe(rows)}. A smaller training.learning_rate or training.precision fp32 may "
            "help; checkpoints are from before this step"
        )

    def _keep(self, optimizer: torch.optim.Optimizer, best: bool) -> None:
        """A checkpoint, or where nothing is written the best weights in memory."""
        scaler = self.accelerator.scaler
        self.position.scaler = dict(scaler.state_dict()) if scaler is not None else {}
        self.keeper.moments |= state_by_name(optimizer)
        self.keeper.keep(self.position, best, give_up=lambda: self.signals.received is not None)
        self._kept = time.monotonic()
        self.accelerator.wait_for_everyone()

    def _how_to_go_on(self) -> str:
        kept = f"step {self.position.step} is kept; the same command goes on from there"
        return kept if self.output_dir is not None else "nothing is kept: there is no output folder"

    def _judge(self, phase: Phase) -> bool:
        """Evaluates; true when these are the best weights so far. What a signal breaks off is done when the run goes on."""
        try:
            better = self._evaluate(phase.patience)
        except Interrupted:
            return False
        self.position.unjudged = False
        return better

    def _evaluate(self, patience: int | None) -> bool:
        """Scores validation; true when these are the best weights so far."""
        at, average, table = self.position, self.keeper.average, self.tables["validation"]
        self.stepper.settle()
        if average is not None:
            average.swap(self.model)
        try:
            # Several processes must not part while they evaluate.
            with self.signals.held(self.accelerator.num_processes > 1), in_fp32(self.model):
                metrics, decides, higher = score_validation(
                    self.model, self.task, table, self.strategy, self.training, self.accelerator, self.own_metrics
                )
        finally:
            if average is not None:
                average.swap(self.model)
            train_mode(self.model)
        self.log.write(at.step, validation=metrics)
        patience = patience or self.training.early_stopping
        return at.judge(metrics, decides, higher, patience)

    def _view(self) -> View:
        def predict(table: Any) -> dict[str, Any]:
            self.model.to(self.accelerator.device)
            with self.keeper.best_weights(self.position):
                return predict_table(self.model, self.task, table, precision=self.precision, accelerator=self.accelerator)[0]

        epochs, windows = (self.budget.epochs(), self.budget.plan().windows_in_epoch) if "train" in self.tables else (0.0, 0)
        most = self.training.max_steps
        left = None if most is None else most - self.position.step
        return View(self.model, self.tables, self.position.history, predict, epochs, windows, most, left)
