"""Regression metrics with scikit-learn and scipy, in float64."""

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike

REGRESSION_KEYS = ("r2", "pearson", "spearman", "mae", "rmse", "mse")
"""Keys of `compute_regression_metrics`, in order."""


def compute_regression_metrics(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Compute all regression metrics of a split.

    Args:
        predictions: Numbers of shape `(rows,)`.
        references: Numbers of shape `(rows,)`.

    Returns:
        `r2`, the coefficient of determination, which is at most 1, and 0 for predictions as good as the mean of the references;
        `pearson` and `spearman`, the correlations of values and of ranks, from -1 to 1; and the errors `mae`, `rmse` and `mse`.
        Undefined metrics are omitted. These are correlations with a constant, `r2` if the references are constant, and all
        metrics if an input is not finite.

    Raises:
        ValueError: There are no rows, or a shape is wrong.
    """
    from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, root_mean_squared_error

    predicted, true = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != true.shape or predicted.size == 0:
        raise ValueError(
            f"predictions: shape {predicted.shape}, references: shape {true.shape}; "
            "expected (rows,) for both, with at least one row"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        return {}
    metrics = {
        "mae": mean_absolute_error(true, predicted),
        "rmse": root_mean_squared_error(true, predicted),
        "mse": mean_squared_error(true, predicted),
    }
    if true.min() < true.max():
        metrics["r2"] = r2_score(true, predicted)
        if predicted.min() < predicted.max():
            with warnings.catch_warnings():
                # Both functions warn that the correlation of nearly constant values is inaccurate.
                warnings.simplefilter("ignore", ConstantInputWarning)
                warnings.simplefilter("ignore", NearConstantInputWarning)
                metrics["pearson"] = pearsonr(true, predicted).statistic
                metrics["spearman"] = spearmanr(true, predicted).statistic
    return {key: float(metrics[key]) for key in REGRESSION_KEYS if math.isfinite(metrics.get(key, math.nan))}
