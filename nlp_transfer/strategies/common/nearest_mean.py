"""Nearest-mean classification as a linear layer.

The logit -s |x - m|^2 equals 2 s m.x - s |m|^2 plus a term that is the same for all labels.
"""

from typing import Any

import numpy as np

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.strategies.common.linear_heads import last_linear, layer_inputs, set_layer
from nlp_transfer.utils.errors import UserError

UNREACHABLE = 1e4  # far above any other logit
MAX_SCALE = 100.0  # in units of 1 / average distance; for separable data, the best scale would be infinite


def write_prototypes(model: Any, table: TokenTable, setting: str) -> None:
    """Set the last layer so that the label with the nearest mean has the largest logit.

    In multi-label tasks, a logit is positive if the mean of the rows with the label is nearer than the mean of the other rows.

    Args:
        setting: The setting that requires prototypes, for messages.
    """
    layer = last_linear(model, setting)
    if layer.bias is None:
        raise UserError(
            f"{setting}, which needs a bias, but the head of a {model.config.model_type} model has none; allowed: task.head: null"
        )
    inputs, labels = layer_inputs(model, layer, table).astype(np.float64), table.dense["labels"]
    if labels.ndim == 1:
        set_layer(layer, *nearest_mean(inputs, labels, layer.out_features))
        return
    weight, bias = np.zeros((layer.out_features, layer.in_features)), np.zeros(layer.out_features)
    for label, column in enumerate(labels.T.astype(np.int64)):
        two, offsets = nearest_mean(inputs, column, 2)
        weight[label], bias[label] = two[1] - two[0], np.clip(offsets[1] - offsets[0], -UNREACHABLE, UNREACHABLE)
    set_layer(layer, weight, bias)


def nearest_mean(inputs: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight (count, width) and bias (count,) of a nearest-mean classifier.

    The logit of a label is -s times the squared distance to its mean, plus a term that is the same for all labels.

    Args:
        inputs: float64 of shape (rows, width).
        labels: int64 of shape (rows,). A label without rows is never predicted.
        count: Number of labels.
    """
    rows, means = _means(inputs, labels, count)
    scale = _scale(inputs, labels, means, rows)
    bias = np.where(rows > 0, -scale * (means**2).sum(1), -UNREACHABLE)
    return 2 * scale * means, bias


def leave_one_out_accuracy(inputs: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Return the leave-one-out accuracy of a nearest-mean classifier."""
    rows, means = _means(inputs, labels, count)
    distances, targets = _distances(inputs, labels, means, rows)
    return float((distances.argmin(1) == targets).mean()) if len(targets) else 0.0


def _means(inputs: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of rows with each label, int64 (count,), and the mean of these rows, float64 (count, width)."""
    rows = np.bincount(labels, minlength=count)
    sums = np.zeros((count, inputs.shape[1]))
    np.add.at(sums, labels, inputs)
    return rows, sums / np.maximum(rows, 1)[:, None]


def _distances(inputs: np.ndarray, labels: np.ndarray, means: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return leave-one-out squared distances to the means: for each row, the mean of its label is computed without that row.

    Example: rows at 0, 3 and 6 with the same label have the mean 3. Without the first row the mean is 4.5, so the squared
    distance of that row is 4.5 ** 2 instead of 3 ** 2.

    Returns:
        Distances of the n rows that share their label with another row, of shape (n, labels with rows); and for each of these
        rows, the column of its label, int64 of shape (n,).
    """
    distances = (inputs**2).sum(1)[:, None] - 2 * inputs @ means.T + (means**2).sum(1)
    shared = np.flatnonzero(rows[labels] > 1)
    size = rows[labels][shared]
    distances, targets = distances[shared][:, rows > 0], (np.cumsum(rows > 0) - 1)[labels[shared]]
    distances[np.arange(len(shared)), targets] *= (size / (size - 1)) ** 2  # x - (n m - x) / (n - 1) = (x - m) n / (n - 1)
    return distances, targets


def _scale(inputs: np.ndarray, labels: np.ndarray, means: np.ndarray, rows: np.ndarray) -> float:
    """Return the scale that maximizes the leave-one-out likelihood of the labels."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    distances, targets = _distances(inputs, labels, means, rows)
    average = float(distances.mean()) if len(targets) else 0.0
    if average <= 0:
        return 1.0

    def negative_log_likelihood(log_scale: float) -> float:
        logits = -np.exp(log_scale) / average * distances
        return float((logsumexp(logits, axis=1) - logits[np.arange(len(targets)), targets]).mean())

    best = minimize_scalar(
        negative_log_likelihood, bounds=(np.log(1e-3), np.log(MAX_SCALE)), method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(best.x)) / average
