"""Probabilities that are calibrated, thresholds that are chosen on validation, and predictions that are withheld."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import load_predictor
from nlp_transfer.evaluation.metrics.calibration_metrics import fit_temperature, probabilities_of
from nlp_transfer.evaluation.metrics.thresholds import best_f1
from nlp_transfer.tasks.common.calibration import Calibration, fold
from tests.builders import columns, command, prepared, read_table, refused, sentiment_rows, stopped_at, succeed, write
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model
FAST = {"max_steps": 40, "learning_rate": 3e-3, "evaluate_every": 40}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sentiment rows; every sixth row of validation has the wrong label, so that no model is right about all of them."""
    folder, rows = tmp_path_factory.mktemp("noisy"), sentiment_rows(200)
    other = {"positive": "negative", "negative": "positive"}
    validation = [(text, other[label] if i % 6 == 0 else label) for i, (text, label) in enumerate(rows[96:160])]
    splits = {"train": rows[:96], "validation": validation, "test": rows[160:]}
    return {name: write(folder / f"{name}.csv", part) for name, part in splits.items()}


def plain_probabilities(model: Path, texts: list[str]) -> np.ndarray:
    """Probabilities as any program computes them from the model folder."""
    tokens = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits: torch.Tensor = AutoModelForSequenceClassification.from_pretrained(model).eval()(**tokens).logits
        return np.asarray(logits.softmax(-1))


@pytest.mark.parametrize("strategy", ["full", "lora", "features", "prototypes"])
def test_a_temperature_is_folded_into_the_model(train: Any, noisy: Any, tmp_path: Path, strategy: str) -> None:
    plain = train(data=noisy, strategy=strategy, training=FAST)
    calibrated = train(data=noisy, strategy=strategy, training=FAST, task={"calibrate": True}, output_dir=tmp_path / "calibrated")
    before, after = plain.predictions["validation"]["scores"], calibrated.predictions["validation"]["scores"]
    temperature, true = calibrated.result["calibration"]["temperature"], calibrated.references["validation"]["labels"]
    assert temperature == pytest.approx(fit_temperature(np.log(before), true), rel=1e-3)
    assert probabilities_of(np.log(before) / temperature, False) == pytest.approx(after, abs=1e-5)
    for split in ("validation", "test"):
        assert calibrated.metrics[split]["accuracy"] == plain.metrics[split]["accuracy"]
        effect = calibrated.result["calibration"][split]
        for key, name in (("ece", "ece"), ("brier", "brier"), ("nll", "loss")):
            assert effect["before"][key] == pytest.approx(plain.metrics[split][name], abs=1e-5)
            assert effect["after"][key] == pytest.approx(calibrated.metrics[split][name], abs=1e-5)
    effect = calibrated.result["calibration"]["validation"]
    assert effect["after"]["nll"] <= effect["before"]["nll"]

    texts = [row["text"] for row in read_table(noisy["test"])]
    found = plain_probabilities(tmp_path / "calibrated/model", texts)
    assert found == pytest.approx(calibrated.predictions["test"]["scores"], abs=1e-5)
    saved = json.loads((tmp_path / "calibrated/model/nlp_transfer.json").read_text())
    assert saved["calibration"] == calibrated.result["calibration"]
    if strategy == "lora":
        rows = load_predictor(tmp_path / "calibrated/adapter")(texts[:8], probabilities=True)
        assert [row["probability:positive"] for row in rows] == pytest.approx(found[:8, 1].tolist(), abs=1e-5)


def test_a_resumed_run_is_calibrated_once(train: Any, noisy: Any, tmp_path: Path) -> None:
    settings = {"data": noisy, "task": {"calibrate": True, "positive": "positive", "threshold": "f1"}, "training": FAST}
    straight = train(**settings, output_dir=tmp_path / "straight")
    settings["training"] = FAST | {"checkpoint_every": 12}
    with stopped_at(2):
        train(**settings)
    assert train(**settings).result["calibration"] == straight.result["calibration"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_temperature_can_be_folded_into_every_family(tiny: dict[str, Path], family: str) -> None:
    model, task, table, _, _ = prepared(tiny[family])
    calibration, batch = Calibration(task, True, None), table.batch(np.arange(4))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calibration.mark(model)
    calibration.check(model, batch)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    fold(model, 2.0)
    assert sum(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters()) in (1, 2)


def test_a_head_that_cannot_be_scaled_is_refused(tiny: dict[str, Path]) -> None:
    model, task, table, _, _ = prepared(tiny["bert"])
    calibration = Calibration(task, True, None)
    calibration.mark(model)
    model.classifier.register_forward_hook(lambda module, inputs, output: output + 1)
    with refused("task.calibrate", "pooling"):
        calibration.check(model, table.batch(np.arange(4)))


@pytest.mark.parametrize(
    ("task", "data", "facts"),
    [
        ({"calibrate": True}, {}, ["task.calibrate", "data.validation"]),
        ({"positive": "positive", "threshold": "f1"}, {}, ["task.threshold", "data.validation"]),
        ({"threshold": 0.3}, {}, ["task.threshold", "task.positive"]),
        ({"positive": "good", "threshold": 0.3}, {}, ["task.positive", "'good'", "negative"]),
        ({"positive": "positive", "threshold": "f1_per_label"}, {"validation_share": 0.2}, ["task.threshold", "f1"]),
        ({"positive": "positive", "threshold": "f2"}, {"validation_share": 0.2}, ["task.threshold", "'f2'"]),
        ({"positive": "positive", "threshold": {}}, {"validation_share": 0.2}, ["recall_at_precision"]),
        ({"positive": "positive", "threshold": {"cost": {"false_positive": 1}}}, {"validation_share": 0.2}, ["false_negative"]),
        ({"abstain": 1.5}, {}, ["task.abstain", "1.5"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(train: Any, tmp_path: Path, task: Any, data: Any, facts: list[str]) -> None:
    source = write(tmp_path / "train.csv", sentiment_rows(40))
    with refused(*facts):
        train(data={"train": source, "test": None, **data}, task=task)
    assert not (tmp_path / "run").exists()


def test_the_threshold_of_a_positive_label_is_used(train: Any, noisy: Any, tmp_path: Path) -> None:
    task = {"positive": "positive", "threshold": {"cost": {"false_positive": 1, "false_negative": 20}}, "calibrate": True}
    done = train(data=noisy, task=task, training=FAST)
    threshold, scores = done.result["calibration"]["threshold"], done.predictions["test"]["scores"]
    assert threshold < 0.3
    assert (done.predictions["test"]["prediction"] == (scores[:, 1] >= threshold)).all()
    assert json.loads((tmp_path / "run/model/nlp_transfer.json").read_text())["threshold"] == threshold
    assert done.metrics["test"]["recall_positive"] >= done.metrics["test"]["recall_macro"]
    rows = read_table(noisy["test"])
    found = load_predictor(tmp_path / "run")([row["text"] for row in rows])
    assert [row["prediction"] for row in found] == [("negative", "positive")[i] for i in done.predictions["test"]["prediction"]]
    assert f"{threshold:g}" in (tmp_path / "run/model/README.md").read_text()
    half = load_predictor(tmp_path / "run", settings={"threshold": 0.5})([row["text"] for row in rows])
    assert [row["prediction"] for row in half] == [("negative", "positive")[i] for i in scores.argmax(1)]
    with refused("task.threshold", "number"):
        load_predictor(tmp_path / "run", settings={"threshold": "f1"})


def test_each_label_gets_its_own_threshold(train: Any, tmp_path: Path) -> None:
    table = columns(160, "text", "tags")
    parts = {"train": slice(0, 80), "validation": slice(80, 120), "test": slice(120, 160)}
    data = {
        name: write(tmp_path / f"{name}.csv", {column: cells[part] for column, cells in table.items()})
        for name, part in parts.items()
    }
    task = {"name": "multi_label", "label": "tags", "threshold": "f1_per_label", "calibrate": True}
    done = train(data=data, task=task, training=FAST)
    thresholds, split = done.result["calibration"]["threshold"], done.predictions["validation"]
    true = done.references["validation"]["labels"]
    assert thresholds == pytest.approx([best_f1(split["scores"][:, i], true[:, i]) for i in range(2)], rel=1e-4)
    assert done.metrics["validation"]["f1_macro"] >= f1_score(true, split["scores"] >= 0.5, average="macro", zero_division=0)
    saved = load_predictor(tmp_path / "run")
    assert (saved.task.scorer.typed(done.predictions["test"]["prediction"])) == [
        row["prediction"] for row in saved(table["text"][120:])
    ]
    assert "thresholds" in (tmp_path / "run/model/README.md").read_text()
    assert command("evaluate", tmp_path / "run", "--data.test", data["test"], "--task.threshold", "[0.5]")[0] == 2
    succeed("evaluate", tmp_path / "run", "--data.test", data["test"], "--task.threshold", "[0.5, 0.4]")


def test_uncertain_rows_get_no_prediction(train: Any, noisy: Any, tmp_path: Path) -> None:
    done = train(data=noisy, training=FAST)
    confidence = done.predictions["test"]["scores"].max(1)
    limit = float(np.median(confidence.astype(float)))
    covered = confidence >= limit
    succeed(
        "evaluate", tmp_path / "run", "--data.test", noisy["test"], "--task.abstain", limit, "--output", tmp_path / "metrics.json"
    )
    report = json.loads((tmp_path / "metrics.json").read_text())
    correct = done.predictions["test"]["prediction"] == done.references["test"]["labels"]
    assert report["coverage"] == pytest.approx(covered.mean())
    assert report["accuracy_covered"] == pytest.approx(correct[covered].mean())
    assert report["accuracy"] == pytest.approx(correct.mean())
    for ending in (".csv", ".parquet", ".jsonl"):
        output = tmp_path / f"out{ending}"
        succeed("predict", tmp_path / "run", "--input", noisy["test"], "--output", output, "--task.abstain", limit, "--notes")
        rows = read_table(output)
        assert [row["prediction"] not in (None, "") for row in rows] == covered.tolist()
        assert [row["note"] not in (None, "") for row in rows] == (~covered).tolist()
        assert all(row["probability"] not in (None, "") for row in rows)
