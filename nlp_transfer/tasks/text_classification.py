"""Text classification: predict one label for a text or a pair of texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn import functional as F

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics import LABEL_KEYS, compute_label_metrics
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import PLAIN_LOSS, Arrays, Batch, LossOptions
from nlp_transfer.tasks.common.label_schema import as_list
from nlp_transfer.tasks.common.label_task import LabelTask
from nlp_transfer.tasks.common.labels import (
    balance,
    check_labels,
    fit_labels,
    focal_factor,
    label_fields,
    other_separator,
    similar_labels,
)
from nlp_transfer.utils.errors import Problems

MANY_CLASSES = 10  # number of labels from which `label_smoothing: auto` is 0.1


class TextClassification(LabelTask):
    """Classification with exactly one label per row, by a softmax over the labels."""

    best_metric: ClassVar[str] = "accuracy"

    def metric_names(self) -> list[str]:
        return list(LABEL_KEYS)

    def fit(self, train: Rows, problems: Problems) -> Self:
        column = train.columns[self.label]
        single = [cell for cell in column if as_list(cell) is None]
        labels, kind, _ = fit_labels(single, train, self.label, self.labels, self.label_type, problems)
        if len(labels) == 1:
            problems.add(
                f"train, column {self.label!r}: every row has the label {labels[0]!r}; allowed: at least two different labels"
            )
        return self.model_copy(update={"labels": labels, "label_type": kind})

    def check_split(self, train: Rows, problems: Problems) -> None:
        schema = self.label_schema()
        ids = [schema.id(cell) for cell in train.columns[self.label]]
        row_of = {label: row for row, label in enumerate(ids)}
        for label in [label for label, count in Counter(ids).items() if count == 1 and label is not None]:
            problems.add(
                f"{train.where(row_of[label])}, column {self.label!r}: the only row with the label {schema.names[label]!r}; "
                "allowed: two rows or more of each label if rows of train are held out (a single row cannot be both trained on "
                "and held out)"
            )

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        check_labels(rows, self.label, self.label_schema(), problems)

    def strata(self, rows: Rows) -> np.ndarray:
        return self.encode_targets(rows.columns[self.label])

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """Return label ids, int64 of shape (rows,)."""
        schema = self.label_schema()
        return np.array([schema.id(cell) for cell in cells], np.int64)

    def head_fields(self) -> dict[str, Any]:
        return label_fields(self.labels or [], "single_label_classification")

    def label_smoothing(self, training: TrainingConfig) -> float:
        """Return 0.1 for `auto` with many classes, which usually have few rows each, to prevent overconfidence.

        Müller et al. 2019, "When Does Label Smoothing Help?", 1906.02629.
        """
        many = len(self.labels or []) >= MANY_CLASSES
        return 0.1 if many and training.label_smoothing == "auto" else super().label_smoothing(training)

    def balanced_weights(self, labels: np.ndarray, times: np.ndarray) -> torch.Tensor:
        """Return rows / (labels * rows of the label) for each label, as scikit-learn does."""
        frequency = np.rint(np.bincount(labels, times, minlength=len(self.labels or [])))
        return torch.tensor(frequency.sum() / (len(frequency) * np.maximum(frequency, 1)), dtype=torch.float32)

    def classes(self, table: TokenTable) -> tuple[np.ndarray, np.ndarray] | None:
        labels = table.dense.get("labels")
        return None if labels is None else (labels, np.bincount(labels, minlength=len(self.labels or [])))

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Return the number of rows, and the sum of their class weights, which divides the loss."""
        labels = batch["labels"]
        weights = options.class_weights
        items = float(len(labels)) if weights is None else float(weights[labels.cpu()].sum())
        return {"rows": float(len(labels)), "cross_entropy": items}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Return the summed cross-entropy over logits of shape (rows, labels), computed in fp32.

        Class weights w and label smoothing s work as in PyTorch's `cross_entropy`: the terms -w_c log p_c of K labels c have
        weight s / K, plus 1 - s for the target. The sum divided by `counts` equals PyTorch's mean.

        The focal loss multiplies every term by (1 - p_c) ** gamma. Scaling only the term of the target would cancel the effect of
        label smoothing.
        """
        logits = outputs.logits.float()
        weights = None if options.class_weights is None else options.class_weights.to(logits.device)
        labels = batch["labels"]
        if options.focal_gamma:
            log_p = logits.log_softmax(-1)
            terms = -focal_factor(log_p, options.focal_gamma) * log_p
            terms = terms if weights is None else terms * weights
            target_terms = terms.gather(-1, labels[:, None]).squeeze(-1)
            rowwise = (1 - options.label_smoothing) * target_terms + options.label_smoothing * terms.mean(-1)
        else:
            rowwise = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=options.label_smoothing)
        return {"cross_entropy": rowwise.sum()}

    def predict(self, outputs: Any) -> Arrays:
        """Return `prediction`, label ids int64 of shape (rows,), and `scores`, probabilities float32 of shape (rows, labels)."""
        scores = outputs.logits.float().softmax(-1).cpu().numpy()
        return {"prediction": scores.argmax(-1), "scores": scores}

    def describe(self, predictions: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        columns = {
            "prediction": self.written(predictions["prediction"]),
            "probability": predictions["scores"].max(-1).astype(float).tolist(),
        }
        return columns | (self.probability_columns(predictions) if probabilities else {})

    def written(self, cells: np.ndarray) -> list[Any]:
        values = self.label_schema().values()
        return [values[i] for i in cells]

    def metrics(self, predictions: Arrays, targets: Arrays) -> dict[str, float]:
        return compute_label_metrics(predictions["prediction"], targets["labels"], predictions["scores"])

    def report(self, train: Rows) -> list[str]:
        labels = self.labels or []
        counts = Counter(labels[i] for i in self.encode_targets(train.columns[self.label]))
        joined = other_separator(train.columns[self.label], "|;", "task.name: multi_label")
        return [*balance(counts, len(train)), *similar_labels(labels), *joined]
