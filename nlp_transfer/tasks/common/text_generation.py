"""Base class of tasks that generate text: loss over target tokens, and token accuracy."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objective import PLAIN_LOSS, Batch, LossOptions
from nlp_transfer.tasks.common.task import Task


class TextGenerationTask(Task):
    """A task that generates text with an encoder-decoder model."""

    prediction_kind: ClassVar[Literal["label", "labels", "number", "text"]] = "text"

    def strata(self, rows: Rows) -> np.ndarray:
        return np.zeros(len(rows), np.int64)

    def auto_class(self) -> Any:
        return AutoModelForSeq2SeqLM

    def label_smoothing(self, training: TrainingConfig) -> float:
        """Return the label smoothing; `auto` is 0.1 (Vaswani et al. 2017, 1706.03762)."""
        return 0.1 if training.label_smoothing == "auto" else super().label_smoothing(training)

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Return the number of rows and of target tokens; the latter divides the loss."""
        labels = batch["labels"]
        return {"rows": float(len(labels)), "cross_entropy": float((labels != IGNORED).sum())}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Return the summed cross-entropy over logits of shape (rows, target tokens, vocabulary), computed in fp32."""
        # Padding is ignored by the loss rather than removed: indexing the other tokens is far slower, forward and backward.
        logits, labels = outputs.logits.flatten(0, 1).float(), batch["labels"].flatten()
        smoothing = options.label_smoothing
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        return {"cross_entropy": total}

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """Return `token_accuracy`: the share of target tokens predicted correctly from the preceding reference tokens."""
        return {"token_accuracy": (is_correct(outputs, batch).sum(), "cross_entropy")}


def is_correct(outputs: Any, batch: Batch) -> torch.Tensor:
    """Return whether the most likely token is the target token, bool of shape (rows, target tokens). False for padding."""
    # In fp32: PyTorch's argmax over bf16 is six times slower on CPUs.
    return torch.eq(outputs.logits.detach().float().argmax(-1), batch["labels"])
