"""Any number of labels for a text or a pair of texts, none included."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from nlp_transfer.config import TrainingConfig
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.errors import Problems
from nlp_transfer.metrics import MULTILABEL_KEYS, compute_label_metrics
from nlp_transfer.sources.rows import Rows
from nlp_transfer.tasks import PLAIN_LOSS, Arrays, Batch, LossOptions
from nlp_transfer.tasks._labels import (
    LabelList,
    balance,
    check_taught,
    check_weight_names,
    focal_factor,
    label_fields,
    label_ids,
    label_text,
    no_label,
    shorten,
    sort_labels,
    unknown_label,
    weight_vector,
)
from nlp_transfer.tasks._text import TextTask


class MultiLabel(TextTask):
    """Each label is decided by itself: a sigmoid and a threshold a label."""

    best_metric: ClassVar[str] = "f1_macro"

    separator: Annotated[str, Field(min_length=1)] = "|"
    """Between the labels of a cell, where a cell is not a list."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which a label is given."""
    labels: LabelList | None = None
    """The labels in their order; null: those in train, by alphabet."""

    def split_cell(self, cell: Any) -> list[str]:
        """The labels in a cell, which is a list or joined text; an empty cell has none."""
        parts = cell if isinstance(cell, (list, tuple)) else str(cell).split(self.separator) if cell is not None else []
        return [label for label in map(label_text, parts) if label]

    def metric_names(self) -> list[str]:
        return list(MULTILABEL_KEYS)

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        super().check_settings(training, problems)
        check_weight_names(training, self.labels, problems)

    def fit(self, train: Rows, problems: Problems) -> Self:
        found = Counter(label for cell in train.columns[self.label] for label in self.split_cell(cell))
        labels = self.labels or sort_labels(found)
        check_taught(labels, found, problems)
        if not labels:
            problems.add(
                f"train, column {self.label!r}: no row has a label; allowed: labels joined by {self.separator!r} or in a list"
            )
        for label in labels:
            if 0 < found[label] == len(train):
                problems.add(f"train, column {self.label!r}: every row has the label {label!r}; there is nothing to tell apart")
        return self.model_copy(update={"labels": labels})

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        labels = self.labels or []
        known = set(labels)
        allowed = f"a list of labels or text joined by {self.separator!r}"
        for row, cell in enumerate(rows.columns[self.label]):
            where = f"{rows.where(row)}, column {self.label!r}"
            if cell is not None and not isinstance(cell, (str, list, tuple)):
                problems.add(no_label(where, cell, allowed))
                continue
            for part in cell if isinstance(cell, (list, tuple)) else ():
                if label_text(part) is None:
                    problems.add(no_label(where, part, allowed))
            for label in self.split_cell(cell):
                if label not in known:
                    problems.add(unknown_label(where, label, labels))

    def strata(self, rows: Rows) -> np.ndarray:
        """The rarest label of each row: what a split is most likely to lose."""
        return self._rarest(self.encode_targets(rows.columns[self.label]))

    @staticmethod
    def _rarest(hot: np.ndarray) -> np.ndarray:
        frequency = hot.sum(0)
        rarity = np.where(hot > 0, frequency, np.inf)
        return np.where(hot.any(1), rarity.argmin(1), -1).astype(np.int64)

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """float32 of shape (rows, labels), 1 where a row has the label."""
        ids = label_ids(self.labels or [])
        hot = np.zeros((len(cells), len(ids)), np.float32)
        for row, cell in enumerate(cells):
            for label in self.split_cell(cell):
                hot[row, ids[label]] = 1
        return hot

    def head_fields(self) -> dict[str, Any]:
        return label_fields(self.labels or [], "multi_label_classification")

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        """Weights apply to the rows that have a label: `balanced` is how many rows without it there are for one with it."""
        weights = None
        if training.class_weights == "balanced":
            positive = train.dense["labels"].sum(0)
            weights = torch.tensor((len(train) - positive) / np.maximum(positive, 1), dtype=torch.float32).clamp(min=1)
        elif isinstance(training.class_weights, Mapping):
            weights = weight_vector(training.class_weights, self.labels or [])
        return LossOptions(self.label_smoothing(training), weights, training.focal_gamma or 0.0)

    def classes(self, table: TokenTable) -> tuple[np.ndarray, np.ndarray] | None:
        """The rarest label of each row and how many rows have each label, as repeat factors are taken for data with many
        labels a row (Gupta et al. 2019, 1908.03195). A row without any is never repeated."""
        hot = table.dense.get("labels")
        return None if hot is None else (self._rarest(hot), hot.sum(0).astype(np.int64))

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Rows, and decisions (rows times labels)."""
        return {"rows": float(len(batch["labels"])), "binary_cross_entropy": float(batch["labels"].numel())}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Summed binary cross-entropy over logits of shape (rows, labels), computed in fp32."""
        logits = outputs.logits.float()
        wanted = batch["labels"] * (1 - options.label_smoothing) + options.label_smoothing / 2
        weights = None if options.class_weights is None else options.class_weights.to(logits.device)
        if options.focal_gamma:
            log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
            given = wanted if weights is None else wanted * weights
            gamma = options.focal_gamma
            terms = given * focal_factor(log_p, gamma) * log_p + (1 - wanted) * focal_factor(log_q, gamma) * log_q
            return {"binary_cross_entropy": -terms.sum()}
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights, reduction="sum")}

    def predict(self, outputs: Any) -> Arrays:
        """`scores` float32 (rows, labels), each in 0..1, and `prediction` bool (rows, labels)."""
        scores = outputs.logits.float().sigmoid().cpu().numpy()
        return {"prediction": scores >= self.threshold, "scores": scores}

    def describe(self, answers: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        """`probability` is that of the labels given, joined alike; where none is given it is empty."""
        labels = self.labels or []
        given = [np.flatnonzero(row) for row in answers["prediction"]]
        columns: dict[str, list[Any]] = {
            "prediction": [self.separator.join(labels[i] for i in row) for row in given],
            "probability": [
                self.separator.join(f"{scores[i]:.6f}" for i in row) for row, scores in zip(given, answers["scores"], strict=True)
            ],
        }
        if probabilities:
            columns |= {f"probability:{label}": answers["scores"][:, i].astype(float).tolist() for i, label in enumerate(labels)}
        return columns

    def metrics(self, answers: Arrays, targets: Arrays) -> dict[str, float]:
        hot = targets["labels"].astype(np.int64)
        return compute_label_metrics(answers["prediction"].astype(np.int64), hot, answers["scores"], multilabel=True)

    def report(self, train: Rows) -> list[str]:
        cells = [self.split_cell(cell) for cell in train.columns[self.label]]
        counts: Counter[str | None] = Counter(label for cell in cells for label in cell)
        lines = balance(counts, len(train))
        alone = sorted(str(label) for label, count in counts.items() if count == 1)
        if alone:
            lines.append(f"warning: only one row has {shorten(alone)}")
        return [*lines, f"{sum(map(len, cells)) / max(1, len(cells)):.2f} labels a row"]
