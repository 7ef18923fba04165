"""Calibration metrics, temperature and thresholds against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score, log_loss, precision_score, recall_score

from nlp_transfer.evaluation.metrics.bootstrap import bootstrap_bounds
from nlp_transfer.evaluation.metrics.calibration_metrics import (
    calibration_error,
    confidences,
    fit_temperature,
    negative_log_likelihood,
    probabilities_of,
    probability_metrics,
    reliability,
    risk_coverage,
)
from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.evaluation.metrics.thresholds import best_f1, best_f1_macro, highest_recall, lowest_cost


def logits_and_labels(rows: int = 400, labels: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident logits: labels are drawn from the probabilities at temperature 2.5."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, labels)) * 4
    probabilities = probabilities_of(logits / 2.5, False)
    drawn = (probabilities.cumsum(1) > generator.random((rows, 1))).argmax(1)
    return logits.astype(np.float32), drawn


def indicators(rows: int = 60, labels: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of several labels per row, with ties."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(1, 20, (rows, labels)).astype(np.float32) / 20
    return scores, (generator.random((rows, labels)) < scores * 0.6).astype(np.float32)


def test_temperature_equals_that_of_scikit_learn() -> None:
    logits, labels = logits_and_labels()
    classifier = LogisticRegression().fit(logits, labels)
    classifier.coef_, classifier.intercept_ = np.eye(5), np.zeros(5)  # its decision function returns the logits
    expected = CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature").fit(logits, labels)
    found = fit_temperature(logits, labels)
    assert found is not None
    assert found > 1.5
    assert probabilities_of(logits / found, False) == pytest.approx(expected.predict_proba(logits), abs=1e-4)


def test_temperature_of_indicators_equals_that_of_lbfgs() -> None:
    scores, hot = indicators(500)
    logits = np.log(scores / (1 - scores)) * 3
    beta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([beta], line_search_fn="strong_wolfe", max_iter=100, tolerance_grad=1e-10)
    values, targets = torch.tensor(logits, dtype=torch.float64), torch.tensor(hot, dtype=torch.float64)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(values * beta, targets)
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(logits, hot) == pytest.approx(1 / beta.item(), rel=1e-5)


def test_correct_rows_do_not_determine_a_temperature() -> None:
    logits, _ = logits_and_labels(50)
    assert fit_temperature(logits, logits.argmax(1)) is None


def test_scores_equal_those_of_scikit_learn() -> None:
    for labels in (2, 5):
        logits, true = logits_and_labels(labels=labels)
        probabilities = probabilities_of(logits, False)
        expected = brier_score_loss(true, probabilities[:, 1] if labels == 2 else probabilities)
        assert probability_metrics(probabilities, true)["brier"] == pytest.approx(expected)
        assert negative_log_likelihood(logits, true) == pytest.approx(log_loss(true, probabilities), rel=1e-6)
    scores, hot = indicators()
    assert probability_metrics(scores, hot)["brier"] == pytest.approx(((scores - hot) ** 2).mean())
    assert negative_log_likelihood(np.log(scores / (1 - scores)), hot) == pytest.approx(log_loss(hot.ravel(), scores.ravel()))


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibration_error_equals_a_loop(equal_mass: bool) -> None:
    logits, labels = logits_and_labels(301)
    confidence, correct = confidences(probabilities_of(logits, False), labels)
    if equal_mass:
        groups = np.array_split(np.argsort(confidence), 15)
    else:
        groups = [np.flatnonzero((confidence > i / 15) & (confidence <= (i + 1) / 15)) for i in range(15)]
    expected = sum(abs(correct[g].sum() - confidence[g].sum()) for g in groups) / 301
    assert calibration_error(confidence, correct, equal_mass=equal_mass) == pytest.approx(
        expected, abs=2e-3 if equal_mass else 1e-12
    )
    assert reliability(confidence, correct, equal_mass=equal_mass).size.sum() == 301


def test_perfect_confidence_has_no_error() -> None:
    assert calibration_error(np.array([1.0, 1.0, 0.0]), np.array([1, 1, 0])) == 0
    assert calibration_error(np.array([1.0, 1.0]), np.array([0, 0])) == 1


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("metric", ["ece", "brier"])
def test_sums_give_the_metric_of_a_resample(metric: str, multilabel: bool) -> None:
    if multilabel:
        scores, true = indicators()
        predicted: np.ndarray = scores > 0.5
    else:
        logits, true = logits_and_labels(60)
        scores = probabilities_of(logits, False).astype(np.float32)
        predicted = scores.argmax(1)
    scorer = LabelScorer("accuracy", tuple("abcde")[: scores.shape[1]], multilabel=multilabel)
    rows = np.random.default_rng(1).integers(60, size=60)
    sums = scorer.sums(metric, {"prediction": predicted, "scores": scores}, {"labels": true})
    assert sums is not None
    statistics, function = sums
    direct = scorer.compute({"prediction": predicted[rows], "scores": scores[rows]}, {"labels": true[rows]})[metric]
    assert function(statistics[rows].sum(0)[None])[0] == pytest.approx(direct)
    bounds = bootstrap_bounds(metric, statistics, function, 200)
    assert bounds[f"{metric}_low"] < bounds[f"{metric}_high"]


def thresholds(scores: np.ndarray) -> list[float]:
    """Every threshold that gives different predictions, and 0.5."""
    values = np.unique(scores)
    return [0.5, *((values[1:] + values[:-1]) / 2), values[0] / 2, (1 + values[-1]) / 2]


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_equal_those_of_brute_force(seed: int) -> None:
    scores, hot = indicators(seed=seed)
    single, true = scores[:, 0], hot[:, 0] > 0

    def f1_macro(threshold: float) -> float:
        return float(f1_score(hot, scores >= threshold, average="macro", zero_division=0))

    def f1(threshold: float) -> float:
        return float(f1_score(true, single >= threshold, zero_division=0))

    def cost(threshold: float) -> float:
        predicted = single >= threshold
        return float((predicted & ~true).sum() + 5 * (~predicted & true).sum())

    def recall(threshold: float) -> float:
        predicted = single >= threshold
        reached = precision_score(true, predicted, zero_division=0) >= 0.7
        return float(recall_score(true, predicted)) if reached else -1.0

    assert f1_macro(best_f1_macro(scores, hot)) == pytest.approx(max(map(f1_macro, thresholds(scores))))
    assert f1(best_f1(single, true)) == pytest.approx(max(map(f1, thresholds(single))))
    assert cost(lowest_cost(single, true, 1, 5)) == min(map(cost, thresholds(single)))
    found = highest_recall(single, true, 0.7)
    best = max(map(recall, thresholds(single)))
    assert (best <= 0) if found is None else recall(found) == best


def test_thresholds_of_extreme_probabilities_are_inside() -> None:
    scores = np.array([1.0, np.float32(1 - 6e-8), 1e-40, 0.0], np.float32)
    for true in ([1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]):
        assert 0 < best_f1(scores, np.array(true)) < 1
        assert 0 < lowest_cost(scores, np.array(true), 1, 1) < 1
    assert best_f1(scores, np.zeros(4)) == 0.5
    assert highest_recall(scores, np.array([0, 0, 1, 0]), 0.9) is None


def test_equal_costs_choose_a_threshold_close_to_the_middle() -> None:
    assert lowest_cost(np.array([0.9, 0.1], np.float32), np.array([1, 0]), 1, 1) == pytest.approx(0.5)


def test_risk_falls_to_the_error_rate_at_full_coverage() -> None:
    curve = risk_coverage(np.array([0.9, 0.5, 0.5, 0.7]), np.array([1, 0, 1, 1]))
    assert curve.threshold.tolist() == [0.9, 0.7, 0.5]
    assert curve.coverage.tolist() == [0.25, 0.5, 1.0]
    assert curve.risk.tolist() == [0.0, 0.0, 0.25]
