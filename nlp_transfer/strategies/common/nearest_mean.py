"""The nearest mean as a linear layer: -s |x - m|^2 is 2 s m.x - s |m|^2, and a term that all labels share."""

from typing import Any

import numpy as np

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.strategies.common.linear_heads import last_linear, layer_inputs, set_layer
from nlp_transfer.utils.errors import UserError

NEVER = 1e4  # a logit that no other comes near
SHARPEST = 100.0  # the largest scale, for distances that are 1 on average: rows that are all told apart would ask for more


def write_prototypes(model: Any, table: TokenTable, setting: str) -> None:
    """Sets the last layer so that the largest logit is that of the nearest mean, of what the layer sees of the rows.

    For several labels a row, a logit is above 0 where the mean of the rows with the label is nearer than that of the others.
    """
    layer = last_linear(model, setting)
    if layer.bias is None:
        raise UserError(
            f"{setting}, which needs a bias, and the head of a {model.config.model_type} model has none; allowed: task.head: null"
        )
    inputs, labels = layer_inputs(model, layer, table).astype(np.float64), table.dense["labels"]
    if labels.ndim == 1:
        set_layer(layer, *nearest_mean(inputs, labels, layer.out_features))
        return
    weight, bias = np.zeros((layer.out_features, layer.in_features)), np.zeros(layer.out_features)
    for label, column in enumerate(labels.T.astype(np.int64)):
        two, offsets = nearest_mean(inputs, column, 2)
        weight[label], bias[label] = two[1] - two[0], np.clip(offsets[1] - offsets[0], -NEVER, NEVER)
    set_layer(layer, weight, bias)


def nearest_mean(inputs: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (count, width) and bias (count,) whose logits are -s times the squared distance to each label's mean, up to a
    term that all labels of a row share.

    Args:
        inputs: float64 of shape (rows, width).
        labels: int64 of shape (rows,). A label without rows is never answered.
    """
    rows, means = _means(inputs, labels, count)
    scale = _scale(inputs, labels, means, rows)
    bias = np.where(rows > 0, -scale * (means**2).sum(1), -NEVER)
    return 2 * scale * means, bias


def answered(inputs: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The share of rows whose nearest mean is that of their label, each judged by means that leave it out."""
    rows, means = _means(inputs, labels, count)
    distances, own = _left_out(inputs, labels, means, rows)
    return float((distances.argmin(1) == own).mean()) if len(own) else 0.0


def _means(inputs: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each label, int64 (count,), and their mean, float64 (count, width)."""
    rows = np.bincount(labels, minlength=count)
    sums = np.zeros((count, inputs.shape[1]))
    np.add.at(sums, labels, inputs)
    return rows, sums / np.maximum(rows, 1)[:, None]


def _left_out(inputs: np.ndarray, labels: np.ndarray, means: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (judged rows, labels with rows) to the means, the own one without the row itself, and the place of the
    own one: with a row in it, a mean looks near. Rows that are alone with their label are not judged."""
    distances = (inputs**2).sum(1)[:, None] - 2 * inputs @ means.T + (means**2).sum(1)
    judged = np.flatnonzero(rows[labels] > 1)
    others = rows[labels][judged]
    distances, own = distances[judged][:, rows > 0], (np.cumsum(rows > 0) - 1)[labels[judged]]
    distances[np.arange(len(judged)), own] *= (others / (others - 1)) ** 2  # x - (n m - x) / (n - 1) = (x - m) n / (n - 1)
    return distances, own


def _scale(inputs: np.ndarray, labels: np.ndarray, means: np.ndarray, rows: np.ndarray) -> float:
    """The scale under which train is likeliest, each row judged by means that leave it out."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    distances, own = _left_out(inputs, labels, means, rows)
    size = float(distances.mean()) if len(own) else 0.0
    if size <= 0:
        return 1.0

    def unlikely(log_scale: float) -> float:
        logits = -np.exp(log_scale) / size * distances
        return float((logsumexp(logits, axis=1) - logits[np.arange(len(own)), own]).mean())

    found = minimize_scalar(unlikely, bounds=(np.log(1e-3), np.log(SHARPEST)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x)) / size
