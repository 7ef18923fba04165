"""A number for a text or a pair of texts."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from nlp_transfer.config import TrainingConfig, shorten
from nlp_transfer.errors import Problems
from nlp_transfer.metrics import REGRESSION_KEYS, compute_regression_metrics
from nlp_transfer.sources.rows import Rows
from nlp_transfer.tasks import PLAIN_LOSS, Arrays, Batch, LossOptions
from nlp_transfer.tasks._labels import check_no_classes
from nlp_transfer.tasks._text import TextTask

LARGEST = float(np.finfo(np.float32).max)  # targets are float32


def number(cell: Any) -> float | None:
    """The finite number in a cell, or None. Python would also read 1_000, which in a table is more likely a slip."""
    if isinstance(cell, bool) or "_" in str(cell):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if abs(value) <= LARGEST else None


class Regression(TextTask):
    """Least squares. The model answers in the units of the column, so a saved model needs no scaling beside it."""

    best_metric: ClassVar[str] = "pearson"
    answer_kind: ClassVar[Literal["label", "labels", "number", "text"]] = "number"

    def metric_names(self) -> list[str]:
        return list(REGRESSION_KEYS)

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        super().check_settings(training, problems)
        check_no_classes(training, "a regression", problems)
        if self.label_smoothing(training):
            problems.add(f"training.label_smoothing: found {training.label_smoothing}; a regression has no labels; allowed: 0")

    def fit(self, train: Rows, problems: Problems) -> Self:
        values = {number(cell) for cell in train.columns[self.label]}
        if len(values) == 1 and None not in values:
            problems.add(f"train, column {self.label!r}: every row has the same value; allowed: at least two different numbers")
        return self

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        for row, cell in enumerate(rows.columns[self.label]):
            if number(cell) is None:
                found = "nothing" if cell is None or cell == "" else shorten(cell)
                problems.add(
                    f"{rows.where(row)}, column {self.label!r}: found {found}; allowed: a finite number of at most {LARGEST:.2g}"
                )

    def strata(self, rows: Rows) -> np.ndarray:
        """Tenths of the range by rank, so that a split sees small and large values alike."""
        values = self.encode_targets(rows.columns[self.label])
        return np.searchsorted(np.quantile(values, np.linspace(0.1, 0.9, 9)), values).astype(np.int64)

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """float32 of shape (rows,)."""
        return np.array([number(cell) for cell in cells], np.float32)

    def head_fields(self) -> dict[str, Any]:
        return {"id2label": {0: self.label}, "label2id": {self.label: 0}, "problem_type": "regression"}

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        rows = float(len(batch["labels"]))
        return {"rows": rows, "squared_error": rows}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Summed squared error over logits of shape (rows, 1), computed in fp32."""
        return {"squared_error": (outputs.logits.float().squeeze(-1) - batch["labels"]).square().sum()}

    def predict(self, outputs: Any) -> Arrays:
        """`prediction` float32 (rows,)."""
        return {"prediction": outputs.logits.float().squeeze(-1).cpu().numpy()}

    def describe(self, answers: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        return {"prediction": answers["prediction"].astype(float).tolist()}

    def metrics(self, answers: Arrays, targets: Arrays) -> dict[str, float]:
        return compute_regression_metrics(answers["prediction"], targets["labels"])

    def report(self, train: Rows) -> list[str]:
        values = self.encode_targets(train.columns[self.label])
        return [
            f"{self.label}: from {values.min():g} to {values.max():g}, mean {values.mean():.3g}, deviation {values.std():.3g}"
        ]
