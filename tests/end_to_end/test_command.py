"""The whole job through the command's own code: train, evaluate, predict, again, and in every format."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from nlp_transfer import load_predictor
from tests import builders
from tests.builders import command, document, printed, read_table, sentiment_rows, succeed, write
from tests.helpers.mistakes.case import listing

pytestmark = pytest.mark.process

NUMBERS = ("seconds", "steps", "examples", "tokens", "examples_per_second", "trainable_parameters", "total_parameters")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Path], sentiment: dict[str, Path]) -> Path:
    """A finished run of a model that has learned its task."""
    folder = tmp_path_factory.mktemp("run")
    plan = document(
        model=tiny["bert"],
        data=sentiment | {"validation_share": 0.1},
        task={"text": "text", "label": "label"},
        training={"epochs": 30, "batch_size": 16, "learning_rate": 5e-3, "warmup": 5},
        output_dir=folder / "first",
    )
    succeed("train", write(folder / "run.yaml", plan))
    return folder / "first"


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_a_run_leaves_what_the_contract_says(run: Path) -> None:
    files = {"model", "result.json", "config.yaml", "log.jsonl", "predictions", "report.html", "data_facts.json"}
    assert {path.name for path in run.iterdir()} == files
    result = result_of(run)
    assert result["task"]["name"] == "text_classification"
    assert result["strategy"] == {"name": "full", "head_scale": 10.0}
    assert result["plain"] is True
    assert result["seed"] == 0
    assert result["metrics"]["test"]["accuracy"] >= 0.9, "a tiny model learns which words are good"
    assert {"accuracy", "f1_macro", "f1_micro", "f1_weighted", "mcc", "auc", "loss"} <= set(result["metrics"]["validation"])
    for name in NUMBERS:
        assert isinstance(result["train"][name], (int, float)), name
        assert result["train"][name] > 0, name
    assert result["train"]["peak_memory_bytes"] > 50e6
    assert result["versions"]["torch"].startswith("2.")
    lines = read_table(run / "log.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm"} <= set(steps[0])
    assert [line["step"] for line in steps] == sorted({line["step"] for line in steps})
    assert steps[-1]["loss"] < steps[0]["loss"]
    saved = json.loads((run / "model/nlp_transfer.json").read_text())
    assert saved["labels"] == ["negative", "positive"]
    assert saved["max_length"] == 64
    assert saved["metrics"] == result["metrics"]


def test_the_card_can_be_read_by_the_hub(run: Path) -> None:
    card = ModelCard.load(run / "model/README.md")
    results = {entry.metric_type: entry.metric_value for entry in card.data.eval_results}
    assert results["accuracy"] == pytest.approx(result_of(run)["metrics"]["test"]["accuracy"], abs=1e-6)
    assert card.data.pipeline_tag == "text-classification"
    assert "pipeline(" in card.text
    assert str(run.parent) not in card.content


def test_the_same_command_again_is_refused_and_touches_nothing(run: Path) -> None:
    before = listing(run)
    status, _, said = command("train", run.parent / "run.yaml")
    assert (status, "finished run" in said) == (2, True)
    assert listing(run) == before


def test_the_resolved_config_repeats_the_run(run: Path) -> None:
    again = run.parent / "again"
    succeed("train", run / "config.yaml", "--output_dir", again)
    assert result_of(again)["metrics"] == result_of(run)["metrics"]
    first, second = (load_file(folder / "model/model.safetensors") for folder in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_resolved_config_refuses_changed_data(run: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((run / "config.yaml").read_text())
    path = document["data"]["test"]
    document["provenance"]["files"][path] = "0" * 64
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    status, _, said = command("train", tmp_path / "config.yaml", "--output_dir", tmp_path / "run")
    assert (status, "is not the file that this document was resolved with" in said) == (2, True)
    assert not (tmp_path / "run").exists()


def test_evaluate_gives_the_figures_of_the_run(run: Path, sentiment: dict[str, Path]) -> None:
    found = printed("evaluate", run, "--data.test", sentiment["test"], "--output", run.parent / "figures.json")
    expected = result_of(run)["metrics"]["test"]
    assert found == json.loads((run.parent / "figures.json").read_text())
    assert found["rows"] == 40
    for name in ("accuracy", "f1_macro", "mcc", "auc"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_predict_keeps_rows_and_columns_in_every_format(run: Path, tmp_path: Path, ending: str) -> None:
    rows = [(f"n{i}", text, label) for i, (text, label) in enumerate(sentiment_rows(70, seed=5))]
    source, output = write(tmp_path / f"in{ending}", rows, ("id", "text", "gold")), tmp_path / f"out{ending}"
    succeed("predict", run / "model", "--input", source, "--output", output, "--probabilities", "--precision", "fp32")
    found = read_table(output)
    assert list(found[0]) == ["id", "text", "gold", "prediction", "probability", "probability:negative", "probability:positive"]
    assert [(row["id"], row["text"], row["gold"]) for row in found] == rows
    assert sum(row["prediction"] == row["gold"] for row in found) >= 60
    direct = load_predictor(run)([row[1] for row in rows])
    for row, answer in zip(found, direct, strict=True):
        assert row["prediction"] == answer["prediction"]
        assert float(row["probability"]) == pytest.approx(answer["probability"], abs=1e-6)
        assert float(row[f"probability:{row['prediction']}"]) == pytest.approx(float(row["probability"]), abs=1e-9)


def test_predict_plain_text_over_several_windows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlp_transfer.inference.predictor.CHUNK_ROWS", 16)
    texts = [text for text, _ in sentiment_rows(50, seed=9)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    succeed("predict", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--precision", "fp32")
    assert (tmp_path / "out.txt").read_text().splitlines() == [row["prediction"] for row in load_predictor(run)(texts)]


def test_python_takes_frames_datasets_and_folders(tiny: dict[str, Path], tmp_path: Path) -> None:
    import pandas as pd

    rows = sentiment_rows(60)
    frame = pd.DataFrame(rows[:40], columns=["text", "label"])
    for text, label in rows[40:]:
        folder = tmp_path / "classes" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{hashlib.md5(text.encode()).hexdigest()}.txt").write_text(text)
    held_out = Dataset.from_pandas(frame.iloc[:8])
    done = builders.run(
        model=tiny["bert"],
        data={"train": frame, "validation": held_out, "test": tmp_path / "classes"},
        strategy=["lora"],
        training={"max_steps": 3},
        output_dir=tmp_path / "run",
    )
    assert done.metrics.keys() == {"validation", "test"}
    assert (done.output_dir / "adapter/adapter_model.safetensors").is_file()
    assert {answer["prediction"] for answer in done.predictor()(["a good film", "an awful plot"])} <= {"negative", "positive"}


@pytest.mark.parametrize(
    ("task", "label", "metric", "kind"), [("regression", "score", "mse", float), ("multi_label", "tags", "f1_macro", list)]
)
def test_pairs_of_texts(task: str, label: str, metric: str, kind: type, tiny: dict[str, Path], tmp_path: Path) -> None:
    columns = builders.columns(48, "text", "other", label)
    source, output = write(tmp_path / "pairs.csv", columns), tmp_path / "out.csv"
    done = builders.run(
        model=tiny["bert"],
        data={"train": source, "test": source},
        task={"name": task, "text_pair": "other", "label": label},
        training={"max_steps": 3},
        output_dir=tmp_path / "run",
    )
    assert metric in done.metrics["test"]
    succeed("predict", done.output_dir, "--input", source, "--output", output)
    assert [row["text"] for row in read_table(output)] == columns["text"]
    pair = (columns["text"][0], columns["other"][0])
    assert all(isinstance(row["prediction"], kind) for row in done.predictor()([pair]))
