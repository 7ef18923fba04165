"""How far probabilities agree with frequencies: calibration error, Brier score, temperature scaling, and risk against coverage.

Probabilities have the shape (rows, labels). References are label ids of shape (rows,) if each row has exactly one label, or 0
and 1 of shape (rows, labels) if a row can have any number of labels. In the second form, each pair of a row and a label counts as
one binary prediction.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

BINS = 15  # as in Guo et al. 2017
PROBABILITY_KEYS = ("ece", "brier")
"""Keys of `probability_metrics`."""
COVERAGE_KEYS = ("coverage", "accuracy_covered")
"""Keys of the metrics of predictions that may be withheld."""
POSITIVE_KEYS = ("precision_positive", "recall_positive", "f1_positive")
"""Keys of the metrics of one of two labels."""
TEMPERATURES = 0.02, 50.0  # limits of a fitted temperature


class Reliability(NamedTuple):
    """The bins of a reliability diagram that are not empty, arrays of shape (bins,).

    Attributes:
        low, high: Limits of each bin; a bin includes its upper limit.
        size: Number of predictions, int64.
        confidence: Mean confidence.
        accuracy: Fraction of correct predictions.
    """

    low: Floats
    high: Floats
    size: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over bins, weighted by their size."""
        return float(self.size @ np.abs(self.accuracy - self.confidence) / self.size.sum())


class RiskCoverage(NamedTuple):
    """Error rate against coverage if predictions below a threshold are withheld; one element per distinct confidence, descending.

    Attributes:
        threshold: Predictions with at least this confidence are given.
        coverage: Fraction of the predictions that are given.
        risk: Fraction of wrong predictions among those given.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats


def confidences(probabilities: Floats, references: np.ndarray) -> tuple[Floats, np.ndarray]:
    """Return the confidence of each prediction, float64, and whether it is correct, float64, both of shape (predictions,).

    With one label per row, the prediction is the most probable label and its probability the confidence. With any number of
    labels, the prediction is that the row has the label, for each pair of a row and a label.
    """
    values = probabilities.astype(np.float64)
    if references.ndim == 2:
        return values.ravel(), references.astype(np.float64).ravel()
    return values.max(-1), (values.argmax(-1) == references).astype(np.float64)


def reliability(confidence: Floats, correct: np.ndarray, bins: int = BINS, equal_mass: bool = False) -> Reliability:
    """Group predictions by confidence.

    Args:
        confidence: Of shape (predictions,), from 0 to 1.
        correct: Whether the predictions are correct, of the same shape.
        bins: Number of bins.
        equal_mass: Whether all bins have the same number of predictions, as far as ties allow, instead of the same width.
    """
    if equal_mass:
        edges = np.unique(np.concatenate([[0.0], np.quantile(confidence, np.linspace(0, 1, bins + 1))[1:-1], [1.0]]))
    else:
        edges = np.linspace(0, 1, bins + 1)
    bin_of = bin_indices(confidence, edges)
    size = np.bincount(bin_of, minlength=len(edges) - 1)
    used = size > 0
    sums = [np.bincount(bin_of, weights, len(size))[used] for weights in (confidence, np.asarray(correct, np.float64))]
    return Reliability(edges[:-1][used], edges[1:][used], size[used], sums[0] / size[used], sums[1] / size[used])


def bin_indices(confidence: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return the index of the bin of each confidence. Bins include their upper edge, and the first one also its lower edge."""
    return (np.searchsorted(edges, confidence, side="left") - 1).clip(0, len(edges) - 2)


def calibration_error(confidence: Floats, correct: np.ndarray, bins: int = BINS, equal_mass: bool = False) -> float:
    """Compute the expected calibration error (`Reliability.error`).

    Guo et al. 2017, "On Calibration of Modern Neural Networks", 1706.04599. See `reliability` for the arguments.
    """
    return reliability(confidence, correct, bins, equal_mass).error


def brier_terms(probabilities: Floats, references: np.ndarray) -> Floats:
    """Return the Brier score of each row, float64 of shape (rows,).

    With one label per row, it is the sum of (p - y)^2 over labels, from 0 to 2; with exactly two labels half of that, as in
    scikit-learn. With any number of labels, it is the mean over labels.
    """
    values = probabilities.astype(np.float64)
    if references.ndim == 2:
        return np.asarray(((values - references) ** 2).mean(-1))
    true = np.take_along_axis(values, references[:, None], 1)[:, 0]
    return np.asarray(((values**2).sum(-1) - 2 * true + 1) / (2 if values.shape[1] == 2 else 1))


def probability_metrics(probabilities: Floats, references: np.ndarray) -> dict[str, float]:
    """Compute `ece`, with 15 bins of equal width, and `brier`."""
    return {
        "ece": calibration_error(*confidences(probabilities, references)),
        "brier": float(brier_terms(probabilities, references).mean()),
    }


def probabilities_of(logits: Floats, multilabel: bool) -> Floats:
    """Convert logits of shape (rows, labels) to probabilities, float64: a softmax over labels, or a sigmoid for each label."""
    from scipy.special import expit, softmax

    values = logits.astype(np.float64)
    return np.asarray(expit(values) if multilabel else softmax(values, axis=-1))


def negative_log_likelihood(logits: Floats, references: np.ndarray) -> float:
    """Compute the mean negative log likelihood of rows, or of pairs of a row and a label, in nats."""
    from scipy.special import log_softmax

    values = logits.astype(np.float64)
    if references.ndim == 2:
        return float((np.logaddexp(0, values) - values * references).mean())
    return float(-np.take_along_axis(log_softmax(values, axis=-1), references[:, None], 1).mean())


def fit_temperature(logits: Floats, references: np.ndarray) -> float | None:
    """Find the temperature T for which logits / T have the lowest negative log likelihood.

    Temperature scaling does not change which label is the most probable one, and not on which side of 0.5 a probability is.

    Args:
        logits: Of shape (rows, labels), of rows that the model was not trained on.

    Returns:
        The temperature. None: the rows do not determine it, since the likelihood is best beyond the limits `TEMPERATURES`; this
        happens if every prediction is correct.
    """
    from scipy.optimize import minimize_scalar

    low, high, values = *map(math.log, TEMPERATURES), logits.astype(np.float64)
    found = minimize_scalar(
        lambda log: negative_log_likelihood(values / math.exp(log), references),
        bounds=(low, high), method="bounded", options={"xatol": 1e-7},
    )  # fmt: skip
    return None if min(found.x - low, high - found.x) < 1e-3 else math.exp(found.x)


def risk_coverage(confidence: Floats, correct: np.ndarray) -> RiskCoverage:
    """Return the error rate of the predictions that are at least as confident as a threshold, for every threshold.

    El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification". The mean of `risk`, weighted by the
    steps of `coverage`, is the area under the curve (AURC).

    Args:
        confidence: Of shape (predictions,).
        correct: Whether the predictions are correct, of the same shape.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], np.cumsum(1 - np.asarray(correct, np.float64)[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equal confidences
    return RiskCoverage(ranked[last], (last + 1) / len(ranked), wrong[last] / (last + 1))
