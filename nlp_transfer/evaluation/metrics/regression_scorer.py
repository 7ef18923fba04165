"""Scores predicted numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nlp_transfer.evaluation.metrics.regression_metrics import compute_regression_metrics
from nlp_transfer.evaluation.metrics.scorer import Arrays, Form, Scorer, Sums, mean


@dataclass(frozen=True)
class RegressionScorer(Scorer):
    """Scores numbers, of shape (rows,)."""

    form: ClassVar[Form] = "numbers"
    row_metric: ClassVar[str | None] = "mae"

    @property
    def prediction_type(self) -> str:
        return "double"

    def parse(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Arrays, Arrays]:
        predicted, true = (np.asarray(columns[name], np.float64) for name in ("prediction", "reference"))
        return {"prediction": predicted}, {self.reference: true}

    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        return compute_regression_metrics(predictions["prediction"], references[self.reference])

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        if metric not in ("mse", "rmse", "mae", "r2", "pearson"):
            return None
        predicted, true = predictions["prediction"], references[self.reference]
        ones, error = np.ones(len(predicted)), predicted.astype(float) - true
        center = float(true.mean())  # without centering, sums of squares would lose precision
        x, y = predicted.astype(float) - center, true.astype(float) - center
        columns, function = {
            "mse": ((error**2, ones), mean),
            "rmse": ((error**2, ones), _root_mean),
            "mae": ((np.abs(error), ones), mean),
            "r2": ((error**2, ones, y, y * y), _r2),
            "pearson": ((ones, x, y, x * x, y * y, x * y), _pearson),
        }[metric]
        return np.stack(columns, 1), function


def _root_mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(mean(sums)))


def _r2(sums: np.ndarray) -> np.ndarray:
    errors, n, y, yy = sums.T
    variation = yy - y * y / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variation > 1e-12 * yy, 1 - errors / variation, np.nan)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-12, (n * xy - x * y) / spread, np.nan)
