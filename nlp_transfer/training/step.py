"""The optimizer step: gradient norm, clipping, and those fast kernels that do not change the losses of a phase."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.kernels import accelerated
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, Strategy, parts_of


class PhaseOptimizer:
    """Clips the gradient and takes the optimizer steps of one phase.

    Args:
        model: the unwrapped model. Its trainable parameters are those of the phase.
        optimizer: the optimizer, as prepared by Accelerate.
        fast: whether to use `nlp_transfer.kernels` where they do not change the result.

    Attributes:
        kernels: context for forward and backward passes.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, accelerator: Accelerator, training: TrainingConfig, strategy: Strategy,
        phase: Phase, fast: bool,
    ) -> None:  # fmt: skip
        self.model, self.accelerator, self.training, self.strategy = model, accelerator, training, strategy
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # If the loss is not just that of the task, it may read any token and any weight.
        logits_only = phase.objective is None and not _has_loss(strategy)
        self.kernels = accelerated(
            model,
            optimizer,
            enabled=fast,
            logits_only=logits_only,
            lazy_updates=logits_only and accelerator.num_processes == 1 and not training.ema,
        )

    def clip(self) -> torch.Tensor:
        """Clip the gradient norm to `training.max_grad_norm`, either here or later in `step`. Return the norm before clipping."""
        limit = self.training.max_grad_norm
        if self.accelerator.scaler is None and self.kernels.can_clip:
            return self.kernels.clip(limit)
        return torch.as_tensor(self.accelerator.clip_grad_norm_(self.trained, limit or torch.inf))

    def step(self) -> None:
        """Take one optimizer step and clear the gradient."""
        self.kernels.step()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return copies of the clipped gradients that `step` will apply, by parameter name. Call this after `clip`."""
        return self.kernels.gradients()

    def discard_gradient(self) -> None:
        """Clear the gradient without taking a step."""
        self.kernels.discard_gradient()

    def sync(self) -> None:
        """Apply postponed updates to the weights. Call this before reading weights outside of training steps."""
        self.kernels.sync()


def _has_loss(strategy: Strategy) -> bool:
    """Return whether a strategy changes the loss."""
    return any(type(part).loss is not Strategy.loss for part in parts_of(strategy).values())
