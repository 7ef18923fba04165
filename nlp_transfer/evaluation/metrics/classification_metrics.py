"""Classification metrics with scikit-learn.

Labels have one of two forms:

- single-label: label ids from 0, integers of shape `(rows,)`;
- multi-label: 0 or 1, integers or bool of shape `(rows, num_labels)`.

Single-label averages are over the labels that occur in the references or predictions. Multi-label averages are over all labels.
A ratio with a denominator of 0 counts as 0.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

AVERAGES = ("micro", "macro", "weighted")


def compute_label_metrics(
    predictions: ArrayLike, references: ArrayLike, scores: ArrayLike | None = None, multilabel: bool = False
) -> dict[str, float]:
    """Compute all classification metrics of a split.

    Args:
        predictions: Labels in one of the two forms of this module.
        references: True labels, of the same shape.
        scores: Probabilities or logits for `auc`; see `roc_auc`.
        multilabel: Whether labels have the multi-label form.

    Returns:
        `accuracy`, which in multi-label data is the fraction of rows with all labels correct; `precision`, `recall` and `f1`,
        each with the suffixes `_micro`, `_macro` and `_weighted`; for single-label data `mcc`, the Matthews correlation
        coefficient, which is 0 if all predictions or all references are equal; and `auc`, unless it is undefined.

    Raises:
        ValueError: There are no rows, a shape or dtype is wrong, or a label id is out of range.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

    check = _indicators if multilabel else _label_ids
    predicted, true = check("predictions", predictions), check("references", references)
    _check_same_shape("predictions", predicted, true)
    metrics = {"accuracy": float(accuracy_score(true, predicted))}
    if not multilabel:
        # For constant labels, scikit-learn also returns 0, but with a warning.
        constant = predicted.min() == predicted.max() or true.min() == true.max()
        metrics["mcc"] = 0.0 if constant else float(matthews_corrcoef(true, predicted))
    labels = None
    if multilabel and predicted.shape[1] == 1:
        # scikit-learn would treat a single column as single-label data and also score the absence of the label.
        predicted, true, labels = predicted[:, 0], true[:, 0], [1]
    for average in AVERAGES:
        values = precision_recall_fscore_support(true, predicted, labels=labels, average=average, zero_division=0)
        metrics |= {f"{name}_{average}": float(value) for name, value in zip(("precision", "recall", "f1"), values, strict=False)}
    auc = math.nan if scores is None else roc_auc(scores, references, multilabel)
    return {key: metrics[key] for key in LABEL_KEYS if key in metrics} | ({"auc": auc} if math.isfinite(auc) else {})


LABEL_KEYS = ("accuracy", *(f"{name}_{average}" for name in ("precision", "recall", "f1") for average in AVERAGES), "mcc", "auc")
"""Keys of `compute_label_metrics`, in order."""

MULTILABEL_KEYS = tuple(key for key in LABEL_KEYS if key != "mcc")
"""Keys of `compute_label_metrics` for multi-label data, in order."""


def roc_auc(scores: ArrayLike, references: ArrayLike, multilabel: bool = False) -> float:
    """Compute the area under the one-vs-rest ROC curve of each label, and return the mean over labels.

    It is computed here, since `sklearn.metrics.roc_auc_score` does not allow logits, or labels without rows, and takes
    milliseconds to check its arguments, which counts when a small split is resampled hundreds of times.

    Args:
        scores: Probabilities or logits, floats of shape `(rows, num_labels)`. For single-label data with two labels, only the
        scores of label 1 are used, and the shape can also be `(rows,)`.
        references: True labels in one of the two forms of this module.
        multilabel: Whether labels have the multi-label form.

    Returns:
        The mean over the labels that have both positive and negative rows. NaN: there is no such label, or a score is not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if multilabel:
        true = _indicators("references", references)
        _check_same_shape("prediction_scores", values, true)
    else:
        ids = _label_ids("references", references)
        if values.ndim not in (1, 2) or len(values) != len(ids):
            raise ValueError(f"prediction_scores: shape {values.shape}; expected ({len(ids)},) or ({len(ids)}, num_labels)")
        num_labels = values.shape[1] if values.ndim == 2 else 2
        if ids.max() >= num_labels:
            raise ValueError(f"references: label id {ids.max()}, but prediction_scores are for {num_labels} labels")
        labels = np.array([1]) if num_labels == 2 else np.arange(num_labels)
        true, values = ids[:, None] == labels, values[:, labels] if values.ndim == 2 else values[:, None]
    mixed = true.any(0) & ~true.all(0)
    if not mixed.any() or not np.isfinite(values).all():
        return math.nan
    return float(np.mean([_ordered_pairs(values[:, label], true[:, label]) for label in np.flatnonzero(mixed)]))


def _ordered_pairs(scores: NDArray[np.floating], positive: NDArray[np.generic]) -> float:
    """Return the fraction of pairs of a positive and a negative row that the scores order; ties count half."""
    is_positive: NDArray[np.bool_] = positive.astype(np.bool_)
    higher, lower = scores[is_positive], np.sort(scores[~is_positive])
    pairs = np.searchsorted(lower, higher, "left") + np.searchsorted(lower, higher, "right")
    return float(pairs.sum() / (2 * len(lower) * len(higher)))


def _label_ids(name: str, values: ArrayLike) -> NDArray[np.integer]:
    array = _integers(name, values, ndim=1, shape="(rows,)")
    if array.min() < 0:
        raise ValueError(f"{name}: label id {array.min()}; ids start at 0; remove ignored positions first")
    return array.astype(np.int64, copy=False)


def _indicators(name: str, values: ArrayLike) -> NDArray[np.integer]:
    array = _integers(name, values, ndim=2, shape="(rows, num_labels)")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name}: values from {array.min()} to {array.max()}; multi-label values are 0 or 1")
    return array.astype(np.int8, copy=False)


def _integers(name: str, values: ArrayLike, ndim: int, shape: str) -> NDArray[np.integer]:
    array = np.asarray(values)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; expected {shape} with at least one row")
    if array.dtype.kind not in "biu":
        raise ValueError(f"{name}: dtype {array.dtype}; expected integers")
    return array


def _check_same_shape(name: str, array: NDArray[np.generic], references: NDArray[np.generic]) -> None:
    if array.shape != references.shape:
        raise ValueError(f"{name}: shape {array.shape}, but references: shape {references.shape}")
