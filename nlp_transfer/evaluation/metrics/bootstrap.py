"""Bootstrap intervals of metrics that are functions of sums over rows."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
SEED = 12345  # sacreBLEU's default


def bootstrap_bounds(
    key: str, statistics: np.ndarray, score: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES
) -> dict[str, float]:
    """Compute the 95 % bootstrap interval of a metric, as `KEY_low` and `KEY_high`.

    The interval is from the 2.5 % to the 97.5 % quantile of the scores of resampled rows (Koehn 2004, "Statistical Significance
    Tests for Machine Translation"). Resamples and quantiles are the same as in sacreBLEU.

    Args:
        statistics: Of shape (rows, statistics).
        score: A function from sums (resamples, statistics) to scores (resamples,).
    """
    rows, generator = len(statistics), np.random.default_rng(SEED)
    counts = (np.bincount(generator.choice(rows, size=rows), minlength=rows) for _ in range(resamples))
    scores = np.sort(score(np.stack([count @ statistics for count in counts])))
    return {f"{key}_low": float(scores[resamples // 40]), f"{key}_high": float(scores[-1 - resamples // 40])}
