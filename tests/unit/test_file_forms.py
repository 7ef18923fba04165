"""Tables as JSON, compressed files, and lines in files with any ending."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.file_reading import MAX_ROW, format_of
from nlp_transfer.data.sources.json_rows import CHUNK
from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.data.splits import read_splits
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from
from tests import builders
from tests.builders import command, read_lines, refused, sentiment_rows, write

pytestmark = pytest.mark.model

ROWS = [{"text": 'a "}{[" film', "label": 1, "tags": ["x"]}, {"text": "b\nc", "label": 2, "tags": []}]


def save(path: Path, content: str | bytes) -> Path:
    content = content if isinstance(content, bytes) else content.encode()
    return write(path, gzip.compress(content) if path.suffix == ".gz" else content)


def read(path: Path, **settings: Any) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for batch in read_table(path, DataConfig(**settings)):
        for name, cells in batch.columns.items():
            columns.setdefault(name, []).extend(cells)
    return columns


SHAPES = {
    "array": json.dumps(ROWS), "indented": json.dumps(ROWS, indent=4), "data": json.dumps({"data": ROWS}),
    "data among others": json.dumps({"version": "1.1", "meta": {"data": [1]}, "data": ROWS, "more": [1]}, indent=1),
    "lines": "\n".join(map(json.dumps, ROWS)) + "\n", "objects": json.dumps(ROWS[0], indent=2) + json.dumps(ROWS[1], indent=2),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_json_file_in_each_shape_gives_the_same_rows(shape: str, mark: str, tmp_path: Path) -> None:
    expected = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    assert read(save(tmp_path / "a.json", mark + SHAPES[shape])) == expected
    assert read(save(tmp_path / "b.json.gz", mark + SHAPES[shape])) == expected


def test_rows_and_numbers_across_chunks_of_a_file(tmp_path: Path) -> None:
    lengths = [0, CHUNK - 40, CHUNK, 3 * CHUNK, 1, 2 * CHUNK - 7]
    rows = [{"text": "x" * length, "n": 10**i} for i, length in enumerate(lengths)]
    found = read(save(tmp_path / "a.json", json.dumps(rows)))
    assert (list(map(len, found["text"])), found["n"]) == (lengths, [row["n"] for row in rows])
    for padding in range(CHUNK - 30, CHUNK):  # a number that the end of a piece cuts through
        found = read(save(tmp_path / "b.json", '{"t": "' + "x" * padding + '"}\n{"n": 123456789}'))
        assert found["n"] == [None, 123456789]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ('[{"a": 1}, {"a": }]', ("row 2", "Expecting value")),
        ('[{"a": 1}, {"a": 2}', ("row 3", "ends")),
        ('[{"a": 1},]', ("row 2", "comma")),
        ('[{"a": 1}] [2]', ("row 2", "end of the table")),
        ("[1, 2]", ("row 1", "row 2", "object")),
        ("hello", ("row 1", "'h'")),
        ('{"text": ["a"], "label": [1]}', ("columns", "records")),
        ("[]", ("no rows",)),
        (" \n", ("no rows",)),
        ('{"data": []}', ("no rows",)),
        ('[{"a": 1, "a": 2}]', ("'a'", "twice")),
        ('{"a": 1, "a": 2}', ("'a'", "twice")),
        ('[{"a": "\\ud83d"}]', ("row 1", "half")),
        (b'[{"a": 1}, {"a": "\xff"}]', ("row 2", "0xff", "data.encoding")),
        ('[{"a": ' + "[" * 150 + "]" * 150 + "}]", ("row 1", "100")),
        ('[{"a": ' + "[" * 100_000, ("row 1", "100")),
        ('[{"a": "' + "x" * (MAX_ROW + 9) + '"}]', ("row 1", f"{MAX_ROW:,}")),
        ('{"x": "' + "x" * (MAX_ROW // 2) + '", "y": "' + "x" * (MAX_ROW // 2) + '"}', ("row 1", f"{MAX_ROW:,}")),
    ],
    ids=range(18),
)
def test_a_broken_json_file_is_named_with_its_row(content: str | bytes, facts: tuple[str, ...], tmp_path: Path) -> None:
    with refused("a.json", *facts):
        read(save(tmp_path / "a.json", content))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".txt"])
def test_a_compressed_file_is_read_as_what_was_compressed(ending: str, tmp_path: Path) -> None:
    mark = "\t" if ending == ".tsv" else ","
    text = {".jsonl": SHAPES["lines"], ".json": SHAPES["array"], ".txt": "one\ntwo\n"}.get(
        ending, f"text{mark}label\né{mark}007\n"
    )
    plain, packed = save(tmp_path / f"a{ending}", text), save(tmp_path / f"a{ending.upper()}.gz", text)
    assert read(packed) == read(plain)
    assert format_of(packed) == ending
    wanted = ["text"] if ending == ".txt" else ["text", "label"]
    rows = [read_rows(str(path), "train", DataConfig(), wanted) for path in (plain, packed)]
    assert rows[0].columns == rows[1].columns
    assert rows[0].has_types() == rows[1].has_types()
    packed = save(tmp_path / f"b{ending}.gz", text.encode("utf-16"))
    assert read(packed, encoding=["utf-8", "utf-16"]) == read(plain)


def test_compressed_files_that_are_damaged_or_a_bomb(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\n" + b"".join(b"%d,%d\n" % (i * i * 7919 % 100003, i) for i in range(5000)))
    spoilt = bytearray(whole)
    spoilt[2000:2010] = b"0123456789"
    for content in (whole[:-3000], bytes(spoilt), b"text,label\na,b\n"):
        (tmp_path / "a.csv.gz").write_bytes(content)
        with refused("a.csv.gz: cannot be read") as caught:
            read(tmp_path / "a.csv.gz")
        assert ("not compressed" in str(caught.value)) is (content[:4] == b"text")
    for ending, content in ((".csv", b"text\n"), (".txt", b""), (".jsonl", b'{"text": "'), (".json", b'[{"text": "')):
        with refused(f"{MAX_ROW:,}"):
            read(save(tmp_path / f"bomb{ending}.gz", content + b"x" * (MAX_ROW + 2**20)))


@pytest.mark.parametrize("name", ["test.en", "corpus", "v1.0-dev", "b.tok.de", "x.src.gz"])
def test_lines_may_have_any_ending_where_one_text_is_wanted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / name, "one, two\n[x] three\n")
    rows = read_rows(str(path), "unlabelled", DataConfig(), ["review"])
    assert list(rows.columns["review"]) == ["one, two", "[x] three"]
    assert name in "".join(capsys.readouterr().err.split())
    with refused("found the file extension"):
        read_rows(str(path), "train", DataConfig(), ["review", "label"])


@pytest.mark.parametrize(
    "content",
    [
        "review,label\na,b\n", "a\tb\n", '{"review": "a"}\n', '[{"review": "a"}]', "<?xml version='1'?>\n",
        b"PK\x03\x04\x14\x00", "review\na\n",
    ],
)  # fmt: skip
def test_other_formats_are_not_taken_for_lines(content: str | bytes, tmp_path: Path) -> None:
    with refused("a.dat:", "looks like"):
        read_rows(str(save(tmp_path / "a.dat", content)), "unlabelled", DataConfig(), ["review"])


def test_aligned_files_with_any_ending_compressed_or_not(tmp_path: Path) -> None:
    files = {"source": str(save(tmp_path / "t.en.gz", "a\nb\n")), "target": str(save(tmp_path / "t.de", "c\nd\n"))}
    data = DataConfig(train=files, validation_share=0)
    splits, _ = read_splits(data, task_from({"name": "translation"}), TrainingConfig(), 0)
    assert {name: list(cells) for name, cells in splits.rows["train"].columns.items()} == {
        "source": ["a", "b"],
        "target": ["c", "d"],
    }


def test_predicting_and_scoring_files_of_these_forms(train: Any, tmp_path: Path) -> None:
    rows = sentiment_rows(30)
    source = write(tmp_path / "train.csv", list(rows))
    train(data={"train": source}, training={"max_steps": 1})
    save(tmp_path / "a.csv.gz", source.read_bytes())
    write(tmp_path / "a.json", [{"text": text, "label": label} for text, label in rows])
    write(tmp_path / "a.en", [text for text, _ in rows])

    def predict(name: str, output: str) -> tuple[int, str, str]:
        return command("predict", tmp_path / "run", "--input", tmp_path / name, "--output", tmp_path / output)

    for name, output in (("train.csv", "0.jsonl"), ("a.csv.gz", "1.jsonl"), ("a.json", "2.jsonl"), ("a.en", "3.de")):
        assert predict(name, output)[0] == 0
    expected = [row["prediction"] for row in builders.read_table(tmp_path / "0.jsonl")]
    for output in ("1.jsonl", "2.jsonl"):
        assert [row["prediction"] for row in builders.read_table(tmp_path / output)] == expected
    assert read_lines(tmp_path / "3.de") == expected
    for name, output in (("train.csv", "x.de"), ("train.csv", "x.json"), ("a.en", "x.json")):
        status, _, said = predict(name, output)
        assert (status, "--output: found the file extension" in said) == (2, True)
    figures = []
    for name in ("train.csv", "a.csv.gz", "a.json"):
        where = ["--data.test", tmp_path / name, "--output", tmp_path / "figures.json", "--overwrite"]
        assert command("evaluate", tmp_path / "run", *where)[0] == 0
        figures.append(json.loads((tmp_path / "figures.json").read_text()))
    assert figures[0] == figures[1] == figures[2]
