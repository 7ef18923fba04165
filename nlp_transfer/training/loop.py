"""The training loop, readable from top to bottom."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.config import TrainingConfig
from nlp_transfer.console import Steps
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.data.windows import Window, WindowPlan
from nlp_transfer.inference import answer_all, score
from nlp_transfer.models import enable_gradient_checkpointing, encoder_type, train_mode
from nlp_transfer.strategies import Phase, State, Strategy, Tables, View
from nlp_transfer.tasks import LossOptions, Objective, Task
from nlp_transfer.training.device import choose_attention, make_accelerator, release_model, resolve_precision
from nlp_transfer.training.keeper import Keeper, Position
from nlp_transfer.training.log import RunLog
from nlp_transfer.training.optimizers import (
    MovingAverage,
    make_optimizer,
    named_groups,
    rate_factor,
    restore_state,
    set_rate,
    state_by_name,
)

Augment = Callable[[dict[str, torch.Tensor], np.ndarray, int], dict[str, torch.Tensor]]  # a batch, its rows, the step


class TrainingError(RuntimeError):
    """The loss is not a number; the message names the step and the rows."""


class Trainer:
    """Trains a model with a head on token tables; `train` leaves the best weights in `model`.

    Args:
        tables: `train`, and `validation` where there is one.
        strategy: null: full fine-tuning.
        accelerator: knows the device, the precision and the other processes; null: made from the training settings.
        output_dir: for `checkpoints/` and `log.jsonl`; null: nothing is written, and nothing can be gone on with.
        describe: row indices of train to text, for the message about rows that break the loss.
        objectives: what a phase of the strategy may name in place of the task.
        augment: changes the batches of train in a phase that learns the task; null: they stay as they are.
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
        output_dir: Path | None = None,
        describe: Callable[[np.ndarray], str] = str,
        objectives: Mapping[str, Objective] | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.model, self.task, self.tables = model, task, tables
        self.strategy, self.training = strategy or Strategy(), training or TrainingConfig()
        precision, _ = resolve_precision(self.training.precision, encoder_type(model.config))
        self.accelerator = accelerator or make_accelerator(self.training, precision, output_dir)
        self.precision = {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)
        length = float(tables["train"].ragged["input_ids"].lengths.mean()) if "train" in tables else 0.0
        self.attention = choose_attention(self.training.attention, model, self.accelerator.device, self.precision, length)
        self.output_dir, self.describe, self.objectives = output_dir, describe, dict(objectives or {})
        self.augment = augment
        self.best_metric = self.training.best_metric or task.best_metric
        checkpoints = output_dir / "checkpoints" if output_dir else None
        self.keeper = Keeper(model, checkpoints, self.training.ema, writes=self.accelerator.is_main_process)
        self.log = RunLog(self.accelerator, output_dir)
        self.position = Position()
        self._joined: tuple[Phase, TokenTable] | None = None
        if self.training.gradient_checkpointing:
            enable_gradient_checkpointing(model)

    def train(self) -> Position:
        """All phases, then the best weights; a run that was interrupted goes on where its last checkpoint was written."""
        self.position = at = self.keeper.resume()
        self.log.go_on_after(at.step)
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

    def _run_phase(self, phase: Phase) -> None:
        at, training, accelerator = self.position, self.training, self.accelerator
        table, plan, total = self.table_of(phase), self.plan(phase), self.total_steps(phase)
        augment = self.augment if phase.split == "train" and phase.objective is None else None
        objective = self.objectives[phase.objective] if phase.objective else self.task
        names = set(phase.trainable or ())
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.to(accelerator.device)
        groups = named_groups(self.model, training, self.strategy)
        optimizer = make_optimizer(self.model, groups, self.learning_rate() * phase.learning_rate_scale)
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
        options = objective.loss_options(training, table)
        evaluate_every = training.evaluate_every or plan.windows_in_epoch
        train_mode(self.model)
        began, logged = time.monotonic() - at.seconds, []
        with Steps("training" if phase.name == "train" else f"training ({phase.name})", total, at.phase_step) as progress:
            for window in plan.windows_from(at.epoch, at.window):
                if at.phase_step >= total or at.stopped:
                    break
                started = time.monotonic()
                seed_step(training.seed, at.step, accelerator.process_index)
                rate = set_rate(optimizer, rate_factor(at.phase_step, total, training))
                found = self._backward(model, objective, table, window, plan, options, augment)
                norm = accelerator.clip_grad_norm_(trained, training.max_grad_norm or math.inf)
                own = window.rows[window.rows < len(self.tables["train"])] if phase.objective is None else window.rows[:0]
                self._stop_on_nan(norm, found["loss"], own)
                prepared.step()
                prepared.zero_grad()
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
                    progress.note(f"loss {watched['loss']:.3f}, {rows_a_second:.0f} rows/s")
                progress.advance()
                evaluate = at.phase_step % evaluate_every == 0 or last
                better = evaluate and phase.evaluate and "validation" in self.tables and self._evaluate(phase.patience)
                due = at.step % training.checkpoint_every == 0 if training.checkpoint_every else evaluate and not last
                at.seconds = time.monotonic() - began
                if better or due:
                    self.keeper.moments |= state_by_name(optimizer)
                    self.keeper.keep(at, better)
                    accelerator.wait_for_everyone()
        self.keeper.moments |= state_by_name(optimizer)
        release_model(accelerator, self.model, own_forward)

    def _backward(
        self, model: nn.Module, objective: Objective, table: Any, window: Window, plan: WindowPlan, options: LossOptions,
        augment: Augment | None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """The gradient of one optimiser window, and this process's part of its `loss` and of what the task watches.

        Losses are sums. Each term is divided by its own count over the whole window and all processes, which is known
        beforehand, so the gradient does not depend on how the window is cut. Accelerate averages gradients over processes,
        hence the factor.
        """
        accelerator = self.accelerator
        counts = objective.counts(table.targets(window.rows), options)
        micros = plan.cut(window.rows, accelerator.process_index)
        found = {"loss": torch.zeros((), device=accelerator.device)}
        for i, micro in enumerate(micros):
            rows = table.batch(micro.rows)
            if augment is not None:
                rows = augment(rows, micro.rows, self.position.step)
            batch = {name: tensor.to(accelerator.device) for name, tensor in rows.items()}
            with nullcontext() if i == len(micros) - 1 else accelerator.no_sync(model):
                outputs = model(**model_inputs(batch))
                terms = self.strategy.loss(objective.loss(outputs, batch, options), outputs, batch, self.model)
                parts = [value / counts.get(name, counts["rows"]) for name, value in terms.items()]
                loss = torch.stack(parts).sum() * float(micro.counted)
                accelerator.backward(loss * accelerator.num_processes)
            found["loss"] += loss.detach()
            for name, (value, term) in objective.watch(outputs, batch).items():
                share = value.detach().float() / counts[term] * float(micro.counted)
                found[name] = found[name] + share if name in found else share
        return found

    def table_of(self, phase: Phase) -> TokenTable:
        """The rows of a phase, with those that join in under answers of the strategy's own."""
        table, also = self.tables[phase.split], phase.also
        if also is None:
            return table
        if self._joined is not None and self._joined[0] == phase:
            return self._joined[1]
        labels = table.dense["labels"]
        more = self.tables[also["split"]].select(np.array(also["rows"], np.int64))
        answers = np.array(also["labels"], labels.dtype).reshape(-1, *labels.shape[1:])
        joined = TokenTable.concatenate([table, replace(more, dense=more.dense | {"labels": answers})])
        self._joined = phase, joined
        return joined

    def plan(self, phase: Phase | None = None) -> WindowPlan:
        """How the rows of a phase become optimiser windows."""
        phase = phase or Phase()
        training, table = self.training, self.table_of(phase)
        accumulation, processes = training.gradient_accumulation_steps, self.accelerator.num_processes
        repeats = self.task.repeats(training, table) if phase.objective is None else None
        return WindowPlan(
            table.lengths, training.batch_size, accumulation, processes, training.batch_tokens, training.seed, table.order,
            repeats, len(self.position.strategy.get("finished", [])),
        )  # fmt: skip

    def epochs(self, phase: Phase | None = None) -> float:
        """Passes over the rows; auto: 3, or as many as make 300 steps, at most 20 (2006.04884 trains small sets longer)."""
        phase = phase or Phase()
        steps_an_epoch = self.plan(phase).windows_in_epoch
        if self.training.max_steps and phase.epochs is None:
            return self.training.max_steps / steps_an_epoch
        asked = phase.epochs or self.training.epochs
        return min(20, max(3, math.ceil(300 / steps_an_epoch))) if isinstance(asked, str) else asked

    def total_steps(self, phase: Phase | None = None) -> int:
        """Optimiser steps of a phase; one that names its own epochs takes `max_steps` at most."""
        most = self.training.max_steps
        if most and (phase is None or phase.epochs is None):
            return most
        steps = self.plan(phase).steps(self.epochs(phase))
        return min(steps, most) if most else steps

    def learning_rate(self) -> float:
        """The peak rate; auto: the strategy's, which is for 32 rows a step, times the root of the batch's ratio to that."""
        if not isinstance(self.training.learning_rate, str):
            return self.training.learning_rate
        plan = self.plan()
        rows = (
            (plan.batch_tokens / plan.lengths.mean() if plan.batch_tokens else plan.batch_size)
            * plan.accumulation
            * plan.processes
        )
        return float(f"{self.strategy.learning_rate(self.model) * min(2.0, max(0.5, math.sqrt(rows / 32))):.2g}")

    def _stop_on_nan(self, norm: Any, loss: torch.Tensor, rows: np.ndarray) -> None:
        # In fp16 gradients may overflow: the scaler skips such steps by itself, only the loss must be a number.
        values = loss if self.precision == "fp16" else torch.as_tensor(norm).to(loss.device) + loss
        if not bool(torch.isfinite(values)):
            raise TrainingError(
                f"step {self.position.step + 1}: the loss or its gradient is not a number (loss {float(loss)}, gradient norm "
                f"{float(norm)}). Its rows: {self.describe(rows)}. A smaller training.learning_rate or training.precision "
                "fp32 may help; checkpoints are from before this step"
            )

    def _evaluate(self, patience: int | None) -> bool:
        """Scores validation; true when these are the best weights so far."""
        at, average = self.position, self.keeper.average
        if average is not None:
            average.swap(self.model)
        metrics, decides, higher = self._score_validation()
        if average is not None:
            average.swap(self.model)
        train_mode(self.model)
        self.log.write(at.step, validation=metrics)
        patience = patience or self.training.early_stopping
        return at.judge(metrics, decides, higher, patience)

    def _score_validation(self) -> tuple[dict[str, float], str, bool]:
        """Figures, which of them decides, and whether more of it is better.

        Where several tasks are learned that is the mean of their own best metrics, unless the settings name one.
        """
        settings = (self.accelerator, self.training.batch_size * 2, self.precision)
        metrics, _ = score(self.model, self.task, self.tables["validation"], *settings, draft=True)
        further = self.strategy.further_jobs(self.model)
        decisive = [(self.task, metrics.get(self.task.best_metric, math.nan))]
        for name, (job, model) in further.items():
            if "validation" in job.tables:
                figures, _ = score(model, job.task, job.tables["validation"], *settings, draft=True)
                metrics |= {f"{name}/{key}": value for key, value in figures.items()}
                decisive.append((job.task, figures.get(job.task.best_metric, math.nan)))
        if not further or self.training.best_metric:
            return metrics, self.best_metric, self.task.higher_is_better(self.best_metric)
        signs = [1 if task.higher_is_better(task.best_metric) else -1 for task, _ in decisive]
        mean = sum(sign * value for sign, (_, value) in zip(signs, decisive, strict=True)) / len(decisive)
        return metrics | {"mean": mean}, "mean", True

    def _view(self) -> View:
        def predict(table: Any) -> dict[str, Any]:
            self.model.to(self.accelerator.device)
            return answer_all(self.model, self.task, table, self.accelerator, self.training.batch_size * 2, self.precision)[0]

        epochs, windows = (self.epochs(), self.plan().windows_in_epoch) if "train" in self.tables else (0.0, 0)
        return View(self.model, self.tables, self.position.history, predict, epochs, windows, self.training.max_steps)


def seed_step(seed: int, step: int, process: int) -> None:
    """Dropout in a step depends on the run's seed, the step and the process alone, so no generator has to be saved."""
    number = int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` looks after every kind of device, for half a millisecond
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
