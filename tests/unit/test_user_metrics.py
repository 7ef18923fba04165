"""Metrics that users pass in Python: their inputs, where their values appear, and checks before training."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlp_transfer import fine_tune
from nlp_transfer.evaluation import metrics
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.model_evaluation import evaluate_model
from tests.builders import refused, run, sentiment_rows, write
from tests.helpers.seq2seq_models import PAIRS, save_tiny_seq2seq
from tests.helpers.strategies import document, files

pytestmark = pytest.mark.model


class Seen:
    """A metric that records its inputs."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], list[Any]]] = []

    def __call__(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        self.calls.append((predictions, references))
        return {"own": sum(a == b for a, b in zip(predictions, references, strict=True)) / len(references)}


@pytest.fixture
def train(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """A run with two evaluations and a test split."""

    def train(*metrics: Any, output: str = "run", **training: Any) -> Any:
        return run(
            metrics, model=tiny["bert"], data=sentiment | {"validation": sentiment["test"]}, output_dir=tmp_path / output,
            training={"max_steps": 4, "evaluate_every": 2, **training},
        )  # fmt: skip

    return train


def test_function_in_results_log_and_card(train: Any, sentiment: dict[str, Path], tmp_path: Path) -> None:
    seen = Seen()
    run = train(seen, best_metric="own")
    labels = [line.split(",")[1] for line in sentiment["test"].read_text().splitlines()[1:]]
    assert seen.calls[-1][1] == labels
    assert set(seen.calls[-1][0]) <= {"negative", "positive"}
    for split in ("validation", "test"):
        assert run.metrics[split]["own"] == run.metrics[split]["accuracy"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert ["own" in line["validation"] for line in log if "validation" in line] == [True, True]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test"]["own"] == run.metrics["test"]["own"]
    assert "| own |" in (tmp_path / "run" / "model" / "README.md").read_text()
    values = evaluate_model(str(tmp_path / "run"), {"data": {"test": str(sentiment["test"])}}, None, "fp32")[0]
    assert "own" not in values
    assert values["accuracy"] == run.metrics["test"]["accuracy"]


def test_labels_keep_their_type(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = [(text, int(label == "positive")) for text, label in sentiment_rows(60)]
    train, seen = write(tmp_path / "train.csv", rows), Seen()
    data = {"train": train, "test": train}
    run([seen], model=tiny["bert"], data=data, training={"max_steps": 1}, output_dir=tmp_path / "one")
    assert seen.calls[-1][1] == [label for _, label in rows]
    assert {type(value) for call in seen.calls for part in call for value in part} == {int}
    source, seen = files(tmp_path / "data"), Seen()
    fine_tune(document("full", "multi_label", tiny["bert"], source, tmp_path / "two", tmp_path), metrics=[seen])
    assert set(map(tuple, seen.calls[-1][1])) == {(), ("even",), ("third",), ("even", "third")}
    seen = Seen()
    fine_tune(document("full", "regression", tiny["bert"], source, tmp_path / "three", tmp_path), metrics=[seen])
    assert {type(value) for part in seen.calls[-1] for value in part} == {float}
    assert set(seen.calls[-1][1]) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_translations_are_texts(tmp_path: Path) -> None:
    model, train, seen = save_tiny_seq2seq("marian", tmp_path / "model"), tmp_path / "pairs.csv", Seen()
    write(train, list(PAIRS), ("source", "target"))
    data = {"train": train, "validation": train}
    task = {"name": "translation", "translated_rows": 3, "beams": 1}
    run([seen], model=model, data=data, task=task, training={"max_steps": 1, "best_metric": "own"}, output_dir=tmp_path / "run")
    assert [len(references) for _, references in seen.calls[2:]] == [3, len(PAIRS)]
    assert seen.calls[-1][1] == [target for _, target in PAIRS]
    assert {type(text) for text in seen.calls[-1][0]} == {str}


def test_lower_can_be_better(train: Any) -> None:
    steps = {}
    for higher in (True, False):
        # Two trials, validation after 2 and 4 steps, validation and test at the end.
        values = iter([0.0, 0.0, 1.0, 2.0, 3.0, 3.0])

        def own(predictions: list[Any], references: list[Any], values: Any = values) -> dict[str, float]:
            return {"own": next(values)}

        own.higher_is_better = higher  # type: ignore[attr-defined]
        steps[higher] = train(own, output=str(higher), best_metric="own").result["train"]["best_step"]
    assert steps == {True: 4, False: 2}


class Labels:
    """A metric object that accepts only numbers."""

    name = "labels"

    def __init__(self, key: str = "sum") -> None:
        self.key = key

    def compute(self, *, predictions: list[Any], references: list[Any]) -> dict[str, Any]:
        return {self.key: np.float32(sum(int(cell) for cell in references))}


def test_metric_objects_get_texts_or_ids(train: Any) -> None:
    values = train(Labels(), Labels("accuracy"), metrics.load("mcc")).metrics["test"]
    assert values["sum"] == values["labels/accuracy"] == 20  # half of 40 rows have label 1
    assert 0 <= values["accuracy"] <= 1
    assert values["mcc/mcc"] == values["mcc"]


def raises(predictions: list[Any], references: list[Any]) -> dict[str, float]:
    return {"own": references[0] / 2}


def changing(predictions: list[Any], references: list[Any]) -> dict[str, float]:
    return {"own": 1.0} if predictions == references else {"other": 1.0}


@pytest.mark.parametrize(
    ("metric", "facts"),
    [
        (lambda p, r: {"accuracy": 1.0}, ["'accuracy'", "taken", "unique"]),
        (lambda p, r: {"loss": 1.0}, ["'loss'", "taken", "unique"]),
        (lambda p, r: {"own": "much"}, ["'much' (str)", "number"]),
        (lambda p, r: {"own": np.zeros(2)}, ["ndarray", "number"]),
        (lambda p, r: {"own": None}, ["NoneType", "number"]),
        (lambda p, r: 0.5, ["0.5", "by name"]),
        (lambda p, r: {1: 0.5}, ["name 1"]),
        (raises, ["raises", "test_user_metrics.py", "TypeError", "rows", "negative"]),
        (changing, ["changing", "own before training", "other now"]),
        ("accuracy", ["'accuracy'", "function"]),
    ],
)
def test_wrong_results_are_refused_before_training(metric: Any, facts: list[str], train: Any, tmp_path: Path) -> None:
    with refused("metrics: ", *facts):
        train(metric)
    assert list(tmp_path.iterdir()) == []


def test_taken_name_and_unknown_best_metric(train: Any) -> None:
    with refused("'own'", "taken"):
        train(Seen(), Seen())
    with refused("training.best_metric: found 'owm'", "did you mean 'own'", "accuracy"):
        train(Seen(), best_metric="owm")
    with refused("training.best_metric: found 'own'", "fine_tune(metrics="):
        train(best_metric="own")


def test_functions_cannot_change_rows_or_random_states() -> None:
    def greedy(predictions: list[Any], references: list[Any]) -> dict[str, float]:
        for part in (*predictions, *references):
            part.clear()
        torch.rand(3), np.random.rand(3), random.random()
        return {"greedy": float("nan")}

    seen = Seen()
    user_metrics = UserMetrics([greedy, seen])
    rows = [["a"], ["a", "b"], []]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    user_metrics.try_out(rows, [[1, 0], [1, 1], [0, 0]])
    assert user_metrics.compute((rows, rows), ([], [])) == {"own": 1.0}
    assert seen.calls[-1] == (rows, rows)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert states[2] == random.getstate()
