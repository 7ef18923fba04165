"""Intervals over test rows and seeds, and the paired test of two strategies.

A metric that was measured on some rows with some seeds would have been another one on other rows and with other seeds. The
variance over rows is that of the bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap"), which draws the same
rows for every strategy, so that differences are paired. The variance over seeds is that of the seeds' own values. An interval
adds both as squares: rows with the normal quantile, seeds, of which there are few, with that of Student's t. What belongs to a
row with a seed is counted in both, which errs on the safe side, as resampling both at once does (Owen 2007, "The pigeonhole
bootstrap").

Of a metric with a least and a greatest value, the rows' share of the interval is Wilson's (1927): a bootstrap of 20 correct rows
out of 20 knows no error, and its interval would be a point. For the same reason the variance of a difference has one row more on
which the two differ (Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions").

There is one test: the p-value of a difference is the level at which its interval just reaches 0. It needs two seeds or more: from
one seed nothing can be known about the spread of seeds, and a test over rows alone takes one lucky run in four for a better
strategy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nlp_transfer.evaluation.resampling import Figure, Scored

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; the ends are NaN where they are unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """First less second, with the two-sided p-value over rows and seeds; None with fewer than two common seeds."""

    estimate: Estimate
    p: float | None


class Runs:
    """The scored runs of one strategy by seed, with the metric of each on all rows and on resampled ones.

    `shared`: the rows are the same for every seed, as in a test file; else each seed has a split, and so draws, of its own.
    """

    def __init__(self, figure: Figure, runs: Mapping[int, Scored], shared: bool) -> None:
        self.figure, self.runs, self.shared = figure, dict(runs), shared
        self.values = {seed: figure.value(run) for seed, run in runs.items()}
        self.replicates = {seed: figure.replicates(run, 0 if shared else seed + 1) for seed, run in runs.items()}
        self.rows = min(map(len, self.runs.values()))


def estimate(values: np.ndarray, replicates: np.ndarray, rows: int, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Estimate the mean of a metric over seeds, with an interval over rows and seeds; with one seed over rows alone.

    Args:
        values: float64 of shape (seeds,), the metric on all rows.
        replicates: float64 of shape (seeds, draws), on resampled rows; undefined ones are left out.
        rows: how many there are, of the seed with the fewest.
        bounds: the least and the greatest value of the metric.
    """
    value, by_rows, by_seeds = _variances(values, replicates)
    if not np.isfinite(value + by_rows):
        return Estimate(value, np.nan, np.nan)
    z, t = _quantiles(1 - LEVEL, len(values))
    least, most = bounds
    width = most - least
    if np.isfinite(width) and width > 0:
        share = np.clip((value - least) / width, 0, 1)
        spread = share * (1 - share)
        low, high = wilson(share, spread * width**2 / by_rows if by_rows > 0 and spread > 0 else rows, z)
        below, above = (share - low) * width, (high - share) * width
    elif by_rows == 0:  # an interval without width would claim to be exact
        return Estimate(value, np.nan, np.nan)
    else:
        defined = replicates[:, np.isfinite(replicates).all(0)]
        low, high = np.quantile(defined.mean(0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        below, above = max(0.0, value - low), max(0.0, high - value)
    below, above = ((side**2 + by_seeds * t**2) ** 0.5 for side in (below, above))
    return Estimate(value, float(max(least, value - below)), float(min(most, value + above)))


def wilson(share: float, rows: float, z: float) -> tuple[float, float]:
    """Compute Wilson's score interval of a share of `rows`, which need not be whole: less where rows are alike."""
    centre, half = share + z**2 / (2 * rows), z * (share * (1 - share) / rows + (z / (2 * rows)) ** 2) ** 0.5
    return (centre - half) / (1 + z**2 / rows), (centre + half) / (1 + z**2 / rows)


def measure(runs: Runs) -> Estimate:
    """Estimate the mean over a strategy's seeds."""
    return estimate(*_arrays(runs, list(runs.values)), runs.rows, runs.figure.bounds)


def compare_runs(first: Runs, second: Runs) -> Difference | None:
    """Compare two strategies over the seeds that both have: first less second; None where they have none in common.

    With one common seed there is the difference alone, without interval and p-value.
    """
    common = [seed for seed in first.values if seed in second.values]
    if not common:
        return None
    (ones, one_draws), (others, other_draws) = _arrays(first, common), _arrays(second, common)
    value, by_rows, by_seeds = _variances(ones - others, one_draws - other_draws)
    least, most = first.figure.bounds
    if np.isfinite(most - least):
        by_rows += ((most - least) / (min(first.rows, second.rows) + 2)) ** 2
    if len(common) == 1 or not np.isfinite(value + by_rows):
        return Difference(Estimate(value, np.nan, np.nan), None)
    half = half_width(1 - LEVEL, by_rows, by_seeds, len(common))
    low, high = max(least - most, value - half), min(most - least, value + half)
    return Difference(Estimate(value, low, high), p_value(abs(value), by_rows, by_seeds, len(common)))


def half_width(p: float, by_rows: float, by_seeds: float, seeds: int) -> float:
    """Half of the interval that leaves out a probability of `p`."""
    z, t = _quantiles(p, seeds)
    return float((by_rows * z**2 + by_seeds * t**2) ** 0.5)


def p_value(distance: float, by_rows: float, by_seeds: float, seeds: int) -> float:
    """The probability at which the interval around 0 just reaches `distance`."""
    from scipy.optimize import brentq

    least = 1e-12
    if distance == 0:
        return 1.0
    if half_width(least, by_rows, by_seeds, seeds) <= distance:
        return least
    return float(brentq(lambda p: half_width(p, by_rows, by_seeds, seeds) - distance, least, 1.0))


def _quantiles(p: float, seeds: int) -> tuple[float, float]:
    """The two-sided quantiles of the normal distribution, for rows, and of Student's t, for seeds; 0 with one seed."""
    from scipy.stats import norm, t

    return float(norm.isf(p / 2)), float(t.isf(p / 2, seeds - 1)) if seeds > 1 else 0.0


def _arrays(runs: Runs, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The metric of some seeds, (seeds,), and its replicates, (seeds, draws)."""
    return np.array([runs.values[seed] for seed in seeds]), np.stack([runs.replicates[seed] for seed in seeds])


def _variances(values: np.ndarray, replicates: np.ndarray) -> tuple[float, float, float]:
    """The mean over seeds, and its variance by rows and by seeds; by rows NaN where no replicate is defined."""
    defined = replicates[:, np.isfinite(replicates).all(0)]
    by_rows = float(np.var(defined.mean(0))) if defined.size else np.nan
    return float(np.mean(values)), by_rows, float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
