"""`nlp-transfer init`: inspects a table and writes settings that `train` accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nlp_transfer.commands.init import commented_yaml
from nlp_transfer.run.document import read_document
from tests.builders import command, sentiment_rows, succeed, write


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.model
def test_train_accepts_the_settings_as_they_are(tiny: dict[str, Path]) -> None:
    write(Path("reviews.csv"), [(i, *row) for i, row in enumerate(sentiment_rows(240))], ("id", "Review", "stars"))
    _, shown = succeed("init", "reviews.csv", "--model", tiny["bert"], "--training.max_steps", 2, "--task.max_length", 16)
    assert "nlp-transfer train reviews.yaml" in shown
    document = read_document("reviews.yaml")
    assert document["task"] == {"name": "text_classification", "text": "Review", "label": "stars", "max_length": 16}
    assert document["data"]["test_share"] == 0.1
    text = Path("reviews.yaml").read_text()
    assert all(fact in text for fact in ("240 rows", "negative 50.0%"))
    lines = text.splitlines()
    settings = [i for i, line in enumerate(lines) if line.strip() and "#" not in line and not line.endswith(":")]
    assert len(settings) > 10
    assert all(lines[i - 1].lstrip().startswith("#") for i in settings)
    succeed("train", "reviews.yaml", "--quiet")
    used = read_document("runs/reviews/config.yaml")
    assert {name: used["task"][name] for name in document["task"]} == document["task"]


def test_an_existing_file_is_only_replaced_on_request() -> None:
    write(Path("a.csv"), sentiment_rows(8))
    Path("a.yaml").write_text("mine")
    for arguments, fact in ((["a.csv"], "--overwrite"), (["a.csv", "--output", "a.txt"], ".yaml"), (["none.csv"], "none.csv")):
        status, _, shown = command("init", *arguments)
        assert (status, fact in shown) == (2, True), shown
    assert Path("a.yaml").read_text() == "mine"
    assert not Path("none.yaml").exists()
    succeed("init", "a.csv", "--overwrite")
    assert read_document("a.yaml")["data"]["train"] == "a.csv"
    status, *_ = command("init", "a.csv", "--output", "b.yaml", "--training.epochs", "-1")
    assert (status, Path("b.yaml").exists()) == (2, False)


def test_separators_and_files_of_other_splits() -> None:
    rows = sentiment_rows(12)
    write(Path("train.csv"), "".join(f"{text};{label}\n" for text, label in [("text", "label"), *rows]))
    write(Path("test.csv"), "".join(f"{text};{label}\n" for text, label in [("text", "label"), *rows]))
    status, _, shown = command("init", "train.csv", "--output", "x.yml")
    assert (status, "--data.delimiter semicolon" in shown) == (2, True)
    succeed("init", "train.csv", "--output", "x.yml", "--data.delimiter", "semicolon")
    data = read_document("x.yml")["data"]
    assert (data["delimiter"], data["test"]) == ("semicolon", "test.csv")
    assert "test_share" not in data


@pytest.mark.parametrize(
    ("task", "columns", "bad"),
    [
        ("text_classification", ("text", "label"), [("", "good"), ("fine", "")]),
        ("regression", ("text", "label"), [("", "1.5"), ("fine", "high")]),
        ("translation", ("source", "target"), [("", "gut"), ("fine", "")]),
    ],
)
def test_rows_that_cannot_be_used_are_counted(task: str, columns: tuple[str, str], bad: list[tuple[str, str]]) -> None:
    good = [(f"text {i}", str(i) if task == "regression" else f"label {i % 2}") for i in range(30)]
    flags = ["--model", "m", "--task.name", task]
    for name, rows in (("clean", good), ("faulty", good + bad)):
        write(Path(f"{name}.csv"), rows, columns)
        _, shown = succeed("init", f"{name}.csv", *flags)
        assert ("2 of 32 rows of train" in shown) == (name == "faulty"), shown
        assert read_document(f"{name}.yaml")["data"].get("on_bad_rows") == ("skip" if name == "faulty" else None)
    assert "faulty.csv, row 32" in " ".join(Path("faulty.yaml").read_text().replace("#", "").split())
    succeed("init", "faulty.csv", *flags, "--data.on_bad_rows", "refuse", "--overwrite")
    assert read_document("faulty.yaml")["data"]["on_bad_rows"] == "refuse"
    write(Path("useless.csv"), [("", label) for _, label in good], columns)
    _, shown = succeed("init", "useless.csv", *flags)
    assert "warning" in shown
    assert "on_bad_rows" not in read_document("useless.yaml")["data"]


@pytest.mark.parametrize(
    "value", ["a\nb: c", "no", "010", "12:30", "# x", "{a: b}", "\x85evil: 1", ["a", "b,c"], {"x": [1]}, "é", None]
)
def test_values_and_comments_keep_their_content(value: Any) -> None:
    document = {"model": "m", "data": {"train": value}, "task": {"name": "regression", "label": value}, "output_dir": "o"}
    text = commented_yaml(document, {"data.train": f"it contains {value}", "task.label": "x\x85y: 1\u2028z: 2"}, "t")
    write(Path("x.yaml"), text)
    assert read_document("x.yaml") == document == yaml.safe_load(text)
