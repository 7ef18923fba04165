"""Run a trial step before training: a forward and backward pass of two rows with the chosen precision and kernels.

Some model families fail in bf16 or with the fast kernels. Trial steps find a combination that works before training starts.
They change neither the model nor the random states.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32, gather_object
from torch import nn

from nlp_transfer.data.tokens import TokenTable, model_inputs, to_device
from nlp_transfer.kernels import accelerated
from nlp_transfer.models.layers import encoder_type
from nlp_transfer.models.memory import free_cached_memory, is_out_of_memory
from nlp_transfer.models.preparation import autocast, enable_gradient_checkpointing, train_mode
from nlp_transfer.settings.registry import is_user_defined
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.training.gradient import TrainingError
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import same_random_state
from nlp_transfer.utils.errors import UserError

NOT_FINITE = "the loss or its gradient is not a finite number"


@dataclass(frozen=True)
class Preflight:
    """Finds a precision and kernels with which a model can be trained.

    Args:
        task: the task, which defines the loss.
        model: the model, as prepared by the strategy.
        train: training rows; the trial uses the longest and the shortest one.
    """

    task: Task
    model: nn.Module
    train: TokenTable
    training: TrainingConfig
    unused: list[str] = field(default_factory=list)
    """Names of trainable parameters that get no gradient. Set by `find_working`."""

    def find_working(self, precision: str, kernels: str, accelerator: Accelerator) -> tuple[str, str, dict[str, str]]:
        """Return a precision and kernels that work, and the reason for each changed setting.

        If the requested combination fails, try plain kernels, then fp32, then both. All processes make the same choice.

        Raises:
            UserError: no combination works.
            TrainingError: memory is insufficient for a single row.
        """
        if self.training.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        options = [(precision, kernels), (precision, "plain"), ("fp32", kernels), ("fp32", "plain")]
        first: str | None = None
        error: Exception | None = None
        for option in dict.fromkeys(options):
            problem, error = self._problem(*option, accelerator)
            if problem is None:
                return (*option, self._reasons(option, (precision, kernels), first))
            first = first or problem
        if first == NOT_FINITE:  # the cause is in the weights or the data, and the training loop will name the rows
            return precision, kernels, {}
        if is_user_defined(self.task) or is_user_defined(self.model):
            raise UserError(
                f"task: {task_name(self.task)} builds a {type(self.model).__name__} that cannot be trained: a forward and "
                f"backward pass of two rows fails: {problem}; allowed: a model that takes `input_ids` and `attention_mask` and "
                "returns an object with `logits`, such as transformers' SequenceClassifierOutput"
            ) from error
        raise UserError(
            f"model: a {encoder_type(self.model.config)} model cannot be trained here: a forward and backward pass of two rows "
            f"fails, also in fp32 with plain kernels: {problem}; allowed: another model, or another strategy or head"
        ) from error

    def _reasons(self, option: tuple[str, str], chosen: tuple[str, str], problem: str | None) -> dict[str, str]:
        names = ("precision", "kernels")
        changed = {name: (old, new) for name, old, new in zip(names, chosen, option, strict=True) if old != new}
        family = encoder_type(self.model.config)
        for name, (old, new) in changed.items():
            say(f"warning: {name} falls back from {old} to {new}: a trial step with a {family} model failed: {problem}")
        return {name: f"{old} failed in a trial step" for name, (old, _) in changed.items()}

    def _problem(self, precision: str, kernels: str, accelerator: Accelerator) -> tuple[str | None, Exception | None]:
        """Try a combination. Return the problem of any process, in one line, and the exception of this process."""
        problem, error, out_of_memory = None, None, False
        try:
            if not self._is_finite(precision, kernels, accelerator.device):
                problem = NOT_FINITE
        except Exception as raised:
            out_of_memory = isinstance(raised, TrainingError)
            problem, error = (str(raised) if isinstance(raised, (UserError, TrainingError)) else describe(raised)), raised
        if accelerator.num_processes > 1:
            problems = gather_object([(problem, out_of_memory)])
            problem, out_of_memory = next((entry for entry in problems if entry[0] is not None), (None, False))
        if out_of_memory:
            raise TrainingError(problem) from error
        return problem, error

    def _is_finite(self, precision: str, kernels: str, device: torch.device) -> bool:
        """Return whether the loss and the gradients are finite for two rows or, if memory is too small, for the longest row."""
        order = np.argsort(self.train.lengths, kind="stable")
        rows = np.unique(order[[-1, 0]])
        for count in range(len(rows), 0, -1):
            batch_rows = rows if count == len(rows) else order[[-1]]
            try:
                with unchanged(self.model):
                    return self._pass(batch_rows, precision, kernels, device)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1:
                    raise TrainingError(
                        f"before step 1: out of memory with only the longest row ({int(self.train.lengths.max())} tokens); try "
                        "a shorter task.max_length, or training.gradient_checkpointing"
                    ) from error
            free_cached_memory()
        return True

    def _pass(self, rows: np.ndarray, precision: str, kernels: str, device: torch.device) -> bool:
        model = self.model.to(device)
        train_mode(model)
        batch = to_device(self.train.batch(rows), device)
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        with accelerated(model, enabled=kernels == "fast"):
            with autocast(device, precision):
                outputs = model(**model_inputs(batch))
            objective = self.task.objective(self.training, self.train)
            terms = objective.loss(convert_outputs_to_fp32(lambda: outputs)(), batch)
            loss = torch.stack(list(terms.values())).sum()
            gradients = (
                torch.autograd.grad(loss, list(trainable.values()), allow_unused=True) if trainable and loss.requires_grad else ()
            )
        self.unused[:] = [name for name, gradient in zip(trainable, gradients, strict=False) if gradient is None]
        values = [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
        return all(bool(torch.isfinite(value).all()) for value in values)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Context that on exit restores random states, buffers and the training mode of each module."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    try:
        with same_random_state():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def describe(error: Exception) -> str:
    """Format an exception in one line, with its type, its message, and the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
