"""The interface between the training loop and losses: options, summed terms and the count that divides each term."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import TrainingConfig

Batch = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]
Items = dict[str, tuple[float, float]]  # loss term -> (sum, number of items in the sum)


@dataclass(frozen=True)
class LossOptions:
    """Options of the training loss. Metrics are always computed with the plain loss (`PLAIN_LOSS`).

    Attributes:
        label_smoothing: Share of the target probability distributed evenly over all labels.
        class_weights: float32 of shape (labels,).
        focal_gamma: Focusing parameter of the focal loss (Lin et al. 2017, 1708.02002). 0: off.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    focal_gamma: float = 0.0


PLAIN_LOSS = LossOptions()


class Objective(Protocol):
    """A trainable loss: sums by named term, and the count that divides each term."""

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions: ...
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]: ...
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]: ...
    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]: ...
