"""Scores predicted labels."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from nlp_transfer.evaluation.metrics.calibration_metrics import (
    BINS,
    POSITIVE_KEYS,
    bin_indices,
    brier_terms,
    confidences,
    probability_metrics,
)
from nlp_transfer.evaluation.metrics.classification_metrics import LABEL_KEYS, compute_label_metrics, roc_auc
from nlp_transfer.evaluation.metrics.scorer import Arrays, Form, Scorer, Sums, mean

AVERAGED = {key for key in LABEL_KEYS if "_" in key}


@dataclass(frozen=True)
class LabelScorer(Scorer):
    """Scores predictions of one label per row (label ids), or of any number of labels per row (bool of shape (rows, labels)).

    Predictions also include `scores`, probabilities of shape (rows, labels).

    Attributes:
        values: The labels in the type of the user's data.
        multilabel: Whether a row can have any number of labels, instead of exactly one.
        abstain: Minimum probability of a prediction. If it is set, the metrics include `coverage`, the fraction of rows with at
            least this probability, and `accuracy_covered`, the accuracy on them.
        positive: Index of one of two labels. If it is set, the metrics include its precision, recall and F1.
        separator: Joins the labels of a row in files.
    """

    values: tuple[Any, ...] = ()
    multilabel: bool = False
    abstain: float | None = None
    positive: int | None = None
    separator: str = ","
    form: ClassVar[Form] = "labels"

    @property
    def prediction_type(self) -> str:
        types = {int: "int64", float: "double", bool: "bool"}
        return "string" if self.multilabel or not self.values else types.get(type(self.values[0]), "string")

    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        predicted, true = predictions["prediction"], references[self.reference]
        if self.multilabel:
            predicted, true = predicted.astype(np.int64), true.astype(np.int64)
        metrics = compute_label_metrics(predicted, true, predictions["scores"], self.multilabel)
        metrics |= probability_metrics(predictions["scores"], true)
        if self.positive is not None:
            from sklearn.metrics import precision_recall_fscore_support

            ratios = precision_recall_fscore_support(true, predicted, labels=[self.positive], zero_division=0)
            metrics |= {key: float(ratio[0]) for key, ratio in zip(POSITIVE_KEYS, ratios, strict=False)}
        if self.abstain is not None:
            covered = predictions["scores"][np.arange(len(predicted)), predicted].astype(np.float64) >= self.abstain
            metrics["coverage"] = float(covered.mean())
            if covered.any():
                metrics["accuracy_covered"] = float((predicted == true)[covered].mean())
        return metrics

    def compute_only(self, metrics: Collection[str], predictions: Arrays, references: Arrays) -> dict[str, float]:
        if set(metrics) != {"auc"}:
            return self.compute(predictions, references)
        true = references[self.reference]
        auc = roc_auc(predictions["scores"], true.astype(np.int64) if self.multilabel else true, self.multilabel)
        return {} if np.isnan(auc) else {"auc": auc}

    def typed(self, values: np.ndarray) -> list[Any]:
        if self.multilabel:
            return [[value for value, is_set in zip(self.values, row, strict=True) if is_set] for row in values]
        return [self.values[i] for i in values]

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        predicted, true = predictions["prediction"], references[self.reference]
        if metric == "accuracy":
            correct = predicted == true
            return np.stack([correct.all(1) if self.multilabel else correct, np.ones(len(correct))], 1).astype(float), mean
        if metric == "brier":
            return np.stack([brier_terms(predictions["scores"], true), np.ones(len(true))], 1), mean
        if metric == "ece":
            return self._bin_errors(predictions["scores"], true), _calibration_error
        if metric == "mcc" and not self.multilabel:
            return self._label_counts(predicted, true), _mcc
        if metric not in AVERAGED:
            return None
        return self._label_counts(predicted, true), partial(_average, metric=metric, all_labels=self.multilabel)

    def _bin_errors(self, scores: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Return float64 of shape (rows, bins + 1): correct minus confidence, summed per bin; and the number of predictions."""
        confidence, correct = confidences(scores, true)
        per_row = len(confidence) // len(true)
        errors = np.zeros((len(true), BINS + 1))
        rows = np.repeat(np.arange(len(true)), per_row)
        np.add.at(errors, (rows, bin_indices(confidence, np.linspace(0, 1, BINS + 1))), correct - confidence)
        errors[:, -1] = per_row
        return errors

    def parse(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Arrays, Arrays]:
        """Return label ids or bool arrays, and as `scores` the probabilities, if those of all labels are in the file.

        For one label per row, `confidence` is the probability of the predicted label.
        """
        predicted, true = (self._ids(columns[name]) for name in ("prediction", "reference"))
        predictions = {"prediction": predicted}
        names = [f"probability:{label}" for label in self.labels]
        if all(name in columns for name in names):
            predictions["scores"] = np.stack([np.asarray(columns[name], np.float64) for name in names], 1)
        if not self.multilabel and "probability" in columns:
            predictions["confidence"] = np.asarray(columns["probability"], np.float64)
        return predictions, {self.reference: true}

    def _ids(self, cells: Sequence[Any]) -> np.ndarray:
        """Return the ids of labels, int64 of shape (rows,), or of joined labels, bool of shape (rows, labels)."""
        if not self.multilabel:
            ids = {value: i for i, value in enumerate(self.values)}
            return np.array([ids[cell] for cell in cells], np.int64)
        position = {str(value): i for i, value in enumerate(self.values)}
        hot = np.zeros((len(cells), len(position)), bool)
        for row, cell in enumerate(cells):
            hot[row, [position[name] for name in (cell or "").split(self.separator) if name]] = True
        return hot

    def error_sizes(self, predictions: Arrays, references: Arrays) -> np.ndarray | None:
        """Return the probability of a wrong prediction; with several labels per row, of the wrong label that is most certain.

        Without probabilities, return the number of wrong labels.
        """
        predicted, true = predictions["prediction"], references[self.reference]
        wrong = predicted != true
        if not self.multilabel:
            return wrong * predictions["confidence"] if "confidence" in predictions else wrong.astype(float)
        return (wrong * np.abs(predictions["scores"] - true)).max(1) if "scores" in predictions else wrong.sum(1).astype(float)

    def class_counts(self, predictions: Arrays, references: Arrays) -> tuple[tuple[str, ...], np.ndarray] | None:
        counts = np.asarray(self._label_counts(predictions["prediction"], references[self.reference]).sum(0)).reshape(3, -1)
        return self.labels, counts.astype(np.int64)

    def confusions(self, predictions: Arrays, references: Arrays) -> np.ndarray | None:
        """With several labels per row, count the rows in which one label was missed and another one predicted instead."""
        predicted, true = predictions["prediction"], references[self.reference]
        if self.multilabel:
            return (true & ~predicted).astype(np.int64).T @ (predicted & ~true).astype(np.int64)
        matrix = np.zeros((len(self.labels), len(self.labels)), np.int64)
        np.add.at(matrix, (true, predicted), 1)
        return matrix

    def confidences(self, predictions: Arrays, references: Arrays) -> tuple[np.ndarray, np.ndarray, float | None] | None:
        """Return the probabilities of the predicted labels, or, with several labels per row, of all labels.

        The third value is the Brier score, if the probabilities of all labels are known.
        """
        predicted, true, scores = predictions["prediction"], references[self.reference], predictions.get("scores")
        if scores is not None:
            return *confidences(scores, true), float(brier_terms(scores, true).mean())
        if self.multilabel or "confidence" not in predictions:
            return None
        return predictions["confidence"], (predicted == true).astype(float), None

    def _label_counts(self, predicted: np.ndarray, true: np.ndarray) -> Any:
        """Return a sparse 0/1 matrix of shape (rows, 3 x labels): whether a label is correctly predicted, predicted, and true."""
        from scipy.sparse import csr_matrix, hstack

        labels = max(len(self.labels), int(predicted.max()) + 1, int(true.max()) + 1)

        def one_hot(ids: np.ndarray) -> Any:
            if self.multilabel:
                return csr_matrix(ids.astype(float))
            return csr_matrix((np.ones(len(ids)), (np.arange(len(ids)), ids)), shape=(len(ids), labels))

        hot_predicted, hot_true = one_hot(predicted), one_hot(true)
        return hstack([hot_predicted.multiply(hot_true), hot_predicted, hot_true]).tocsr()


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(sums[:, :-1]).sum(1) / sums[:, -1])


def _average(sums: np.ndarray, metric: str, all_labels: bool) -> np.ndarray:
    """Compute an average over labels as scikit-learn does, where 0 / 0 counts as 0.

    Args:
        sums: Sums of `_label_counts`, float64 of shape (resamples, 3 x labels).
        all_labels: Whether to average over all labels. False: only over the labels that occur.

    Returns:
        float64 of shape (resamples,).
    """
    correct, predicted, true = np.split(sums, 3, axis=1)
    kind, _, average = metric.partition("_")
    denominator = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[kind]
    with np.errstate(divide="ignore", invalid="ignore"):
        if average == "micro":
            return np.nan_to_num(correct.sum(1) / denominator.sum(1))
        ratio = np.nan_to_num(correct / denominator)
        if average == "weighted":
            return np.nan_to_num((ratio * true).sum(1) / true.sum(1))
        occurs = np.ones_like(ratio) if all_labels else (predicted + true) > 0
        return np.asarray((ratio * occurs).sum(1) / occurs.sum(1))


def _mcc(sums: np.ndarray) -> np.ndarray:
    """Compute the correlation coefficient of Gorodkin (2004) from sums of `_label_counts`; 0 if it is undefined."""
    correct, predicted, true = np.split(sums, 3, axis=1)
    rows = true.sum(1)
    spread = np.sqrt((rows**2 - (predicted**2).sum(1)) * (rows**2 - (true**2).sum(1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(spread > 0, (correct.sum(1) * rows - (predicted * true).sum(1)) / spread, 0.0))
