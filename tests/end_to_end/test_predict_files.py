"""`predict` and `translate` on files: bad rows, interruptions, standard streams and texts."""

import csv
import errno
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import UserError, load_predictor
from nlp_transfer.data.sources.file_reading import Lines
from nlp_transfer.inference.command_inputs import FileOptions, check_not_of_model
from nlp_transfer.inference.file_predictor import FilePredictor
from nlp_transfer.inference.files import predict_file
from nlp_transfer.inference.predictor import CHUNK_ROWS
from nlp_transfer.inference.writers import Writer
from nlp_transfer.security.file_locks import LOCKED
from nlp_transfer.utils.console import Steps, console
from nlp_transfer.utils.interrupts import Interrupted
from tests.builders import exit_status, read_table, refused, sentiment_rows, write
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.process

TEXTS = [text for text, _ in sentiment_rows(20, seed=3)]
FORMATS = [".csv", ".jsonl", ".parquet", ".txt"]


@pytest.fixture(scope="module")
def model(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with random weights."""
    folder = tmp_path_factory.mktemp("predict") / "model"
    AutoModelForSequenceClassification.from_pretrained(tiny["bert"], num_labels=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; files are read in chunks of four rows, and the machine has two cores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nlp_transfer.inference.predictor.CHUNK_ROWS", 4)
    monkeypatch.setattr("nlp_transfer.inference.worker_processes.cores", lambda: 2)
    return tmp_path


def predict(model: Path, source: str, output: str, *more: object) -> int:
    return exit_status("predict", model, "--input", source, "--output", output, *more)


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


BAD_JSON = {
    '{"text": ""}': "with an empty text",
    '{"text": null}': "with an empty text",
    '{"other": 1}': "with an empty text",
    '{"text": 5}': "with a cell that is not text",
    '{"text": ["a"]}': "with a cell that is not text",
    '{"text": ': "without a JSON object",
    "[1]": "without a JSON object",
    '{"text": "a", "text": "b"}': "without a JSON object",
    '{"text": "\\ud800"}': "without a JSON object",
    json.dumps({"text": "x" * 3000}): "over the size limit",
    "": "on a blank line",
}


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 2048])
def test_bad_rows_keep_their_place(
    model: Path, output: str, chunk_rows: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first chunks have no good row, and a column appears late. Parquet holds cells of other types as JSON."""
    monkeypatch.setattr("nlp_transfer.inference.predictor.CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr("nlp_transfer.data.sources.file_reading.MAX_ROW", 2500)
    good = [json.dumps({"text": text, "late": i}) for i, text in enumerate(TEXTS)]
    lines = [*BAD_JSON, *good]
    Path("in.jsonl").write_text("\n".join(lines) + "\n")
    assert predict(model, "in.jsonl", f"out{output}", *["--notes"] * (output != ".txt")) == 0
    direct = load_predictor(model)(TEXTS)
    said = capfd.readouterr().err
    if output == ".txt":
        found = Path("out.txt").read_text().split("\n")[:-1]
        assert found == [""] * len(BAD_JSON) + [row["prediction"] for row in direct]
    else:
        rows = read_table(f"out{output}")
        empty = "" if output == ".csv" else None
        assert list(rows[0]) == ["text", "other", "late", "prediction", "probability", "note"]
        for row, line in zip(rows, lines, strict=True):
            assert (row["prediction"] == empty) == (row["probability"] == empty) == (row["note"] != empty) == (line in BAD_JSON)
        assert [row["prediction"] for row in rows[len(BAD_JSON) :]] == [row["prediction"] for row in direct]
        for row, one in zip(rows[len(BAD_JSON) :], direct, strict=True):
            assert float(row["probability"]) == pytest.approx(one["probability"], abs=1e-6)
        assert "is not JSON" in rows[5]["note"]
    assert f"{len(BAD_JSON)} of {len(lines)} rows have no prediction" in said
    assert all(f"{list(BAD_JSON.values()).count(kind)} {kind}" in said for kind in BAD_JSON.values())
    assert "in.jsonl, row 1, column 'text': the cell is empty" in said
    assert "in.jsonl, row 4, column 'text': found 5 (int)" in said


def test_rows_of_csv_and_text_files(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("in.csv").write_bytes(
        b"id,text\n1,a good film\n2,\n3\n4,a,b\n\n6,\xff bad\n7,bad\n\n"  # the last blank line ends the file
    )
    assert predict(model, "in.csv", "out.csv", "--notes") == 0
    rows = read_table("out.csv")
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "", "6", "7"]
    assert [bool(row["prediction"]) for row in rows] == [True, False, False, False, False, False, True]
    assert [bool(row["note"]) for row in rows] == [False, True, True, True, True, True, False]
    assert rows[5]["text"] == "\ufffd bad"
    said = capfd.readouterr().err
    assert "5 of 7 rows have no prediction: 2 with too many or too few cells" in said
    Path("in.txt").write_bytes(b"a good film\n\n\xff\n \nbad\n")
    assert predict(model, "in.txt", "out.txt") == 0
    assert [bool(line) for line in Path("out.txt").read_text().split("\n")] == [True, False, False, False, True, False]


def test_an_unclosed_quote_is_refused_before_loading(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The start of the next row is unknown, so no later row could be predicted."""
    monkeypatch.setattr(FilePredictor, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    Path("in.csv").write_text("text\n" + "a\n" * 50 + '"open\na\n')
    assert predict(model, "in.csv", "out.csv") == 2
    assert "in.csv, row 52" in capfd.readouterr().err
    assert files() == ["in.csv"]


def test_nulls_of_parquet_and_processes(model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nlp_transfer.inference.predictor.CHUNK_ROWS", CHUNK_ROWS)
    cells = [None, *TEXTS[:4], "", None, " ", *TEXTS[4:9], None]
    pq.write_table(pa.table({"n": range(len(cells)), "text": cells}), "in.parquet")
    said = []
    for processes in (1, 2):
        assert predict(model, "in.parquet", f"{processes}.parquet", "--processes", processes) == 0
        said.append(capfd.readouterr().err.partition("warning: ")[2].split("\nthe input has")[0].strip())
    assert said[0] == said[1] != ""
    assert Path("1.parquet").read_bytes() == Path("2.parquet").read_bytes()
    found = pq.read_table("1.parquet")
    assert found.column_names == ["n", "text", "prediction", "probability"]
    assert found.column("text").to_pylist() == cells
    assert [cell is None for cell in found.column("prediction").to_pylist()] == [not (cell or "").strip() for cell in cells]


def test_a_file_without_any_row_to_predict(model: Path) -> None:
    Path("in.csv").write_text("text,n\n,1\n,2\n")
    assert predict(model, "in.csv", "out.csv") == 0
    assert Path("out.csv").read_text() == "text,n,prediction,probability\n,1,,\n,2,,\n"
    for processes in (1, 2):
        assert predict(model, "in.csv", f"out{processes}.parquet", "--processes", processes) == 0
        types = {field.name: str(field.type) for field in pq.read_table(f"out{processes}.parquet").schema}
        assert types == {"text": "string", "n": "string", "prediction": "string", "probability": "double"}


def test_rows_of_wrong_length_keep_their_cells(model: Path) -> None:
    Path("in.csv").write_bytes(b"id,n,text\n1,a,a good film\n2,b\n3,c,bad,more\n4,\xff\n\n5,d,bad\n")
    assert predict(model, "in.csv", "out.jsonl", "--notes") == 0
    found = read_table("out.jsonl")
    assert [(row["id"], row["n"], row["text"]) for row in found] == [
        ("1", "a", "a good film"), ("2", "b", None), ("3", "c", "bad"), ("4", "\ufffd", None), (None,) * 3, ("5", "d", "bad"),
    ]  # fmt: skip
    assert [row["prediction"] is None for row in found] == [False, True, True, True, True, False]


def test_texts_may_be_missing_in_a_whole_chunk(model: Path) -> None:
    rows = [{"translation": None}] * 4 + [{"translation": {"text": text}} for text in TEXTS[:4]]
    write(Path("in.jsonl"), rows)
    assert predict(model, "in.jsonl", "out.jsonl") == 0
    assert [row["prediction"] is None for row in read_table("out.jsonl")] == [True] * 4 + [False] * 4


def test_on_bad_rows_in_python(model: Path) -> None:
    predictor = load_predictor(model)
    frame = pd.DataFrame({"text": ["a good film", float("nan"), "", "bad", 5]})
    [good, _, _, bad, _] = found = predictor(frame, on_bad_rows="skip")
    assert [good, bad] == [pytest.approx(one) for one in predictor(["a good film", "bad"])]
    assert [row["prediction"] for row in (found[1], found[2], found[4])] == [None] * 3
    assert [set(row) for row in (found[1], found[2], found[4])] == [{"prediction", "probability", "note"}] * 3
    assert "found 5 (int)" in found[4]["note"]
    assert predictor(["", None], on_bad_rows="skip")[0]["prediction"] is None
    with refused("3 problems"):
        predictor(frame)
    with refused("on_bad_rows: found 'ignore'; allowed: refuse, skip"):
        predictor(frame, on_bad_rows="ignore")


# Interruptions

Interrupt = Callable[[int, BaseException], list[int]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Return a function that raises an error in place of a chunk's predictions, and lists the first rows of predicted chunks."""
    true = FilePredictor.__call__

    def at(chunk: int, error: BaseException) -> list[int]:
        seen: list[int] = []

        def predict_chunk(self: FilePredictor, batch: Any) -> Any:
            if len(seen) == chunk:
                raise error
            seen.append(batch.first)
            return true(self, batch)

        monkeypatch.setattr(FilePredictor, "__call__", predict_chunk)
        return seen

    return at


def resumed(interrupt: Interrupt, model: Path, output: str, *more: object) -> list[int]:
    """Predict to the end; return the first rows of the chunks that had no prediction yet."""
    seen = interrupt(-1, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", output, *more) == 0
    return seen


def write_input(rows: int = 20) -> None:
    write(Path("in.jsonl"), [{"id": i, "text": TEXTS[i % 20] if i % 7 else None} for i in range(rows)])


@pytest.mark.parametrize("ending", FORMATS)
def test_an_interrupted_command_resumes(
    model: Path, ending: str, interrupt: Interrupt, capfd: pytest.CaptureFixture[str]
) -> None:
    write_input()
    how = ("--probabilities", "--notes") if ending != ".txt" else ()
    assert predict(model, "in.jsonl", f"whole{ending}", *how) == 0
    interrupt(2, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", f"out{ending}", *how) == 143
    assert "8 rows are saved" in (said := capfd.readouterr().err)
    assert "repeat the same command to resume" in said
    assert files() == sorted([f".out{ending}.partial", "in.jsonl", f"whole{ending}"])
    assert stat.S_IMODE(Path(f".out{ending}.partial").stat().st_mode) == 0o600
    seen = interrupt(2, ZeroDivisionError())
    assert predict(model, "in.jsonl", f"out{ending}", *how) == 1
    assert seen == [9, 13]
    assert resumed(interrupt, model, f"out{ending}", *how) == [17]
    assert "resuming: up to 16 rows were predicted before" in capfd.readouterr().err
    assert Path(f"out{ending}").read_bytes() == Path(f"whole{ending}").read_bytes()
    assert files() == sorted(["in.jsonl", f"out{ending}", f"whole{ending}"])


def test_several_processes_resume(
    model: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes resume the work of one, with the same number of threads each."""
    monkeypatch.setattr("nlp_transfer.inference.predictor.CHUNK_ROWS", CHUNK_ROWS)
    write_input(3 * CHUNK_ROWS + 10)
    assert predict(model, "in.jsonl", "whole.parquet") == 0
    interrupt(2, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.parquet") == 143
    assert predict(model, "in.jsonl", "out.parquet", "--processes", 2) == 0
    assert f"resuming: up to {2 * CHUNK_ROWS} rows were predicted before" in capfd.readouterr().err
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_only_chunks_with_the_same_rows_are_reused(model: Path, interrupt: Interrupt) -> None:
    write_input()
    interrupt(4, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.csv") == 143
    lines = Path("in.jsonl").read_text().splitlines()
    lines[5] = json.dumps({"id": 5, "text": "awful"})
    Path("in.jsonl").write_text("\n".join(lines) + "\n")
    assert resumed(interrupt, model, "out.csv") == [5, 17]
    assert predict(model, "in.jsonl", "whole.csv") == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize("change", ["model", "precision", "--probabilities", "--batch-size", "max_length", "threads"])
def test_other_settings_start_over(
    model: Path, change: str, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_input()
    interrupt(4, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.csv") == 143
    more: list[object] = []
    if change == "model":
        other = AutoModelForSequenceClassification.from_pretrained(model)
        other.classifier.bias.data += 0.5
        other.save_pretrained("other")
        AutoTokenizer.from_pretrained(model).save_pretrained("other")
        model = Path("other")
    elif change == "threads":
        monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    else:
        more = {
            "precision": ["--precision", "bf16"],
            "--probabilities": ["--probabilities"],
            "--batch-size": ["--batch-size", 2],
            "max_length": ["--task.max_length", 8],
        }[change]
    assert resumed(interrupt, model, "out.csv", *more) == [1, 5, 9, 13, 17]
    assert "starting over" in (said := capfd.readouterr().err)
    named = {"precision": "precision", "--batch-size": "batch size", "--probabilities": "probabilities"}
    assert f"({named.get(change, change).replace('max_length', 'task.max_length')} changed)" in said
    assert predict(model, "in.jsonl", "whole.csv", *more) == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_a_moved_model_resumes(model: Path, interrupt: Interrupt) -> None:
    write_input()
    interrupt(4, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.csv") == 143
    Path("link").symlink_to(model)
    assert resumed(interrupt, Path("link"), "out.csv") == [17]


def test_a_truncated_journal_is_resumed(model: Path, interrupt: Interrupt) -> None:
    write_input()
    assert predict(model, "in.jsonl", "whole.csv") == 0
    interrupt(4, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.csv") == 143
    whole = Path(".out.csv.partial").read_bytes()
    header = whole.index(b"\n") + 1
    for end in [*range(header, len(whole), 97), len(whole) - 1, len(whole)]:
        Path(".out.csv.partial").write_bytes(whole[:end])
        seen = interrupt(-1, Interrupted(signal.SIGTERM))
        assert predict(model, "in.jsonl", "out.csv", "--overwrite") == 0
        complete = sum(line.startswith(b'{"window"') and line.endswith(b"\n") for line in whole[:end].splitlines(keepends=True))
        assert len(seen) == 5 - complete
        assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
        assert files() == ["in.jsonl", "out.csv", "whole.csv"]


def test_an_error_in_the_input_leaves_nothing(model: Path) -> None:
    """The error is in the last chunk, after the others are predicted."""
    rows = [{"text": text, "id": i if i < 19 else "x"} for i, text in enumerate(TEXTS)]
    write(Path("in.jsonl"), rows)
    assert predict(model, "in.jsonl", "new/folder/out.parquet") == 2
    assert files() == ["in.jsonl"]


def test_a_full_disk_loses_nothing(
    model: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_input()
    assert predict(model, "in.jsonl", "whole.csv") == 0
    true = Writer.write

    def full(self: Writer, columns: Any, table: Any = None) -> None:
        if columns["id"][0] == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        true(self, columns, table)

    monkeypatch.setattr(Writer, "write", full)
    assert predict(model, "in.jsonl", "out.csv") == 2
    said = capfd.readouterr().err
    assert "the disk is full" in said
    assert "Traceback" not in said
    monkeypatch.setattr(Writer, "write", true)
    assert resumed(interrupt, model, "out.csv") == [17]
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, so that writing, flushing and closing them fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", FORMATS[:3])  # in .txt the journal is larger than the output
def test_an_error_on_close_loses_nothing(
    model: Path, ending: str, interrupt: Interrupt, small_files: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """The journal fits, the output does not."""
    rows = [{"text": text, "more": os.urandom(2000).hex()} for text in TEXTS]
    write(Path("in.jsonl"), rows)
    assert predict(model, "in.jsonl", f"whole{ending}") == 0
    interrupt(4, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", f"out{ending}") == 143
    assert Path(f".out{ending}.partial").stat().st_size < 10_000
    capfd.readouterr()
    small_files(10_000)
    assert predict(model, "in.jsonl", f"out{ending}") == 2
    small_files(resource.RLIM_INFINITY)
    said = capfd.readouterr().err
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert "Exception" not in said
    assert files() == sorted([f".out{ending}.partial", "in.jsonl", f"whole{ending}"])
    assert resumed(interrupt, model, f"out{ending}") == [17]
    assert Path(f"out{ending}").read_bytes() == Path(f"whole{ending}").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    "arguments",
    [
        *(["predict", "--input", "in.jsonl", "--output", "-", "--format", form] for form in ("txt", "csv", "parquet")),
        ["predict", "a text"],
        ["evaluate", "--data.test", "test.csv"],
    ],
    ids=" ".join,
)
def test_a_full_disk_behind_standard_output(
    model: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input()
    labels = list(load_predictor(model).task.labels)  # type: ignore[attr-defined]
    write(Path("test.csv"), [(text, labels[0]) for text in TEXTS])
    before = os.dup(1)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115 (pytest's own does not reach the device)
    try:
        assert exit_status(arguments[0], str(model), *arguments[1:]) == 2
    finally:
        monkeypatch.undo()
        os.dup2(before, 1)
        os.close(before)
        os.close(full)
    said = capfd.readouterr().err
    assert "standard output cannot be written" in said
    assert "Traceback" not in said


def test_no_room_for_standard_input(
    model: Path, standard_input: Callable[[bytes], None], small_files: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    standard_input(b"good film\n" * 1000)
    small_files(1000)
    assert predict(model, "-", "out.txt") == 2
    assert "TMPDIR" in capfd.readouterr().err
    assert files() == []


def overwritten(how: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments of a wrong second command, or change its input."""
    text = Path("in.jsonl").read_text()
    if how == "column":
        Path("in.jsonl").write_text(text.replace('"text"', '"body"'))
    elif how == "notes":
        Path("in.jsonl").write_text(text.replace('"id"', '"note"'))
        return ["--notes"]
    elif how == "touched":
        monkeypatch.setattr("nlp_transfer.inference.files.state_of", lambda path: (1,))
    return []


@pytest.mark.parametrize("how", ["column", "notes", "touched", "option"])
def test_a_wrong_second_command_keeps_the_journal(
    model: Path, how: str, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input()
    interrupt(4, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.csv") == 143
    part = ".part-" + "0" * 32
    Path(".out.csv.lock").write_bytes(LOCKED + f"{part}\n".encode())  # as a kill leaves it
    Path(part).touch()
    before = Path("in.jsonl").read_text()
    with monkeypatch.context() as patch:
        more = overwritten(how, patch)
        if how == "option":
            interrupt(0, Interrupted(signal.SIGINT))
            more = ["--batch-size", "3"]
        else:
            interrupt(-1, Interrupted(signal.SIGTERM))
        assert predict(model, "in.jsonl", "out.csv", *more) == (130 if how == "option" else 2)
    assert files() == [".out.csv.partial", "in.jsonl"]
    Path("in.jsonl").write_text(before)
    seen = interrupt(-1, Interrupted(signal.SIGTERM))
    assert predict(model, "in.jsonl", "out.csv") == 0
    assert seen == ([17] if how != "touched" else [])
    assert files() == ["in.jsonl", "out.csv"]


def test_an_input_that_changes_loses_nothing(
    model: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_input()
    with monkeypatch.context() as patch:
        overwritten("touched", patch)
        assert predict(model, "in.jsonl", "out.csv") == 2
    assert "changed while it was read" in capfd.readouterr().err
    assert resumed(interrupt, model, "out.csv") == []


def test_closed_standard_error_leaves_no_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_input()

    def closed(*lines: str) -> None:
        if Path("out.csv").exists():
            raise BrokenPipeError

    monkeypatch.setattr("nlp_transfer.inference.files.say", closed)
    monkeypatch.setattr("nlp_transfer.inference.output_journal.say", closed)
    with pytest.raises(BrokenPipeError):
        predict_file(
            {"model": str(model), "settings": {}, "batch_size": None, "precision": "fp32"},
            FileOptions(Path("in.jsonl"), Path("out.csv")),
        )
    assert files() == ["in.jsonl", "out.csv"]


def test_a_journal_with_half_a_header_is_replaced(model: Path) -> None:
    write_input()
    for start in ("", "{", '{"', '{"batch size'):
        Path(".out.csv.partial").write_text(start)
        assert predict(model, "in.jsonl", "out.csv", "--overwrite") == 0
        assert files() == ["in.jsonl", "out.csv"]


def test_two_commands_cannot_write_one_output(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_input()
    with FileLock(".out.csv.lock"):
        assert predict(model, "in.jsonl", "out.csv") == 2
    assert "another command is writing" in capfd.readouterr().err
    assert "out.csv" not in files()
    assert predict(model, "in.jsonl", "out.csv") == 0
    assert files() == ["in.jsonl", "out.csv"]


@pytest.mark.parametrize("kind", ["link", "pipe", "file of the user's"])
def test_other_files_named_like_the_journal_stay(model: Path, kind: str) -> None:
    write_input()
    Path("precious").write_text("mine\n")
    if kind == "link":
        Path(".out.csv.partial").symlink_to("precious")
    elif kind == "pipe":
        os.mkfifo(".out.csv.partial")
    else:
        Path(".out.csv.partial").write_text("mine\n")
    assert predict(model, "in.jsonl", "out.csv") == 2
    assert files() == [".out.csv.partial", "in.jsonl", "precious"]
    assert Path("precious").read_text() == "mine\n"
    assert kind != "file of the user's" or Path(".out.csv.partial").read_text() == "mine\n"


@pytest.mark.parametrize("name", [".out.csv.lock", ".out.csv.partial", ".part-zz.csv", f".part-{'0' * 32}.txt"])
def test_an_input_named_like_a_temporary_file_stays(model: Path, name: str) -> None:
    content = ("text\n" if name.endswith(".csv") else "") + "".join(f"{text}\n" for text in TEXTS)
    Path(name).write_text(content)
    expected = 2 if name.startswith(".out") else 0  # the name is needed for the lock, or the journal
    assert predict(model, name, "out.csv") == expected
    assert Path(name).read_text() == content
    assert files() == sorted([name, "out.csv"] if expected == 0 else [name])


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link"])
def test_other_files_named_like_the_lock_stay(model: Path, kind: str) -> None:
    write_input()
    Path("precious").write_text("mine\n")
    lock = Path(".out.csv.lock")
    make: dict[str, Callable[[], None]] = {"link": lambda: lock.symlink_to("precious"), "pipe": lambda: os.mkfifo(lock)}
    make.get(kind, lambda: lock.hardlink_to("precious"))()
    assert predict(model, "in.jsonl", "out.csv") == 2
    assert files() == [".out.csv.lock", "in.jsonl", "precious"]
    assert Path("precious").read_text() == "mine\n"


def test_files_of_the_model_are_not_overwritten(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("model/config.json", "model/vocab.txt", "log.jsonl", "mine.csv"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    (tmp_path / "link.txt").symlink_to(run / "model/vocab.txt")
    for source, output in ((run, run / "log.jsonl"), (run, run / "model/vocab.txt"), (run / "model", tmp_path / "link.txt")):
        with refused(f"{output.name} is a file of the model"):
            check_not_of_model(output, str(source))
    check_not_of_model(run / "mine.csv", str(run))
    check_not_of_model(run / "new.csv", str(run))
    write_input()
    record = model / "config.json"
    assert record.exists()
    link = Path("out.txt")
    link.symlink_to(record)
    assert predict(model, "in.jsonl", "out.txt", "--overwrite") == 2
    assert json.loads(record.read_text())["model_type"]


def test_an_input_that_grows_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Reading a row appends another one, so reading to the current end would never stop."""
    rows = 200_000  # more than is read at once
    Path("in.txt").write_text("good film\n" * rows)
    true, read = Lines.__next__, [0]

    def grow(self: Lines) -> str:
        line = true(self)
        read[0] += 1
        assert read[0] <= 2 * rows
        if read[0] % 1000 == 0:
            with Path("in.txt").open("a") as file:
                file.write("good film\n" * 1000)
        return line

    monkeypatch.setattr(Lines, "__next__", grow)
    monkeypatch.setattr(
        "nlp_transfer.inference.files.Steps", lambda *_: (_ for _ in ()).throw(UserError(f"{read[0]} rows counted"))
    )
    assert predict(model, "in.txt", "out.txt") == 2
    assert f"{rows} rows counted" in capfd.readouterr().err
    assert files() == ["in.txt"]


def test_an_output_is_replaced_only_with_overwrite(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_input()
    Path("true.csv").write_text("precious\n")
    Path("true.csv").chmod(0o640)
    Path("out.csv").symlink_to("true.csv")
    assert predict(model, "in.jsonl", "out.csv") == 2
    assert "--overwrite" in capfd.readouterr().err
    assert Path("true.csv").read_text() == "precious\n"
    assert predict(model, "in.jsonl", "out.csv", "--overwrite") == 0
    assert Path("out.csv").is_symlink()
    assert len(read_table("true.csv")) == 20
    assert stat.S_IMODE(Path("true.csv").stat().st_mode) == 0o640
    old = os.umask(0o027)
    try:
        assert predict(model, "in.jsonl", "new.csv") == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE(Path("new.csv").stat().st_mode) == 0o640
    assert files() == ["in.jsonl", "new.csv", "out.csv", "true.csv"]


def test_an_output_created_meanwhile_is_kept(model: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch) -> None:
    write_input()
    true = Writer.__exit__

    def leave(self: Writer, *how: Any) -> None:
        Path("out.csv").write_text("precious\n")
        true(self, *how)

    monkeypatch.setattr(Writer, "__exit__", leave)
    assert predict(model, "in.jsonl", "out.csv") == 2
    assert Path("out.csv").read_text() == "precious\n"
    monkeypatch.setattr(Writer, "__exit__", true)
    assert resumed(interrupt, model, "out.csv", "--overwrite") == []
    assert len(read_table("out.csv")) == 20


def test_metrics_are_replaced_only_with_overwrite(model: Path) -> None:
    labels = list(load_predictor(model).task.labels)  # type: ignore[attr-defined]
    write(Path("test.csv"), [(text, labels[i % 2]) for i, text in enumerate(TEXTS)])
    Path("figures.json").write_text("precious")
    evaluate = ["evaluate", str(model), "--data.test", "test.csv", "--output", "figures.json"]
    assert exit_status(*evaluate) == 2
    assert Path("figures.json").read_text() == "precious"
    assert exit_status(*evaluate, "--overwrite") == 0
    assert json.loads(Path("figures.json").read_text())["rows"] == 20


def test_a_killed_command_resumes(model: Path) -> None:
    """After SIGKILL the next command removes the temporary files."""
    write(Path("in.csv"), {"text": TEXTS * 1000})
    arguments = [sys.executable, "-m", "nlp_transfer", "predict", str(model), "--input", "in.csv", "--batch-size", "64"]
    around: Any = {"env": os.environ | {"PYTHONPATH": str(ROOT)}}
    process = subprocess.Popen([*arguments, "--output", "out.csv"], **around)
    journal = Path(".out.csv.partial")
    try:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b'\n{"window"') >= 2):
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it was killed"
    finally:
        process.kill()
        process.wait()
    assert not Path("out.csv").exists()
    assert any(name.startswith(".part-") for name in files())
    for output in ("out.csv", "whole.csv"):
        done = subprocess.run([*arguments, "--output", output], **around, capture_output=True, text=True, check=True)
        assert ("resuming: " in done.stderr) == (output == "out.csv")
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert files() == ["in.csv", "out.csv", "whole.csv"]


# Standard streams and texts


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_streams(
    model: Path, standard_input: Callable[[bytes], None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    labels = [row["prediction"] for row in load_predictor(model)(TEXTS)]
    capfd.readouterr()
    standard_input("\n".join(TEXTS).encode())
    assert predict(model, "-", "-") == 0
    out, said = capfd.readouterr()
    assert out.splitlines() == labels
    assert "20 rows are in standard output" in said
    table = io.StringIO()
    csv.writer(table).writerows([("id", "text"), *((i, text) for i, text in enumerate(["", *TEXTS]))])
    standard_input(table.getvalue().encode())
    assert predict(model, "-", "-", "--format", "csv") == 0
    out, said = capfd.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["prediction"] for row in rows] == ["", *labels]
    assert "standard input, row 2, column 'text': the cell is empty" in said
    pq.write_table(pa.table({"text": TEXTS}), "in.parquet")
    standard_input(Path("in.parquet").read_bytes())
    assert predict(model, "-", "out.jsonl", "--format", "parquet") == 0
    assert [row["prediction"] for row in read_table("out.jsonl")] == labels
    assert predict(model, "in.parquet", "-", "--format", "jsonl") == 0
    assert [json.loads(line)["prediction"] for line in capfd.readouterr().out.splitlines()] == labels
    assert files() == ["in.parquet", "out.jsonl"]


def test_parquet_on_standard_output(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), "in.parquet")
    assert predict(model, "in.parquet", "whole.parquet") == 0
    before = os.dup(1)
    with Path("out.parquet").open("wb") as file:
        os.dup2(file.fileno(), 1)
        try:
            assert predict(model, "in.parquet", "-") == 0
        finally:
            os.dup2(before, 1)
            os.close(before)
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


@pytest.mark.parametrize(
    ("content", "how", "says"),
    [
        (b"", [], "standard input: the file is empty"),
        (b'text\n"open', ["--format", "csv"], "standard input, row 2"),
        (b"id\n1\n", ["--format", "csv"], "standard input: there is no column 'text'"),
    ],
)
def test_errors_in_standard_input_name_it(
    model: Path, content: bytes, how: list[str], says: str, standard_input: Callable[[bytes], None], capfd: Any
) -> None:
    standard_input(content)
    assert predict(model, "-", "-", *how) == 2
    out, said = capfd.readouterr()
    assert says in said
    assert out == ""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_closed_pipe_ends_quietly(model: Path, processes: int, capfd: pytest.CaptureFixture[str]) -> None:
    write_input()
    before = os.dup(1)
    end, start = os.pipe()
    os.close(end)
    os.dup2(start, 1)
    try:
        assert predict(model, "in.jsonl", "-", "--processes", processes) == 141
    finally:
        os.dup2(before, 1)
        os.close(start)
        os.close(before)
    assert not [line for line in capfd.readouterr().err.splitlines() if "rror" in line or "resume" in line]


def test_texts_of_the_command_line(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    direct = load_predictor(model)(TEXTS[:2], probabilities=True)
    capfd.readouterr()
    assert exit_status("predict", model, TEXTS[0], "--task.max_length", "60", TEXTS[1], "", "--probabilities") == 0
    out, said = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.pop("text") for row in rows] == [*TEXTS[:2], ""]
    assert rows[:2] == [pytest.approx(row) for row in direct]
    assert set(rows[2].values()) == {None}
    assert "TEXT 3" in said


def test_texts_of_any_form(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After `--` a text may look like an option. Bytes in another encoding are reported."""
    expected = [row["prediction"] for row in load_predictor(model)(["--great--", "-h film"])]
    capfd.readouterr()
    assert exit_status("predict", model, "--probabilities", "--", "--great--", "-h film") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["text"], row["prediction"]) for row in rows] == list(zip(["--great--", "-h film"], expected, strict=True))
    assert exit_status("predict", model, "good film", "\udce9 good") == 0
    out, said = capfd.readouterr()
    assert [json.loads(line)["prediction"] is None for line in out.splitlines()] == [False, True]
    assert "TEXT 2, column 'text': byte 0xe9 is not utf-8" in said
    predictor = load_predictor(model)
    with refused("row 2", "half of a character"):
        predictor(["good", "\ud83d"])
    assert [row["prediction"] is None for row in predictor(["good", "\ud83d"], on_bad_rows="skip")] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--input and --output: not given"),
        (("--input", "in.jsonl"), "--output: not given"),
        (("--output", "out.csv"), "--input: not given"),
        (("a text", "--input", "in.jsonl"), "--input: has no effect on texts"),
        (("a text", "--output", "out.csv"), "--output: has no effect on texts"),
        (("a text", "--data.encoding", "latin-1"), "--data: has no effect on texts"),
        (("--input", "in.jsonl", "--output", "out.csv", "--format", "csv"), "--format: has no effect"),
        (("--input", "in.jsonl", "--output", "-", "--overwrite"), "--overwrite: has no effect"),
        (("--input", "in.jsonl", "--output", "out.txt", "--notes"), "--notes: a .txt file"),
    ],
)
def test_contradictory_arguments_are_refused(
    model: Path, arguments: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_input()
    assert exit_status("predict", model, *arguments) == 2
    assert says in capfd.readouterr().err
    assert files() == ["in.jsonl"]


@pytest.mark.parametrize("content", [b"text\tlabel\na\tb\n", b"PK\x03\x04\x14\x00", b"Kim\tB-person\n"])
def test_what_only_another_task_reads_is_refused(model: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    Path("in.conll").write_bytes(content)
    assert predict(model, "in.conll", "out.csv") == 2
    assert "in.conll: the file extension is unknown" in " ".join(capfd.readouterr().err.split())
    assert files() == ["in.conll"]


# Progress


def test_progress_stays_below_its_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("nlp_transfer.utils.console.time.monotonic", lambda: now[0])
    with Steps("predicting", 30) as progress:
        progress.skip(10)
        for _ in range(3):
            now[0] += 90
            progress.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "predicting: 20/30, 90 seconds left"
    assert [line.partition(",")[0] for line in lines] == ["predicting: 20/30", "predicting: 30/30", "predicting: 40/40"]
    assert not any("left" in line for line in lines[1:])


def test_progress_on_a_terminal_stays_below_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    with Steps("predicting", 10) as progress:
        assert progress.bar is not None
        for _ in range(3):
            progress.advance(5)
            task = progress.bar.tasks[0]
            assert task.completed <= (task.total or 0)


def test_the_rate_does_not_count_skipped_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("nlp_transfer.utils.console.time.monotonic", lambda: now[0])
    with Steps("predicting", 200) as progress:
        now[0] = 1000.0  # a model is loaded
        progress.skip(100)
        now[0] = 1040.0
        progress.advance(40)
    assert "predicting: 140/200, 60 seconds left" in capsys.readouterr().err


def test_progress_without_a_terminal_is_brief(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("nlp_transfer.utils.console.time.monotonic", lambda: now[0])
    with Steps("training", 36_000) as progress:
        for _ in range(36_000):
            now[0] += 1
            progress.advance()
    assert 10 < len(capsys.readouterr().err.splitlines()) < 100
