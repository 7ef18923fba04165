"""Estimators whose input is numbers, which they write as texts, for the checks of scikit-learn, all of which pass numbers."""

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from nlp_transfer.sklearn import MultiLabelTextClassifier, TextClassifier, TextEncoder, TextRegressor
from tests.helpers.models import WORDS


class _Numbers:
    """A row becomes a text with one word for each column; the word depends on the column and on the rounded number."""

    def _texts(self, X: Any, reset: bool = False) -> np.ndarray:
        numbers = np.asarray(validate_data(self, X, reset=reset), np.float64)
        levels = np.clip(np.rint(numbers * 2), -20, 20).astype(np.int64) + 31 * np.arange(numbers.shape[1])
        return np.array([[" ".join(WORDS[level % len(WORDS)] for level in row)] for row in levels], object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.string = tags.input_tags.one_d_array = False
        return tags


class NumberClassifier(_Numbers, TextClassifier):
    pass


class NumberMultiLabelClassifier(_Numbers, MultiLabelTextClassifier):
    pass


class NumberRegressor(_Numbers, TextRegressor):
    pass


class NumberEncoder(_Numbers, TextEncoder):
    pass
