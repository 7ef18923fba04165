"""Confidence intervals over test rows and seeds, and a paired test of two strategies.

The variance over rows is the bootstrap variance (Efron and Tibshirani 1993, "An Introduction to the Bootstrap"). All strategies
use the same resamples, so differences are paired. The variance over seeds is the sample variance of the metric over seeds,
divided by the number of seeds. Both contain the interaction of rows and seeds, which is estimated by the part of the bootstrap
variance that differs between seeds, and subtracted once (as in Owen 2007, "The pigeonhole bootstrap").

The first of the two resulting terms, the variance that all seeds share, is known well, since there are many rows; the other one
has few degrees of freedom. `critical_values` has the quantile for their sum. With it, the rate of false alarms of the test is
close to 5 % for every ratio of the two terms with three or more seeds, and between 3 and 6 % with two.

For a bounded metric, the interval over rows is that of Wilson (1927): if 20 of 20 predictions are correct, all
bootstrap replicates are equal, and the bootstrap interval would have width 0. For the same reason, the variance of a difference
has an extra term, as if the two strategies differed on one more row (Agresti and Min 2005, "Simple improved confidence intervals
for comparing matched proportions"). That row changes a metric between 0 and 1 completely, or less if the seeds disagree on rows,
and other metrics by two standard deviations of the contribution of a row.

The p-value of a difference is the p for which the interval of level 1 - p ends at 0. It requires at least two seeds, since a
single seed gives no variance over seeds. In simulations, a test that considers only rows found a significant difference between
equal strategies in about a quarter of the runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nlp_transfer.evaluation.critical_values import squared_critical_value
from nlp_transfer.evaluation.resampling import ResampledMetric, ScoredSplit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the two ends of its confidence interval. An end is NaN if it is unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference of two strategies, first minus second.

    Attributes:
        estimate: Mean difference over the seeds of both strategies.
        p: Two-sided p-value over rows and seeds. None: there is only one common seed, or the difference is undefined.
    """

    estimate: Estimate
    p: float | None


class StrategyScores:
    """A metric of one strategy for each seed, on all rows and on bootstrap resamples.

    Args:
        metric: The metric to compute.
        splits: The scored split of each seed.
        shared: Whether all seeds score the same rows, as with a test file. If not, each seed has separate resamples.
    """

    def __init__(self, metric: ResampledMetric, splits: Mapping[int, ScoredSplit], shared: bool) -> None:
        self.bounds = metric.bounds
        scores = {seed: metric.scores(split, 0 if shared else seed + 1) for seed, split in splits.items()}
        self.values = {seed: value for seed, (value, _) in scores.items()}
        self.replicates = {seed: replicates for seed, (_, replicates) in scores.items()}
        self.rows = min(map(len, splits.values()))

    def arrays(self, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the values and the replicates for some seeds, float64 of shapes (seeds,) and (seeds, resamples)."""
        return np.array([self.values[seed] for seed in seeds]), np.stack([self.replicates[seed] for seed in seeds])


def estimate(values: np.ndarray, replicates: np.ndarray, rows: int, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Estimate the mean of a metric over seeds. The interval is over rows and seeds; with one seed, over rows only.

    Args:
        values: The metric on all rows, float64 of shape (seeds,).
        replicates: The metric on resampled rows, float64 of shape (seeds, resamples). Resamples with a NaN value are ignored.
        rows: Number of rows. If it differs between seeds, the smallest number.
        bounds: Smallest and largest possible value of the metric.
    """
    value, variance = float(np.mean(values)), _variance(values, replicates)
    if not np.isfinite(value + variance.rows):
        return Estimate(value, np.nan, np.nan)
    z2 = _squared_quantile(1 - LEVEL, Variance(variance.rows, variance.rows, 0.0, 1))
    minimum, maximum = bounds
    width = maximum - minimum
    if np.isfinite(width) and width > 0:
        share = np.clip((value - minimum) / width, 0, 1)
        spread = share * (1 - share)
        effective_rows = spread * width**2 / variance.rows if variance.rows > 0 and spread > 0 else rows
        low, high = wilson(share, effective_rows, z2**0.5)
        below, above = (share - low) * width, (high - share) * width
    elif variance.rows == 0:  # do not report an interval of width 0
        return Estimate(value, np.nan, np.nan)
    else:
        means = _defined(replicates).mean(0)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        below, above = max(0.0, value - low), max(0.0, high - value)
    squared = half_width(1 - LEVEL, variance) ** 2
    if variance.rows > 0:  # the interval over rows and seeds has the asymmetry of that over rows
        below, above = (half * (squared / (z2 * variance.rows)) ** 0.5 for half in (below, above))
    else:
        below, above = ((half**2 + squared) ** 0.5 for half in (below, above))
    return Estimate(value, float(max(minimum, value - below)), float(min(maximum, value + above)))


def wilson(share: float, rows: float, z: float) -> tuple[float, float]:
    """Return the Wilson score interval of a share. Unlike in `scipy.stats.binomtest`, the number of rows can be fractional."""
    center, half = share + z**2 / (2 * rows), z * (share * (1 - share) / rows + (z / (2 * rows)) ** 2) ** 0.5
    return (center - half) / (1 + z**2 / rows), (center + half) / (1 + z**2 / rows)


def estimate_strategy(scores: StrategyScores) -> Estimate:
    """Estimate the mean over all seeds of a strategy."""
    return estimate(*scores.arrays(list(scores.values)), scores.rows, scores.bounds)


def compare_strategies(first: StrategyScores, second: StrategyScores, rows_only: bool = False) -> Difference | None:
    """Estimate the difference, first minus second, over the common seeds of two strategies.

    Args:
        rows_only: whether to give an interval and a p-value for one common seed, which then are over rows only: they hold for
            these two models, not for the strategies.

    Returns:
        The difference. With one common seed, it has no interval and no p-value. None: there are no common seeds.
    """
    seeds = [seed for seed in first.values if seed in second.values]
    if not seeds:
        return None
    (values, replicates), (other_values, other_replicates) = first.arrays(seeds), second.arrays(seeds)
    value = float(np.mean(values - other_values))
    variance = _variance(values - other_values, replicates - other_replicates)
    minimum, maximum = first.bounds
    if np.isfinite(maximum - minimum):
        rows, effect = min(first.rows, second.rows), maximum - minimum
        if (minimum, maximum) == (0, 1):
            effect *= _shared_by_seeds(replicates - other_replicates, variance) ** 0.5
        else:  # a row changes a correlation or BLEU by far less than their range
            single = max(_variance(values, replicates).rows, _variance(other_values, other_replicates).rows)
            effect = min(effect, 2 * (rows * single) ** 0.5) or effect
        more = (effect / (rows + 2)) ** 2
        variance = replace(variance, rows=variance.rows + more, shared=variance.shared + more)
    if (len(seeds) == 1 and not rows_only) or not np.isfinite(value + variance.rows):
        return Difference(Estimate(value, np.nan, np.nan), None)
    half = half_width(1 - LEVEL, variance)
    low, high = max(minimum - maximum, value - half), min(maximum - minimum, value + half)
    return Difference(Estimate(value, low, high), p_value(abs(value), variance))


@dataclass(frozen=True)
class Variance:
    """The variance of a mean over seeds of a metric.

    Attributes:
        rows: Variance over rows, which includes their interaction with seeds. NaN: there is no resample in which the metric is
            defined for every seed.
        shared: The part of `rows` that all seeds share, which has no interaction.
        seeds: Variance over seeds, which includes the interaction; 0 with one seed.
        count: Number of seeds.
    """

    rows: float
    shared: float
    seeds: float
    count: int


def half_width(p: float, variance: Variance) -> float:
    """Return the half-width of the two-sided interval of level `1 - p`."""
    return float((_squared_quantile(p, variance) * (variance.shared + variance.seeds)) ** 0.5)


def p_value(distance: float, variance: Variance) -> float:
    """Return the p for which the interval of level `1 - p` around 0 ends at `distance`. The result is at least 1e-12."""
    from scipy.optimize import brentq

    smallest = 1e-12
    if distance == 0:
        return 1.0
    if half_width(smallest, variance) <= distance:
        return smallest
    return float(brentq(lambda p: half_width(p, variance) - distance, smallest, 1.0, rtol=1e-6))


def _squared_quantile(p: float, variance: Variance) -> float:
    """Return the squared two-sided quantile for the total variance. With one seed, it is that of the normal distribution."""
    return squared_critical_value(p, variance.shared, variance.seeds, max(1, variance.count - 1))


def _variance(values: np.ndarray, replicates: np.ndarray) -> Variance:
    """Estimate the variance of a mean over seeds, from values of shape (seeds,) and replicates of shape (seeds, resamples)."""
    count, defined = len(values), _defined(replicates)
    rows = float(np.var(defined.mean(0))) if defined.size else np.nan
    if count == 1:
        return Variance(rows, rows, 0.0, 1)
    interaction = float(np.var(defined - defined.mean(0), axis=1).sum()) / (count * (count - 1)) if defined.size else 0.0
    return Variance(rows, max(rows - interaction, 0.0), float(np.var(values, ddof=1)) / count, count)


def _shared_by_seeds(replicates: np.ndarray, variance: Variance) -> float:
    """Return the variance over rows of the mean over seeds, divided by that of a single seed.

    It is 1 if a row has the same effect with every seed, or no row has any, and 1 / seeds if the effects are independent.
    """
    defined = _defined(replicates)
    single = float(np.var(defined, axis=1).mean()) if defined.size else 0.0
    return variance.rows / single if single > 0 else 1.0


def _defined(replicates: np.ndarray) -> np.ndarray:
    """Return the columns of `replicates`, of shape (seeds, resamples), in which the metric is defined for every seed."""
    return replicates[:, np.isfinite(replicates).all(0)]
