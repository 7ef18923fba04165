"""Tables: every format gives the same cells back, and a broken row is named as a person counts it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.table_reader import ENDINGS, read_table
from nlp_transfer.inference.writers import Writer
from nlp_transfer.settings.schema import DataConfig
from tests.builders import refused, write

CELLS = [
    "NA", "None", "null", "nan", "1", "01", "1.0", "true", "", "-", "é 漢字 🎉", 'a "quoted" cell', "a,b\tc;d", "two\nlines",
    " x ",
]  # fmt: skip


def read(path: Path, size: int = 10_000, **data: Any) -> dict[str, list[Any]]:
    joined: dict[str, list[Any]] = {}
    for batch in read_table(path, DataConfig(**data), size):
        for name, values in batch.columns.items():
            joined.setdefault(name, []).extend(values)
    return joined


def written(path: Path, columns: dict[str, list[Any]]) -> Path:
    with Writer(path, path.suffix) as writer:
        writer.write(columns)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_round_trip_keeps_every_cell(ending: str, tmp_path: Path) -> None:
    columns = {"text": CELLS, "label": [str(i) for i in range(len(CELLS))]}
    assert read(written(tmp_path / f"table{ending}", columns)) == columns


def test_text_files_hold_one_text_a_line(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "one\ntwo, \r\n\nNA")) == {"text": ["one", "two, ", "", "NA"]}
    assert read(written(tmp_path / "b.txt", {"text": ["x", "y"], "prediction": ["p", "q"]})) == {"text": ["p", "q"]}


def test_every_ending_is_covered_here() -> None:
    assert set(ENDINGS) == {".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt"}  # .json: test_file_forms.py


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab,\"'\n\r\t")), min_size=1, max_size=9)
)
def test_any_text_survives_csv_and_jsonl(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    assert read(jsonl) == columns
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([tuple(columns), *rows])
    assert read(tmp_path / "a.csv") == columns


def test_json_values_keep_their_type(tmp_path: Path) -> None:
    values = [1, 1.5, True, None, ["a"], {"b": 1}, "x"]
    assert read(write(tmp_path / "a.jsonl", "".join(json.dumps({"v": value}) + "\n" for value in values))) == {"v": values}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".txt"])
def test_byte_order_mark_and_windows_line_ends(ending: str, tmp_path: Path) -> None:
    tables = {
        ".csv": "text,label\r\na,b\r\nc,d\r\n",
        ".tsv": "text\tlabel\r\na\tb\r\nc\td\r\n",
        ".jsonl": '{"text": "a", "label": "b"}\r\n{"text": "c", "label": "d"}\r\n',
        ".txt": "a\r\nc\r\n",
    }
    found = read(write(tmp_path / f"t{ending}", b"\xef\xbb\xbf" + tables[ending].encode()))
    assert found["text"] == ["a", "c"]
    assert found.get("label", ["b", "d"]) == ["b", "d"]


@pytest.mark.parametrize("name", ["utf-8", "UTF8", "utf_8", "u8"])
def test_mark_is_no_part_of_a_name_however_utf8_is_spelt(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\nx\n"), encoding=name) == {"text": ["x"]}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_cell_of_a_megabyte(ending: str, tmp_path: Path) -> None:
    cell = "word " * 200_000 + "end"
    content = {".csv": f"text\n{cell}\n", ".jsonl": json.dumps({"text": cell}), ".txt": cell}
    assert read(write(tmp_path / f"a{ending}", content[ending])) == {"text": [cell]}


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_late_json_keys_are_missing_before(size: int, tmp_path: Path) -> None:
    lines = [{"a": 1}, {}, {"b": 2}, {"a": 3, "c": 4}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    rows: list[dict[str, Any]] = []
    for batch in read_table(path, DataConfig(), size):
        rows += [dict(zip(batch.columns, values, strict=True)) for values in zip(*batch.columns.values(), strict=True)]
    assert [{name: value for name, value in row.items() if value is not None} for row in rows] == lines


def test_empty_object_at_the_start_is_a_row(tmp_path: Path) -> None:
    batches = list(read_table(write(tmp_path / "a.jsonl", '{}\n{"a": 1}\n'), DataConfig()))
    assert [(batch.first, batch.columns) for batch in batches] == [(1, {"a": [None, 1]})]


def test_order_of_late_keys_is_that_of_the_file(tmp_path: Path) -> None:
    lines = [{"text": "x"}, dict.fromkeys("zyxwvutsrq", 1)]
    found = read(write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert list(found) == ["text", *"zyxwvutsrq"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt", ".parquet"])
def test_batches_know_where_they_start(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    columns = {"text": [f"row {i}" for i in range(25)]}
    written(path, columns | ({"prediction": columns["text"]} if ending == ".txt" else {}))
    batches = list(read_table(path, DataConfig(), 10))
    start = 2 if ending == ".csv" else 1
    assert [(batch.first, len(batch)) for batch in batches] == [(start, 10), (start + 10, 10), (start + 20, 5)]
    assert [cell for batch in batches for cell in batch.columns["text"]] == columns["text"]


def test_exact_multiple_of_a_batch_leaves_no_empty_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", {"text": list("abcd")})
    assert [len(batch) for batch in read_table(path, DataConfig(), 2)] == [2, 2]


def test_rows_know_their_file_and_number(tmp_path: Path) -> None:
    first = written(tmp_path / "1.csv", {"text": ["a", "b\nc"], "label": ["x", "y"]})
    second = written(tmp_path / "2.csv", {"label": ["z"], "text": ["d"]})
    rows = read_rows(str(tmp_path / "*.csv"), "train", DataConfig(), ["text", "label"])
    assert rows.columns == {"text": ["a", "b\nc", "d"], "label": ["x", "y", "z"]}
    assert [rows.where(i) for i in range(3)] == [f"{first}, row 2", f"{first}, row 3", f"{second}, row 2"]
    assert set(rows.hashes) == {str(first.resolve()), str(second.resolve())}


def test_names_for_a_file_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "x\tneg\ny\tpos\n")
    assert read(path, columns=["text", "label"]) == {"text": ["x", "y"], "label": ["neg", "pos"]}
    rows = read_rows(str(path), "train", DataConfig(columns=["text", "label"]), ["text"])
    assert rows.where(0) == f"{path}, row 1"


def test_delimiter_and_quoting(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", 'text;label\n"a;b\n')
    assert read(path, delimiter=";", quoting="none") == {"text": ['"a'], "label": ["b"]}


def test_encodings_are_tried_in_their_order(tmp_path: Path) -> None:
    text = "text\ncafé\n"
    tried = ["utf-8", "cp1252"]
    assert read(write(tmp_path / "u.csv", text.encode()), encoding=tried) == {"text": ["café"]}
    assert read(write(tmp_path / "w.csv", text.encode("cp1252")), encoding=tried) == {"text": ["café"]}
    assert read(write(tmp_path / "16.csv", text.encode("utf-16")), encoding="utf-16") == {"text": ["café"]}
    rows = read_rows(str(tmp_path / "[uw].csv"), "train", DataConfig(encoding=tried), ["text"])
    assert rows.columns["text"] == ["café", "café"]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.csv", "text,label\na,b\nc\n", "a.csv, row 3: found 1 cells"),
        ("a.csv", 'text,label\n"two\nlines",b\n\nc,d\n', "a.csv, row 3: the line is blank"),
        ("a.csv", 'text,label\n"two\nlines",b\nc\n', "a.csv, row 3: found 1 cells"),
        ("a.csv", b"text,label\na,b\nc,\xff\n", "a.csv, row 3, column 'label': byte 0xff is not utf-8"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "a.jsonl, row 2: is not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, row 2: byte 0xff is not utf-8"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}\n', "a.jsonl, row 2: the line is blank"),
        ("a.jsonl", '{"a": 1}\n5\n', "a.jsonl, row 2: found 5 (int)"),
        ("a.jsonl", '{"a": "\\ud83c\\udf89"}\n{"a": ["\\udf89"]}\n', "a.jsonl, row 2: found \\udf89, half of a character"),
        ("a.txt", b"fine\n\xe9\n", "a.txt, row 2, column 'text': byte 0xe9 is not utf-8"),
    ],
)
def test_broken_rows_are_named(name: str, content: str | bytes, where: str, tmp_path: Path) -> None:
    with refused(where) as error:
        read(write(tmp_path / name, content))
    assert error.value.problems is not None
    assert error.value.problems.count == 1


def test_batches_before_a_broken_row_are_still_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "x\n" * 4 + "a,b\n" + "c,d\n")
    given: list[int] = []
    batches: Iterator[Any] = read_table(path, DataConfig(), 3)
    with refused("2 problems"):
        given.extend(batch.first for batch in batches)
    assert given == [2]


def test_data_frames_and_data_sets_read_as_files_do() -> None:
    import datasets

    frame = pd.DataFrame({"text": ["a", None, "c"], "n": [1.0, float("nan"), 3.0]})
    rows = read_rows(frame, "train", DataConfig(), ["text", "n"])
    assert rows.columns == {"text": ["a", None, "c"], "n": [1.0, None, 3.0]}
    assert rows.where(1) == "data.train, row 2"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    assert read_rows(data, "test", DataConfig(), ["text", "label"]).columns["label"] == ["pos", "neg", None]


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with refused("2 columns called 'text'"):
        read_rows(pd.DataFrame([["a", "b"]], columns=["text", "text"]), "train", DataConfig(), ["text"])
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with refused("'text' occurs twice"):
        read(tmp_path / "a.parquet")
    with refused("data.train: has no rows"):
        read_rows(pd.DataFrame({"text": []}), "train", DataConfig(), ["text"])


def test_writer_puts_cells_under_their_column_whatever_the_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with Writer(path, ".csv") as writer:
        writer.write({"text": ["a"], "tags": [["x", "é"]], "prediction": ["p"]})
        writer.write({"prediction": ["q"], "text": [None], "tags": [{"k": 1}]})
    assert read(path) == {"text": ["a", ""], "tags": ['["x", "é"]', '{"k": 1}'], "prediction": ["p", "q"]}


@pytest.mark.parametrize(("name", "content"), [("a.csv", "a\n1\n2\n\n\n"), ("a.jsonl", '{"a": "1"}\n{"a": "2"}\n\n \n')])
def test_blank_lines_at_the_end_are_no_rows(name: str, content: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, content)) == {"a": ["1", "2"]}


def test_equal_labels_are_kept_once(tmp_path: Path) -> None:
    """Long columns of few words take room for these few; columns of many different texts are left as they are."""
    rows = [(f"text {i}", f"label {i % 3}") for i in range(25_000)]
    read = read_rows(str(write(tmp_path / "many.csv", rows)), "train", DataConfig(), ["text", "label"])
    assert [*zip(read.columns["text"], read.columns["label"], strict=True)] == rows
    assert len({id(label) for label in read.columns["label"]}) == 3


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("a.csv", "text;label\na, b;c\n", ("semicolon", "data.delimiter")),
        ("a.csv", "text\tlabel\na, b\tc\n", ("tab", "data.delimiter")),
        ("a.csv", "text|label\na|c\n", ("pipe", "data.delimiter")),
        ("a.tsv", "text,label\na,c\n", ("comma", "data.delimiter")),
        ("a.csv", "sep=;\ntext;label\na, b;c\n", ("sep=;", "remove", "semicolon")),
    ],
)
def test_another_separator_is_one_message(name: str, content: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with refused(name, "row 1", *facts) as error:
        list(read_table(tmp_path / name, DataConfig()))
    assert "\n" not in str(error.value)
    if "sep=" not in content:  # what the message says to do is enough
        mark = facts[0]
        columns = next(read_table(tmp_path / name, DataConfig(delimiter=mark))).columns
        assert list(columns) == ["text", "label"]
        one = next(read_table(tmp_path / name, DataConfig(delimiter="comma" if name == "a.csv" else "tab"), mark_faults=True))
        assert len(one.columns) == 1


@pytest.mark.parametrize("name", ["Question; answer", "a, b", ";", "text"])
def test_a_single_column_may_have_punctuation_in_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(f"{name}\nx\n")
    assert next(read_table(tmp_path / "a.tsv", DataConfig())).columns == {name: ["x"]}


@pytest.mark.parametrize(("given", "meant"), [("tab", "\t"), ("\\t", "\t"), ("Semicolon", ";"), ("|", "|"), ("\t", "\t")])
def test_separators_by_name(given: str, meant: str) -> None:
    assert DataConfig(delimiter=given).delimiter == meant


def test_columns_without_a_name_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spam.csv").write_text("v1,v2,,,\nham,a,,,\nspam,b,c,d,e\n")
    for _ in range(2):
        assert next(read_table(tmp_path / "spam.csv", DataConfig())).columns == {"v1": ["ham", "spam"], "v2": ["a", "b"]}
    assert " ".join(capsys.readouterr().err.split()).count("3 columns have no name") == 1
    (tmp_path / "index.csv").write_text(",text\n0,a\n")
    assert next(read_table(tmp_path / "index.csv", DataConfig())).columns == {"": ["0"], "text": ["a"]}
