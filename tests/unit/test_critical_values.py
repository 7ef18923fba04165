"""Critical values for the sum of a known and an estimated variance: limits, order, and rates of false alarms."""

import numpy as np
import pytest
from scipy.stats import chi2, norm, t

from nlp_transfer.evaluation.critical_values import squared_critical_value

SHARES = np.linspace(0, 1, 41)


@pytest.mark.parametrize("freedom", [1, 2, 3, 9])
@pytest.mark.parametrize("p", [0.3, 0.05, 1e-4])
def test_limits_are_the_normal_distribution_and_students_t(p: float, freedom: int) -> None:
    assert squared_critical_value(p, 2.0, 0.0, freedom) == pytest.approx(norm.isf(p / 2) ** 2)
    assert squared_critical_value(p, 0.0, 2.0, freedom) == pytest.approx(t.isf(p / 2, freedom) ** 2)
    assert squared_critical_value(p, 0.0, 0.0, freedom) == pytest.approx(norm.isf(p / 2) ** 2)
    assert squared_critical_value(p, 1.0, 0.3, freedom) == pytest.approx(squared_critical_value(p, 10.0, 3.0, freedom))


@pytest.mark.parametrize("freedom", [1, 2, 3, 9])
def test_intervals_are_nested_and_grow_with_the_variance(freedom: int) -> None:
    """So the p-value is unique, and more variance never makes a difference significant."""
    smaller = np.zeros(len(SHARES))
    for p in np.geomspace(0.99, 1e-10, 60):
        values = np.array([squared_critical_value(float(p), 1 - share, share, freedom) for share in SHARES])
        assert (values > smaller).all()
        assert (np.diff(values[:-1] / (1 - SHARES[:-1])) > 0).all(), "squared half-width, if the known part is 1"
        smaller = values


@pytest.mark.parametrize(("freedom", "low", "high"), [(1, 0.029, 0.061), (2, 0.046, 0.054), (4, 0.049, 0.051)])
def test_rate_of_false_alarms_hardly_depends_on_the_ratio(freedom: int, low: float, high: float) -> None:
    """The mean over 2,000 quantiles of the estimate of the exact rate given the estimate."""
    quantiles = chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom
    for ratio in (0.1, 0.3, 1, 3, 10, 100):
        estimates = ratio * quantiles
        squared = [squared_critical_value(0.05, 1.0, estimate, freedom) * (1 + estimate) for estimate in estimates.tolist()]
        rate = float(2 * norm.sf(np.sqrt(np.array(squared) / (1 + ratio))).mean())
        assert low < rate < high, ratio
