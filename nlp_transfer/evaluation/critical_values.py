"""Critical values for a mean whose variance is the sum of a known part and of one that is estimated with few degrees of freedom.

Let `known` be the part that is known (over test rows, of which there are many), and `estimated` the other one (over seeds), with
`freedom` degrees of freedom. If d is normal with mean 0, a test that rejects if d^2 > q (known + estimated) should have the same
rate of false alarms for every ratio of the two true variances. This is the problem of Behrens and Fisher, with limits q = z^2,
the quantile of the normal distribution, if `known` prevails, and q = t^2, that of Student's t, if `estimated` does.

As in Welch (1947) and Trickett and Welch (1954), q is a function of u = estimated / (known + estimated), found numerically:

    q(u) = z^2 + (t^2 - z^2) u^2 (1 + (1 - u) (a + b u))

starts like Welch's series, and a and b minimize the squared relative deviations of the rate from its nominal value over the
ratios. At 5 %, the rate is 4.7 to 5.35 % with 2 degrees of freedom (three seeds), and 4.9 to 5.15 % with more.

With one degree of freedom (two seeds), t^2 is 42 times z^2, and the estimate says little about the ratio. In numerical searches,
a rate between 4 and 6 % for every ratio needed critical values that jump, or that fall as the estimate grows. With b = 0 they do
neither; the rate is then 5 % if one of the parts prevails, and between 2.95 % (at estimated / known = 0.3) and 6.05 % (at 16).
"""

from functools import lru_cache
from typing import Any

import numpy as np

RATIOS = np.geomspace(0.05, 200, 24)  # estimated / known, for which the rate of false alarms is computed
PROBABILITIES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
"""The p for which a and b are fitted. Between these, they are interpolated. For smaller p, where a fit would not be stable, those
of the smallest are used."""


def squared_critical_value(p: float, known: float, estimated: float, freedom: int) -> float:
    """Return the q for which a squared normal deviation exceeds q (known + estimated) with probability `p`.

    Args:
        p: Probability, between 0 and 1.
        known: Known part of the variance, at least 0.
        estimated: Estimate of the other part, at least 0.
        freedom: Degrees of freedom of the estimate.
    """
    normal, student = _limits(p, freedom)
    share = estimated / (known + estimated) if estimated > 0 else 0.0
    a, b = (np.interp(np.log(p), np.log(PROBABILITIES), column) for column in _coefficients(freedom).T)
    return float(normal + (student - normal) * _shape(share, a, b))


def _limits(p: float, freedom: int) -> tuple[float, float]:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(p / 2)) ** 2, float(stdtrit(freedom, p / 2)) ** 2


def _shape(share: Any, a: Any, b: Any) -> Any:
    return share**2 * (1 + (1 - share) * (a + b * share))


def false_alarm_rates(p: float, freedom: int, a: float, b: float = 0.0) -> np.ndarray:
    """Return the rate of false alarms for each of `RATIOS`, float64, by numerical integration over the estimate."""
    from scipy.special import erfc

    estimated, weights = _integration(freedom)
    normal, student = _limits(p, freedom)
    q = np.maximum(normal + (student - normal) * _shape(estimated / (1 + estimated), a, b), 0)
    return np.asarray(erfc((q * (1 + estimated) / (2 + 2 * RATIOS[:, None])) ** 0.5) @ weights)


@lru_cache
def _integration(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates in units of the known part, float64 of shape (ratios, nodes), and the weights of the nodes."""
    from scipy.stats import chi2

    nodes, weights = np.polynomial.legendre.leggauss(96)
    longest = chi2.isf(1e-12, freedom) ** 0.5
    length = (nodes + 1) / 2 * longest  # square root of the chi-squared estimate, in whose terms the density is smooth
    return RATIOS[:, None] * length**2 / freedom, weights * longest * length * chi2.pdf(length**2, freedom)


@lru_cache
def _coefficients(freedom: int) -> np.ndarray:
    """Return a and b for each of `PROBABILITIES`, float64 of shape (probabilities, 2). With one degree of freedom, b is 0."""
    from scipy.optimize import least_squares

    found = np.zeros((len(PROBABILITIES), 2))
    for p, row in zip(PROBABILITIES.tolist(), found, strict=True):
        fitted = least_squares(lambda x, p=p: false_alarm_rates(p, freedom, *x) / p - 1, np.zeros(min(2, freedom))).x
        row[: len(fitted)] = fitted
    return found
