"""Intervals over test rows and seeds, and paired tests.

A figure that was measured on some rows with some seeds would have been another one on other rows and with other seeds. Rows are
resampled (Efron and Tibshirani 1993, "An Introduction to the Bootstrap"), the same ones for every strategy, so that differences
are paired; they give the interval its shape. Seeds are too few for that: a bootstrap of three knows no tails. So the interval's
width adds, as squares, what rows do (their bootstrap variance and the normal quantile) and what seeds do (their own variance and
the quantile of Student's t). What belongs to a row with a seed stands in both, which errs on the safe side, as resampling both at
once does (Owen 2007, "The pigeonhole bootstrap").
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nlp_transfer.comparison.figures import Figure, Scored

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; `by_rows` and `by_seeds` are its variances from either."""

    value: float
    low: float
    high: float
    by_rows: float
    by_seeds: float


@dataclass(frozen=True)
class Difference:
    """First less second, with two-sided p-values: `p_rows` holds the runs fixed, `p` asks of rows and seeds."""

    estimate: Estimate
    p: float
    p_rows: float


class Runs:
    """The scored runs of one strategy by seed, with the metric of each on all rows and on resampled ones.

    `shared`: the rows are the same for every seed, as in a test file; else each seed has a split, and so draws, of its own.
    """

    def __init__(self, figure: Figure, runs: Mapping[int, Scored], shared: bool) -> None:
        self.figure, self.runs, self.shared = figure, dict(runs), shared
        self.values = {seed: figure.value(run) for seed, run in runs.items()}
        self.replicates = {seed: figure.replicates(run, self.stream(seed)) for seed, run in runs.items()}

    def stream(self, seed: int) -> int:
        return 0 if self.shared else seed + 1


def estimate(values: np.ndarray, replicates: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """The mean of a figure over seeds, with an interval over rows and seeds; with one seed over rows alone.

    Args:
        values: float64 of shape (seeds,), the figure on all rows.
        replicates: float64 of shape (seeds, draws), on resampled rows; undefined ones are left out.
        bounds: the least and the most that the figure can be.
    """
    replicates = replicates[:, np.isfinite(replicates).all(0)]
    seeds, draws = replicates.shape
    value = float(np.mean(values))
    if draws == 0 or not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, np.nan, np.nan)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    by_rows = float(np.var(replicates.mean(0)))
    if seeds == 1:
        low, high = np.quantile(replicates[0], ends)
        return Estimate(value, min(value, float(low)), max(value, float(high)), by_rows, 0.0)
    by_seeds = float(np.var(values, ddof=1)) / seeds
    half = half_width(1 - LEVEL, by_rows, by_seeds, seeds)
    low, high = np.quantile(replicates.mean(0), ends)
    below, above = max(0.0, value - float(low)), max(0.0, float(high) - value)
    share = below / (below + above) if below + above > 0 else 0.5
    low, high = np.clip([value - 2 * half * share, value + 2 * half * (1 - share)], *bounds)
    return Estimate(value, float(low), float(high), by_rows, by_seeds)


def half_width(p: float, by_rows: float, by_seeds: float, seeds: int) -> float:
    """Half of the interval that leaves out a probability of `p`."""
    from scipy.stats import norm, t

    return float((by_rows * norm.isf(p / 2) ** 2 + by_seeds * t.isf(p / 2, seeds - 1) ** 2) ** 0.5)


def p_value(distance: float, by_rows: float, by_seeds: float, seeds: int) -> float:
    """The probability of which the interval around 0 just reaches `distance`."""
    from scipy.optimize import brentq

    least = 1e-12
    if distance == 0:
        return 1.0
    if half_width(least, by_rows, by_seeds, seeds) <= distance:
        return least
    return float(brentq(lambda p: half_width(p, by_rows, by_seeds, seeds) - distance, least, 1.0))


def measure(runs: Runs) -> Estimate:
    """The mean over a strategy's seeds."""
    return estimate(np.array(list(runs.values.values())), np.stack(list(runs.replicates.values())), runs.figure.bounds)


def compare_runs(first: Runs, second: Runs) -> Difference | None:
    """First less second over the seeds that both have; None where they have none in common.

    The p-value is the larger of two. One is of approximate randomisation (Noreen 1989, "Computer-Intensive Methods for Testing
    Hypotheses"; Yeh 2000, cs/0008005): the two exchange the answers of random rows, the same rows for all seeds, and the metric's
    difference, averaged over seeds, is computed anew. It holds these runs fixed. The other, with two seeds or more, is that
    at which the interval over rows and seeds just reaches 0: without it, three lucky seeds would pass for a better strategy.
    """
    common = [seed for seed in first.values if seed in second.values]
    if not common:
        return None
    values = np.array([first.values[seed] - second.values[seed] for seed in common])
    found = estimate(values, np.stack([first.replicates[seed] - second.replicates[seed] for seed in common]), first.figure.widest)
    swapped = [first.figure.swapped(first.runs[seed], second.runs[seed], first.stream(seed)) for seed in common]
    drawn = np.mean(swapped, axis=0)
    drawn = drawn[np.isfinite(drawn)]
    p_rows = float((1 + np.sum(np.abs(drawn) >= abs(found.value) - 1e-12)) / (1 + len(drawn)))
    p_seeds = p_value(abs(found.value), found.by_rows, found.by_seeds, len(common)) if len(common) > 1 else 0.0
    return Difference(found, max(p_rows, p_seeds), p_rows)
