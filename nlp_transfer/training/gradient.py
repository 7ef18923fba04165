"""Accumulates the gradient of one optimizer step over any number of micro-batches."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from nlp_transfer.data.tokens import TokenTable, model_inputs, to_device
from nlp_transfer.data.windows import Window, WindowPlan
from nlp_transfer.models.device import seed_step
from nlp_transfer.models.memory import free_cached_memory, is_out_of_memory
from nlp_transfer.models.sdpa import attention_for_any_shape
from nlp_transfer.tasks import Objective
from nlp_transfer.training.position import Position
from nlp_transfer.training.step import PhaseOptimizer
from nlp_transfer.utils.console import say

Augment = Callable[[dict[str, torch.Tensor], np.ndarray, int], dict[str, torch.Tensor]]
"""A function that takes a batch, its row indices and the optimizer step, and returns the changed batch."""
Values = dict[str, torch.Tensor]
"""Scalars by name."""


class TrainingError(RuntimeError):
    """Training cannot continue: the loss is not finite, memory is insufficient, or another process has ended.

    The message names the step and suggests a remedy.
    """


class NotFiniteError(TrainingError):
    """The loss or its gradient is not a finite number.

    Args:
        step: number of the optimizer step that was not taken.
        rows: indices of the rows of this step in `train`.

    Attributes:
        names: text for the rows in the message.
    """

    def __init__(self, step: int, loss: float, grad_norm: float, rows: np.ndarray) -> None:
        super().__init__(step, loss, grad_norm, rows)
        self.step, self.loss, self.grad_norm, self.rows, self.names = step, loss, grad_norm, rows, str(rows)

    def __str__(self) -> str:
        return (
            f"step {self.step}: the loss or its gradient is not a number (loss {self.loss}, gradient norm {self.grad_norm}) for "
            f"these rows: {self.names}. A smaller training.learning_rate or training.precision fp32 may help. The checkpoints "
            "are from before this step"
        )


class WindowGradient:
    """Computes the gradients of one phase, one window (the rows of an optimizer step) at a time.

    Args:
        model: the model, as prepared by Accelerate.
        objective: the loss of the phase.
        table: the rows of the phase.
        plan: the plan that divides windows into micro-batches.
        phase_optimizer: the optimizer of the same phase.
        augment: function that changes each batch. None: batches are not changed.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, table: TokenTable, plan: WindowPlan, phase_optimizer: PhaseOptimizer,
        augment: Augment | None = None,
    ) -> None:  # fmt: skip
        self.model, self.objective, self.table, self.plan = model, objective, table, plan
        self.phase_optimizer, self.augment = phase_optimizer, augment
        self.accelerator, self.training = phase_optimizer.accelerator, phase_optimizer.training

    def compute(self, window: Window, position: Position) -> Values:
        """Accumulate the gradient of a window. If memory runs out, repeat the window with smaller micro-batches.

        Raises:
            TrainingError: memory is insufficient for a single row or, with several processes, for a micro-batch.
        """
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        while True:
            seed_step(self.training.seed, position.step, process)
            try:
                return self.backward(window, position)
            except Exception as error:  # memory is freed after this block, since the traceback refers to tensors of the step
                if not is_out_of_memory(error):
                    raise
                rows = max(len(micro.rows) for micro in self.plan.micro_batches(window.rows, process, position.pieces))
                if rows == 1 or processes > 1:  # the other processes are already exchanging gradients and would hang
                    smaller = "half the training.batch_size with twice the gradient_accumulation_steps, "
                    raise TrainingError(
                        f"step {position.step + 1}: out of memory with {rows} rows at a time; try "
                        f"{smaller if rows > 1 else ''}a shorter task.max_length, or training.gradient_checkpointing"
                    ) from error
            position.pieces *= 2
            self.phase_optimizer.discard_gradient()
            free_cached_memory()
            say(
                f"warning: step {position.step + 1}: out of memory with {rows} rows at a time; continuing with "
                f"{-(-rows // 2)}. The rows of an optimizer step do not change"
            )

    def backward(self, window: Window, position: Position) -> Values:
        """Accumulate the gradient of a window with the current micro-batch size.

        Objectives return sums over rows. Each loss term is divided by its count over the entire window (all micro-batches and
        processes), which is known in advance. The gradient therefore does not depend on the micro-batch size. Since Accelerate
        averages gradients over processes, the loss is multiplied by `num_processes`.

        Returns:
            This process's share of `loss` and of each step metric of the objective. The sum over all processes is the mean.
        """
        accelerator, objective = self.accelerator, self.objective
        strategy, plain_model = self.phase_optimizer.strategy, self.phase_optimizer.model
        counts = objective.count(self.table.targets(window.rows))
        micro_batches = self.plan.micro_batches(window.rows, accelerator.process_index, position.pieces)
        values = {"loss": torch.zeros((), device=accelerator.device)}
        for i, micro in enumerate(micro_batches):
            rows = self.table.batch(micro.rows)
            if self.augment is not None:
                rows = self.augment(rows, micro.rows, position.step)
            batch = to_device(rows, accelerator.device)
            is_last = i == len(micro_batches) - 1
            sync = nullcontext() if is_last else accelerator.no_sync(self.model)
            with attention_for_any_shape(), self.phase_optimizer.kernels, sync:
                outputs = self.model(**model_inputs(batch))
                terms = strategy.loss(objective.loss(outputs, batch), outputs, batch, plain_model)
                means = [value / counts.get(name, counts["rows"]) for name, value in terms.items()]
                loss = torch.stack(means).sum() * float(micro.counted)
                accelerator.backward(loss * accelerator.num_processes)
            values["loss"] += loss.detach()
            for name, (value, term) in objective.step_metrics(outputs, batch).items():
                share = value.detach().float() / counts[term] * float(micro.counted)
                values[name] = values[name] + share if name in values else share
        return values
