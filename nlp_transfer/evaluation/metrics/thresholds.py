"""Choose the probability from which a label is predicted, on rows that the model was not trained on."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
DEFAULT = 0.5


class Cuts(NamedTuple):
    """All thresholds between 0 and 1 that give different predictions, descending, and the counts at each of them.

    Attributes:
        threshold: Midpoints between neighboring scores, float64 of shape (cuts,).
        true_positives, predicted: Number of correct, and of all, positive predictions, int64 of shape (cuts,).
        positives: Number of positive rows.
    """

    threshold: Floats
    true_positives: NDArray[np.int64]
    predicted: NDArray[np.int64]
    positives: int

    def best(self, values: Floats) -> float:
        """Return the threshold with the highest value. Among equal ones, it is the one closest to 0.5."""
        candidates = np.flatnonzero(values >= values.max() - 1e-10)
        return float(self.threshold[candidates[np.abs(self.threshold[candidates] - DEFAULT).argmin()]])


def cuts_of(scores: Floats, true: np.ndarray) -> Cuts:
    """Return the thresholds that give different predictions.

    Args:
        scores: Probabilities, of shape (rows,).
        true: Whether rows are positive, of the same shape.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), np.cumsum(np.asarray(true, bool)[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    below = np.append(ranked[last[:-1] + 1], 0.0)
    threshold = np.concatenate([[(1 + ranked[0]) / 2], (ranked[last] + below) / 2])
    counts = np.concatenate([[0], hits[last]]), np.concatenate([[0], last + 1])
    possible = (threshold > 0) & (threshold < 1)
    return Cuts(threshold[possible], counts[0][possible], counts[1][possible], int(hits[-1]))


def best_f1(scores: Floats, true: np.ndarray) -> float:
    """Return the threshold with the highest F1 of positive predictions. Without positive rows, return 0.5.

    Args:
        scores, true: As in `cuts_of`.
    """
    cuts = cuts_of(scores, true)
    return cuts.best(2 * cuts.true_positives / (cuts.predicted + cuts.positives)) if cuts.positives else DEFAULT


def best_f1_macro(scores: Floats, true: np.ndarray) -> float:
    """Return the single threshold with the highest mean F1 over labels, in which a label without predictions counts as 0.

    Args:
        scores, true: Of shape (rows, labels).
    """
    labels = scores.shape[1]
    ranks = np.argsort(-scores, axis=0, kind="stable")
    hits = np.cumsum(np.take_along_axis(np.asarray(true, np.float64), ranks, 0), axis=0)
    f1 = 2 * hits / (np.arange(1, len(scores) + 1)[:, None] + np.asarray(true, np.float64).sum(0))
    # Lowering the threshold past one score after another changes the F1 of one label at a time.
    steps = np.diff(f1, axis=0, prepend=0.0)
    pooled = np.take_along_axis(scores, ranks, 0).ravel()
    macro = np.cumsum(steps.ravel()[np.argsort(-pooled, kind="stable")]) / labels
    cuts = cuts_of(pooled, np.ones(len(pooled)))
    return cuts.best(np.concatenate([[0.0], macro])[cuts.predicted])


def lowest_cost(scores: Floats, true: np.ndarray, false_positive: float, false_negative: float) -> float:
    """Return the threshold with the lowest total cost of errors.

    Args:
        scores, true: As in `cuts_of`.
        false_positive, false_negative: Cost of an error of each kind.
    """
    cuts = cuts_of(scores, true)
    wrong, missed = cuts.predicted - cuts.true_positives, cuts.positives - cuts.true_positives
    return cuts.best(-(false_positive * wrong + false_negative * missed).astype(np.float64))


def highest_recall(scores: Floats, true: np.ndarray, precision: float) -> float | None:
    """Return the threshold with the highest recall among those with at least this precision, and the most precise of equals.

    Args:
        scores, true: As in `cuts_of`.

    Returns:
        The threshold. None: no threshold reaches the precision.
    """
    cuts = cuts_of(scores, true)
    reached = (cuts.predicted > 0) & (cuts.true_positives >= precision * cuts.predicted - 1e-9)
    if not cuts.true_positives[reached].any():
        return None
    return cuts.best(np.where(reached, cuts.true_positives - cuts.predicted / (len(scores) + 1), -1.0))
