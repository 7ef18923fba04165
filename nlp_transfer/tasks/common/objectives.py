"""Losses. Each consists of named terms: a sum, and the count that the sum is divided by."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from nlp_transfer.data.row_weights import WEIGHT
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.utils.errors import UserError

Batch = Mapping[str, torch.Tensor]
Items = dict[str, tuple[float, float]]  # loss term -> (sum, number of items in the sum)


class Objective(ABC):
    """A trainable loss with its options.

    Terms are sums, never means. The training loop divides each term by the sum of its `count` over all rows of an optimizer step,
    on all processes.
    """

    weighted: ClassVar[bool] = False
    """Whether the terms and their counts use the weights of rows, if the batch has a column `target_weight`."""

    @property
    def label_smoothing(self) -> float:
        """Share of the target probability that is spread evenly over all labels."""
        return 0.0

    @property
    def class_weights(self) -> torch.Tensor | None:
        """Weight of each label, float32 of shape (labels,)."""
        return None

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of rows as `rows`, and the number of items in each loss term. Needs only the targets of the batch."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the summed loss of each term, fp32 of shape (), under the same names as in `count`."""

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """Return additional metrics of a training step: a sum of shape (), and the loss term whose count divides the sum."""
        return {}

    def items(self, outputs: Any, batch: Batch) -> Items:
        """Return the sum and the count of each loss term of a batch, as numbers."""
        counts = self.count(batch)
        return {name: (float(value), counts[name]) for name, value in self.loss(outputs, batch).items()}


def check_weighted(task: Any, training: TrainingConfig) -> None:
    """Check that weights of rows can be used.

    Raises:
        UserError: The loss of the task has no weights of rows, or class weights are derived from the numbers of rows.
    """
    if not task.objective().weighted:
        raise UserError(
            f"data.weight: the loss of a task that predicts {task.traits.prediction} has no weights of rows; allowed: null"
        )
    if training.class_weights == "balanced":
        raise UserError(
            "training.class_weights: found balanced together with data.weight; allowed: weights by label, such as {good: 1, bad: "
            "3}, or null"
        )


def _row_weights(batch: Batch) -> torch.Tensor | None:
    """Return the weights of the rows, float32 of shape (rows,), on the device of the labels; None if there are none."""
    return batch[WEIGHT].to(batch["labels"].device) if WEIGHT in batch else None


def _weighted_sum(rowwise: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the sum over rows of losses of shape (rows,), weighted if the rows have weights."""
    weights = _row_weights(batch)
    return rowwise.sum() if weights is None else (rowwise * weights.to(rowwise.device)).sum()


def _row_count(batch: Batch) -> float:
    """Return the number of rows, or the sum of their weights if they have weights."""
    weights = _row_weights(batch)
    return float(len(batch["labels"])) if weights is None else float(weights.double().sum())


def smoothing_of(training: TrainingConfig, automatic: float = 0.0) -> float:
    """Return the label smoothing of the settings; `automatic` for `auto`."""
    return automatic if isinstance(training.label_smoothing, str) else training.label_smoothing


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy over logits of shape (rows, labels), for label ids of shape (rows,), computed in fp32.

    Class weights w and label smoothing s work as in PyTorch's `cross_entropy`: the loss of a row is the sum of -w_c log p_c over
    the K labels c, each times s / K, or times s / K + 1 - s for the target. The sum over rows divided by `count` equals PyTorch's
    mean.

    The focal loss (Lin et al. 2017, 1708.02002) multiplies every term by (1 - p_c) ** gamma. Scaling only the term of the target
    would cancel the effect of label smoothing.

    Attributes:
        focal_gamma: Focusing parameter of the focal loss. 0 disables it.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    focal_gamma: float = 0.0
    weighted: ClassVar[bool] = True

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of rows, and the sum of their weights (class weight times row weight), which divides the loss."""
        labels, weights = batch["labels"], self.class_weights
        items = _row_count(batch) if weights is None else float(_weighted_sum(weights[labels.cpu()], batch))
        return {"rows": float(len(labels)), "cross_entropy": items}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        logits, labels = outputs.logits.float(), batch["labels"]
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.focal_gamma:
            log_p = logits.log_softmax(-1)
            terms = -focal_factor(log_p, self.focal_gamma) * log_p
            terms = terms if weights is None else terms * weights
            target_terms = terms.gather(-1, labels[:, None]).squeeze(-1)
            rowwise = (1 - self.label_smoothing) * target_terms + self.label_smoothing * terms.mean(-1)
        else:
            rowwise = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=self.label_smoothing)
        return {"cross_entropy": _weighted_sum(rowwise, batch)}


@dataclass(frozen=True)
class BinaryCrossEntropy(Objective):
    """Binary cross-entropy over logits of shape (rows, labels), for 0 or 1 of the same shape, computed in fp32.

    Attributes:
        class_weights: Weights of positive rows of each label.
        focal_gamma: Focusing parameter of the focal loss. 0 disables it.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    focal_gamma: float = 0.0
    weighted: ClassVar[bool] = True

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of rows, and the number of binary decisions (rows times labels), which divides the loss."""
        labels = batch["labels"]
        return {"rows": float(len(labels)), "binary_cross_entropy": _row_count(batch) * labels.shape[1]}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        logits = outputs.logits.float()
        targets = batch["labels"] * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.focal_gamma:
            log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
            positive, gamma = targets if weights is None else targets * weights, self.focal_gamma
            terms = positive * focal_factor(log_p, gamma) * log_p + (1 - targets) * focal_factor(log_q, gamma) * log_q
            return {"binary_cross_entropy": _weighted_sum(-terms.sum(1), batch) if WEIGHT in batch else -terms.sum()}
        if WEIGHT in batch:
            elements = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
            return {"binary_cross_entropy": _weighted_sum(elements.sum(1), batch)}
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")}


@dataclass(frozen=True)
class SquaredError(Objective):
    """Squared error of logits of shape (rows, 1) and standardized targets, (y - `mean`) / `scale`, computed in fp32."""

    mean: float = 0.0
    scale: float = 1.0
    weighted: ClassVar[bool] = True

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of rows, and the sum of their weights, which divides the loss."""
        return {"rows": float(len(batch["labels"])), "squared_error": _row_count(batch)}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        logits = outputs.logits.float().squeeze(-1)
        targets = ((batch["labels"].double() - self.mean) / self.scale).float()
        return {"squared_error": _weighted_sum((logits - targets.to(logits.device)).square(), batch)}


@dataclass(frozen=True)
class TokenCrossEntropy(Objective):
    """Cross-entropy over logits of shape (rows, tokens, vocabulary), for ids of shape (rows, tokens), computed in fp32."""

    label_smoothing: float = 0.0

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of rows, and the number of target tokens, which divides the loss."""
        labels = batch["labels"]
        return {"rows": float(len(labels)), "cross_entropy": float((labels != IGNORED).sum())}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        # The loss ignores padding. Removing it by indexing would make the forward and backward pass far slower.
        logits, labels = outputs.logits.flatten(0, 1).float(), batch["labels"].flatten()
        smoothing = self.label_smoothing
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        return {"cross_entropy": total}

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """Return `token_accuracy`: the share of target tokens predicted correctly from the preceding reference tokens."""
        return {"token_accuracy": (is_correct(outputs, batch).sum(), "cross_entropy")}


def is_correct(outputs: Any, batch: Batch) -> torch.Tensor:
    """Return whether the most likely token is the target token, bool of shape (rows, target tokens). False for padding."""
    # In fp32: PyTorch's argmax over bf16 is six times slower on CPUs.
    return torch.eq(outputs.logits.detach().float().argmax(-1), batch["labels"])


def focal_factor(log_probability: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the factor of the focal loss, (1 - p) ** gamma, for log p of any shape.

    1 - p is clamped to a tiny positive value, since the gradient at p = 1 is infinite for gamma below 1.
    """
    return (-torch.expm1(log_probability)).clamp(min=torch.finfo(log_probability.dtype).tiny) ** gamma
