"""Classifiers for texts, with one label or any number of labels per text."""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from scipy.special import expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from nlp_transfer.sklearn.base import FineTunedEstimator
from nlp_transfer.utils.errors import UserError, with_type


class TextClassifier(ClassifierMixin, FineTunedEstimator):
    """Classify texts, or pairs of texts, with a fine-tuned model. See `FineTunedEstimator` for the parameters.

    >>> TextClassifier(strategy="features").fit(["good", "bad"], [1, 0]).predict(["fine"])  # doctest: +SKIP

    Attributes:
        classes_: The labels, of shape (classes,), in the order of the columns of `predict_proba`.
    """

    task_name: ClassVar[str] = "text_classification"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fine-tune the model.

        Args:
            X: Texts, or pairs of texts.
            y: A label for each row.
            sample_weight: A weight for each row. The loss is the weighted mean. None: equal weights.

        Raises:
            UserError: A setting, text or label is invalid. A subclass of ValueError.
        """
        texts, y, weights = self._read(X, y, sample_weight)
        labels = column_or_1d(y, warn=True)
        if (missing := pd.isna(labels)).any():
            found = f"{missing.sum()} of {len(missing)} labels are missing (y contains NaN or None)"
            raise UserError(f"y: {found}; allowed: a label for each row")
        if len(kinds := sorted({type(label).__name__ for label in labels.tolist()})) > 1 and "str" in kinds:
            raise UserError(f"y: found labels of the types {', '.join(kinds)}; allowed: labels of one type")
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise UserError(f"y: found one class, {self.classes_[0]}; allowed: at least two classes, each in a row of weight > 0")
        names = self.classes_.tolist()
        task: dict[str, Any] = {"labels": [str(label) if isinstance(label, bool) else label for label in names]}
        if isinstance(names[0], str) and "task.label_type" not in (self.settings or {}):
            task["label_type"] = "str"  # "1" and "1.0" are two classes, as in scikit-learn
        return self._fit(texts, labels.tolist(), weights, task)

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each row, of shape (rows,): the most likely one, unless `task.positive` has a `task.threshold`."""
        ids = self._predict(X, logits=False).astype(np.int64)
        return np.asarray(self.classes_[ids])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, float64 of shape (rows, classes)."""
        return np.asarray(softmax(self._predict(X), axis=1))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities, float64 of shape (rows, classes)."""
        return np.asarray(log_softmax(self._predict(X), axis=1))

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits, float64 of shape (rows, classes); for two classes their difference, of shape (rows,)."""
        logits = self._predict(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


class MultiLabelTextClassifier(ClassifierMixin, FineTunedEstimator):
    """Assign any number of labels to texts, with a fine-tuned model. See `FineTunedEstimator` for the parameters.

    A label is predicted if its probability is at least the setting `task.threshold`, 0.5 by default.

    Attributes:
        classes_: The labels, of shape (labels,): the names of the columns of `y` if it is a DataFrame, the numbers of its
            columns if it is an array, or else the sorted labels.
    """

    task_name: ClassVar[str] = "multi_label"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fine-tune the model.

        Args:
            X: Texts, or pairs of texts.
            y: 0 or 1 for each row and label, of shape (rows, labels); or a collection of labels for each row.
            sample_weight: A weight for each row. The loss is the weighted mean. None: equal weights.

        Raises:
            UserError: A setting, text or label is invalid. A subclass of ValueError.
        """
        texts, y, weights = self._read(X, y, sample_weight)
        if _is_indicator(y):
            hot = _checked_indicator(y)
            names = getattr(y, "columns", None)
            self.classes_, self._binarizer = np.arange(hot.shape[1]) if names is None else np.asarray(names), None
        else:
            _check_collections(y)
            self._binarizer = MultiLabelBinarizer()
            hot = _checked_indicator(self._binarizer.fit_transform(y))
            self.classes_ = self._binarizer.classes_
        if empty := [str(name) for name, column in zip(self.classes_, hot.T, strict=True) if not column.any()]:
            raise UserError(f"y: no row has the label {', '.join(empty)}; allowed: labels with at least one row of weight > 0")
        task = {"labels": [str(name) for name in self.classes_], "label_format": "indicators"}
        return self._fit(texts, hot.tolist(), weights, task)

    def predict(self, X: Any) -> Any:
        """Return labels in the form of the training labels: 0 or 1 of shape (rows, labels), or a tuple of labels for each row."""
        chosen = self._predict(X, logits=False).astype(np.int64)
        return chosen if self._binarizer is None else self._binarizer.inverse_transform(chosen)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each label, float64 of shape (rows, labels)."""
        return np.asarray(expit(self._predict(X)))

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits, float64 of shape (rows, labels)."""
        return self._predict(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of rows with exactly the right labels."""
        check_is_fitted(self)
        predicted = self.predict(X)
        if self._binarizer is not None:
            predicted, y = (self._binarizer.transform(labels) for labels in (predicted, y))
        right = (np.asarray(predicted) == np.asarray(y)).all(1)
        return float(np.average(right, weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label, tags.classifier_tags.multi_class = True, False
        tags.target_tags.multi_output, tags.target_tags.single_output = True, False
        return tags


def _is_indicator(y: Any) -> bool:
    """Return whether targets are a table of 0 and 1, and not collections of labels."""
    if hasattr(y, "columns") or hasattr(y, "toarray"):
        return True
    array = y if isinstance(y, np.ndarray) else None
    if array is None and len({len(row) if isinstance(row, (list, tuple)) else -1 for row in y}) == 1:
        array = np.asarray(list(y))  # lists of equal length
    return array is not None and array.ndim == 2 and array.dtype.kind in "biuf" and set(np.unique(array)) <= {0, 1}


def _check_collections(y: Any) -> None:
    """Refuse cells that are not collections of labels; a text would be taken for a collection of its characters."""
    for cell in y:
        if isinstance(cell, (str, bytes)) or not isinstance(cell, Iterable):
            raise UserError(
                f"y: found {with_type(cell)} as the labels of a row; allowed: a list of labels for each row, such as "
                "y.str.split('|') of a Series, or 0 and 1 for each row and label"
            )


def _checked_indicator(y: Any) -> np.ndarray:
    """Return 0 or 1 for each row and label, int64 of shape (rows, labels)."""
    hot = check_array(y.toarray() if hasattr(y, "toarray") else y, input_name="y", ensure_min_features=0)
    if hot.shape[1] == 0:
        raise UserError("y: no row has a label; allowed: at least one label")
    if not np.isin(hot, (0, 1)).all():
        raise UserError("y: found numbers other than 0 and 1; allowed: 0 or 1 for each row and label")
    return np.asarray(hot, np.int64)
