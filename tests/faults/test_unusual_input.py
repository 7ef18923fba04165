"""Unusual input that is no mistake, and the valid runs that the cases of mistakes change: they train."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import exit_status, sentiment_rows
from tests.helpers.mistakes import strategies, translation
from tests.helpers.mistakes.case import JSONL, prepare, row

pytestmark = pytest.mark.process

HUGE = "word " * 60_000


@pytest.fixture
def train(folder: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Take one step on a valid run with changed settings; the labels of the model and the messages."""

    def run(settings: dict[str, Any], files: dict[str, Any] | None = None) -> tuple[list[str], str]:
        prepare({"training.max_steps": 1} | settings, files)
        assert exit_status("train", "run.yaml") == 0, capfd.readouterr().err
        return json.loads(Path("run/model/nlp_transfer.json").read_text())["labels"], capfd.readouterr().err

    return run


def test_marks_line_ends_spaces_and_a_huge_cell(train: Any) -> None:
    """A byte order mark, line ends of Windows, labels with spaces around them, a huge cell."""
    content = row(3, f"{HUGE},positive \n").replace("\n", "\r\n")
    assert train({}, {"train.csv": b"\xef\xbb\xbf" + content.encode()})[0] == ["negative", "positive"]


def test_numbers_as_labels_train(train: Any) -> None:
    """JSON numbers are labels; in the schema of a YAML file as well."""
    settings = {"data.train": "train.jsonl", "task.labels": [0, 1], "training.class_weights": {0: 1, 1: 2}}
    assert train(settings, {"train.jsonl": JSONL.replace('"negative"', "0").replace('"positive"', "1")})[0] == ["0", "1"]


def test_lines_of_text_are_unlabeled_rows(train: Any) -> None:
    """A .txt file has no header: its first line is a row."""
    lines = "text\n" + "".join(f"{text}\n" for text, _ in sentiment_rows(40, 3)[20:])
    settings = {**strategies.chosen("self_training", rounds=1), "data.unlabelled": "u.txt"}
    assert "unlabelled: 21 rows" in train(settings, {"u.txt": lines})[1]


def test_more_shots_than_rows_use_all_rows(train: Any) -> None:
    said = train({"data.shots": 1000})[1]
    assert "12 of 12 rows kept, 1000 of each label (drawn with seed 0); 2 labels have fewer" in said


def test_translation_trains_and_translates(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare({}, valid=translation.VALID)
    assert exit_status("train", "run.yaml") == 0, capfd.readouterr().err
    assert exit_status(*translation.translate(model="run")) == 0, capfd.readouterr().err
    assert len(Path("answers.txt").read_text().splitlines()) == 1
