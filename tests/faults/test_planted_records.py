"""Links, pipes and nonsense in place of records that commands read again: refused or not used, never followed or waited for."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.model_evaluation import check_metrics_file
from nlp_transfer.inference.output_journal import MARK, ChunkPredictions, OutputFile, _digest
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.saved_models.layout import RUN_FILES, STRATEGY_CHOICE
from nlp_transfer.security.file_locks import LOCKED, LONGEST_LOCK, lock_target, read_record
from nlp_transfer.training import checkpoints
from nlp_transfer.training.run_log import RunLog
from nlp_transfer.utils import atomic_files
from tests.builders import refused

BATCH = Batch({"text": ["a", "b"]}, 1, 2)
RECORD = {
    "window": _digest(BATCH), "rows": 2, "columns": {"prediction": ["x", None]}, "long_texts": 0,
    "faults": [[1, "with an empty text", "is empty", "text"]],
}  # fmt: skip
HEADER = json.dumps({"model": "m", MARK: 1}) + "\n"
DEEP = "[" * 900_000
TENSORS = {"model": {"w": torch.ones(2)}, "optimizer": {"w/exp_avg": torch.ones(2)}}


def write_step(folder: Path, step: int) -> Path:
    return checkpoints.write_checkpoint(folder, step, TENSORS, {"step": step, "best_step": 0}, best=False, number=9)


def plant(path: Path, kind: str, victim: Path) -> None:
    """Put a pipe or a link to `victim` in the place of a file or folder."""
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(victim)


# --- journals and locks


def find(tmp_path: Path, *lines: str, header: str = HEADER) -> tuple[ChunkPredictions | None, str]:
    """The predictions of `BATCH` in a journal, and what the journal holds once it was opened."""
    journal = tmp_path / ".out.csv.partial"
    journal.write_text(header + "".join(lines))
    with OutputFile(tmp_path / "out.csv", True) as target:
        target.begin({"model": "m"})
        return target.find(BATCH), journal.read_text()


def test_a_whole_record_is_used(tmp_path: Path) -> None:
    answer, _ = find(tmp_path, json.dumps(RECORD) + "\n")
    assert answer is not None
    assert (answer.columns, answer.long_texts, answer.resumed) == ({"prediction": ["x", None]}, 0, True)
    assert answer.faults == {1: ("with an empty text", "is empty", "text")}


WRONG: dict[str, str] = {
    "deep": DEEP,
    "a list": "[1]",
    "no faults": json.dumps({name: value for name, value in RECORD.items() if name != "faults"}),
    "no end": json.dumps(RECORD)[:-1],
    **{
        f"{name}: {json.dumps(value)[:20]}": json.dumps(RECORD | {name: value})
        for name, value in [
            ("columns", 5), ("columns", {}), ("columns", {"prediction": "xy"}), ("columns", {"prediction": ["x"]}),
            ("columns", {"prediction": ["x", "y"], "probability": [0.5]}), ("rows", "2"), ("rows", 2.0), ("rows", True),
            ("rows", 3), ("rows", float("inf")), ("window", 1), ("long_texts", -1), ("faults", [[2, "a", "b", None]]),
            ("faults", [[1, "a", 5, None]]), ("faults", [[0]]), ("faults", {}),
        ]
    },
    "a number beyond all": json.dumps(RECORD).replace('"rows": 2', '"rows": 1e999'),
    "a number of 5,000 digits": json.dumps(RECORD).replace('"rows": 2', f'"rows": {"9" * 5000}'),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_record_of_another_form_and_all_after_it_are_dropped(kind: str, tmp_path: Path) -> None:
    good = json.dumps(RECORD | {"window": "another"}) + "\n"
    answer, left = find(tmp_path, good, WRONG[kind] + "\n", json.dumps(RECORD) + "\n")
    assert (answer, left) == (None, HEADER + good)


def test_a_record_of_another_size_is_not_used(tmp_path: Path) -> None:
    other = RECORD | {"rows": 1, "columns": {"prediction": ["x"]}, "faults": []}
    assert find(tmp_path, json.dumps(other) + "\n")[0] is None


@pytest.mark.parametrize("header", [DEEP, json.dumps([MARK]), json.dumps(MARK), "5"], ids=["deep", "list", "text", "number"])
def test_a_first_line_of_another_form_is_not_ours(header: str, tmp_path: Path) -> None:
    with refused("is not a journal of predictions"):
        find(tmp_path, header=header + "\n")
    assert (tmp_path / ".out.csv.partial").read_text() == header + "\n"


def test_long_records_are_neither_held_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps(RECORD) + "\n"
    monkeypatch.setattr("nlp_transfer.inference.output_journal.LONGEST", len(line))
    answer, left = find(tmp_path, line, "x" * len(line) + line)
    assert answer is not None
    assert left == HEADER + line
    with OutputFile(tmp_path / "new.csv", True) as target:
        target.begin({"model": "m"})
        target.add(BATCH, ChunkPredictions({"prediction": ["x" * 2**10, None]}))
        assert (tmp_path / ".new.csv.partial").read_text() == HEADER


@pytest.mark.parametrize("size", [LONGEST_LOCK + 1, 2**40])
def test_a_lock_that_is_too_large_is_not_ours(size: int, tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    lock.write_bytes(LOCKED)
    os.truncate(lock, size)
    with refused("is not a lock of this program"):
        lock_target(tmp_path / "out")
    assert lock.stat().st_size == size


# --- runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An unfinished run with two checkpoints."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{}\n")
    for step in (1, 2):
        write_step(tmp_path / "run/checkpoints", step)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/.part-keep").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["link", "lost link", "pipe"])
@pytest.mark.parametrize("name", [name for name in RUN_FILES if name not in ("config.yaml", "result.json", "checkpoints")])
def test_a_link_or_a_pipe_in_an_unfinished_run_is_refused(name: str, kind: str, run: Path) -> None:
    RunFolder(str(run)).check()
    plant(run / name, kind, run.parent / ("victim" if kind == "link" else "nowhere"))
    with refused(f"{run} contains {name} as a link"):
        RunFolder(str(run)).check()


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_lost_link_is_refused_like_a_file_where_a_run_begins(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    # A folder with the choice of a strategy alone is a run that was interrupted after its trials.
    with refused(f"contains {name} as a link" if name == STRATEGY_CHOICE else f"already holds {name}"):
        RunFolder(str(tmp_path)).check()


def test_checkpoints_behind_a_link_are_refused(run: Path) -> None:
    (run.parent / "link").symlink_to(run)
    RunFolder(str(run.parent / "link")).check()
    (run / "checkpoints").rename(run.parent / "elsewhere")
    (run / "checkpoints").symlink_to(run.parent / "elsewhere")
    with refused(f"{run} contains checkpoints as a link"):
        RunFolder(str(run)).check()


def test_only_what_checkpoints_wrote_themselves_is_removed(run: Path) -> None:
    folder = run / "checkpoints"
    random = "0123456789abcdef" * 2
    for name in (f".part-{random}", f".old-{random}", ".part-step-3", ".part-keep", ".old-photos", ".part-step-x"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    (folder / ".part-step-4").symlink_to(run.parent / "victim")
    checkpoints.remove_leftovers(folder)
    assert sorted(path.name for path in folder.glob(".*")) == [".old-photos", ".part-keep", ".part-step-x"]
    assert [path.name for path in (run.parent / "victim").iterdir()] == [".part-keep"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors", "average.safetensors"])
def test_a_checkpoint_with_a_link_or_a_pipe_is_skipped(name: str, kind: str, run: Path) -> None:
    """`average.safetensors` is not named in the manifest."""
    newest, copy = run / "checkpoints/step-2", run.parent / name
    copy.write_bytes((newest / name).read_bytes() if (newest / name).exists() else b"")
    plant(newest / name, kind, copy)
    whole, [note] = checkpoints.newest_intact(run / "checkpoints")
    assert whole == run / "checkpoints/step-1"
    assert str(newest) in note
    assert name in note


def test_a_checkpoint_behind_a_link_is_skipped(run: Path) -> None:
    (run / "checkpoints/step-3").symlink_to("step-2")
    whole, [note] = checkpoints.newest_intact(run / "checkpoints")
    assert whole == run / "checkpoints/step-2"
    assert "link" in note


@pytest.mark.parametrize("name", ["last", "step-2/state.json"])
def test_pipes_in_checkpoints_are_not_waited_for(name: str, run: Path) -> None:
    folder = run / "checkpoints"
    plant(folder / name, "pipe", run)
    assert checkpoints.read_pointer(folder, "last") == (None if name == "last" else "step-2")
    assert checkpoints._best_step(folder / "step-2") == 0


@pytest.mark.parametrize("kind", ["link", "lost link", "pipe"])
def test_a_log_that_is_a_link_or_a_pipe_is_refused(kind: str, tmp_path: Path) -> None:
    from accelerate import Accelerator

    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    plant(tmp_path / "log.jsonl", kind, victim if kind == "link" else tmp_path / "nowhere")
    with refused("log.jsonl: is not the log of a run"):
        RunLog(Accelerator(cpu=True), tmp_path).drop_after(1)
    assert victim.read_text() == "mine\n"


def test_a_record_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_record(tmp_path / "file", 3) == b"abc"
    with pytest.raises(OSError, match="larger than 2 bytes"):
        read_record(tmp_path / "file", 2)


# --- outputs


@pytest.mark.parametrize("kind", ["link to itself", "pipe", "folder"])
def test_metrics_that_cannot_be_written_are_refused_first(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    make: dict[str, Callable[[], Any]] = {
        "link to itself": lambda: output.symlink_to(output), "pipe": lambda: os.mkfifo(output), "folder": output.mkdir,
    }  # fmt: skip
    make[kind]()
    with refused("--output", "figures.json"):
        check_metrics_file(output, overwrite=True)


@pytest.mark.parametrize("error", ["EPERM", "EACCES", "EXDEV", "EINVAL", "EPROTO"])
def test_without_hard_links_no_file_is_replaced(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(getattr(errno, error), "no hard links")

    monkeypatch.setattr(os, "link", link)
    atomic_files.write_bytes(tmp_path / "new", b"a", overwrite=False)
    with pytest.raises(FileExistsError):
        atomic_files.write_bytes(tmp_path / "new", b"b", overwrite=False)
    assert (tmp_path / "new").read_bytes() == b"a"
    assert os.listdir(tmp_path) == ["new"]
