"""The corrected resampled t-test, for metrics that were computed on the folds of a cross-validation.

The training sets of the folds overlap, so the metrics of the folds are not independent, and the ordinary t-test finds too many
differences. Nadeau and Bengio (2003, "Inference for the Generalization Error") therefore replace 1/n in the variance of the mean
by 1/n + (test rows / training rows). Bouckaert and Frank (2004) recommend this for repeated cross-validation as well.

The correction assumes a correlation of 1 / folds between the metrics of two folds. Disjoint folds have a lower one, so the test
is conservative (scripts/endurance/fold_tests.py). There is no unbiased estimate of the correlation (Bengio and Grandvalet
2004, "No unbiased estimator of the variance of k-fold cross-validation").
"""

from dataclasses import dataclass

import numpy as np

from nlp_transfer.evaluation.intervals import LEVEL, Estimate


@dataclass(frozen=True)
class FoldMean:
    """The mean of a metric, or of a difference of two metrics, over folds and repetitions.

    Attributes:
        estimate: The mean with its corrected 95 % interval.
        deviation: Standard deviation over the folds and repetitions.
        p: Two-sided p-value of the test that the mean is 0.
    """

    estimate: Estimate
    deviation: float
    p: float


def fold_mean(values: np.ndarray, folds: int, bounds: tuple[float, float] = (-np.inf, np.inf)) -> FoldMean | None:
    """Compute the mean with the corrected interval and test.

    Args:
        values: A value for each fold and repetition, float64 of shape (values,).
        folds: Number of folds.
        bounds: Smallest and largest possible value.

    Returns:
        The mean; None with fewer than two values, or if one is undefined.
    """
    from scipy.stats import t

    if len(values) < 2 or not np.isfinite(values).all():
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    error = deviation * (1 / len(values) + 1 / (folds - 1)) ** 0.5
    half = float(t.isf((1 - LEVEL) / 2, len(values) - 1)) * error
    with np.errstate(divide="ignore"):  # equal differences have no variance
        p = float(2 * t.sf(abs(mean) / np.float64(error), len(values) - 1)) if mean else 1.0
    return FoldMean(Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half)), deviation, p)
