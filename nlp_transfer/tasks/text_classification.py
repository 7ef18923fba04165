"""One label of several for a text or a pair of texts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn import functional as F

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics import LABEL_KEYS, compute_label_metrics
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import PLAIN_LOSS, Arrays, Batch, LossOptions
from nlp_transfer.tasks.common.label_schema import LabelSchema, LabelType, as_list
from nlp_transfer.tasks.common.labels import (
    LabelList,
    balance,
    check_labels,
    check_type,
    check_weight_names,
    fit_labels,
    focal_factor,
    label_fields,
    named_type,
    other_separator,
    similar_labels,
    weight_vector,
)
from nlp_transfer.tasks.common.text_task import TextTask
from nlp_transfer.utils.errors import Problems

MANY_CLASSES = 10


class TextClassification(TextTask):
    """Each row has exactly one label."""

    best_metric: ClassVar[str] = "accuracy"

    labels: LabelList | None = None
    """The labels in their order; null: those in train, numbers by value and words by alphabet."""
    label_type: LabelType | None = None
    """Type of predictions in Python, JSONL and Parquet; null: that of train's labels. `str` also takes 1.1 and 1.10 for two
    labels."""

    def metric_names(self) -> list[str]:
        return list(LABEL_KEYS)

    def label_schema(self) -> LabelSchema:
        """Return the labels in the order of the logits."""
        return LabelSchema(self.labels or [], self.label_type)

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        super().check_settings(training, problems)
        check_type(self.labels, self.label_type, problems)
        check_weight_names(training, self.labels, self.label_type, problems)

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
                "allowed: two rows or more of each label where rows of train are held out (one row can be learned from or held "
                "out, not both)"
            )

    def fit_settings(self, problems: Problems) -> Self:
        return self.model_copy(update={"label_type": named_type(self.labels, self.label_type, problems)})

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        check_labels(rows, self.label, self.label_schema(), problems)

    def strata(self, rows: Rows) -> np.ndarray:
        return self.encode_targets(rows.columns[self.label])

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """Label ids, int64 of shape (rows,)."""
        schema = self.label_schema()
        return np.array([schema.id(cell) for cell in cells], np.int64)

    def head_fields(self) -> dict[str, Any]:
        return label_fields(self.labels or [], "single_label_classification")

    def label_smoothing(self, training: TrainingConfig) -> float:
        """With many classes there are few rows for each, and a network that is sure of every one of them generalises less
        well (Müller et al. 2019, 1906.02629)."""
        many = len(self.labels or []) >= MANY_CLASSES
        return 0.1 if many and training.label_smoothing == "auto" else super().label_smoothing(training)

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        """`balanced` weights are rows / (labels * rows of the label), as in scikit-learn, of the rows of an epoch: what
        oversampling evens out already, weights leave alone."""
        weights = None
        if training.class_weights == "balanced":
            repeats = self.repeats(training, train)
            frequency = np.bincount(train.dense["labels"], minlength=len(self.labels or []))
            frequency = frequency if repeats is None else repeats.totals()
            weights = torch.tensor(frequency.sum() / (len(frequency) * np.maximum(frequency, 1)), dtype=torch.float32)
        elif isinstance(training.class_weights, Mapping):
            weights = weight_vector(training.class_weights, self.labels or [], self.label_type)
        return LossOptions(self.label_smoothing(training), weights, training.focal_gamma or 0.0)

    def classes(self, table: TokenTable) -> tuple[np.ndarray, np.ndarray] | None:
        labels = table.dense.get("labels")
        return None if labels is None else (labels, np.bincount(labels, minlength=len(self.labels or [])))

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Rows, and for the loss the sum of their weights."""
        labels = batch["labels"]
        weights = options.class_weights
        items = float(len(labels)) if weights is None else float(weights[labels.cpu()].sum())
        return {"rows": float(len(labels)), "cross_entropy": items}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Summed cross-entropy over logits of shape (rows, labels), computed in fp32.

        Weights and label smoothing are those of PyTorch's `cross_entropy`: with smoothing s and K labels, the term of a label c,
        -w_c log p_c, counts 1 - s where c is the row's own label, and s / K for each c. Divided by `counts`, the sum of the rows'
        own weights, that is PyTorch's mean.

        The focal loss is the same with each term times (1 - p_c) ** gamma. At the label's own term alone the factor would undo
        label smoothing, since a label given with certainty would then cost nothing.
        """
        logits = outputs.logits.float()
        weights = None if options.class_weights is None else options.class_weights.to(logits.device)
        labels = batch["labels"]
        if options.focal_gamma:
            log_p = logits.log_softmax(-1)
            terms = -focal_factor(log_p, options.focal_gamma) * log_p
            terms = terms if weights is None else terms * weights
            own = terms.gather(-1, labels[:, None]).squeeze(-1)
            rowwise = (1 - options.label_smoothing) * own + options.label_smoothing * terms.mean(-1)
        else:
            rowwise = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=options.label_smoothing)
        return {"cross_entropy": rowwise.sum()}

    def predict(self, outputs: Any) -> Arrays:
        """`prediction` int64 (rows,) and `scores` float32 (rows, labels), which sum to 1."""
        scores = outputs.logits.float().softmax(-1).cpu().numpy()
        return {"prediction": scores.argmax(-1), "scores": scores}

    def describe(self, answers: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        labels, values = self.labels or [], self.label_schema().values()
        columns: dict[str, list[Any]] = {
            "prediction": [values[i] for i in answers["prediction"]],
            "probability": answers["scores"].max(-1).astype(float).tolist(),
        }
        if probabilities:
            columns |= {f"probability:{label}": answers["scores"][:, i].astype(float).tolist() for i, label in enumerate(labels)}
        return columns

    def written(self, cells: np.ndarray) -> list[Any]:
        values = self.label_schema().values()
        return [values[i] for i in cells]

    def metrics(self, answers: Arrays, targets: Arrays) -> dict[str, float]:
        return compute_label_metrics(answers["prediction"], targets["labels"], answers["scores"])

    def report(self, train: Rows) -> list[str]:
        labels = self.labels or []
        counts = Counter(labels[i] for i in self.encode_targets(train.columns[self.label]))
        joined = other_separator(train.columns[self.label], "|;", "task.name: multi_label")
        return [*balance(counts, len(train)), *similar_labels(labels), *joined]
