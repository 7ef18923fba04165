"""`strategy: auto`: candidates, trials, the decision, its record, and resumption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nlp_transfer import compare, fine_tune
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.run import strategy_choice, strategy_race
from nlp_transfer.run.strategy_choice import label_of
from nlp_transfer.run.strategy_race import Candidate, decide
from nlp_transfer.run.strategy_trials import Speed
from nlp_transfer.sklearn import TextClassifier
from tests.builders import command, refused, sentiment_rows, stopped_at, succeed, write

pytestmark = pytest.mark.model

TWO = {"name": "auto", "candidates": ["features", "full"]}


def chosen(run: Any) -> dict[str, Any]:
    choice = json.loads((run.output_dir / "strategy_choice.json").read_text())
    assert run.result["strategy_choice"] == choice
    return choice


def test_a_choice_trains_as_the_chosen_strategy(train: Any, tmp_path: Path) -> None:
    training = {"max_steps": 12, "precision": "fp32", "learning_rate": 1e-3}
    run = train(strategy=TWO, training=training, with_report=True)
    choice = chosen(run)
    assert choice["rows"] == 96
    assert choice["folds"] >= 1
    assert choice["held_out_rows"] <= 96
    labels = [row["label"] for row in choice["candidates"]]
    assert labels == ["features", "full"]
    assert choice["metric"] == "accuracy"
    config = yaml.safe_load((run.output_dir / "config.yaml").read_text())
    assert config["strategy"] == choice["strategy"], "the run can be repeated without a choice"
    direct = train(strategy=config["strategy"], training=training, output_dir=tmp_path / "direct")
    assert direct.metrics == run.metrics, "the trials have no influence on the run"
    assert "Choice of the strategy" in (run.output_dir / "report.html").read_text()
    assert choice["reason"][:20] in (run.output_dir / "model" / "README.md").read_text()


def test_a_killed_run_keeps_its_choice(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"max_steps": 8, "checkpoint_every": 2}
    with stopped_at(1):
        train(strategy=TWO, training=training)
    monkeypatch.setattr(strategy_choice, "_choose", lambda *_: pytest.fail("chosen again"))
    before = chosen(train(strategy=TWO, training=training))
    assert before["strategy"]["name"] in ("features", "full")


def test_other_unfinished_runs_are_not_continued(train: Any) -> None:
    training = {"max_steps": 8, "checkpoint_every": 2}
    with stopped_at(1):
        train(strategy="lora", training=training)
    with refused("strategy.name", "unfinished run"):
        train(strategy=TWO, training=training)


def test_one_possible_candidate_needs_no_trial(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_choice, "HeldOutFolds", lambda *_: pytest.fail("a trial"))
    rows = [{"words": ["good", "town"], "tags": ["B-good", "O"]}, {"words": ["a", "town"], "tags": ["O", "O"]}] * 10
    run = fine_tune(
        model=str(tiny["bert"]), data={"train": str(write(tmp_path / "train.jsonl", rows)), "validation_share": 0},
        task={"name": "token_classification", "tokens": "words", "tags": "tags"}, output_dir=tmp_path / "run",
        strategy={"name": "auto", "candidates": ["features", "full"]}, training={"max_steps": 1}, with_report=False,
    )  # fmt: skip
    assert run.result["strategy"]["name"] == "full"
    assert run.result["strategy_choice"]["candidates"][0]["note"].startswith("not possible")
    assert "only candidate" in capsys.readouterr().err


def test_no_possible_candidate_is_refused(train: Any) -> None:
    with refused("zero_shot", "regression"):
        train(strategy={"name": "auto", "candidates": ["zero_shot"]}, task={"name": "regression", "label": "label"})


def test_too_few_rows_take_the_first_candidate(train: Any, tmp_path: Path) -> None:
    rows = write(tmp_path / "few.csv", sentiment_rows(4))
    run = train(data={"train": rows, "validation_share": None}, strategy=TWO, training={"max_steps": 1})
    assert run.result["strategy"]["name"] == "features"
    assert chosen(run)["folds"] == 0


def test_slow_candidates_are_left_out(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Speed(1.0, 0.0, 1000.0, 32, 2, None)
    original = strategy_race.measure
    measured = lambda run, folds: slow if run.strategy.document()["name"] == "full" else original(run, folds)  # noqa: E731
    monkeypatch.setattr(strategy_race, "measure", measured)
    run = train(strategy=TWO | {"minutes": 1})
    assert run.result["strategy"]["name"] == "features"
    assert "too slow" in chosen(run)["candidates"][1]["note"]


def test_settings_of_auto_are_checked(train: Any) -> None:
    for candidates in (["auto"], ["full", "full"], ["fulll"], []):
        with refused("candidates"):
            train(strategy={"name": "auto", "candidates": candidates})
    with refused("cannot be combined"):
        train(strategy=["auto", "l2_sp"])


def test_several_processes_are_refused(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy_choice, "world_size", lambda: 2)
    with refused("WORLD_SIZE"):
        train(strategy="auto")


def test_comparisons_refuse_auto(plan: Any, tmp_path: Path) -> None:
    with refused("strategy.name", "compare"):
        compare(plan(), ["auto", "full"], output_dir=tmp_path / "comparison")


def test_a_dry_run_estimates_the_candidates(plan: Any, tmp_path: Path) -> None:
    write(tmp_path / "run.yaml", plan(strategy=TWO))
    _, shown = succeed("train", tmp_path / "run.yaml", "--dry-run")
    assert "features" in shown
    assert "nothing was written" in shown
    assert not (tmp_path / "run").exists()
    assert command("train", tmp_path / "run.yaml", "--strategy.name", "auto", "--strategy.minutes", "-1")[0] != 0


def test_an_estimator_chooses(tiny: dict[str, Path]) -> None:
    texts, labels = zip(*sentiment_rows(40), strict=True)
    strategy = {"name": "auto", "candidates": ["few_shot", "features"]}
    model = TextClassifier(str(tiny["bert"]), strategy, settings={"training.max_steps": 2})
    weighted = model.fit(list(texts), list(labels), sample_weight=[1.0] * 40)
    assert weighted.result_["strategy"]["name"] == "features", "few_shot does not use weights"
    assert weighted.predict(["a good town"]).shape == (1,)


def test_speed_follows_rows_and_epochs() -> None:
    assert Speed(1.0, 0.1, 2.0, 10, None, 3.0).seconds(100) == pytest.approx(1 + 10 + 2 * 30)
    assert Speed(1.0, 0.0, 2.0, 10, 7, None).seconds(100) == pytest.approx(15)
    assert Speed(0.0, 0.0, 1.0, 32, None, None).seconds(320) == pytest.approx(200), "20 epochs"
    assert Speed(0.0, 0.0, 1.0, 32, None, None).seconds(32_000) == pytest.approx(3000), "3 epochs"


def test_the_fastest_within_one_standard_error_wins() -> None:
    rows = {
        "a": Candidate("a", {}, seconds=100.0, value=0.9),
        "b": Candidate("b", {}, seconds=10.0, value=0.89, p=0.5),
        "c": Candidate("c", {}, seconds=1.0, value=0.85, p=0.1),
    }
    assert decide(rows, "a", "accuracy", {})[0] == "b"
    assert decide({"a": rows["a"], "c": rows["c"]}, "a", "accuracy", {})[0] == "a"


def test_worse_candidates_are_dropped(monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    """A candidate that is always wrong is dropped after the first fold, and the other one is chosen without a second."""
    tried: list[str] = []

    def scored(run: Any, splits: Any, _: float) -> tuple[ScoredSplit, float]:
        name = run.strategy.document()["name"]
        tried.append(name)
        labels = np.array([cell == "positive" for cell in splits.rows["test"].columns["label"]]).astype(np.int64)
        predicted = labels if name == "full" else 1 - labels
        scores = np.eye(2)[predicted]
        return ScoredSplit({"prediction": predicted, "scores": scores, "probability": scores}, {"labels": labels}), 1.0

    monkeypatch.setattr(strategy_race, "train_and_score", scored)
    run = train(strategy=TWO)
    assert tried == ["features", "full"]
    assert run.result["strategy"]["name"] == "full"


def test_labels_name_the_settings_that_differ() -> None:
    assert label_of({"name": "lora", "r": 8}) == "lora (r 8)"
    assert label_of({"name": "lora", "r": 16}) == "lora"
