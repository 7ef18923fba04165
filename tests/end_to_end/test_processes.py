"""Two processes with a real model write the same bytes and report the same errors as one."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.inference.file_predictor import FilePredictor
from nlp_transfer.inference.predictor import CHUNK_ROWS
from nlp_transfer.inference.translator import CHUNK_ROWS as TRANSLATOR_CHUNK_ROWS
from tests.builders import command, exit_status, refused, sentiment_rows, write
from tests.end_to_end.test_translate import ENGLISH, make_loud
from tests.end_to_end.test_translate import train as train_translator

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlp_transfer.inference.worker_processes.cores", lambda: 2)


def test_two_processes_write_the_same_file(train: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = train().output_dir
    rows = [(i, text, "") for i, (text, _) in enumerate(sentiment_rows(2 * CHUNK_ROWS + 300, seed=2))]
    source = write(tmp_path / "in.csv", rows, ("id", "text", "note"))
    capfd.readouterr()
    outputs = []
    for processes in (1, 2):
        outputs.append(tmp_path / f"{processes}/out.jsonl")
        how = ("--output", outputs[-1], "--processes", processes, "--probabilities")
        assert exit_status("predict", folder, "--input", source, *how) == 0
    one, two = (output.read_bytes() for output in outputs)
    assert one == two
    assert [json.loads(line)["id"] for line in one.splitlines()] == [str(row[0]) for row in rows]
    said = capfd.readouterr().err
    assert said.count("predicting with 2 processes, 1 thread each\n") == 1
    assert said.count(f"{len(rows)} rows are in") == 2
    assert [path.name for path in outputs[1].parent.iterdir()] == ["out.jsonl"]


def test_two_processes_report_the_same_errors(tiny: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows in the second and third chunk are bad. A file whose last row cannot be written is refused."""
    run = train_translator(tmp_path / "first", tiny["bert"])
    make_loud(run / "model")
    cells: list[object] = [ENGLISH[i % len(ENGLISH)] for i in range(2 * TRANSLATOR_CHUNK_ROWS + 10)]
    cells[TRANSLATOR_CHUNK_ROWS + 4], cells[-1] = 7, ["no", "text"]
    source = write(tmp_path / "in.jsonl", {"source": cells, "id": range(len(cells))})
    how = ("--input", source, "--beams", 1, "--output")
    capfd.readouterr()
    said: list[str] = []
    for processes in (1, 2):
        assert exit_status("translate", run, *how, tmp_path / f"{processes}.jsonl", "--processes", processes) == 0
        said.append(capfd.readouterr().err.partition("warning: ")[2])
    assert said[0] == said[1]
    assert f"2 of {len(cells)} rows have no prediction: 2 with a cell that is not text" in said[0]
    assert f"in.jsonl, row {TRANSLATOR_CHUNK_ROWS + 5}, column 'source': found 7 (int)" in said[0]
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    with source.open("a") as file:
        file.write('{"source": "a dog", "id": "x"}\n')
    messages: list[str] = []
    for processes in (1, 2):
        status, _, said = command("translate", run, *how, tmp_path / "new/o.parquet", "--processes", processes)
        assert status == 2
        messages.append(said.splitlines()[-1])
    assert messages[0] == messages[1]
    assert "column 'id'" in messages[0]
    assert not (tmp_path / "new").exists()
    assert not multiprocessing.active_children()


def test_more_processes_than_cores_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", [("a dog",)], ("text",))
    for name in ("predict", "translate"):
        status, _, said = command(name, "no-model", "--input", source, "--output", tmp_path / "out.csv", "--processes", 3)
        assert (status, "--processes: found 3; this machine has 2 cores; allowed: 1 to 2" in said) == (2, True)


def test_a_gpu_takes_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlp_transfer.inference.file_predictor.inference_device", lambda: "cuda:0")
    with refused("--processes: found 2; this machine computes on a GPU (cuda:0)", "; allowed: 1"):
        FilePredictor("no-model", tmp_path / "in.csv", {}, None, "fp32", processes=2)
