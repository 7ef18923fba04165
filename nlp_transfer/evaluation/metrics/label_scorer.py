"""Scores predicted labels."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nlp_transfer.evaluation.metrics.calibration_metrics import (
    BINS,
    POSITIVE_KEYS,
    bin_indices,
    brier_terms,
    confidences,
    probability_metrics,
)
from nlp_transfer.evaluation.metrics.classification_metrics import LABEL_KEYS, compute_label_metrics
from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer, Sums, mean

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
    """

    values: tuple[Any, ...] = ()
    multilabel: bool = False
    abstain: float | None = None
    positive: int | None = None

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
