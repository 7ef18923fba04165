"""Training without a YAML file: columns, task, model and folder are found, asked for, or named in a message."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from nlp_transfer.cli import cli
from nlp_transfer.commands.completion import complete
from nlp_transfer.commands.file_argument import is_document
from tests.builders import refused, sentiment_rows, write

ROWS = sentiment_rows(40)


def command(*arguments: object) -> None:
    cli([str(argument) for argument in arguments], standalone_mode=False)


def table(folder: Path, header: tuple[str, ...], *cells: Any, name: str = "reviews.csv") -> str:
    """A table of five rows or as many as there are in the longest column; a cell that is no list stands in every row."""
    rows = max([5, *(len(column) for column in cells if isinstance(column, list))])
    columns = [column if isinstance(column, list) else [column] * rows for column in cells]
    return str(write(folder / name, list(zip(*columns, strict=True)), header))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (("text", "label"), {"text": "text", "label": "label"}),
        (("id", "Review", "SENTIMENT"), {"text": "Review", "label": "SENTIMENT"}),
        (("sentence1", "sentence2", "label"), {"text": "sentence1", "text_pair": "sentence2", "label": "label"}),
        (("hypothesis", "premise", "class"), {"text": "premise", "text_pair": "hypothesis", "label": "class"}),
        (("comment", "text", "label", "score"), {"text": "text", "label": "label"}),
        (("title", "body", "category"), {"text": "body", "label": "category"}),
    ],
)
def test_columns_are_found_by_their_usual_names(header: tuple[str, ...], expected: dict[str, str], tmp_path: Path) -> None:
    source = table(tmp_path, header, *["word"] * len(header))
    document, notes = complete({"data": {"train": source}, "output_dir": "x"})
    assert document["task"] == expected | {"name": "text_classification"}
    assert all(column in " ".join(notes) for column in expected.values())
    assert document["model"] in " ".join(notes)


@pytest.mark.parametrize("header", [("en", "de"), ("en", "de", "id"), ("Source", "Target"), ("src", "tgt", "score")])
def test_two_languages_are_a_translation(header: tuple[str, ...], tmp_path: Path) -> None:
    source = table(tmp_path, header, *["word"] * len(header))
    if "score" in header:  # a label and two texts: which of them is learned cannot be told
        with refused("--task.text"):
            complete({"model": "m", "data": {"train": source}})
        return
    document, _ = complete({"model": "m", "data": {"train": source}})
    assert document["task"] == {"name": "translation", "source": header[0], "target": header[1]}
    with refused("model: is required"):  # no default: it depends on the languages
        complete({"data": {"train": source}})


def test_unclear_columns_are_listed_with_the_flags_to_add(tmp_path: Path) -> None:
    source = table(tmp_path, ("id", "beschreibung", "kategorie"), 7, "ein Film", "gut")
    with refused("id", "'7'", "beschreibung", "'ein Film'", "kategorie", "'gut'", "--task.text", "--task.label"):
        complete({"data": {"train": source}})
    two = table(tmp_path, ("review", "comment", "label"), "a", "b", "c", name="two.csv")
    with refused("--task.text") as error:
        complete({"data": {"train": two}})
    assert "--task.label" not in str(error.value)
    document, _ = complete({"data": {"train": two}, "task": {"text": "comment"}})
    assert document["task"] == {"name": "text_classification", "text": "comment", "label": "label"}


def test_a_person_is_asked_where_there_is_one(tmp_path: Path) -> None:
    source = table(tmp_path, ("id", "beschreibung", "kategorie"), 7, "ein Film", "gut")
    asked = []

    def ask(question: str, choices: Any) -> str:
        asked.append(list(choices))
        return ["beschreibung", "kategorie"][len(asked) - 1]

    document, _ = complete({"data": {"train": source}}, ask)
    assert document["task"] == {"text": "beschreibung", "label": "kategorie", "name": "text_classification"}
    assert asked == [["id", "beschreibung", "kategorie"]] * 2


@pytest.mark.parametrize(
    ("cells", "sure"),
    [
        ([1, 2, 3, 4, 5] * 8, True),
        ([i / 7 for i in range(40)], False),
        (list(range(40)), False),
        ([f"c{i % 15}" for i in range(40)], True),
    ],
)
def test_many_different_numbers_are_no_classes_unless_said_so(cells: list[Any], sure: bool, tmp_path: Path) -> None:
    source = table(tmp_path, ("text", "score"), [text for text, _ in ROWS], cells)
    if sure:
        assert complete({"data": {"train": source}})[0]["task"]["name"] == "text_classification"
        return
    with refused("--task.name regression", "--task.name text_classification"):
        complete({"data": {"train": source}})
    for name in ("regression", "text_classification"):
        assert complete({"data": {"train": source}, "task": {"name": name}})[0]["task"]["label"] == "score"


def test_lists_of_labels_are_several_labels(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": text, "labels": [label]} for text, label in ROWS]))
    assert complete({"data": {"train": str(tmp_path / "a.json")}})[0]["task"] == {
        "text": "text", "label": "labels", "name": "multi_label",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", "", True), ("a", "", True), ("a.csv", "", False), ("a.CSV.gz", "", False), ("a.parquet", "", False),
        ("a.json", '{"model": "m"}', True), ("a.json", '{"data": {"train": "a.csv"}}', True), ("a.json", "[]", False),
        ("a.json", '{"data": [{"text": "a"}]}', False), ("a.json", '{"text": "a"}\n{"text": "b"}', False),
    ],
)  # fmt: skip
def test_files_of_settings_are_told_from_tables(name: str, content: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert is_document(str(tmp_path / name)) is expected


@pytest.mark.parametrize("form", ["table", "flags", "json settings"])
def test_a_run_without_a_yaml_file(
    form: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reviews.csv", [(i, *row) for i, row in enumerate(ROWS)], ("id", "Review", "label"))
    flags = ["--model", tiny["bert"], "--training.max_steps", 1]
    if form == "table":
        command("train", *flags, "reviews.csv")
    elif form == "flags":
        command("train", *flags, "--data.train", "reviews.csv", "--task.text", "Review", "--task.label=label")
    else:
        document = {"data": {"train": "reviews.csv"}, "task": {"name": "text_classification", "text": "Review"}}
        (tmp_path / "run.json").write_text(json.dumps(document))
        command("train", "run.json", *flags, "--output_dir", "runs/reviews")
    config = yaml.safe_load((tmp_path / "runs/reviews/config.yaml").read_text())
    assert (config["task"]["name"], config["task"]["text"], config["task"]["label"]) == ("text_classification", "Review", "label")
    assert Path(config["data"]["train"]).name == "reviews.csv"
    if form == "table":
        assert "not used: id" in " ".join(capsys.readouterr().err.split())
        with refused("finished run"):
            command("train", "reviews.csv", *flags)


def test_train_without_anything_shows_its_help() -> None:
    with pytest.raises(click.exceptions.NoArgsIsHelpError) as caught:
        command("train")
    shown = caught.value.format_message()
    assert shown.count("nlp-transfer train ") >= 3
    with refused("b.csv", "one FILE"):
        command("train", "a.csv", "b.csv")
    with refused("nope.csv: there is no such file"):
        command("train", "nope.csv")


def numbers(form: str, different: int, rows: int = 300) -> list[str]:
    return [form.format(i * different // rows) for i in range(rows)]


@pytest.mark.parametrize(
    ("cells", "facts"),
    [
        (numbers("{}", 24, 2400), ("24 different numbers", "2,400 rows", "regression", "text_classification")),  # sorted
        ([*numbers("{}", 50), "n/a"], ("50 different numbers", "'n/a'", "regression", "on_bad_rows")),
        (numbers("3,{:02}", 50), ("50 different numbers", "3,00", "decimal comma", "3.7")),
        (numbers("$3,7{:02}", 50), ("50 different numbers", "currency")),
        (numbers("{} %", 50), ("50 different numbers", "percent")),
        (numbers("2024-01-{:02}", 28), ("28 different numbers", "2024-01-00")),
        (numbers("u{}", 300), ("300 different labels", "300 rows", "--task.label", "text_classification")),
        (numbers("user {}", 150), ("150 different labels", "--task.label")),
    ],
    ids=["sorted", "n/a", "decimal comma", "currency", "percent", "dates", "ids", "two rows each"],
)
def test_all_rows_decide_whether_labels_are_asked_about(cells: list[str], facts: tuple[str, ...], tmp_path: Path) -> None:
    source = table(tmp_path, ("text", "label"), "a film", cells)
    with refused(*facts):
        complete({"data": {"train": source}})
    asked: list[str] = []
    task = complete({"data": {"train": source}}, lambda question, choices: asked.append(question) or choices[-1])[0]["task"]
    assert (task["name"], len(asked)) == ("text_classification", 1)
    settings = {"data": {"train": source}, "task": {"name": "text_classification"}}
    assert complete(settings)[0]["task"]["label"] == "label"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (numbers("{}", 5), "text_classification"),
        (numbers("topic {}", 30), "text_classification"),
        (numbers("20{:02}", 15), "text_classification"),
        (["['a', 'b']", "['a']"] * 150, "multi_label"),
        ([f"['a', '{i}']" for i in range(40)], "multi_label"),
        (["1" * 5000, "2" * 5000] * 5, "text_classification"),
    ],
)
def test_labels_that_are_clear_are_not_asked_about(cells: list[str], expected: str, tmp_path: Path) -> None:
    source = table(tmp_path, ("text", "label"), "a film", cells)
    assert complete({"data": {"train": source}})[0]["task"]["name"] == expected


def test_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    for header, expected in ((("text", "Text", "label"), "text"), (("Text", "text", "LABEL"), "text")):
        source = table(tmp_path, header, *["word"] * 3)
        assert complete({"data": {"train": source}})[0]["task"]["text"] == expected
    source = table(tmp_path, ("Text", "TEXT", "label"), *["word"] * 3)
    with refused("'Text' and 'TEXT'", "--task.text"):
        complete({"data": {"train": source}})
    assert complete({"data": {"train": source}, "task": {"text": "TEXT"}})[0]["task"]["text"] == "TEXT"


@pytest.mark.parametrize(
    ("task", "facts"),
    [
        ({"name": 5}, ("task.name", "5", "text_classification")),
        ({"labl": "label"}, ("task.labl", "'label'")),
        ({"text": "nope", "epochs": 3}, ("task.epochs", "training.epochs")),
    ],
)
def test_settings_are_checked_before_columns_are_asked_for(task: Any, facts: tuple[str, ...], tmp_path: Path) -> None:
    source = table(tmp_path, ("a", "b"), "word", "x")
    with refused(*facts) as error:
        complete({"data": {"train": source}, "task": task})
    assert "cannot tell from the column names" not in str(error.value)


def test_a_missing_name_and_lists_of_label_columns(tmp_path: Path) -> None:
    source = table(tmp_path, ("text", "toxic", "insult", "label"), "word", "0", "1", "x")
    assert complete({"data": {"train": source}, "task": {"name": None}})[0]["task"]["name"] == "text_classification"
    task = complete({"data": {"train": source}, "task": {"label": ["toxic", "insult"]}})[0]["task"]
    assert task == {"text": "text", "label": ["toxic", "insult"], "name": "multi_label"}
    complete({"data": {"train": source}, "task": {"label": {"a": 1}}})  # the schema says what is wrong


def test_broken_rows_can_be_skipped_without_a_file_of_settings(tmp_path: Path) -> None:
    source = table(tmp_path, ("text", "label"), "word", "x")
    Path(source).write_text(Path(source).read_text() + "a,b,c,d\n")
    with refused("found 4 cells"):
        complete({"data": {"train": source}})
    task = complete({"data": {"train": source, "on_bad_rows": "skip"}})[0]["task"]
    assert (task["text"], task["label"]) == ("text", "label")


def test_texts_without_labels_beside_named_labels(tmp_path: Path) -> None:
    source = table(tmp_path, ("text",), "word")
    for document in ({"task": {"labels": ["a", "b"]}}, {"strategy": {"name": "zero_shot", "labels": {"a": "b"}}}):
        with refused("data.unlabelled", "nlp-transfer predict", "--task.label"):
            complete({"data": {"train": source}, **document})


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("a.xlsx", (".xlsx", ".yaml", ".csv")), ("a.csv.zip", (".zip", ".csv")), ("a.tab", (".tab", ".tsv", "settings")),
        ("a.ndjson", (".ndjson", ".jsonl", "settings")), ("a.dat", (".dat", ".csv", "settings")),
    ],
)  # fmt: skip
def test_a_file_that_is_neither_settings_nor_a_table(name: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(
        '{"text": "a: b", "label": "x"}\n{"text": "b"}\n' if "json" in name else "text\tlabel\na: b\tc: d\n"
    )
    with refused(name, *facts):
        command("train", tmp_path / name)


def test_compare_takes_flags_alone(tmp_path: Path) -> None:
    source = table(tmp_path, ("a", "b"), "word", "x")
    for arguments in (["--data.train", source, "--strategies", "full"], ["--strategies", "full", "--data.train", source]):
        with refused("--task.text COLUMN --task.label COLUMN"):
            command("compare", *arguments)


def test_predict_refuses_the_name_of_a_file_as_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "un.csv").write_text("text\na\n")
    for text in ("un.csv", "missing.csv", str(tmp_path / "un.csv")):
        with refused(f"--input {text}"):
            command("predict", "runs/none", text)
    with refused("no folder", "none"):
        command("predict", "runs/none", "A good film. See un.csv")
