"""Bad rows: refused, or skipped, counted by kind and written down; pairs that a filter leaves out."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nlp_transfer.data.sources import file_reading
from nlp_transfer.data.splits import Splits, read_splits
from nlp_transfer.inference.model_evaluation import evaluate_model
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import UserError
from tests.builders import read_table, refused, run, sentiment_rows, stopped_at, write

pytestmark = pytest.mark.model

GOOD = [f"{text},{label}" for text, label in sentiment_rows(60)]
BAD = {3: ",positive", 11: "a good film,", 20: "too,many,cells", 21: "few", 30: "", 31: "", 40: "bad \udcff film,negative"}
KINDS = {
    3: "with an empty text", 11: "without a label", 20: "with too many or too few cells", 21: "with too many or too few cells",
    30: "on a blank line", 31: "on a blank line", 40: "with bytes that are not in the encoding",
}  # fmt: skip


def write_bad(path: Path, good: list[str] = GOOD, bad: dict[int, str] = BAD, header: str = "text,label\n") -> Path:
    """A table with lines of `bad` inserted so that each stands in the row it names."""
    lines = list(good)
    for row, line in sorted(bad.items()):
        lines.insert(row - 1 - bool(header), line)
    path.write_bytes((header + "\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return path


def split(data: dict[str, Any], **task: Any) -> Splits:
    return read_splits(DataConfig(**data), task_from({"name": "text_classification"} | task), TrainingConfig(), 0)[0]


def contents(splits: Splits) -> dict[str, dict[str, list[Any]]]:
    return {role: {name: list(cells) for name, cells in rows.columns.items()} for role, rows in splits.rows.items()}


def skipped(splits: Splits) -> dict[tuple[str, int], str]:
    return {(role, bad.row): bad.kind for role, bad in splits.skipped}


def test_skipped_rows_leave_the_splits_of_a_file_without_them(tmp_path: Path) -> None:
    shares = {"validation_share": 0.2, "test_share": 0.2}
    bad = split({"train": str(write_bad(tmp_path / "bad.csv")), "on_bad_rows": "skip"} | shares)
    good = split({"train": str(write_bad(tmp_path / "good.csv", bad={}))} | shares)
    assert contents(bad) == contents(good)
    assert skipped(bad) == {("train", row): kind for row, kind in KINDS.items()}
    assert bad.notes[0].startswith("train: 7 of 67 rows skipped: ")
    assert all(part in bad.notes[0] for part in ("2 on a blank line", "2 with too many or too few cells", "1 without a label"))
    position = {text: row for row, text in zip(bad.rows["train"].position, bad.rows["train"].columns["text"], strict=True)}
    lines = (tmp_path / "bad.csv").read_text(errors="replace").splitlines()
    assert all(lines[row - 1].startswith(text) for text, row in position.items()), "rows keep their place in the file"


@pytest.mark.parametrize("row", BAD)
def test_each_bad_row_is_refused_with_the_way_out(row: int, tmp_path: Path) -> None:
    source = write_bad(tmp_path / "bad.csv", bad={row: BAD[row]})
    with refused("data.on_bad_rows: skip") as error:
        split({"train": str(source)})
    assert re.search(rf"bad\.csv, row {row}\b", str(error.value))


def test_the_hint_stands_only_where_rows_are_bad() -> None:
    with pytest.raises(UserError) as error:
        split({"train": pd.DataFrame({"text": ["a", "b"], "label": ["x", "x"]}), "on_bad_rows": "refuse"})
    assert "on_bad_rows" not in str(error.value)


def test_lines_of_json(tmp_path: Path) -> None:
    good = [json.dumps({"text": text, "label": label}) for text, label in sentiment_rows(40)]
    bad = {1: "no json", 5: "[1]", 9: '{"text": "a", "text": "b"}', 10: '{"text": 5, "label": "x"}', 12: '{"label": "positive"}'}
    splits = split({"train": str(write_bad(tmp_path / "bad.jsonl", good, bad, "")), "on_bad_rows": "skip"})
    assert contents(splits) == contents(split({"train": str(write_bad(tmp_path / "good.jsonl", good, {}, ""))}))
    assert [row for _, row in skipped(splits)] == sorted(bad)


def test_a_line_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_reading, "MAX_ROW", 100)
    for ending, row, quoting in ((".jsonl", '{{"text": "{}", "label": "x"}}', "minimal"), (".csv", "{},x", "none")):
        lines = [row.format(text) for text in ("a" * 10, "b" * 95, "c" * 1000, "d" * 10)] + [
            row.format("e").replace('x"', 'y"') if ending == ".jsonl" else "e,y"
        ]
        source = write_bad(tmp_path / f"long{ending}", lines, {}, "text,label\n" if ending == ".csv" else "")
        data = {"train": str(source), "on_bad_rows": "skip"} | ({"quoting": quoting} if ending == ".csv" else {})
        splits = split(data)
        first = 2 if ending == ".csv" else 1
        assert [text[0] for text in splits.rows["train"].columns["text"]] == (list("abde") if ending == ".csv" else list("ade"))
        expected = [first + 2] if ending == ".csv" else [2, 3]
        assert [bad.row for _, bad in splits.skipped] == expected
        assert {bad.kind for _, bad in splits.skipped} == {"over the size limit"}


def test_a_quote_that_is_not_closed_is_refused_all_the_same(tmp_path: Path) -> None:
    source = write_bad(tmp_path / "bad.csv", bad={5: '"a "good" film,positive'})
    with refused("row 5", "cannot be skipped"):
        split({"train": str(source), "on_bad_rows": "skip"})


def test_class_folders(tmp_path: Path) -> None:
    for i, (text, label) in enumerate(sentiment_rows(20)):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{i:02}.txt").write_text(text)
    (tmp_path / "positive/empty.txt").write_text(" \n")
    (tmp_path / "negative/bytes.txt").write_bytes(b"bad \xff film")
    splits = split({"train": str(tmp_path), "on_bad_rows": "skip"})
    assert len(splits.rows["train"]) == 20
    assert {(Path(bad.file).name, bad.row, bad.kind) for _, bad in splits.skipped} == {
        ("empty.txt", 0, "with an empty text"), ("bytes.txt", 0, "with bytes that are not in the encoding"),
    }  # fmt: skip


def test_both_lines_of_a_pair_are_skipped(tmp_path: Path) -> None:
    lines = [[f"{side} {i}".encode() for i in range(30)] for side in ("source", "target")]
    lines[0][3], lines[1][7], lines[0][9], lines[1][9] = b"", b" ", b"\xff", b"\xfe"
    files = {}
    for side, content in zip(("source", "target"), lines, strict=True):
        files[side] = str(tmp_path / side)
        Path(files[side]).write_bytes(b"\n".join(content) + b"\n")
    splits = split({"train": files, "on_bad_rows": "skip"}, name="translation")
    kept = [i for i in range(30) if i not in (3, 7, 9)]
    assert contents(splits)["train"] == {side: [f"{side} {i}" for i in kept] for side in ("source", "target")}
    assert sorted(bad.row for _, bad in splits.skipped) == [4, 8, 10]
    Path(files["source"]).write_bytes(b"one line\n")
    with refused("allowed: the same number of lines"):
        split({"train": files, "on_bad_rows": "skip"}, name="translation")


def test_nothing_is_learned_from_a_skipped_row() -> None:
    rows = [*sentiment_rows(20), ("", "third"), ("text", None)]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    data = DataConfig(
        train=frame, test=pd.DataFrame([("a", "third"), ("b", "positive")], columns=["text", "label"]), on_bad_rows="skip"
    )
    splits, task = read_splits(data, task_from({"name": "text_classification"}), TrainingConfig(), 0)
    assert task.labels == ["negative", "positive"]
    assert skipped(splits) == {
        ("train", 21): "with an empty text", ("train", 22): "without a label", ("test", 1): "with an unknown label",
    }  # fmt: skip
    assert list(splits.rows["test"].columns["text"]) == ["b"]


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        ({"name": "regression"}, [1, "2.5", 3.0, 4], [None, "much", float("inf")]),
        ({"name": "multi_label", "labels": ["a", "b"]}, [["a"], [], ["a", "b"], "b"], [["c"], {"a": 1}, [None]]),
        ({"name": "multi_label", "label": ["label"], "text": "text"}, [1, 0, "1", False], [None, 2, "x"]),
    ],
)
def test_targets_of_every_kind(task: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    cells = [cell for pair in zip(good, [*bad, good[0]], strict=True) for cell in pair]
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(8)], "label": pd.Series(cells, dtype=object)})
    splits = split({"train": frame, "on_bad_rows": "skip"}, **task)
    assert [row for _, row in skipped(splits)] == [2, 4, 6]
    assert list(splits.rows["train"].columns["label"]) == [*good, good[0]]
    with refused("data: 3 problems"):
        split({"train": frame}, **task)


def test_a_row_without_a_group_and_texts_without_labels() -> None:
    frame = pd.DataFrame({"text": list("abcdef"), "label": list("xyyyyx"), "by": ["1", " ", "2", None, "3", "4"]})
    texts = pd.DataFrame({"text": ["g", "", "h", None, 5]})
    splits = split({"train": frame, "group": "by", "test_share": 0.5, "unlabelled": texts, "on_bad_rows": "skip"})
    assert sorted(text for role in ("train", "test") for text in splits.rows[role].columns["text"]) == list("acef")
    assert list(splits.rows["unlabelled"].columns["text"]) == ["g", "h"]
    assert skipped(splits) == {
        ("train", 2): "without a group", ("train", 4): "without a group", ("unlabelled", 2): "with an empty text",
        ("unlabelled", 4): "with an empty text", ("unlabelled", 5): "with a cell that is not text",
    }  # fmt: skip


def test_many_bad_rows_stand_out_and_none_left_is_an_error() -> None:
    half = pd.DataFrame({"text": ["a", "b", "", "", ""], "label": list("xyxyx")})
    assert any(
        note.startswith("warning: train: 3 of 5 rows skipped: 3 with an empty text")
        for note in split({"train": half, "on_bad_rows": "skip"}).notes
    )
    for role in ("train", "test"):
        frames = {"train": half, role: half.iloc[2:]} | {"on_bad_rows": "skip"}
        with refused(f"data.{role}: none of 3 rows can be used: 3 with an empty text, such as data.{role}, row 1"):
            split(frames)


PAIRS = [
    ("one", "eins"), ("two", "zwei"), ("", "leer"), ("three", None), ("Same", " same  "), ("ONE", "eins"), ("two", "anders"),
    ("word " * 20, "w" * 30), ("a sentence of some forty characters here", "ein Satz von ungefähr vierzig Zeichen"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (["empty"], {3, 4}),
        (["copies"], {5}),
        (["duplicates"], {6}),
        (["length_ratio"], {8}),
        (["length_ratio", "duplicates", "copies", "empty"], {3, 4, 5, 6, 8}),
    ],
)
def test_filters_leave_out_pairs_of_train_alone(names: list[str], left_out: set[int]) -> None:
    pairs = pd.DataFrame(PAIRS, columns=["source", "target"])
    skip = {"on_bad_rows": "skip"}
    splits = split({"train": pairs, "test": pairs, "filter": names} | skip, name="translation")
    found = {bad.row: bad.kind for role, bad in splits.skipped if role == "train" and "data.filter" in bad.kind}
    assert set(found) == left_out
    assert all(f"data.filter: {name}" in "".join(found.values()) for name in names)
    assert sorted(splits.rows["train"].position) == [row for row in range(1, 10) if row not in left_out | {3, 4}]
    assert {row for role, row in skipped(splits) if role == "test"} == {3, 4}


def test_a_filter_for_empty_sides_is_for_translations() -> None:
    pairs = pd.DataFrame(PAIRS, columns=["source", "target"])
    assert len(split({"train": pairs, "filter": ["empty"]}, name="translation").rows["train"]) == 7
    with refused("data.filter: found empty"):
        split({"train": pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}), "filter": ["empty"]})


def test_a_run_writes_what_it_skipped_and_a_resumed_one_as_well(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = write(tmp_path / "test.csv", [*sentiment_rows(12), ("text", "other")])
    more = write(tmp_path / "more.csv", [*sentiment_rows(12), (" ", "positive")])
    other = {"name": "more", "data": {"train": str(more), "on_bad_rows": "skip"}, "task": "text_classification"}

    def train(folder: str) -> Any:
        return run(
            model=tiny["bert"], strategy={"name": "multitask", "tasks": [other]}, output_dir=tmp_path / folder,
            data={"train": write_bad(tmp_path / "bad.csv"), "test": test, "on_bad_rows": "skip"},
            training={"max_steps": 3, "checkpoint_every": 1},
        )  # fmt: skip

    straight = train("straight")
    found = read_table(tmp_path / "straight/skipped_rows.csv")
    assert [(row["split"], Path(row["file"]).name, row["row"], row["column"]) for row in found] == [
        *(("train", "bad.csv", str(row), {3: "text", 11: "label", 40: "text"}.get(row, "")) for row in BAD),
        ("test", "test.csv", "14", "label"),
        ("more: train", "more.csv", "14", "text"),
    ]
    assert "the label 'other' is not known" in found[-2]["reason"]
    assert "negative" not in found[-2]["reason"], "labels are listed once, in errors"
    assert straight.metrics["test"]["accuracy"] >= 0
    with stopped_at(1):
        train("broken")
    (tmp_path / "broken/skipped_rows.csv").unlink()
    train("broken")
    assert (tmp_path / "broken/skipped_rows.csv").read_bytes() == (tmp_path / "straight/skipped_rows.csv").read_bytes()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/skipped_rows.csv").write_text("")
    with refused("already holds skipped_rows"):
        RunFolder(str(tmp_path / "foreign")).check()

    settings: dict[str, Any] = {"data": {"test": str(test)}}
    with refused("test.csv, row 14", "data.on_bad_rows: skip"):
        evaluate_model(str(tmp_path / "straight"), settings, None, "fp32")[0]
    settings["data"]["on_bad_rows"] = "skip"
    capsys.readouterr()
    figures = evaluate_model(str(tmp_path / "straight"), settings, None, "fp32")[0]
    assert "test.csv, row 14, column 'label': the label 'other' is not known" in capsys.readouterr().err
    assert (figures["rows"], figures["skipped"]) == (12, 1)
    assert figures["accuracy"] == straight.metrics["test"]["accuracy"]


POSITIONS = [[int(i % 2 == 0), int(i % 3 == 0), int(i % 5 == 0)] for i in range(60)]


def labelled(path: Path, cells: list[Any]) -> str:
    return str(write(path, {"text": [f"text {i}" for i in range(len(cells))], "label": cells}))


@pytest.mark.parametrize("labels", [["1", "2", "3"], ["0", "1", "2"], ["10", "20", "30"], ["a", "b", "c"]])
def test_indicators_do_not_depend_on_label_names(labels: list[str], tmp_path: Path) -> None:
    settings = {"name": "multi_label", "labels": labels}
    bad: list[Any] = ["other", ["other"], 5, [5], [1, 0], [1, 0, 2], [1, 0, None], [1, 1, 1, 1], [1, 0, None, 1]]
    for data in (POSITIONS, [*bad, *POSITIONS]):
        source = labelled(tmp_path / "train.jsonl", data)
        config = DataConfig(train=source, test=source, on_bad_rows="skip")
        splits, task = read_splits(config, task_from(settings), TrainingConfig(), 0)
        assert list(splits.rows["test"].columns["label"]) == POSITIONS
        assert task.encode_targets(POSITIONS).tolist() == POSITIONS
        expected = list(range(1, len(bad) + 1)) if len(data) > len(POSITIONS) else []
        assert [row for role, row in skipped(splits) if role == "test"] == expected
        assert [row for role, row in skipped(splits) if role == "train"] == expected
    with refused(f"{len(bad)} problems"):
        split({"train": source}, **settings)


def test_with_a_format_in_the_settings_one_good_row_is_enough(tmp_path: Path) -> None:
    source = labelled(tmp_path / "train.jsonl", [*[["x"]] * 100, *POSITIONS])
    splits = split(
        {"train": source, "on_bad_rows": "skip"}, name="multi_label", labels=["1", "2", "3"], label_format="indicators"
    )
    assert len(splits.skipped) == 100


@pytest.mark.parametrize("form", [None, "names"])
def test_a_label_that_is_named_twice_decides_nothing(form: str | None, tmp_path: Path) -> None:
    source = labelled(tmp_path / "train.jsonl", [*([i % 4 + 2, (i + 1) % 4 + 2] for i in range(60)), [3, 3]])
    splits, task = read_splits(
        DataConfig(train=source, test=source), task_from({"name": "multi_label", "label_format": form}), TrainingConfig(), 0
    )
    assert (task.labels, len(splits.rows["test"])) == (["2", "3", "4", "5"], 61)
    assert task.encode_targets([[3, 3]]).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("first", [{"text": "x"}, {"translation": None}])
def test_a_column_may_come_after_thousands_of_rows(first: dict[str, Any], ending: str, tmp_path: Path) -> None:
    pairs = [{"en": f"word {i}", "de": f"Wort {i}"} for i in range(30)]
    good = [{"translation": pair} for pair in pairs] if "translation" in first else [
        {"text": text, "label": label} for text, label in sentiment_rows(30)
    ]  # fmt: skip
    rows, source = [first] * 10_001 + good, tmp_path / f"late{ending}"
    if ending == ".parquet":
        pd.DataFrame(rows).to_parquet(source)
    else:
        write(source, "\n".join(map(json.dumps, rows)) if ending == ".jsonl" else rows)
    task = {"name": "translation", "source": "en", "target": "de"} if "translation" in first else {"name": "text_classification"}
    splits = split({"train": str(source), "on_bad_rows": "skip"}, **task)
    assert (sum(map(len, splits.rows.values())), len(splits.skipped)) == (30, 10_001)
    with refused("there is no column 'other'"):
        split({"train": str(source), "on_bad_rows": "skip"}, **task | {"text" if "label" in good[0] else "source": "other"})


@pytest.mark.parametrize("content", ["a film".encode("utf-16"), "a good film".encode("utf-16-le")])
def test_a_file_of_a_class_in_utf_16_is_a_bad_row(content: bytes, tmp_path: Path) -> None:
    for i, (text, label) in enumerate(sentiment_rows(20)):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{i:02}.txt").write_text(text)
    (tmp_path / "positive/odd.txt").write_bytes(content)
    splits = split({"train": str(tmp_path), "on_bad_rows": "skip"})
    assert [(Path(bad.file).name, bad.row, bad.kind) for _, bad in splits.skipped] == [
        ("odd.txt", 0, "with bytes that are not in the encoding")
    ]
    with refused("odd.txt:", "UTF-16"):
        split({"train": str(tmp_path)})


def test_a_class_with_one_row_is_refused_with_its_share(tmp_path: Path) -> None:
    source = str(write(tmp_path / "train.csv", [*sentiment_rows(60), ("a film", "rare")]))
    for held_out, other in (("test", "validation"), ("validation", "test")):
        with refused("row 62", "'rare'", f"data.{held_out}_share: 0") as error:
            split({"train": source, f"{held_out}_share": 0.2, f"{other}_share": 0})
        assert f"{other}_share" not in str(error.value)


def test_objects_in_a_json_file_may_be_named_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a", "label": "x"}\ngarbage\n{"text": "b", "label": "y"}\n')
    with refused("a.json, row 2", ".jsonl"):
        split({"train": str(tmp_path / "a.json"), "on_bad_rows": "skip"})
    (tmp_path / "b.json").write_text('[{"text": "a", "label": "x"}, garbage]')
    with refused("b.json, row 2") as error:
        split({"train": str(tmp_path / "b.json"), "on_bad_rows": "skip"})
    assert ".jsonl" not in str(error.value)


def test_blank_lines_before_a_header_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "train.csv"
    source.write_text("\n\ntext,label\n" + "\n".join([*GOOD, ",positive"]) + "\n")
    splits = split({"train": str(source), "on_bad_rows": "skip"})
    assert [row for _, row in skipped(splits)] == [64]
    assert "the header is row 3" in capsys.readouterr().err
    with refused("row 1: the line is blank"):
        split({"train": str(source)})
    source.write_text("\n\n\n")
    with refused("the line is blank"):
        split({"train": str(source), "on_bad_rows": "skip"})


@pytest.mark.parametrize(
    ("task", "cells"),
    [
        ({"name": "text_classification", "labels": ["negative", "positive", "rare"]}, {"label": "rare"}),
        ({"name": "multi_label", "label": ["tox", "rare"]}, {"tox": "1", "rare": "1"}),
    ],
)
def test_a_label_of_skipped_rows_is_named(task: dict[str, Any], cells: dict[str, str]) -> None:
    good = [{"text": text, "label": label, "tox": int(label == "positive"), "rare": 0} for text, label in sentiment_rows(20)]
    frame = pd.DataFrame([*good, good[0] | cells | {"text": ""}])
    with refused("no row of train has the label 'rare'", "1 row of train was skipped", "row 21", "empty"):
        split({"train": frame, "on_bad_rows": "skip"}, **task)


@pytest.mark.parametrize(
    ("task", "row", "kind"),
    [
        ({"name": "text_classification"}, '{"text": NaN, "label": "x"}', "with an empty text"),
        ({"name": "regression"}, '{"text": "a", "label": NaN}', "without a label"),
        ({"name": "regression"}, '{"text": "a", "label": "nan"}', "without a label"),
        ({"name": "translation", "source": "text", "target": "label"}, '{"text": NaN, "label": "x"}', "with an empty side"),
    ],
)
def test_not_a_number_is_a_missing_cell(task: dict[str, Any], row: str, kind: str, tmp_path: Path) -> None:
    good = [json.dumps({"text": f"text {i}", "label": str(i % 7)}) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([row, *good]))
    splits = split({"train": str(tmp_path / "a.jsonl"), "on_bad_rows": "skip"}, **task)
    assert skipped(splits) == {("train", 1): kind}


@pytest.mark.parametrize(
    ("task", "cells", "facts"),
    [
        ({"name": "regression"}, [f"3,{i:02}" for i in range(60)], ("60 of 60 rows", "row 2", "'3,00'", "comma")),
        ({"name": "regression"}, [f"{i} %" for i in range(60)], ("60 of 60 rows", "row 2", "'0 %'", "percent")),
        ({"labels": ["good", "bad"]}, ["positive", "negative"] * 30, ("of 60 rows", "row 2", "'positive'")),
    ],
)
def test_a_fault_of_the_whole_column_is_one_message(
    task: dict[str, Any], cells: list[str], facts: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", [(f"text {i}", cell) for i, cell in enumerate(cells)])
    with refused(*facts) as error:
        split({"train": str(path)}, **task)
    assert (str(error.value).count("row 3"), str(error.value).count("on_bad_rows")) == (0, 0)
    few = [(f"text {i}", cell if i < 25 else str(i)) for i, cell in enumerate(cells)]
    if task.get("name") == "regression":
        with refused("25 problems"):  # these can be skipped, and are listed
            split({"train": str(write(tmp_path / "b.csv", few))}, **task)
