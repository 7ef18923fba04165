"""Damaged input files of `predict` and `translate`: the row is named, and skipped if later rows can be read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlp_transfer.data.sources import table_reader
from nlp_transfer.inference.translator import Translator
from nlp_transfer.inference.writers import Writer
from tests.builders import edit, exit_status
from tests.helpers.mistakes.case import listing
from tests.helpers.seq2seq_models import PAIRS

pytestmark = pytest.mark.process

CHUNK_ROWS = 4  # so that few rows are several chunks
ROWS = [pair[0] for pair in PAIRS[:12]]


@pytest.fixture
def place(valid_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model for each command, in which files are read in chunks of a few rows."""
    for name, command in (("classifier", "predict"), ("translator", "translate")):
        shutil.copytree(valid_folder / name, tmp_path / command)
    record = tmp_path / "translate/nlp_transfer.json"
    edit(record, settings=json.loads(record.read_text())["settings"] | {"source": "text"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nlp_transfer.inference.predictor.CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr("nlp_transfer.inference.translator.CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr(Translator, "__call__", lambda self, texts: list(texts))  # reading is what is tried here
    return tmp_path


def lines(at: int, broken: bytes, form: str = "{}\n", head: str = "") -> bytes:
    """Return good rows with a broken one after the first `at`."""
    good = [form.format(text).encode() for text in ROWS]
    return b"".join([head.encode(), *good[:at], broken, *good[at:]])


def json_lines(at: int, broken: bytes) -> bytes:
    good = [json.dumps({"text": text}).encode() + b"\n" for text in ROWS]
    return b"".join([*good[:at], broken, *good[at:]])


def broken_parquet(path: Path) -> None:
    pq.write_table(
        pa.table({"text": ROWS}), path, row_group_size=4, compression="none", use_dictionary=False, write_statistics=False
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(ROWS[9].encode(), b"\xff" * len(ROWS[9].encode()), 1))


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


# No row after it could be told from another: exit status 2, and no output is left behind.
BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("in.csv", put("in.csv", lines(9, b'"open\n', head="text\n")), "in.csv, row 11"),
    ("in.csv", put("in.csv", lines(9, b"x" * 9000 + b"\n", head="text\n")), "row 11 (up to line 10): is longer than 5,000"),
    ("in.parquet", lambda folder: broken_parquet(folder / "in.parquet"), "cannot be read as Parquet"),
    ("in.csv", lambda folder: os.mkfifo(folder / "in.csv"), "--input: in.csv is a pipe"),
    ("in.txt", lambda folder: (folder / "in.txt").symlink_to("/dev/zero"), "--input: in.txt is a device"),
    ("in.csv", lambda folder: (folder / "in.csv").mkdir(), "--input: in.csv is a folder"),
    ("in.csv", lambda folder: (folder / "in.csv").symlink_to("in.csv"), "--input: there is no file in.csv"),
]  # fmt: skip
# One row that cannot be predicted.
MARKED: list[tuple[str, Callable[[Path], Any], str]] = [
    ("in.csv", put("in.csv", lines(9, b"a,b\n", head="text\n")), "row 11: found 2 cells"),
    ("in.csv", put("in.csv", lines(9, b"caf\xe9\n", head="text\n")), "row 11, column 'text': byte 0xe9 is not utf-8"),
    ("in.csv", put("in.csv", lines(9, b"\n", head="text\n")), "row 11: the line is blank"),
    ("in.jsonl", put("in.jsonl", json_lines(9, b"{text\n")), "row 10: is not JSON"),
    ("in.jsonl", put("in.jsonl", json_lines(9, b'{"text": "a", "text": "b"}\n')), "row 10: the key 'text' occurs twice"),
    ("in.jsonl", put("in.jsonl", json_lines(9, b'{"text": 5}\n')), "row 10, column 'text': found 5 (int)"),
    ("in.jsonl", put("in.jsonl", json_lines(9, b'{"text": ' + b"[" * 200 + b"]" * 200 + b"}\n")), "row 10: lists and objects"),
    ("in.jsonl", put("in.jsonl", json_lines(9, b'{"text": "\\ud800"}\n')), "row 10: found \\ud800, half of a character"),
    ("in.txt", put("in.txt", lines(9, b"caf\xe9\n")), "row 10, column 'text': byte 0xe9"),
    ("in.txt", put("in.txt", lines(9, b"x" * 9000 + b"\n")), "row 10: is longer than 5,000"),
]  # fmt: skip


@pytest.mark.parametrize("does", ["predict", "translate"])
@pytest.mark.parametrize("output", ["new/out.jsonl", "out.parquet"])
def test_damaged_input_leaves_no_output(
    does: str, output: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nlp_transfer.data.sources.file_reading.MAX_ROW", 5000)
    for name, make, says in BROKEN:
        make(place)
        before = listing(place) if (place / name).is_file() and not (place / name).is_symlink() else None
        status = exit_status(does, does, "--input", name, "--output", output)
        said = capfd.readouterr().err
        assert (status, says in said, "Traceback" in said) == (2, True, False), f"{name}, {says}: {said}"
        assert not (place / output).parent.joinpath(Path(output).name).exists()
        assert not list(place.glob("**/.*"))
        assert before is None or listing(place) == before
        path = place / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("does", ["predict", "translate"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_a_damaged_row_is_skipped(
    does: str, output: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nlp_transfer.data.sources.file_reading.MAX_ROW", 5000)
    column = "translation" if does == "translate" else "prediction"
    for name, make, says in MARKED:
        make(place)
        status = exit_status(does, does, "--input", name, "--output", output)
        said = capfd.readouterr().err
        assert (status, says in said, "1 of 13 rows have no prediction" in said) == (0, True, True), f"{name}, {says}: {said}"
        rows = pq.read_table(output).to_pylist() if output == "out.parquet" else read_lines(place / output)
        assert [row[column] is None for row in rows] == [i == 9 for i in range(13)]
        assert [row["text"] for i, row in enumerate(rows) if i != 9] == ROWS
        (place / name).unlink()
        (place / output).unlink()
        assert not list(place.glob(".*"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("does", ["predict", "translate"])
@pytest.mark.parametrize("how", ["vanishes", "cannot be opened"])
def test_input_that_disappears(
    does: str, how: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "in.csv").write_bytes(lines(0, b"", head="text\n"))
    true = table_reader.check_regular

    def gone(path: Path) -> None:
        true(path)
        path.unlink()

    def closed(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    if how == "vanishes":
        monkeypatch.setattr(table_reader, "check_regular", gone)
    else:
        monkeypatch.setattr(table_reader, "open_text", closed)
    assert exit_status(does, does, "--input", "in.csv", "--output", "out.csv") == 2
    assert "in.csv: cannot be read (" in capfd.readouterr().err
    assert not (place / "out.csv").exists()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": [2**70]}, "too large"),
        ({"a": [1], "b": ["x"]}, ""),
        ({"a": [[1, "x"]]}, "parquet"),
        ({"a": [{"b": 1}, 5]}, "parquet"),
    ],
    ids=["huge", "good", "mixed list", "mixed"],
)
def test_values_that_parquet_cannot_hold(columns: dict[str, list[Any]], says: str, tmp_path: Path) -> None:
    from nlp_transfer.utils.errors import UserError

    with Writer(tmp_path / "a.parquet", ".parquet") as writer:
        if not says:
            writer.write(columns)
            return
        with pytest.raises(UserError, match=r"allowed: \.jsonl"):
            writer.write(columns)
