"""Label types and several labels a row through the real commands, from each format to each format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.cli import cli
from tests.builders import sentiment_rows

pytestmark = pytest.mark.process

ROWS = sentiment_rows(64)
LABELS = [label == "positive" for _, label in ROWS]
TRAINING = {"max_steps": 40, "learning_rate": 0.01}


def command(*arguments: object) -> None:
    cli([str(argument) for argument in arguments], standalone_mode=False)


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False)


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", [int, float, bool, str])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_predictions_have_the_type_of_the_labels_in_every_format(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any, ending: str
) -> None:
    """A model that was trained on one format predicts and scores the others; predictions equal the labels."""
    labels = ["pos" if label else "neg" for label in LABELS] if kind is str else [kind(label) for label in LABELS]
    table = pd.DataFrame({"text": [text for text, _ in ROWS], "label": labels})
    run = fine_tune(
        model=str(tiny["bert"]), data={"train": str(write(table, tmp_path / f"train{ending}")), "validation_share": 0},
        task="text_classification", training=TRAINING, output_dir=tmp_path / "run",
    )  # fmt: skip
    expected = [prediction["prediction"] for prediction in load_predictor(run.output_dir)(table)]
    # A CSV file has no types: floats without a fraction are whole numbers there, which compare equal.
    assert {type(value) for value in expected} == {int if (kind, ending) == (float, ".csv") else kind}
    accuracy = np.mean(np.array(expected) == np.array(labels))
    assert accuracy > 0.7
    for other in (".csv", ".jsonl", ".parquet"):
        source, output = write(table, tmp_path / f"in{other}"), tmp_path / f"out{other}"
        command("predict", run.output_dir, "--input", source, "--output", output)
        assert read(output)["prediction"].tolist() == expected
        capsys.readouterr()
        command("evaluate", run.output_dir, "--data.test", source)
        assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(accuracy)
        command("evaluate", run.output_dir, "--data.test", output, "--task.label", "prediction")
        assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0, "its own predictions are all right"


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_columns_of_zeros_and_ones_through_the_commands(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    columns = {"good": [int(label) for label in LABELS], "third": [int(i % 3 == 0) for i in range(len(ROWS))]}
    table = pd.DataFrame({"text": [text for text, _ in ROWS], **columns})
    train = write(table, tmp_path / f"train{ending}")
    run = fine_tune(
        model=str(tiny["bert"]), data={"train": str(train), "validation_share": 0}, training=TRAINING,
        task={"name": "multi_label", "label": ["good", "third"]}, output_dir=tmp_path / "run",
    )  # fmt: skip
    record = json.loads((run.output_dir / "model/nlp_transfer.json").read_text())
    assert (record["labels"], record["columns"]["targets"]) == (["good", "third"], ["good", "third"])
    predictions = load_predictor(run.output_dir)(table)
    hot = np.array([[name in prediction["prediction"] for name in columns] for prediction in predictions])
    command("evaluate", run.output_dir, "--data.test", train)
    scored = json.loads(capsys.readouterr().out)
    assert scored["accuracy"] == pytest.approx(np.mean((hot == table[["good", "third"]].to_numpy(bool)).all(1)))
    command("predict", run.output_dir, "--input", train, "--output", tmp_path / "out.csv")
    joined = read(tmp_path / "out.csv")["prediction"].tolist()
    assert joined == ["|".join(prediction["prediction"]) for prediction in predictions]
    capsys.readouterr()
    command("evaluate", run.output_dir, "--data.test", tmp_path / "out.csv", "--task.label", "prediction")
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
