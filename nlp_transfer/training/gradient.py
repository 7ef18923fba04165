"""The gradient of an optimiser window, whatever number of pieces it takes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.data.tokens import TokenTable, model_inputs, to_device
from nlp_transfer.data.windows import Window, WindowPlan
from nlp_transfer.models.device import seed_step
from nlp_transfer.models.memory import give_back, is_out_of_memory
from nlp_transfer.strategies import Strategy
from nlp_transfer.tasks import LossOptions, Objective
from nlp_transfer.training.checkpointer import Position
from nlp_transfer.training.step import PhaseOptimizer
from nlp_transfer.utils.console import say

Augment = Callable[[dict[str, torch.Tensor], np.ndarray, int], dict[str, torch.Tensor]]  # a batch, its rows, the step
Found = dict[str, torch.Tensor]


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not a number, memory does not suffice, another process is gone. The message names the
    step, and what to do."""


@dataclass
class WindowGradient:
    """Computes gradients in one phase.

    Args:
        model: as Accelerate prepared it; `plain` is the same without that.
        seed: the run's.
    """

    model: nn.Module
    plain: nn.Module
    objective: Objective
    strategy: Strategy
    table: TokenTable
    plan: WindowPlan
    options: LossOptions
    augment: Augment | None
    accelerator: Accelerator
    phase_optimizer: PhaseOptimizer
    seed: int

    def compute(self, window: Window, at: Position) -> Found:
        """`backward`, and where memory does not suffice for it the same window again in smaller pieces.

        Raises:
            TrainingError: there are no smaller pieces, or several processes would have to agree on them.
        """
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        while True:
            seed_step(self.seed, at.step, process)
            try:
                return self.backward(window, at)
            except Exception as error:  # the error holds the tensors; they go with it
                if not is_out_of_memory(error):
                    raise
                rows = max(len(micro.rows) for micro in self.plan.micro_batches(window.rows, process, at.pieces))
                if rows == 1 or processes > 1:  # others have begun to exchange gradients, and would wait
                    smaller = "half the training.batch_size and twice its gradient_accumulation_steps, "
                    raise TrainingError(
                        f"step {at.step + 1}: out of memory with {rows} rows at a time; {smaller if rows > 1 else ''}a shorter "
                        "task.max_length or training.gradient_checkpointing help"
                    ) from error
            at.pieces *= 2
            self.phase_optimizer.discard_gradient()
            give_back()
            say(
                f"warning: step {at.step + 1}: out of memory with {rows} rows at a time; from now on {-(-rows // 2)}. Each "
                "optimiser step sees the same rows as before"
            )

    def backward(self, window: Window, at: Position) -> Found:
        """The gradient of one optimiser window, and this process's part of its `loss` and of what the task watches.

        Losses are sums. Each term is divided by its own count over the whole window and all processes, which is known
        beforehand, so the gradient does not depend on how the window is cut. Accelerate averages gradients over processes,
        hence the factor.
        """
        accelerator, objective = self.accelerator, self.objective
        counts = objective.counts(self.table.targets(window.rows), self.options)
        micros = self.plan.micro_batches(window.rows, accelerator.process_index, at.pieces)
        found = {"loss": torch.zeros((), device=accelerator.device)}
        for i, micro in enumerate(micros):
            rows = self.table.batch(micro.rows)
            if self.augment is not None:
                rows = self.augment(rows, micro.rows, at.step)
            batch = on_device(rows, accelerator.device)
            with self.phase_optimizer.accelerated(), nullcontext() if i == len(micros) - 1 else accelerator.no_sync(self.model):
                outputs = self.model(**model_inputs(batch))
                terms = self.strategy.loss(objective.loss(outputs, batch, self.options), outputs, batch, self.plain)
                parts = [value / counts.get(name, counts["rows"]) for name, value in terms.items()]
                loss = torch.stack(parts).sum() * float(micro.counted)
                accelerator.backward(loss * accelerator.num_processes)
            found["loss"] += loss.detach()
            for name, (value, term) in objective.watch(outputs, batch).items():
                share = value.detach().float() / counts[term] * float(micro.counted)
                found[name] = found[name] + share if name in found else share
        return found
