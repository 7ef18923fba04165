"""Self-training: which rows join in, under which labels; rounds; what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nlp_transfer.strategies import Phase
from nlp_transfer.strategies.self_training import SelfTraining
from nlp_transfer.training import trainer as loop
from nlp_transfer.training import validation_scores
from tests.builders import run, sentiment_rows, trainer, write
from tests.unit.test_training import equal, weights_of

pytestmark = pytest.mark.model


def scores_of(sure: list[tuple[int, float]], classes: int = 2) -> dict[str, np.ndarray]:
    """FilePredictor of which each gives a class a probability, and the others the rest."""
    scores = np.array([[p if c == label else (1 - p) / (classes - 1) for c in range(classes)] for label, p in sure])
    return {"scores": scores.astype(np.float32), "prediction": scores.argmax(1)}


def test_most_confident_rows_keep_the_class_balance() -> None:
    answers = scores_of([(0, 0.9), (0, 0.8), (0, 0.95), (0, 0.99), (1, 0.7), (1, 0.9), (1, 0.6), (1, 0.8)])
    taught = np.array([0, 0, 0, 1])  # three quarters are of class 0
    rows, labels = SelfTraining(rounds=2, confidence=0, share=1).choose(answers, taught, 1)
    assert rows.tolist() == [0, 2, 3, 5], "of 8 rows half in the first of two rounds: 3 of class 0, 1 of class 1"
    assert labels.tolist() == [0, 0, 0, 1]
    assert labels.dtype == taught.dtype
    rows, _ = SelfTraining(rounds=2, confidence=0, share=1).choose(answers, taught, 2)
    assert rows.tolist() == [0, 1, 2, 3, 5, 7], "all of class 0, two of class 1"


def test_uncertain_class_has_a_lower_threshold() -> None:
    answers = scores_of([(0, 1.0), (0, 1.0), (0, 0.7), (1, 0.6), (1, 0.6), (1, 0.6)])
    settings = {"rounds": 1, "confidence": 0.85, "balance": False, "share": 1}
    rows, labels = SelfTraining(**settings).choose(answers, np.array([0, 1]), 1)
    # Class 0 is given 0.9 on average and class 1 0.6: the thresholds are 0.85 and 0.57.
    assert rows.tolist() == [0, 1, 3, 4, 5]
    assert labels.tolist() == [0, 0, 1, 1, 1]


def test_without_balance_the_most_confident_rows_are_used() -> None:
    answers = scores_of([(0, 0.9), (0, 0.95), (1, 0.6), (1, 0.7)])
    rows, _ = SelfTraining(rounds=2, confidence=0, share=1, balance=False).choose(answers, np.array([0, 1]), 1)
    assert rows.tolist() == [0, 1]


def test_multi_label_confidence_is_the_lowest_one() -> None:
    scores = np.array([[0.99, 0.02], [0.97, 0.45], [0.03, 0.98], [0.01, 0.02]], np.float32)
    taught = np.array([[1, 0], [0, 1], [0, 0], [1, 1]], np.float32)
    answers = {"scores": scores, "prediction": scores >= 0.5}
    rows, labels = SelfTraining(rounds=1, confidence=0.9).choose(answers, taught, 1)
    assert rows.tolist() == [0, 2, 3]
    assert labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert labels.dtype == taught.dtype


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A few labelled rows; many texts without labels, some of which stand in train or test."""
    rows = sentiment_rows(160)
    write(tmp_path / "train.csv", rows[:32])
    write(tmp_path / "test.csv", rows[32:72])
    (tmp_path / "more.txt").write_text("\n".join(text for text, _ in (*rows[64:], *rows[:4], *rows[150:])) + "\n")
    return {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv"), "unlabelled": str(tmp_path / "more.txt")}


def train(files: dict[str, Any], model: Path, output: Path, training: Any = None, **settings: Any) -> Any:
    return run(
        model=model, data=files, strategy={"name": "self_training"} | settings, output_dir=output,
        training=training or {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3},
    )  # fmt: skip


def test_later_rounds_use_more_rows(
    files: dict[str, str], tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = train(files, tiny["bert"], tmp_path / "run", rounds=2, confidence=0)
    said = capsys.readouterr().err
    assert "unlabelled: 22 of 110 rows skipped" in said  # 8 of test, 4 of train, 10 twice
    assert "round 1 of 2" in said
    assert "round 2 of 2" in said
    steps = found.result["train"]["steps"]
    assert steps > 2 * (2 + 2 + 2), "later rounds have more windows"
    assert found.result["train"]["examples"] > 3 * 2 * 32


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("restart", [True, False])
def test_best_weights_make_the_pseudo_labels(
    on_disk: bool, restart: bool, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.9, 0.5, 0.6, 0.7])  # of two evaluations a phase; the very first stays the best
    evaluated, labelled, began = [], [], []

    def scored(model: Any, *_: Any, **__: Any) -> Any:
        evaluated.append(weights_of(model))
        return {"accuracy": next(accuracies), "loss": 1.0}, {}

    predict, run_phase = loop.predict_table, loop.Trainer._run_phase

    def predict_table(model: Any, *arguments: Any, **named: Any) -> Any:
        labelled.append(weights_of(model))
        return predict(model, *arguments, **named)

    def begin(self: loop.Trainer, phase: Phase) -> None:
        began.append(weights_of(self.model))
        run_phase(self, phase)

    monkeypatch.setattr(validation_scores, "score", scored)
    monkeypatch.setattr(loop, "predict_table", predict_table)
    monkeypatch.setattr(loop.Trainer, "_run_phase", begin)
    monkeypatch.setattr(SelfTraining, "choose", lambda *_: (np.arange(2), np.array([0, 1])))
    strategy = SelfTraining(rounds=1, restart=restart)
    trained: Any = trainer(tiny["bert"], strategy, tmp_path if on_disk else None, max_steps=4, evaluate_every=1)
    trained.tables["unlabelled"] = trained.tables["validation"]
    trained.model.initial_weights = weights_of(trained.model)
    assert trained.train().step == 4
    assert len(evaluated) == 4
    assert len(labelled) == 1
    assert equal(labelled[0], evaluated[0])
    assert not equal(labelled[0], evaluated[1])
    assert equal(began[1], began[0] if restart else evaluated[1]), "training goes on as if nothing had been labelled"


def test_rounds_share_max_steps(files: dict[str, str], tiny: dict[str, Path], tmp_path: Path) -> None:
    training = {"max_steps": 8, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1, "warmup": 0}
    found = train(files, tiny["bert"], tmp_path / "run", training, rounds=2, confidence=0)
    assert found.result["train"]["steps"] == 8
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    wanted = [1e-3 * (steps - i) / steps for steps in (2, 3, 3) for i in range(steps)]
    assert [line["learning_rate"] for line in log] == pytest.approx(wanted)


def test_no_round_starts_without_steps_left(files: dict[str, str], tiny: dict[str, Path], tmp_path: Path) -> None:
    """Else the weights it begins with, which nothing would train, were what is saved."""
    training = {"max_steps": 1, "batch_size": 16, "learning_rate": 1e-2}
    found = train(files, tiny["bert"], tmp_path / "run", training, rounds=3, confidence=0)
    assert found.result["train"]["steps"] == 1
    first = load_file(tiny["bert"] / "model.safetensors")["encoder.layer.0.output.dense.weight"]
    saved = load_file(tmp_path / "run/model/model.safetensors")["bert.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(first, saved)


def test_training_ends_without_confident_rows(
    files: dict[str, str], tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(SelfTraining, "choose", lambda *_: (np.zeros(0, np.int64), np.zeros(0, np.int64)))
    found = train(files, tiny["bert"], tmp_path / "run")
    assert "no prediction of an unlabeled row is confident" in capsys.readouterr().err
    assert found.result["train"]["steps"] == 4


def test_ties_do_not_prefer_the_first_rows() -> None:
    """Probabilities of a trained model are often exactly 1."""
    scores = np.repeat([[1.0, 0.0], [0.0, 1.0]], 200, axis=0).astype(np.float32)
    for balance in (True, False):
        rows, labels = SelfTraining(share=0.4, balance=balance).choose({"scores": scores}, np.array([0, 1]), 2)
        assert len(rows) == 160
        assert labels.tolist() == (rows >= 200).tolist()
        places = rows % 200
        assert abs(labels.mean() - 0.5) < 0.1, "nor those of the first class"
        assert abs(places.mean() - 100) < 25
        again, _ = SelfTraining(share=0.4, balance=balance).choose({"scores": scores}, np.array([0, 1]), 2)
        assert np.array_equal(rows, again), "the same in every process and after an interruption"
