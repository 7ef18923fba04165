"""The training loop, readable from top to bottom."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.config import TrainingConfig
from nlp_transfer.console import Steps, say
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.errors import UserError
from nlp_transfer.inference import answer, gather, score
from nlp_transfer.metrics import higher_is_better
from nlp_transfer.models import train_mode
from nlp_transfer.strategies import Phase, State, Strategy, Tables, View
from nlp_transfer.strategies.full import Full
from nlp_transfer.tasks import Task
from nlp_transfer.training import checkpoints
from nlp_transfer.training.optimizers import MovingAverage, make_optimizer, named_groups, rate_factor
from nlp_transfer.training.optimizers import restore_state, set_rate, state_by_name


class TrainingFailed(RuntimeError):
    """Training cannot go on (the loss is not a number); the message names the step and the rows."""


@dataclass
class Position:
    """Where a run stands. With the weights and the optimiser's moments, all there is to go on from: JSON."""

    step: int = 0
    phase: dict[str, Any] | None = None
    phase_step: int = 0
    epoch: int = 0
    window: int = 0
    state: dict[str, Any] = field(default_factory=lambda: asdict(State()))
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    stopped: bool = False
    touched: list[str] = field(default_factory=list)
    average_steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0


class Trainer:
    """Trains a model with a head on token tables; `train` leaves the best weights in `model`.

    Args:
        tables: `train`, and `validation` where there is one.
        accelerator: from `make_accelerator`; it knows the device, the precision and the other processes.
        output_dir: for `checkpoints/` and `log.jsonl`; None: nothing is written, and nothing can be resumed.
        describe: row indices of train to text, for messages about rows that break the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        tables: Tables,
        *,
        strategy: Strategy | None = None,
        training: TrainingConfig | None = None,
        accelerator: Accelerator,
        output_dir: Path | None = None,
        describe: Callable[[np.ndarray], str] = str,
    ) -> None:
        self.model, self.task, self.tables = model, task, tables
        self.strategy, self.training = strategy or Full(), training or TrainingConfig()
        self.accelerator, self.output_dir, self.describe = accelerator, output_dir, describe
        self.best_metric = self.training.best_metric or task.best_metric
        self.precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
        self.position = Position()
        self.moments: checkpoints.Tensors = {}
        self.average: MovingAverage | None = None

    def train(self) -> Position:
        """All phases, then the best weights; a run that was interrupted goes on where its last checkpoint was written."""
        self._resume()
        while not self.position.stopped:
            if self.position.phase is None:
                phase = self.strategy.next_phase(State(**self.position.state), self._view())
                if phase is None:
                    break
                self.position.phase, self.position.phase_step = asdict(phase), 0
                self.position.epoch = self.position.window = 0
            self._run_phase(Phase(**self.position.phase))
            self.position.state["finished"].append(self.position.phase["name"])
            self.position.phase = None
        self._restore_best()
        return self.position

    def _run_phase(self, phase: Phase) -> None:
        at, training, accelerator = self.position, self.training, self.accelerator
        table = self.tables[phase.split]
        plan = self.plan(phase)
        total = self.total_steps(phase)
        if phase.trainable is not None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in phase.trainable)
        groups = named_groups(self.model, training, self.strategy)
        at.touched = sorted({*at.touched, *(name for group in groups for name in group.names)})
        peak = self.learning_rate() * phase.learning_rate_scale
        self.model.to(accelerator.device)
        optimizer = make_optimizer(self.model, groups, peak)
        if phase.keep_optimizer or at.phase_step:
            restore_state(optimizer, self.moments)
        if training.ema and self.average is None:
            self.average = MovingAverage(self.model, training.ema)
        # Prepared anew for each phase: what is set free after wrapping would silently not be synchronised.
        model, prepared = accelerator.prepare(self.model, optimizer)
        options = self.task.loss_options(training, table)
        every = training.evaluate_every or -(-total // max(1, round(self._epochs(phase, plan))))
        began = time.monotonic() - at.seconds
        losses: list[torch.Tensor] = []
        progress = Steps(f"training ({phase.name})" if phase.name != "train" else "training", total, at.phase_step)
        with progress:
            for epoch, index, window in plan.from_window(at.epoch, at.window):
                if at.phase_step >= total:
                    break
                started = time.monotonic()
                seed_step(training.seed, at.step, accelerator.process_index)
                rate = set_rate(optimizer, rate_factor(at.phase_step, total, training))
                train_mode(self.model)

                # One optimiser step: sums of losses, each term divided by its own count over the whole window and all
                # processes. The gradients of processes are averaged, hence the factor.
                counts = self.task.counts(table.targets(window), options)
                micros = plan.cut(window, accelerator.process_index)
                loss_sum = torch.zeros((), device=accelerator.device)
                for i, micro in enumerate(micros):
                    batch = {name: tensor.to(accelerator.device) for name, tensor in table.batch(micro.rows).items()}
                    synchronise = i == len(micros) - 1
                    with accelerator.no_sync(model) if not synchronise else _nothing():
                        outputs = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
                        terms = self.strategy.loss(self.task.loss(outputs, batch, options), outputs, batch, self.model)
                        loss = sum(value / counts.get(name, counts["rows"]) for name, value in terms.items())
                        loss = loss * float(micro.counted)
                        accelerator.backward(loss * accelerator.num_processes)
                    loss_sum += loss.detach()
                    at.tokens += int(batch["attention_mask"].sum()) * micro.counted
                norm = accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm or math.inf)
                self._stop_on_nan(norm, loss_sum, window)
                prepared.step()
                prepared.zero_grad()
                if self.average is not None:
                    self.average.update(self.model)

                at.step, at.phase_step, at.epoch, at.window = at.step + 1, at.phase_step + 1, epoch, index + 1
                at.examples += len(window)
                at.step_seconds += time.monotonic() - started
                at.seconds = time.monotonic() - began
                losses.append(loss_sum)
                if at.step % training.logging_steps == 0 or at.phase_step == total:
                    mean = float(accelerator.reduce(torch.stack(losses).mean(), "sum"))
                    losses.clear()
                    rows = at.examples / at.step_seconds
                    self._log(epoch=self._share_of_epochs(plan), loss=mean, learning_rate=rate, grad_norm=float(norm), examples_per_second=rows)
                    progress.advance(f"loss {mean:.3f}, {rows:.0f} rows/s", 0)
                progress.advance(steps=1)
                evaluate = at.phase_step % every == 0 or at.phase_step == total
                better = self._evaluate() if evaluate and "validation" in self.tables else False
                if better or at.step % (training.checkpoint_every or total + 1) == 0 or (evaluate and at.phase_step < total):
                    self.moments = state_by_name(optimizer)
                    self._checkpoint(better)
                if at.stopped:
                    break
        self.moments = state_by_name(optimizer)
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        accelerator.free_memory()

    def plan(self, phase: Phase | None = None) -> WindowPlan:
        """How the rows of a phase become optimiser windows."""
        training, table = self.training, self.tables[(phase or Phase()).split]
        accumulation, processes = training.gradient_accumulation_steps, self.accelerator.num_processes
        return WindowPlan(table.lengths, training.batch_size, accumulation, processes, training.batch_tokens, training.seed)

    def total_steps(self, phase: Phase | None = None) -> int:
        """Optimiser steps of a phase."""
        phase, plan = phase or Phase(), self.plan(phase)
        return self.training.max_steps or plan.steps(self._epochs(phase, plan))

    def _epochs(self, phase: Phase, plan: WindowPlan) -> float:
        """The passes asked for; auto: 3, or as many as make 300 steps, at most 20 (2006.04884 trains small sets longer)."""
        if self.training.max_steps:
            return self.training.max_steps / len(plan.windows(0))
        asked = phase.epochs or self.training.epochs
        return min(20, max(3, math.ceil(300 / len(plan.windows(0))))) if isinstance(asked, str) else asked

    def epochs(self) -> float:
        """The passes over train that the settings come to."""
        return self._epochs(Phase(), self.plan())

    def learning_rate(self) -> float:
        asked = self.training.learning_rate
        return self.strategy.learning_rate(self.model) if isinstance(asked, str) else asked

    def _share_of_epochs(self, plan: WindowPlan) -> float:
        return self.position.epoch + self.position.window / len(plan.windows(self.position.epoch))

    def _stop_on_nan(self, norm: torch.Tensor, loss: torch.Tensor, window: np.ndarray) -> None:
        # In fp16 gradients may overflow: the scaler skips such steps by itself, only the loss must be a number.
        values = loss if self.precision == "fp16" else torch.as_tensor(norm).to(loss.device) + loss
        if not bool(torch.isfinite(values)):
            raise TrainingFailed(
                f"step {self.position.step + 1}: the loss or its gradient is not a number (loss {float(loss)}, gradient norm "
                f"{float(norm)}). Its rows: {self.describe(window)}. A smaller learning rate or precision fp32 may help; the "
                "last checkpoint is from before this step"
            )

    def _evaluate(self) -> bool:
        """Scores validation; true when these are the best weights so far."""
        at = self.position
        if self.average is not None:
            self.average.swap(self.model)
        metrics, _ = score(self.model, self.task, self.tables["validation"], self.accelerator, self.training.batch_size * 2, self.precision)
        if self.average is not None:
            self.average.swap(self.model)
        if self.best_metric not in metrics:
            raise UserError(f"training.best_metric: {self.best_metric!r} is not among the figures on validation: {', '.join(metrics)}")
        value = metrics[self.best_metric]
        at.history.append({"step": at.step, **metrics})
        self._log(validation=metrics)
        better = at.best is None or (value > at.best if higher_is_better(self.best_metric) else value < at.best)
        if better:
            at.best, at.best_step, at.worse = value, at.step, 0
        else:
            at.worse += 1
            at.stopped = bool(self.training.early_stopping) and at.worse >= (self.training.early_stopping or 0)
        say(
            f"step {at.step}: validation {self.best_metric} {value:.4f}, loss {metrics['loss']:.4f}"
            + (" (best so far)" if better else f" (best {at.best:.4f} at step {at.best_step})")
            + (f"; no better for {at.worse} evaluations, stopping" if at.stopped else "")
        )
        return better

    def _view(self) -> View:
        def predict(table: Any) -> dict[str, Any]:
            return gather([answer(self.model, self.task, table, self.training.batch_size * 2, self.precision)], len(table))[0]

        return View(self.model, self.tables, self.position.history, predict)

    def _log(self, **fields: Any) -> None:
        if not self.accelerator.is_main_process or self.output_dir is None:
            return
        with (self.output_dir / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.position.step, **fields}) + "\n")
        flat = {f"validation/{k}": v for k, v in fields.pop("validation", {}).items()} | {f"train/{k}": v for k, v in fields.items()}
        self.accelerator.log(flat, step=self.position.step)

    def _checkpoint(self, best: bool) -> None:
        if self.output_dir is None:
            if best:
                self._best_in_memory = {name: tensor.clone() for name, tensor in self._weights().items()}
            return
        if self.accelerator.is_main_process:
            tensors = {"model": self._weights(raw=True), "optimizer": self.moments}
            if self.average is not None:
                self.position.average_steps = self.average.steps
                tensors["average"] = self.average.shadow
            checkpoints.write_checkpoint(self.output_dir / "checkpoints", self.position.step, tensors, asdict(self.position), best)
        self.accelerator.wait_for_everyone()

    def _weights(self, raw: bool = False) -> checkpoints.Tensors:
        """What training has changed so far, by name; the moving average in its place unless `raw`."""
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[name].detach() for name in self.position.touched}
        return weights if raw or self.average is None else weights | self.average.shadow

    def _put(self, weights: checkpoints.Tensors) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)

    def _resume(self) -> None:
        if self.output_dir is None:
            return
        folder, notes = checkpoints.newest_whole(self.output_dir / "checkpoints")
        say(*notes)
        if folder is None:
            return
        self.position = Position(**checkpoints.read_state(folder))
        self._put(checkpoints.read_tensors(folder, "model"))
        self.moments = checkpoints.read_tensors(folder, "optimizer")
        if self.training.ema:
            self.average = MovingAverage(self.model, self.training.ema)
            self.average.shadow = checkpoints.read_tensors(folder, "average")
            self.average.steps = self.position.average_steps
        say(f"going on from {folder} (step {self.position.step})")

    def _restore_best(self) -> None:
        """The weights of the best evaluation; without validation the last ones."""
        if self.position.best is None:
            if self.average is not None:
                self._put(self.average.shadow)
            return
        if self.output_dir is None:
            self._put(self._best_in_memory)
            return
        name = checkpoints.pointed(self.output_dir / "checkpoints", "best")
        assert name is not None, "an evaluation that was best leaves a checkpoint"
        best = self.output_dir / "checkpoints" / name
        self._put(checkpoints.read_tensors(best, "model") | checkpoints.read_tensors(best, "average"))


def seed_step(seed: int, step: int, process: int) -> None:
    """Dropout in a step depends on the run's seed, the step and the process alone, so no generator has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0]))


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
