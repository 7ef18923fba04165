"""A regressor for texts."""

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array, column_or_1d

from nlp_transfer.sklearn.base import FineTunedEstimator
from nlp_transfer.utils.errors import UserError


class TextRegressor(RegressorMixin, FineTunedEstimator):
    """Predict a number for texts, or pairs of texts, with a fine-tuned model. See `FineTunedEstimator` for the parameters."""

    task_name: ClassVar[str] = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fine-tune the model.

        Args:
            X: Texts, or pairs of texts.
            y: A number for each row.
            sample_weight: A weight for each row. The loss is the weighted mean of squared errors. None: equal weights.

        Raises:
            UserError: A setting, text or number is invalid. A subclass of ValueError.
        """
        texts, y, weights = self._read(X, y, sample_weight)
        numbers = check_array(column_or_1d(y, warn=True), dtype=np.float64, ensure_2d=False, input_name="y")
        if len(numbers) == 1:
            raise UserError("y: found one sample; allowed: at least two samples with different numbers and a weight > 0")
        return self._fit(texts, numbers.tolist(), weights, {})

    def predict(self, X: Any) -> np.ndarray:
        """Return a number for each row, float64 of shape (rows,)."""
        return self._predict(X, logits=False)
