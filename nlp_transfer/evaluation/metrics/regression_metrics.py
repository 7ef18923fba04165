"""Regression metrics: `predictions` and `references` are numbers of shape `(rows,)`, computed in float64.

A value is NaN where it is undefined: the correlation with a constant, `r2` of constant references, and everything when an input
is not finite.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, root_mean_squared_error


class _RegressionMetric(evaluate.Metric):
    """What the regression metrics have in common: their inputs."""

    _reference: str

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name != "default":
            raise ValueError(f"{type(self).__name__} has no config {self.config_name!r}; known configs: default")
        return evaluate.MetricInfo(
            description=inspect.getdoc(self) or "",
            citation="",
            inputs_description=__doc__ or "",
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
            reference_urls=[self._reference],
        )


class Pearson(_RegressionMetric):
    """The linear correlation, from -1 to 1: key `pearson`."""

    _reference = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"pearson": _correlation(pearsonr, predictions, references)}


class Spearman(_RegressionMetric):
    """The correlation of the ranks, from -1 to 1: key `spearman`. Equal values share their mean rank."""

    _reference = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"spearman": _correlation(spearmanr, predictions, references)}


class _Distance(_RegressionMetric):
    """What the metrics of the distance between numbers have in common."""

    _key: str
    _score: Callable[..., float]

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predicted, true = _numbers(predictions, references)
        finite = np.isfinite(predicted).all() and np.isfinite(true).all()
        return {self._key: float(type(self)._score(true, predicted)) if finite else float("nan")}


class MeanSquaredError(_Distance):
    """The mean of the squared differences, from 0 on: key `mse`. Lower is better."""

    _key, _score = "mse", mean_squared_error
    _reference = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.mean_squared_error.html"


class MeanAbsoluteError(_Distance):
    """The mean of the absolute differences, from 0 on: key `mae`. Lower is better."""

    _key, _score = "mae", mean_absolute_error
    _reference = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.mean_absolute_error.html"


class RootMeanSquaredError(_Distance):
    """The root of the mean of the squared differences, in the unit of the numbers, from 0 on: key `rmse`. Lower is better."""

    _key, _score = "rmse", root_mean_squared_error
    _reference = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.root_mean_squared_error.html"


class RSquared(_Distance):
    """The share of the references' variance that is explained, 1 at most: key `r2`. 0: as good as always predicting their mean.
    Undefined where all references are equal."""

    _reference = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.r2_score.html"
    _key = "r2"

    @staticmethod
    def _score(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
        return float(r2_score(true, predicted)) if true.min() < true.max() else float("nan")


def _correlation(correlate: Callable[..., Any], predictions: ArrayLike, references: ArrayLike) -> float:
    predicted, true = _numbers(predictions, references)
    if not all(np.isfinite(values).all() and values.min() < values.max() for values in (predicted, true)):
        return float("nan")
    with warnings.catch_warnings():
        # Values that differ by rounding only: the correlation is whatever scipy makes of it.
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        return float(correlate(true, predicted).statistic)


def _numbers(predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted, true = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != true.shape or predicted.size == 0:
        raise ValueError(
            f"predictions: shape {predicted.shape}, references: shape {true.shape}; "
            "expected (rows,) for both, with at least one row"
        )
    return predicted, true
