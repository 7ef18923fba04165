"""Measure the coverage of 95 % intervals, and how often the paired test of `compare` finds a difference where there is none.

    python scripts/endurance/interval_coverage.py [--simulations 1000] [--part coverage | alarms]

Each simulation draws rows and predictions, computes the interval of the metric, and checks whether it contains the value in the
population. Predictions depend on the row, on the seed of the run, and on both; a situation names the shares of these three in
the variance of the mean over seeds. With one seed, only rows vary. For metrics near 1, the population value itself is drawn from
the given range in each simulation, since the coverage of a single value jumps with the number of errors that are possible. In
paired tests, both strategies have the same population value.

Exit status 0 if every coverage is from 93 to 97 % and every rate of false alarms from 4 to 6 % (from 3 to 6 % with two seeds, see
`nlp_transfer.evaluation.critical_values`), give or take the sampling error of the simulations (two standard errors).
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from nlp_transfer.evaluation.intervals import StrategyScores, compare_strategies, estimate
from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer
from nlp_transfer.evaluation.resampling import RESAMPLES, resample_rows
from nlp_transfer.tasks import task_from

LABELS = [str(i) for i in range(3)]
PRIOR = np.array([0.7, 0.2, 0.1])
CLASSES = task_from({"name": "text_classification", "labels": LABELS}).scorer
NUMBERS = task_from({"name": "regression"}).scorer
COUNTS: dict[int, np.ndarray] = {}

Draw = Callable[[np.random.Generator], tuple[list[list[Arrays]], Arrays, float]]
"""Draws for each strategy the predictions of each seed; and the references and the population value of the metric."""


def latent(generator: np.random.Generator, rows: int, seeds: int, shares: tuple[float, float, float]) -> np.ndarray:
    """Return standard normal values of shape (seeds, rows), with effects of rows, of seeds, and of both.

    `shares` are those of the variance of the mean over seeds and rows, so they are converted to variances of the effects.
    """
    sizes = np.array(shares) * [rows, seeds, rows * seeds]
    row, seed, both = np.sqrt(sizes / sizes.sum())
    effects = generator.normal(0, 1, (1, rows)), generator.normal(0, 1, (seeds, 1)), generator.normal(0, 1, (seeds, rows))
    return row * effects[0] + seed * effects[1] + both * effects[2]


def classification(
    metric: str, accuracy: tuple[float, float], rows: int, seeds: int = 1, shares: tuple[float, float, float] = (1, 0, 0),
    strategies: int = 1,
) -> tuple[str, Scorer, str, int, Draw]:  # fmt: skip
    """Describe a simulation with three labels, of which one is frequent."""

    def draw(generator: np.random.Generator) -> tuple[list[list[Arrays]], Arrays, float]:
        level = float(generator.uniform(*accuracy))
        labels = generator.choice(3, size=rows, p=PRIOR)
        wrong = (labels + generator.integers(1, 3, size=(strategies, seeds, rows))) % 3
        values = np.stack([latent(generator, rows, seeds, shares) for _ in range(strategies)])
        predictions = np.where(values < NormalDist().inv_cdf(level), labels, wrong)
        truth = level if metric == "accuracy" else macro_f1(level)
        return [[{"prediction": one} for one in strategy] for strategy in predictions], {"labels": labels}, truth

    level = f"{accuracy[0]}" if accuracy[0] == accuracy[1] else f"{accuracy[0]} to {accuracy[1]}"
    return f"{metric}, accuracy {level}, {rows} rows", CLASSES, metric, rows, draw


def macro_f1(accuracy: float) -> float:
    """Return the population value for predictions whose errors are spread evenly over the other labels."""
    confusion = PRIOR[:, None] * np.where(np.eye(3) > 0, accuracy, (1 - accuracy) / 2)
    return float(np.mean(2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))))


def correlation(
    metric: str, rho: float, rows: int, seeds: int = 1, shares: tuple[float, float, float] = (1, 0, 0), strategies: int = 1
) -> tuple[str, Scorer, str, int, Draw]:
    """Describe a simulation with numbers. Errors of predictions have effects of rows and of both; a seed scales its errors."""

    def draw(generator: np.random.Generator) -> tuple[list[list[Arrays]], Arrays, float]:
        labels = generator.normal(0, 1, rows)
        noise = np.stack([latent(generator, rows, seeds, shares) for _ in range(strategies)])
        predictions = rho * labels + (1 - rho**2) ** 0.5 * noise
        truth = rho if metric == "pearson" else ((1 - rho) ** 2 + 1 - rho**2) ** 0.5
        return [[{"prediction": one} for one in strategy] for strategy in predictions], {"labels": labels}, truth

    return f"{metric}, correlation {rho}, {rows} rows", NUMBERS, metric, rows, draw


def scores(scorer: Scorer, metric: str, predictions: list[Arrays], references: Arrays, rows: int) -> StrategyScores:
    """Score the seeds of a strategy like `StrategyScores`, but draw the resamples, which are always the same, only once."""
    if rows not in COUNTS:
        COUNTS[rows] = np.stack([np.bincount(drawn, minlength=rows) for drawn in resample_rows(rows, RESAMPLES, 0)]).astype(float)
    strategy = object.__new__(StrategyScores)
    strategy.bounds, strategy.rows, strategy.values, strategy.replicates = scorer.bounds(metric), rows, {}, {}
    for seed, one in enumerate(predictions):
        sums = scorer.sums(metric, one, references)
        assert sums is not None
        strategy.values[seed] = float(sums[1](np.ones((1, rows)) @ sums[0])[0])
        strategy.replicates[seed] = sums[1](COUNTS[rows] @ sums[0])
    return strategy


def outcomes(simulations: int, scorer: Scorer, metric: str, rows: int, draw: Draw) -> Iterator[bool]:
    """Yield whether the interval contains the population value or, for two strategies, whether the test finds a difference."""
    generator = np.random.default_rng(7)
    for _ in range(simulations):
        predictions, references, truth = draw(generator)
        first, *second = (scores(scorer, metric, strategy, references, rows) for strategy in predictions)
        if second:
            difference = compare_strategies(first, second[0])
            assert difference is not None
            assert difference.p is not None
            yield difference.p < 0.05
        else:
            interval = estimate(*first.arrays(list(first.values)), rows, first.bounds)
            yield interval.low <= truth <= interval.high


MIXES = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.0, 0.5), (0.0, 0.8, 0.2), (0.2, 0.8, 0.0), (0.5, 0.5, 0.0), (0.3, 0.3, 0.4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--part", choices=["coverage", "alarms"])
    arguments = parser.parse_args()
    simulations, failed = arguments.simulations, False

    def report(
        kind: str, low: float, high: float, mix: object, seeds: int, situation: tuple[str, Scorer, str, int, Draw]
    ) -> None:
        nonlocal failed
        rate = float(np.mean(list(outcomes(simulations, *situation[1:]))))
        error = 2 * (rate * (1 - rate) / simulations) ** 0.5
        good = low - error <= rate <= high + error
        failed |= not good
        print(
            f"{kind:11}  {situation[0]:42}  {seeds} seeds  {mix!s:15}  {100 * rate:5.1f} %{'' if good else '  outside'}",
            flush=True,
        )

    if arguments.part != "alarms":
        for situation in (
            classification("accuracy", (0.85, 0.85), 500),
            classification("accuracy", (0.99, 0.99), 200),
            classification("accuracy", (0.98, 1.0), 200),
            classification("accuracy", (0.8, 0.8), 50),
            classification("f1_macro", (0.85, 0.85), 500),
            classification("f1_macro", (0.97, 1.0), 300),
            classification("f1_macro", (0.8, 0.8), 100),
            correlation("pearson", 0.8, 200),
            correlation("pearson", 0.97, 200),
            correlation("pearson", 0.9, 50),
            correlation("rmse", 0.8, 200),
        ):
            report("coverage", 0.93, 0.97, "rows", 1, situation)
        for seeds in (2, 3, 5):
            for mix in MIXES:
                report("coverage", 0.93, 0.97, mix, seeds, classification("accuracy", (0.85, 0.85), 200, seeds, mix))
        report("coverage", 0.93, 0.97, MIXES[-1], 3, classification("f1_macro", (0.85, 0.85), 300, 3, MIXES[-1]))
        report("coverage", 0.93, 0.97, MIXES[2], 3, correlation("pearson", 0.8, 200, 3, MIXES[2]))
    if arguments.part != "coverage":
        for seeds in (2, 3, 5):
            least = 0.03 if seeds == 2 else 0.04
            for mix in MIXES:
                report("false alarm", least, 0.06, mix, seeds, classification("accuracy", (0.85, 0.85), 200, seeds, mix, 2))
            for mix in (MIXES[1], MIXES[-1]):
                report("false alarm", least, 0.06, mix, seeds, classification("f1_macro", (0.85, 0.85), 300, seeds, mix, 2))
            for metric in ("pearson", "rmse"):
                report("false alarm", least, 0.06, MIXES[2], seeds, correlation(metric, 0.8, 200, seeds, MIXES[2], 2))
    sys.exit(failed)


if __name__ == "__main__":
    main()
