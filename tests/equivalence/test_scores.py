"""Metrics are equal in the log, in `result.json`, on the model card, from `evaluate` and from Python."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from nlp_transfer import load_adapters
from nlp_transfer.inference.model_evaluation import evaluate_model
from nlp_transfer.inference.rounding import round_predictions
from nlp_transfer.models.accelerator import in_fp32
from nlp_transfer.saved_models.load import read_record
from tests.builders import run, sentiment_rows, write
from tests.helpers.models import tiny_classifier

pytestmark = pytest.mark.model

RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, label smoothing": {"training": {"label_smoothing": 0.2, "class_weights": "balanced"}},
    "full, best early": {"training": {"learning_rate": 0.1, "best_metric": "loss"}},
    "full, average of weights": {"training": {"ema": 0.8}},
    "lora": {"strategy": "lora"},
    "features": {"strategy": "features", "training": {"learning_rate": 0.3}},
    "partial, cached": {
        "strategy": {"name": "partial", "frozen_layers": 1, "cache": "memory"},
        "training": {"learning_rate": 0.03},
    },
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("splits")
    rows = sentiment_rows(160)
    return {name: write(folder / f"{name}.csv", part) for name, part in (("train", rows[:80]), ("validation", rows[80:]))}


@pytest.mark.parametrize("name", list(RUNS))
def test_best_step_metrics_equal_saved_model_metrics(
    name: str, tiny: dict[str, Path], splits: dict[str, Path], tmp_path: Path
) -> None:
    """Training computes in bf16, which changes each of these numbers by about 0.001."""
    case = RUNS[name]
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "precision": "bf16", **case.get("training", {})}
    strategy = case.get("strategy", "full")
    done = run(model=tiny["bert"], data=splits, strategy=strategy, training=training, output_dir=tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    recorded = result["metrics"]["validation"]
    assert result["metrics_precision"] == "fp32"

    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    evaluations = {line["step"]: line["validation"] for line in lines if "validation" in line}
    best = result["train"]["best_step"]
    assert name != "full, best early" or best < max(evaluations), "the last weights are not the best"
    assert evaluations[best] == pytest.approx(recorded, abs=1e-6 if name == "lora" else 2e-7)

    record = read_record(tmp_path / "run/model")
    assert record is not None
    assert record["metrics"]["validation"] == recorded
    assert f"| accuracy | {recorded['accuracy']:.4f} |" in (tmp_path / "run/model/README.md").read_text()

    evaluated = evaluate_model(str(tmp_path / "run"), {"data": {"test": str(splits["validation"])}}, None, "fp32")[0]
    assert evaluated == {"rows": 80, **recorded}

    with splits["validation"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    predictions = done.predictor()([row["text"] for row in rows], probabilities=True)
    right = [found["prediction"] == row["label"] for found, row in zip(predictions, rows, strict=True)]
    assert np.mean(right) == recorded["accuracy"]
    losses = [-math.log(found[f"probability:{row['label']}"]) for found, row in zip(predictions, rows, strict=True)]
    assert np.mean(losses) == pytest.approx(recorded["loss"], abs=2e-6)
    if name == "lora":
        beside = load_adapters(str(tiny["bert"]), {"run": tmp_path / "run"}).predictor("run")([row["text"] for row in rows])
        for one, other in zip(beside, predictions, strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_evaluation_in_training_is_fp32_without_side_effects() -> None:
    """Accelerate wraps the forward pass of the model in autocast, and FlashAttention does not support fp32."""
    model: Any = tiny_classifier("bert").eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    with torch.inference_mode():
        wanted = model(**inputs).logits
    model._original_forward = model.forward
    model.forward = lambda **given: pytest.fail("the prepared forward pass was called")
    prepared = model.forward
    configs = [config for module in model.modules() if isinstance(config := getattr(module, "config", None), PretrainedConfig)]
    for config in configs:
        config._attn_implementation = "flash_attention_2"
    with in_fp32(model), torch.inference_mode():
        assert {config._attn_implementation for config in configs} == {"sdpa"}
        assert torch.allclose(model(**inputs).logits, wanted, atol=1e-6)
    assert model.forward is prepared
    assert {config._attn_implementation for config in configs} == {"flash_attention_2"}


def test_predictions_have_only_significant_digits() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (2000, 4)).astype(np.float32)
    scores = torch.from_numpy(logits).softmax(-1).numpy()
    exact = round_predictions("scores", scores, "fp32")
    assert np.array_equal(exact.astype(np.float32), scores), "different float32 stay different"
    assert max(len(repr(float(value)).partition("e")[0].replace(".", "").lstrip("0")) for value in exact.flat) <= 9
    assert np.abs(exact.sum(1) - 1).max() < 1e-6
    for precision, digits, tolerance in (("bf16", 4, 2e-4), ("fp16", 5, 2e-5)):
        rounded = round_predictions("scores", scores, precision)
        assert np.abs(rounded.sum(1) - 1).max() < 4 * tolerance
        small = rounded[rounded < 0.5]
        assert max(len(repr(float(value)).partition("e")[0].replace(".", "").lstrip("0")) for value in small) <= digits
        near = rounded[scores > 0.999]
        assert len(np.unique(near)) > 20, "they do not all become 1"
    numbers = np.array([2014.337, -0.1, 0.0, 4123456.5, 1e-20, np.nan], np.float32)
    assert list(map(repr, round_predictions("prediction", numbers, "bf16").tolist())) == [
        "2014.337", "-0.1", "0.0", "4123456.5", "1e-20", "nan",
    ]  # fmt: skip
