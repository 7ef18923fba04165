"""Compute the metrics of a model over a split."""

from typing import Any

import numpy as np
from torch import nn

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics.scorer import Scorer
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.tasks import Arrays, Task
from nlp_transfer.utils.distributed import compute_on_main


def score(
    model: nn.Module,
    task: Task,
    table: TokenTable,
    accelerator: Any,
    batch_size: int | None = None,
    precision: str = "fp32",
    draft: bool = False,
    user_metrics: UserMetrics | None = None,
) -> tuple[dict[str, float], Arrays]:
    """Return the metrics of a table, with `loss` if the model has logits, and its predictions. Both are equal in all processes.

    Args:
        draft: whether tasks with costly predictions may predict only some of the rows (`Scorer.draft`), as during training.
        user_metrics: user-defined metrics, computed in one process only.
    """
    scorer = task.scorer
    selected = scorer.draft(len(table))[0] if draft else None
    predictions, losses = predict_table(model, task, table, batch_size, precision, accelerator, selected)
    metrics = scorer.compute(predictions, table.references)
    if losses:
        metrics["loss"] = sum(value / count for value, count in losses.values())
    if user_metrics:
        columns = _columns_for_user_metrics(scorer, predictions, table)
        metrics |= compute_on_main(accelerator, lambda: user_metrics.compute(*columns))
    return metrics, predictions


def _columns_for_user_metrics(scorer: Scorer, predictions: Arrays, table: TokenTable) -> tuple[Any, Any]:
    """Return (predictions, references) of the predicted rows twice: in the types of the user, and as the task stores them."""
    predicted = predictions["prediction"]
    references = table.references[scorer.reference]
    available = np.array([cell is not None for cell in predicted], bool)  # a draft predicts only some rows
    predicted, references = predicted[available], references[available]
    return (scorer.typed(predicted), scorer.typed(references)), (predicted.tolist(), references.tolist())
