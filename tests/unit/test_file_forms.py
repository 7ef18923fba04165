"""Tables as JSON, compressed files, and lines in files with any ending."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer import UserError
from nlp_transfer.cli import cli
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.file_reading import MAX_ROW, format_of
from nlp_transfer.data.sources.json_rows import CHUNK
from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.data.splits import read_splits
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from
from tests.builders import sentiment_rows, write

pytestmark = pytest.mark.model

ROWS = [{"text": 'a "}{[" film', "label": 1, "tags": ["x"]}, {"text": "b\nc", "label": 2, "tags": []}]


def save(path: Path, content: str | bytes) -> Path:
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, **settings: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for batch in read_table(path, DataConfig(**settings)):
        for name, cells in batch.columns.items():
            found.setdefault(name, []).extend(cells)
    return found


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


def test_rows_longer_than_a_piece_that_is_read_and_numbers_at_its_end(tmp_path: Path) -> None:
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
    with pytest.raises(UserError) as caught:
        read(save(tmp_path / "a.json", content))
    for fact in ("a.json", *facts):
        assert fact in str(caught.value)


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
        with pytest.raises(UserError, match=r"a.csv.gz: cannot be read") as caught:
            read(tmp_path / "a.csv.gz")
        assert ("not compressed" in str(caught.value)) is (content[:4] == b"text")
    for ending, content in ((".csv", b"text\n"), (".txt", b""), (".jsonl", b'{"text": "'), (".json", b'[{"text": "')):
        with pytest.raises(UserError, match=f"{MAX_ROW:,}"):
            read(save(tmp_path / f"bomb{ending}.gz", content + b"x" * (MAX_ROW + 2**20)))


@pytest.mark.parametrize("name", ["test.en", "corpus", "v1.0-dev", "b.tok.de", "x.src.gz"])
def test_lines_may_have_any_ending_where_one_text_is_wanted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / name, "one, two\n[x] three\n")
    rows = read_rows(str(path), "unlabelled", DataConfig(), ["review"])
    assert list(rows.columns["review"]) == ["one, two", "[x] three"]
    assert name in "".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="found the file extension"):
        read_rows(str(path), "train", DataConfig(), ["review", "label"])


@pytest.mark.parametrize(
    "content",
    [
        "review,label\na,b\n",
        "a\tb\n",
        '{"review": "a"}\n',
        '[{"review": "a"}]',
        "<?xml version='1'?>\n",
        b"PK\x03\x04\x14\x00",
        "review\na\n",
    ],
)
def test_what_looks_like_another_format_is_not_taken_for_lines(content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.dat: .*looks like"):
        read_rows(str(save(tmp_path / "a.dat", content)), "unlabelled", DataConfig(), ["review"])


def test_aligned_files_with_any_ending_compressed_or_not(tmp_path: Path) -> None:
    files = {"source": str(save(tmp_path / "t.en.gz", "a\nb\n")), "target": str(save(tmp_path / "t.de", "c\nd\n"))}
    data = DataConfig(train=files, validation_share=0)
    splits, _ = read_splits(data, task_from({"name": "translation"}), TrainingConfig(), 0)
    assert {name: list(cells) for name, cells in splits.rows["train"].columns.items()} == {
        "source": ["a", "b"],
        "target": ["c", "d"],
    }


def test_predicting_and_scoring_files_of_these_forms(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = sentiment_rows(30)
    source = write(tmp_path / "train.csv", list(rows))
    run = ["train", "--model", tiny["bert"], "--data.train", source, "--training.max_steps", 1, "--output_dir", tmp_path / "run"]
    cli(list(map(str, run)), standalone_mode=False)
    records = [{"text": text, "label": label} for text, label in rows]
    save(tmp_path / "a.csv.gz", source.read_bytes())
    save(tmp_path / "a.json", json.dumps(records))
    save(tmp_path / "a.en", "".join(f"{text}\n" for text, _ in rows))
    for name, output in (("train.csv", "0.jsonl"), ("a.csv.gz", "1.jsonl"), ("a.json", "2.jsonl"), ("a.en", "3.de")):
        cli(
            ["predict", str(tmp_path / "run"), "--input", str(tmp_path / name), "--output", str(tmp_path / output)],
            standalone_mode=False,
        )
    expected = [json.loads(line)["prediction"] for line in (tmp_path / "0.jsonl").read_text().splitlines()]
    for output in ("1.jsonl", "2.jsonl"):
        assert [json.loads(line)["prediction"] for line in (tmp_path / output).read_text().splitlines()] == expected
    assert (tmp_path / "3.de").read_text().splitlines() == expected
    for name, output in (("train.csv", "x.de"), ("train.csv", "x.json"), ("a.en", "x.json")):
        with pytest.raises(UserError, match="--output: found the file extension"):
            cli(
                ["predict", str(tmp_path / "run"), "--input", str(tmp_path / name), "--output", str(tmp_path / output)],
                standalone_mode=False,
            )
    figures = []
    for name in ("train.csv", "a.csv.gz", "a.json"):
        where = ["--data.test", str(tmp_path / name), "--output", str(tmp_path / "figures.json"), "--overwrite"]
        cli(["evaluate", str(tmp_path / "run"), *where], standalone_mode=False)
        figures.append(json.loads((tmp_path / "figures.json").read_text()))
    assert figures[0] == figures[1] == figures[2]
