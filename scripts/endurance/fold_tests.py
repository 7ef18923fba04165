"""Measure how often the corrected resampled t-test of `cross-validate` finds a difference where there is none.

    python scripts/endurance/fold_tests.py [--simulations 1000]

Each simulation draws a data set with two classes and cross-validates two logistic regressions, as `cross-validate` does: on the
same stratified folds. Both have features of the same distribution, of which they share some, so by symmetry the same expected
accuracy; every difference that is found is a false alarm. The interval of the mean accuracy should contain the expected accuracy
of models that are trained on as many rows, measured on many other data sets.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parents[2]))

from nlp_transfer.evaluation.resampled_t_test import fold_mean

FEATURES = 10  # of each learner


def draw(generator: np.random.Generator, rows: int, shared: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the features of both learners, of shape (rows, FEATURES), and the labels."""
    labels = np.arange(rows) % 2
    columns = generator.normal(0, 1, (rows, 2 * FEATURES - shared)) + 0.35 * (2 * labels[:, None] - 1)
    return [columns[:, :FEATURES], columns[:, -FEATURES:]], labels


def accuracy(features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> float:
    """Fit a logistic regression to the rows that are not in `test` (bool), and return its accuracy on the others.

    The weights are those of scikit-learn's `LogisticRegression` with its defaults, without the time that its checks take.
    """
    inputs = np.column_stack([features, np.ones(len(features))])
    train, target = inputs[~test], labels[~test]
    penalty = np.append(np.ones(FEATURES), 0.0)
    weights = np.zeros(FEATURES + 1)
    for _ in range(8):  # Newton's method
        probability = 1 / (1 + np.exp(-train @ weights))
        gradient = train.T @ (probability - target) + penalty * weights
        curvature = (train * (probability * (1 - probability))[:, None]).T @ train + np.diag(penalty)
        weights -= np.linalg.solve(curvature, gradient)
    return float(((inputs[test] @ weights > 0) == labels[test]).mean())


def draw_folds(generator: np.random.Generator, labels: np.ndarray, folds: int) -> np.ndarray:
    """Return the fold of each row, int64, stratified by label."""
    fold_of = np.zeros(len(labels), np.int64)
    for label in (0, 1):
        members = generator.permutation(np.flatnonzero(labels == label))
        fold_of[members] = np.arange(len(members)) % folds
    return fold_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    print("rows  shared features  folds  false alarms  with an ordinary t-test  coverage of the interval")
    for rows in (100, 300):
        for folds, repeats in ((5, 1), (5, 2)):
            generator = np.random.default_rng(rows + folds + repeats)
            used = rows - rows // folds
            truths = []
            for _ in range(100):
                (features, _), labels = draw(generator, used + 4000, 0)
                truths.append(accuracy(features, labels, np.arange(used + 4000) >= used))
            for shared in (0, 5):
                found = np.zeros((simulations, 3))
                for outcome in found:
                    both, labels = draw(generator, rows, shared)
                    drawn = [draw_folds(generator, labels, folds) for _ in range(repeats)]
                    tests = [fold_of == fold for fold_of in drawn for fold in range(folds)]
                    values = np.array([[accuracy(features, labels, test) for features in both] for test in tests])
                    difference, mean = fold_mean(values[:, 0] - values[:, 1], folds), fold_mean(values[:, 0], folds, (0, 1))
                    assert difference is not None
                    assert mean is not None
                    plain = difference.deviation / len(values) ** 0.5
                    t = abs(difference.estimate.value) / plain if plain else 0.0
                    outcome[:] = (
                        difference.p < 0.05, t > student.isf(0.025, len(values) - 1),
                        mean.estimate.low <= np.mean(truths) <= mean.estimate.high,
                    )  # fmt: skip
                alarms, ordinary, coverage = 100 * found.mean(0)
                print(
                    f"{rows:4}  {shared:15}  {repeats} x {folds:2} {alarms:12.1f} % {ordinary:22.1f} % {coverage:22.1f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
