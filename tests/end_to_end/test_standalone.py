"""The program in an export predicts without torch what the trained model predicts; a program that would not is left out."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer import load_predictor
from nlp_transfer.export.exporter import export_model
from nlp_transfer.export.script_check import is_close
from tests.builders import run, sentiment_rows, write
from tests.helpers.entities import sentences
from tests.helpers.questions import QA, questions

WORDS = {"name": "token_classification", "max_length": 16}
TRAINING = {"max_steps": 30, "learning_rate": 1e-2, "batch_size": 16}
PUNCTUATED = ["good-bad, great!", "a dull 🙂 film\n\nand a good river " * 9, "好 great", "x"]


def exported(model: Path, rows: list[dict[str, Any]], task: dict[str, Any], folder: Path, **settings: Any) -> tuple[Any, Any]:
    """Return the trained predictor and the function of the program in an export."""
    table = write(folder / "train.jsonl", rows)
    data = {"train": table, "validation": table}
    done = run(model=model, data=data, task=task, training=TRAINING, output_dir=folder / "run", **settings)
    folder = export_model(done.output_dir, "onnx").folder
    program = folder / "predict.py"
    return load_predictor(done.output_dir), runpy.run_path(str(program))["predict"] if program.is_file() else None


@pytest.mark.parametrize("column", ["tokens", "text"])
def test_entities_are_those_of_the_model(column: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    form = {"text": {"text": "text", "spans": "spans"}, "tokens": {}}[column]
    rows = sentences(40)
    long = [" ".join(row["text"] for row in rows[i : i + 6]) for i in range(3)]
    predictor, predict = exported(tiny["bert"], rows, WORDS | form, tmp_path)
    texts = [*long, *(PUNCTUATED if column == "text" else [["x"], ["good", "film"]])]
    found = [predict(text) for text in texts]
    assert is_close(found, [{"prediction": row["prediction"]} for row in predictor([{column: text} for text in texts])])
    assert sum(len(row["prediction"]) for row in found) > 10


def test_answers_are_those_of_the_model(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = questions(30)
    predictor, predict = exported(tiny["bert"], rows, QA, tmp_path)
    pairs = [(row["question"], row["context"]) for row in rows]
    pairs += [("good " * 40, rows[0]["context"]), (" a ", "🙂"), ("bad", "\u00e9 good " * 30)]
    found = [predict(pair) for pair in pairs]
    assert is_close(found, predictor(pairs))
    assert {row["prediction"] == "" for row in found} == {True, False}


def test_program_that_would_differ_is_left_out(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"a {word} film", "score": score} for word, score in (("good", 4), ("bad", 1))] * 20
    task = {"name": "tests.helpers.custom_tasks:Stars", "label": "score"}
    _, predict = exported(tiny["bert"], rows, task, tmp_path)
    assert predict is None
    assert "predict.py" in capsys.readouterr().err
    assert json.loads(next(tmp_path.rglob("export.json")).read_text())["same_predictions"] == 1


def test_model_that_its_task_builds_is_exported(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in sentiment_rows(40)]
    predictor, predict = exported(tiny["bert"], rows, {"name": "tests.helpers.custom_tasks:OwnModule"}, tmp_path)
    texts = [row["text"] for row in rows]
    found = [predict(text) for text in texts]
    assert is_close(found, [predictor(text) for text in texts]), "one by one, since this module also reads padding"
    assert {row["prediction"] for row in found} == {"negative", "positive"}
