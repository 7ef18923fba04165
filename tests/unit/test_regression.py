"""Regressions: trained on standardized targets, with predictions, metrics and saved models in the units of the column."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BartConfig, T5Config, pipeline

from nlp_transfer import FineTuned, fine_tune, load_adapters, load_predictor
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.inference.scoring import score
from nlp_transfer.models.accelerator import make_accelerator
from nlp_transfer.models.regression_output import RegressionOutput, fold_outputs, standardized_outputs
from nlp_transfer.saved_models.load import read_record
from nlp_transfer.saved_models.probe import check_probe
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.tasks.regression import Regression
from nlp_transfer.utils.errors import Problems
from tests import builders
from tests.builders import opened, refused, sentiment_rows, write
from tests.helpers.models import FAMILIES, tiny_classifier

pytestmark = pytest.mark.model

TEXTS = [text for text, _ in sentiment_rows(64)]
BASE = np.array([1.0 if label == "positive" else -1.0 for _, label in sentiment_rows(64)]) + np.arange(64) % 7 / 10


def cells(values: np.ndarray) -> dict[str, list[Any]]:
    return {"text": TEXTS, "score": [repr(float(value)) for value in values]}


def run(checkpoint: Path, folder: Path, values: np.ndarray, strategy: Any = "full", task: Any = None, **training: Any) -> Any:
    """Train on 48 rows for a few steps, with 16 rows of validation."""
    rows = list(zip(*cells(values).values(), strict=True))
    paths = [write(folder / f"{name}.csv", part, ("text", "score")) for name, part in (("a", rows[:48]), ("b", rows[48:]))]
    fixed = {"max_steps": 8, "batch_size": 16, "learning_rate": 2e-3, "logging_steps": 1, "dropout": 0, "attention_dropout": 0}
    return builders.run(
        model=checkpoint, data={"train": paths[0], "validation": paths[1]}, strategy=strategy, output_dir=folder / "run",
        task={"name": "regression", "label": "score"} | (task or {}), training=fixed | training,
    )  # fmt: skip


def log_of(run: FineTuned) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.output_dir / "log.jsonl").read_text().splitlines()]


def settings_of(done: FineTuned) -> dict[str, Any]:
    record = read_record(done.output_dir / "model")
    assert record is not None
    return {name: record["settings"][name] for name in ("mean", "scale", "offset")}


def predicted(model: Any) -> np.ndarray:
    predictor = load_predictor(model) if isinstance(model, (str, Path)) else model
    return np.array([answer["prediction"] for answer in predictor(TEXTS)])


def plainly(folder: Path) -> np.ndarray:
    """What transformers alone makes of a saved model."""
    classify = pipeline("text-classification", str(folder), batch_size=16)
    return np.array([answer["score"] for answer in classify(TEXTS)])


def allowed(values: np.ndarray) -> float:
    """How far fp32 may be off near these numbers."""
    return 1e-4 * float(values.std()) + float(np.spacing(np.float32(np.abs(values).max())))


@pytest.fixture(scope="module")
def plain(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    return run(tiny["bert"], tmp_path_factory.mktemp("plain"), BASE)


@pytest.mark.parametrize(("factor", "shift"), [(1000, 2000), (1e-4, 0), (10, 2005), (1, 2e9), (-1, 0), (1e12, 0)])
def test_training_is_independent_of_units(
    factor: float, shift: float, plain: FineTuned, tiny: dict[str, Path], tmp_path: Path
) -> None:
    values = factor * BASE + shift
    done = run(tiny["bert"], tmp_path, values)
    if factor > 0:
        losses, expected = ([line["loss"] for line in log_of(found) if "loss" in line] for found in (done, plain))
        assert losses == pytest.approx(expected, rel=1e-5)
    before, after = plain.metrics["validation"], done.metrics["validation"]
    assert after["mae"] == pytest.approx(factor * before["mae"], rel=1e-3) or factor < 0
    assert after["rmse"] == pytest.approx(after["mse"] ** 0.5)
    assert after["r2"] == pytest.approx(before["r2"], abs=1e-3) or factor < 0
    judged = [line["validation"] for line in log_of(done) if "validation" in line]
    best = max(judged, key=lambda line: line["r2"])
    assert {name: best[name] for name in after} == pytest.approx(after, rel=1e-4), "the log's metrics are in the column's units"
    assert np.abs(predicted(done.output_dir) - plainly(done.output_dir / "model")).max() <= allowed(values)
    assert np.abs(predicted(done.output_dir) - values.mean()).max() <= 10 * values.std()


STRATEGIES: dict[str, Any] = {
    "full": {}, "lora": {}, "bitfit": {}, "features": {}, "few_shot": {"group": 4, "epochs": 1}, "gradual_unfreezing": {},
    "peft": {}, "prompt": {"name": "peft", "type": "PROMPT_TUNING"}, "distill": {"student_layers": 1},
    "own head": {"name": "full"}, "ema": {"name": "full"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_saved_models_predict_in_the_columns_units(name: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    values = 10 * BASE + 2005
    task = {"own head": {"head": {"hidden": [8], "pooling": "mean"}}, "prompt": {"max_length": 40}}.get(name)
    done = run(tiny["bert"], tmp_path, values, {"name": name} | STRATEGIES[name], task, **({"ema": 0.5} if name == "ema" else {}))
    found = predicted(done.output_dir)
    assert np.abs(found - 2005).max() < 100
    assert float(np.std(found)) > 0
    if (done.output_dir / "model" / "config.json").exists():
        assert np.abs(found - plainly(done.output_dir / "model")).max() <= 1e-3
    if (done.output_dir / "adapter").exists():
        assert np.abs(found - predicted(done.output_dir / "adapter")).max() <= 1e-3
        assert np.abs(found - predicted(load_adapter(tiny["bert"], done.output_dir))).max() <= 1e-3
    judged = [line["validation"] for line in log_of(done) if "validation" in line]
    assert max(line["r2"] for line in judged) == pytest.approx(done.metrics["validation"]["r2"], rel=1e-3)
    truth = (np.mean((found[48:] - values[48:]) ** 2), np.mean(np.abs(found[48:] - values[48:])))
    assert (done.metrics["validation"]["mse"], done.metrics["validation"]["mae"]) == pytest.approx(truth, rel=1e-4)


def load_adapter(base: Path, folder: Path) -> Any:
    """The adapter beside its base, not merged into it."""
    return load_adapters(str(base), {"only": folder}).predictor("only")


def test_multitask_regressions_predict_in_their_units(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = list(zip(*cells(1e-3 * BASE + 7).values(), strict=True))
    other = {
        "name": "small",
        "data": {"train": str(write(tmp_path / "other.csv", rows, ("text", "score"))), "validation_share": 0.1},
        "task": {"name": "regression", "label": "score"},
    }  # fmt: skip
    done = run(tiny["bert"], tmp_path, 10 * BASE + 2005, {"name": "multitask", "tasks": [other]})
    assert np.abs(plainly(done.output_dir / "model") - 2005).max() < 100
    small = done.output_dir / "tasks" / "small" / "model"
    assert np.abs(plainly(small) - 7).max() < 0.01
    assert np.abs(predicted(small) - plainly(small)).max() < 1e-6
    assert done.result["tasks"]["small"]["metrics"]["validation"]["mae"] < 0.01
    shared = load_file(done.output_dir / "shared" / "small.safetensors")
    saved = load_file(small / "model.safetensors")
    assert torch.equal(shared["classifier.bias"], saved["classifier.bias"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_distillation_is_independent_of_units(precision: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """A student that starts as its teacher has nothing to learn, though its own rows have another mean and spread."""
    teacher = run(tiny["bert"], tmp_path / "teacher", 10 * BASE + 2005).output_dir / "model"
    settings = {"name": "distill", "teacher": str(teacher), "alpha": 1.0}
    done = run(teacher, tmp_path / "student", 3 * BASE + 1990, settings, precision=precision, learning_rate=1e-12)
    assert log_of(done)[0]["loss"] < (1e-8 if precision == "fp32" else 1e-3)
    assert np.abs(predicted(done.output_dir) - predicted(teacher)).max() < 1e-2


def test_teacher_with_other_units_is_reported(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = run(tiny["bert"], tmp_path / "teacher", 10 * BASE + 2005).output_dir / "model"
    for name, values in (("same", 10 * BASE + 2000), ("other", 3 * BASE + 100)):
        capsys.readouterr()
        run(tiny["bert"], tmp_path / name, values, {"name": "distill", "teacher": str(teacher)}, max_steps=1)
        assert ("same units" in capsys.readouterr().err) == (name == "other")


@pytest.mark.parametrize("head", [None, {"pooling": "mean"}], ids=["family", "own"])
def test_continued_training_starts_where_it_ended(head: Any, tiny: dict[str, Path], tmp_path: Path) -> None:
    first = run(tiny["bert"], tmp_path / "first", 10 * BASE + 2005, task={"head": head})
    again = run(first.output_dir / "model", tmp_path / "again", 3 * BASE + 1990, max_steps=1, learning_rate=1e-12)
    assert np.abs(predicted(again.output_dir) - predicted(first.output_dir)).max() < 1e-2
    with refused("task.mean"):
        load_predictor(first.output_dir, settings={"mean": 3.0})


def test_continued_training_with_other_units(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tiny["bert"], tmp_path / "first", 10 * BASE + 2005)
    again = run(first.output_dir / "model", tmp_path / "again", BASE + 3, max_steps=1, learning_rate=1e-12)
    assert "other units" in capsys.readouterr().err
    before, after = Regression.model_validate(settings_of(first)), Regression.model_validate(settings_of(again))
    standardized = (predicted(first.output_dir) - before.mean) / before.scale
    assert np.abs((predicted(again.output_dir) - after.mean) / after.scale - standardized).max() < 1e-3


def test_continued_training_keeps_a_large_offset(tiny: dict[str, Path], tmp_path: Path) -> None:
    first = run(tiny["bert"], tmp_path / "first", 100 * BASE + 1.7e9)
    again = run(first.output_dir / "model", tmp_path / "again", 100 * BASE + 1.7e9, max_steps=1, learning_rate=1e-12)
    assert np.abs(predicted(again.output_dir) - predicted(first.output_dir)).max() < 0.1


def test_bf16_predictions_near_2000_have_no_steps(tiny: dict[str, Path], tmp_path: Path) -> None:
    values = 10 * BASE + 2005
    done = run(tiny["bert"], tmp_path, values, precision="bf16", max_steps=24)
    half, whole = predicted(load_predictor(done.output_dir, precision="bf16")), predicted(done.output_dir)
    assert len(set(half)) == len(TEXTS)
    assert np.abs(half - whole).max() < 0.1 * values.std()
    loaded = load_predictor(done.output_dir).model
    inputs = AutoTokenizer.from_pretrained(done.output_dir / "model")(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = loaded(**inputs).logits
    assert logits.dtype == torch.float32
    assert np.abs(logits[:, 0].numpy() - whole).max() < 0.1 * values.std(), "and so are a loaded model's own logits"


@pytest.mark.parametrize("family", [*FAMILIES, "t5", "bart"])
def test_folding_keeps_the_output(family: str) -> None:
    small = {"d_model": 16, "num_labels": 1, "vocab_size": 50}
    torch.manual_seed(0)
    if family == "t5":
        config = T5Config(**small, d_kv=8, d_ff=16, num_layers=1, num_heads=2, eos_token_id=1, decoder_start_token_id=0)
        model = AutoModelForSequenceClassification.from_config(config)
    elif family == "bart":
        layers = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        config = BartConfig(**small, **layers, eos_token_id=1)
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        config = tiny_classifier(family).config
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config)
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 9, 1], [2, 5, 6, 4, 1]])}
    layer = RegressionOutput.replace(model.eval())
    assert layer is not None
    layer.mean, layer.scale = 2005.0, 10.0
    with torch.inference_mode():
        before = model(**inputs).logits
        fold_outputs(model)
        after = model(**inputs).logits
        with standardized_outputs(model):
            again = model(**inputs).logits
    assert torch.allclose(after.double(), before.double() * 10 + 2005, atol=1e-3)
    assert torch.allclose(again, before, atol=1e-5)
    assert not torch.allclose(before[0], before[1], atol=1e-8)


def test_targets_and_metrics_are_float64(tiny: dict[str, Path]) -> None:
    rows = from_columns({"text": TEXTS[:4], "score": ["2000000001", 2000000002, "2000000004.5", "2000000003"]}, "rows")
    checkpoint = opened(tiny["bert"])
    task: Any = task_from({"name": "regression", "label": "score"}).fit(rows, Problems())
    assert "128 apart" in "".join(task.report(rows)), "what plain transformers cannot tell apart is said"
    task = task.prepare(checkpoint, rows)
    targets = task.encode_targets(rows.columns["score"])
    assert targets.tolist() == [2000000001.0, 2000000002.0, 2000000004.5, 2000000003.0]
    assert (task.mean, task.scale) == (targets.mean(), pytest.approx(targets.std()))
    standard = ((targets - targets.mean()) / targets.std()).astype(np.float32)
    outputs: Any = type("Outputs", (), {"logits": torch.from_numpy(standard)[:, None]})
    assert task.loss(outputs, {"labels": torch.from_numpy(targets)})["squared_error"] == pytest.approx(0, abs=1e-10)
    assert np.abs(task.predict(outputs)["prediction"] - targets).max() < 1e-6
    assert task_from(task.document()) == task


def test_mean_and_scale_are_measured_or_set(tiny: dict[str, Path], tmp_path: Path) -> None:
    done = run(tiny["bert"], tmp_path / "a", 10 * BASE + 2005, max_steps=1)
    record: Any = read_record(done.output_dir / "model")
    values = (10 * BASE + 2005)[:48]
    assert record["settings"]["mean"] == pytest.approx(values.mean())
    assert record["settings"]["scale"] == pytest.approx(values.std())
    again = fine_tune(done.output_dir / "config.yaml", output_dir=str(tmp_path / "again"))
    assert again.metrics == done.metrics, "the resolved settings repeat the run"
    asked = run(tiny["bert"], tmp_path / "b", BASE, task={"mean": 0, "scale": 2}, max_steps=1)
    settings: Any = read_record(asked.output_dir / "model")
    assert {name: settings["settings"][name] for name in ("mean", "scale")} == {"mean": 0.0, "scale": 2.0}


@pytest.mark.parametrize("factor", [1e-31, 1e37])
def test_extreme_deviation_is_refused(factor: float, tiny: dict[str, Path], tmp_path: Path) -> None:
    with refused("train, column 'score': the standard deviation is", "allowed: 1e-30 to 1e+30"):
        run(tiny["bert"], tmp_path, factor * BASE)


def test_head_without_bias_is_refused(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from nlp_transfer.tasks.common.text_task import TextTask

    checkpoint = opened(tiny["bert"])
    rows = builders.rows(cells(BASE + 7))
    task: Any = task_from({"name": "regression", "label": "score"}).prepare(checkpoint, rows)
    model: Any = task.build_model(checkpoint, TrainingConfig())
    model.classifier.bias = None
    monkeypatch.setattr(TextTask, "build_model", lambda *_: model)
    with refused("has no bias,", "allowed: a head with a bias, such as {pooling: mean}"):
        task.build_model(checkpoint, TrainingConfig())


def test_probe_distinguishes_models_of_small_numbers(tiny: dict[str, Path], tmp_path: Path) -> None:
    done = run(tiny["bert"], tmp_path, 1e-6 * BASE)
    folder = done.output_dir / "model"
    probe = (read_record(folder) or {})["probe"]
    model = load_predictor(folder).model
    check_probe(model, probe, folder)
    with torch.no_grad():
        model.classifier.bias += 1e-7
    with refused("does not give the logits recorded"):
        check_probe(model, probe, folder)


def test_foreign_regression_predicts_its_logits(tiny: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny["bert"], num_labels=1, problem_type="regression")
    with torch.no_grad():
        model.classifier.bias.fill_(1995.0)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path)
    assert np.abs(predicted(tmp_path) - plainly(tmp_path)).max() < 1e-3


def test_scoring_a_loaded_model_gives_standardized_losses(tiny: dict[str, Path], tmp_path: Path) -> None:
    values = 10 * BASE + 2005
    done = run(tiny["bert"], tmp_path, values)
    predictor = load_predictor(done.output_dir)
    table = predictor.encode(builders.rows(cells(values)), targets=True)
    metrics, _ = score(predictor.model, predictor.task, table, make_accelerator(TrainingConfig(), "fp32"))
    assert metrics["loss"] == pytest.approx(metrics["mse"] / values[:48].std() ** 2)


def test_predictions_keep_significant_digits() -> None:
    task = Regression(mean=1.7e9, scale=60.0)
    outputs = SimpleNamespace(logits=torch.tensor([[0.5], [-1.25], [1 / 3]]))
    assert task.describe(task.predict(outputs))["prediction"] == [1.7e9 + 30, 1.7e9 - 75, 1700000020.0]
    small = Regression(mean=0.0, scale=1e-4).describe({"prediction": np.array([1e-4 / 3])})
    assert small["prediction"] == [3.333333e-05]


def test_broken_record_of_a_regression_is_reported(tiny: dict[str, Path], tmp_path: Path) -> None:
    first = run(tiny["bert"], tmp_path / "first", 10 * BASE + 2005, max_steps=1).output_dir / "model"
    record = json.loads((first / "nlp_transfer.json").read_text())
    (first / "nlp_transfer.json").write_text(json.dumps(record | {"settings": record["settings"] | {"mean": "x"}}))
    with refused("nlp_transfer.json", "mean"):
        run(first, tmp_path / "again", BASE)
