"""What the training loop needs to know about a loss: its options, its terms and the items that each term is divided by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import TrainingConfig

Batch = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]
Items = dict[str, tuple[float, float]]  # by loss term: its sum, and the number of items in the sum


@dataclass(frozen=True)
class LossOptions:
    """Options of the training loss. Metrics are always computed with the plain loss (`PLAIN_LOSS`).

    Attributes:
        label_smoothing: Share of the target probability that is spread evenly over all labels.
        class_weights: float32 of shape (labels,).
        focal_gamma: Above 0, the focal loss is used (Lin et al. 2017, 1708.02002). Items are counted as for the plain loss.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    focal_gamma: float = 0.0


PLAIN_LOSS = LossOptions()


class Objective(Protocol):
    """Something that can be trained: a loss as sums by named term, and the count that each term is divided by."""

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions: ...
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]: ...
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]: ...
    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]: ...
