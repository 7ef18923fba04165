"""Label types and several labels a row through the real commands, from each format to each format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nlp_transfer import load_predictor
from tests.builders import printed, read_table, run, sentiment_rows, succeed, write

pytestmark = pytest.mark.process

ROWS = sentiment_rows(64)
LABELS = [label == "positive" for _, label in ROWS]
TRAINING = {"max_steps": 40, "learning_rate": 0.01}


def evaluated(done: Any, source: Path, *flags: str) -> float:
    """The accuracy that `evaluate` prints."""
    return float(printed("evaluate", done.output_dir, "--data.test", source, *flags)["accuracy"])


@pytest.mark.parametrize("kind", [int, float, bool, str])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_predictions_have_the_type_of_the_labels_in_every_format(
    tiny: dict[str, Path], tmp_path: Path, kind: Any, ending: str
) -> None:
    """A model that was trained on one format predicts and scores the others; predictions equal the labels."""
    labels = ["pos" if label else "neg" for label in LABELS] if kind is str else [kind(label) for label in LABELS]
    table = {"text": [text for text, _ in ROWS], "label": labels}
    done = run(
        model=tiny["bert"], data={"train": write(tmp_path / f"train{ending}", table)}, training=TRAINING,
        output_dir=tmp_path / "run",
    )  # fmt: skip
    expected = [prediction["prediction"] for prediction in load_predictor(done.output_dir)(table["text"])]
    # A CSV file has no types: floats without a fraction are whole numbers there, which compare equal.
    assert {type(value) for value in expected} == {int if (kind, ending) == (float, ".csv") else kind}
    accuracy = np.mean(np.array(expected) == np.array(labels))
    assert accuracy > 0.7
    for other in (".csv", ".jsonl", ".parquet"):
        source, output = write(tmp_path / f"in{other}", table), tmp_path / f"out{other}"
        succeed("predict", done.output_dir, "--input", source, "--output", output)
        written = [row["prediction"] for row in read_table(output)]
        assert written == (list(map(str, expected)) if other == ".csv" else expected)
        assert evaluated(done, source) == pytest.approx(accuracy)
        assert evaluated(done, output, "--task.label", "prediction") == 1.0, "its own predictions are all right"


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_columns_of_zeros_and_ones_through_the_commands(tiny: dict[str, Path], tmp_path: Path, ending: str) -> None:
    columns = {"good": [int(label) for label in LABELS], "third": [int(i % 3 == 0) for i in range(len(ROWS))]}
    table = pd.DataFrame({"text": [text for text, _ in ROWS], **columns})
    train = write(tmp_path / f"train{ending}", table.to_dict("list"))
    done = run(
        model=tiny["bert"], data={"train": train}, training=TRAINING,
        task={"name": "multi_label", "label": ["good", "third"]}, output_dir=tmp_path / "run",
    )  # fmt: skip
    record = json.loads((done.output_dir / "model/nlp_transfer.json").read_text())
    assert (record["labels"], record["columns"]["targets"]) == (["good", "third"], ["good", "third"])
    predictions = load_predictor(done.output_dir)(table)
    hot = np.array([[name in prediction["prediction"] for name in columns] for prediction in predictions])
    assert evaluated(done, train) == pytest.approx(np.mean((hot == table[["good", "third"]].to_numpy(bool)).all(1)))
    succeed("predict", done.output_dir, "--input", train, "--output", tmp_path / "out.csv")
    joined = [row["prediction"] for row in read_table(tmp_path / "out.csv")]
    assert joined == ["|".join(prediction["prediction"]) for prediction in predictions]
    assert evaluated(done, tmp_path / "out.csv", "--task.label", "prediction") == 1.0
