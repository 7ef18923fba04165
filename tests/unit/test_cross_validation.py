"""Cross-validation: folds, the corrected test, and agreement with scikit-learn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from transformers import AutoModel, AutoTokenizer

from nlp_transfer import cross_validate, fine_tune
from nlp_transfer.data.split_sampling import draw_folds
from nlp_transfer.evaluation.resampled_t_test import fold_mean
from nlp_transfer.experiments.experiment import Experiment
from nlp_transfer.utils.interrupts import Interrupted
from tests.builders import document, read_table, refused, rows, sentiment_rows, write


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_stratified_and_keep_units_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = [f"g{number}" for number in generator.integers(40, size=200)]
    strata = generator.integers(3, size=200)
    keys = np.arange(200)
    keys[10:20] = keys[:10]
    table = rows({"text": [str(key) for key in keys], "by": groups})
    grouped = draw_folds(table, 5, strata, keys, "by", seed)
    free = draw_folds(table, 5, strata, np.arange(200), None, seed)
    assert set(grouped) == set(free) == set(range(5))
    for values in (groups, keys.tolist()):
        assert all(len(set(grouped[np.array(values) == value])) == 1 for value in set(values))
    assert np.array_equal(free, draw_folds(table, 5, strata, np.arange(200), None, seed))
    assert not np.array_equal(free, draw_folds(table, 5, strata, np.arange(200), None, seed + 1))
    for stratum in range(3):
        counts = Counter(free[strata == stratum].tolist())
        assert max(counts.values()) - min(counts.values()) <= 1
    counts = Counter(free.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_interval_and_p_value_have_the_corrected_variance() -> None:
    differences = np.array([0.02, 0.01, 0.03, 0.00, 0.02, 0.015, 0.01, 0.025, 0.02, 0.005])
    found = fold_mean(differences, 5)
    assert found is not None
    plain = stats.ttest_1samp(differences, 0)
    correction = np.sqrt((1 / 10 + 1 / 4) / (1 / 10))
    assert found.p == pytest.approx(2 * stats.t.sf(plain.statistic / correction, 9))
    low, high = plain.confidence_interval()
    assert found.estimate.high - found.estimate.low == pytest.approx((high - low) * correction)
    assert found.estimate.value == pytest.approx(differences.mean())
    assert found.deviation == pytest.approx(differences.std(ddof=1))
    assert fold_mean(differences[:1], 5) is None
    assert fold_mean(np.array([0.1, np.nan]), 5) is None


def test_equal_strategies_are_rarely_called_different() -> None:
    """Differences whose covariance is what overlapping training rows cause according to Nadeau and Bengio."""
    generator, alarms = np.random.default_rng(0), 0
    correlation = 1 / 5  # test rows / all rows
    for _ in range(1000):
        values = generator.normal() * correlation**0.5 + generator.normal(size=5) * (1 - correlation) ** 0.5
        found = fold_mean(values, 5)
        alarms += found is not None and found.p < 0.05
    assert 0.03 < alarms / 1000 < 0.07


@pytest.mark.process
def test_metrics_equal_those_of_cross_val_score(tmp_path: Path, tiny: dict[str, Path]) -> None:
    table = sentiment_rows(61)
    settings = document(
        model=tiny["bert"],
        data={"train": write(tmp_path / "train.csv", table[:60]), "test": write(tmp_path / "test.csv", table[60:])},
        strategy={"name": "features", "classifier": "logistic_regression"},
        output_dir=tmp_path / "run",
    )
    found = cross_validate(settings, folds=3)
    predicted = read_table(found.output_dir / "out_of_fold.parquet")
    assert [row["text"] for row in predicted] == [text for text, _ in table[:60]], "each row once, in the order of the data"
    assert {row["strategy"] for row in predicted} == {"features(classifier=logistic_regression)"}

    tokenizer, model = AutoTokenizer.from_pretrained(tiny["bert"]), AutoModel.from_pretrained(tiny["bert"]).eval()
    vectors = []
    for row in predicted:
        with torch.inference_mode():
            vectors.append(model(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state[0].mean(0).double().numpy())
    folds = PredefinedSplit([row["fold"] - 1 for row in predicted])
    labels = [row["reference"] for row in predicted]
    expected = cross_val_score(LogisticRegression(max_iter=2000), np.array(vectors), labels, cv=folds, scoring="accuracy")
    scores = found.scores["features(classifier=logistic_regression)"]
    assert [each["accuracy"] for each in scores] == pytest.approx(expected)
    [row] = found.rows
    assert row.mean == pytest.approx(expected.mean())
    assert row.deviation == pytest.approx(expected.std(ddof=1))

    runs = sorted((found.output_dir / "runs").iterdir())
    assert len(runs) == 3
    recorded = yaml.safe_load((runs[1] / "config.yaml").read_text())
    assert recorded["data"]["fold"] == {"index": 1, "of": 3}
    again = fine_tune({**recorded, "output_dir": str(tmp_path / "again")})
    assert again.metrics["test"] == scores[1], "the record of a fold repeats its run"
    with refused("--output", "folds: 3 before, 4 now"):
        cross_validate(settings, folds=4)


@pytest.mark.process
def test_ctrl_c_says_how_to_continue(tmp_path: Path, tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "execute", interrupt)
    train = write(tmp_path / "train.csv", sentiment_rows(20))
    settings = document(model=tiny["bert"], data={"train": train}, output_dir=tmp_path / "run")
    with pytest.raises(Interrupted, match="run-cross-validation") as interrupted:
        cross_validate(settings, folds=2)
    assert interrupted.value.status == 130


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    settings = document(model="m", data={"train": "a.csv"}, output_dir=tmp_path / "run")
    with refused("--folds: found 1"):
        cross_validate(settings, folds=1)
    with refused("--repeats: found 0"):
        cross_validate(settings, repeats=0)
    with refused("data.fold: found", "an index from 0 to 1"):
        fine_tune(document(model="m", data={"train": "a.csv", "fold": {"index": 2, "of": 2}}, output_dir=tmp_path / "run"))
    with refused("data.fold: found together with data.test_share"):
        data = {"train": "a.csv", "test_share": 0.2, "fold": {"index": 0, "of": 2}}
        fine_tune(document(model="m", data=data, output_dir=tmp_path / "run"))
