"""Classification metrics: labels against labels, and scores against labels.

The label metrics have two configs:

- `default`, single label: `predictions` and `references` have shape `(rows,)` and hold label ids, integers from 0 on.
- `multilabel`: both have shape `(rows, num_labels)` and hold 0 or 1.

Averages are taken over the labels that occur in `references` or `predictions` (single label), or over all columns
(multi-label). A label of the model that occurs in neither does not lower a single-label macro average. A ratio whose
denominator is zero counts as 0.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Sequence, Value
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score

AVERAGES = ("micro", "macro", "weighted")

_DOCS = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics."


class _LabelMetric(evaluate.Metric):
    """What the metrics over labels have in common: their inputs."""

    _configs: tuple[str, ...] = ("default", "multilabel")
    _reference: str

    def _info(self) -> evaluate.MetricInfo:
        _check_config(self, self._configs)
        column = Sequence(Value("int64")) if self.config_name == "multilabel" else Value("int64")
        return evaluate.MetricInfo(
            description=inspect.getdoc(self) or "",
            citation="",
            inputs_description=__doc__ or "",
            features=Features({"predictions": column, "references": column}),
            reference_urls=[self._reference],
        )

    def _arrays(self, predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        check = _indicators if self.config_name == "multilabel" else _label_ids
        predicted, true = check("predictions", predictions), check("references", references)
        _check_same_shape("predictions", predicted, true)
        return predicted, true

    def _averages(self, key: str, score: Callable[..., float], predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predicted, true = self._arrays(predictions, references)
        labels = None
        if predicted.ndim == 2 and predicted.shape[1] == 1:
            # scikit-learn reads a single column as single-label data and would score the absence of the label as well.
            predicted, true, labels = predicted[:, 0], true[:, 0], [1]
        return {
            f"{key}_{average}": float(score(true, predicted, labels=labels, average=average, zero_division=0))
            for average in AVERAGES
        }


class Accuracy(_LabelMetric):
    """The fraction of rows that are right, from 0 to 1: key `accuracy`.

    A multi-label row is right when all its labels are (exact match).
    """

    _reference = _DOCS + "accuracy_score.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predicted, true = self._arrays(predictions, references)
        return {"accuracy": float(accuracy_score(true, predicted))}


class Precision(_LabelMetric):
    """The fraction of predicted labels that are true, from 0 to 1.

    Keys `precision_micro`, `precision_macro` and `precision_weighted`.
    """

    _reference = _DOCS + "precision_score.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return self._averages("precision", precision_score, predictions, references)


class Recall(_LabelMetric):
    """The fraction of true labels that were predicted, from 0 to 1.

    Keys `recall_micro`, `recall_macro` and `recall_weighted`.
    """

    _reference = _DOCS + "recall_score.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return self._averages("recall", recall_score, predictions, references)


class F1(_LabelMetric):
    """The harmonic mean of precision and recall, from 0 to 1: keys `f1_micro`, `f1_macro` and `f1_weighted`."""

    _reference = _DOCS + "f1_score.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return self._averages("f1", f1_score, predictions, references)


class MatthewsCorrelation(_LabelMetric):
    """The Matthews correlation coefficient, from -1 to 1: key `mcc`. Single label only.

    It is 0 when all predictions or all references are the same label.
    """

    _configs = ("default",)
    _reference = _DOCS + "matthews_corrcoef.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predicted, true = self._arrays(predictions, references)
        if predicted.min() == predicted.max() or true.min() == true.max():
            return {"mcc": 0.0}  # scikit-learn's value as well, but it warns on the way
        return {"mcc": float(matthews_corrcoef(true, predicted))}


class RocAuc(evaluate.Metric):
    """The area under the ROC curve, from 0 to 1: key `auc`.

    The inputs are named `prediction_scores`, so that predicted labels cannot be passed by mistake, and `references`.

    - Config `default`: `prediction_scores` is float of shape `(rows, num_labels)`, or `(rows,)` with the score of the
      label with id 1; `references` holds label ids of shape `(rows,)`. With two labels the score of id 1 counts,
      with more the value is the mean of one-vs-rest over the labels.
    - Config `multilabel`: both have shape `(rows, num_labels)`; the value is the mean over the labels.

    Means skip the labels that no row has or that all rows have. The value is NaN when no label is left, or when a score
    is not finite.
    """

    def _info(self) -> evaluate.MetricInfo:
        _check_config(self, ("default", "multilabel"))
        score, label = Value("float64"), Value("int64")
        row = Features({"prediction_scores": Sequence(score), "references": label})
        one = Features({"prediction_scores": score, "references": label})
        many = Features({"prediction_scores": Sequence(score), "references": Sequence(label)})
        return evaluate.MetricInfo(
            description=inspect.getdoc(self) or "",
            citation="",
            inputs_description="",
            features=many if self.config_name == "multilabel" else [one, row],
            reference_urls=[_DOCS + "roc_auc_score.html"],
        )

    def _compute(self, *, prediction_scores: ArrayLike, references: ArrayLike) -> dict[str, float]:
        scores = np.asarray(prediction_scores, dtype=np.float64)
        if self.config_name == "multilabel":
            return {"auc": _multilabel_auc(scores, _indicators("references", references))}
        return {"auc": _single_label_auc(scores, _label_ids("references", references))}


def _multilabel_auc(scores: NDArray[np.float64], references: NDArray[np.int8]) -> float:
    _check_same_shape("prediction_scores", scores, references)
    return _mean_auc((references[:, label] == 1, scores[:, label]) for label in range(references.shape[1]))


def _single_label_auc(scores: NDArray[np.float64], references: NDArray[np.int64]) -> float:
    rows = len(references)
    if scores.ndim not in (1, 2) or len(scores) != rows:
        raise ValueError(f"prediction_scores: shape {scores.shape}; expected ({rows},) or ({rows}, num_labels)")
    num_labels = scores.shape[1] if scores.ndim == 2 else 2
    if references.max() >= num_labels:
        raise ValueError(f"references: label id {references.max()}, but prediction_scores are for {num_labels} labels")
    if scores.ndim == 1:
        return _mean_auc([(references == 1, scores)])
    labels = [1] if num_labels == 2 else range(num_labels)
    return _mean_auc((references == label, scores[:, label]) for label in labels)


def _mean_auc(labels: Iterable[tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> float:
    """The mean over (has the label, score of the label), or NaN."""
    values = []
    for has_label, scores in labels:
        if not np.isfinite(scores).all():
            return float("nan")
        if has_label.any() and not has_label.all():
            values.append(roc_auc_score(has_label, scores))
    return float(np.mean(values)) if values else float("nan")


def _label_ids(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = _integers(name, values, ndim=1, shape="(rows,)")
    if array.min() < 0:
        raise ValueError(f"{name}: label id {array.min()}; ids start at 0, drop ignored positions first")
    return array.astype(np.int64, copy=False)


def _indicators(name: str, values: ArrayLike) -> NDArray[np.int8]:
    array = _integers(name, values, ndim=2, shape="(rows, num_labels)")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name}: values from {array.min()} to {array.max()}; multi-label values are 0 or 1")
    return array.astype(np.int8, copy=False)


def _integers(name: str, values: ArrayLike, ndim: int, shape: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; expected {shape} with at least one row")
    if array.dtype.kind not in "biu":
        raise ValueError(f"{name}: dtype {array.dtype}; expected integers")
    return array


def _check_same_shape(name: str, array: NDArray[Any], references: NDArray[Any]) -> None:
    if array.shape != references.shape:
        raise ValueError(f"{name}: shape {array.shape}, but references: shape {references.shape}")


def _check_config(metric: evaluate.Metric, known: tuple[str, ...]) -> None:
    if metric.config_name not in known:
        raise ValueError(f"{type(metric).__name__} has no config {metric.config_name!r}; known configs: {', '.join(known)}")
