"""The output layer of a regression model: it predicts standardized values in training, and values of the target when saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class RegressionOutput(nn.Linear):
    """The output layer of a regression, computed in fp32 even under autocast (bf16 values near 2,000 are 8 apart).

    During training its weights predict standardized values, (y - `mean`) / `scale`. `fold` rescales the weights of a trained
    model, so that the saved model predicts y. Inside `standardized_outputs`, a folded layer returns standardized values. The
    caller then computes y in float64, because fp32 cannot resolve small differences around a large mean.
    """

    mean: float = 0.0
    scale: float = 1.0
    offset: float | None = None
    """The float64 bias of a folded layer; None if the layer is not folded."""
    standardized: bool = False
    """Whether a folded layer currently returns standardized values."""

    @classmethod
    def replace(cls, model: PreTrainedModel) -> "RegressionOutput | None":
        """Turn the output layer of a model into a RegressionOutput, in place.

        Returns:
            The layer, or None if no linear layer outside the encoder has one output.
        """
        encoder = f"{model.base_model_prefix}."
        outputs = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == 1 and not name.startswith(encoder)
        ]
        if not outputs:
            return None
        outputs[-1].__class__ = cls
        return outputs[-1]  # type: ignore[return-value]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return fp32 values of shape (rows, 1) for an input of shape (rows, width)."""
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        if self.standardized and self.offset is not None:
            weight, bias = weight / self.scale, weight.new_tensor([(self.offset - self.mean) / self.scale])
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), weight, bias)

    def fold(self) -> None:
        """Rescale the weights to predict in the target's units. A folded layer is not changed."""
        if self.offset is None:
            self.offset = self.stored_bias * self.scale + self.mean
            self._set(self.weight.detach().cpu().double() * self.scale, self.offset)

    def unfold(self, mean: float, scale: float, offset: float | None = None) -> None:
        """Rescale the weights of a saved model to predict standardized values.

        Args:
            mean, scale: targets are standardized as (y - `mean`) / `scale`.
            offset: float64 bias of the folded layer; None means the stored bias.
        """
        bias = self.stored_bias if offset is None else offset
        self._set(self.weight.detach().cpu().double() / scale, (bias - mean) / scale)

    @property
    def stored_bias(self) -> float:
        """The bias in the precision of the weights; 0 if the layer has no bias."""
        return 0.0 if self.bias is None else float(self.bias.detach())

    def _set(self, weight: torch.Tensor, bias: float) -> None:
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None:
                self.bias.fill_(bias)


def regression_outputs(model: nn.Module) -> list[RegressionOutput]:
    """Return the regression output layers of a model. PEFT's copy of a layer comes after the original."""
    return [module for module in model.modules() if isinstance(module, RegressionOutput)]


def fold_outputs(model: nn.Module) -> None:
    """Fold all regression output layers of a model, so that it predicts in the units of the targets."""
    for layer in regression_outputs(model):
        layer.fold()


@contextmanager
def standardized_outputs(model: nn.Module) -> Iterator[None]:
    """Let all regression output layers, folded or not, return standardized values inside the context."""
    layers = regression_outputs(model)
    for layer in layers:
        layer.standardized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.standardized = False
