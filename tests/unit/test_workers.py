"""Worker processes that predict the chunks of a file, with a predictor that has no model."""

import contextlib
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference import worker_processes
from nlp_transfer.inference.worker_processes import (
    PredictorPool,
    WorkerError,
    check_processes,
    describe_processes,
    in_file_order,
    threads_each,
)
from nlp_transfer.utils.errors import LONGEST, Problems, UserError
from nlp_transfer.utils.interrupts import SIGNALS, Interrupted, raise_interrupts
from tests.builders import refused
from tests.helpers.children.slow_predictor import chunks
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.process

PATIENCE = 300  # seconds until a test gives up waiting for another process


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize("processes", [0, -1, 9])
def test_wrong_numbers_of_processes(eight: None, processes: int) -> None:
    problems = Problems()
    check_processes(processes, problems)
    (message,) = problems.messages
    assert all(fact in message for fact in ("--processes", f"found {processes}", "8 cores", "1 to 8"))


def test_right_numbers_of_processes(eight: None) -> None:
    problems = Problems()
    for processes in range(1, 9):
        check_processes(processes, problems)
    assert not problems


def test_threads_of_each_process(eight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [threads_each(processes) for processes in (1, 2, 3, 5, 8)] == [8, 4, 2, 1, 1]
    assert "2 processes, 4 threads each" in describe_processes(2)
    for value, threads in {"3": 3, " 2,1": 2, "": 4, "0": 4, "many": 4}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads_each(2) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "2 processes, 1 thread each" in describe_processes(2)


# --- signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_once(number: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a script ignore it
    before = [signal.getsignal(each) for each in SIGNALS]
    removed = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            for each in SIGNALS:  # signals while files are removed
                os.kill(os.getpid(), each)
            removed.append(True)

    with pytest.raises(Interrupted, match=number.name) as interrupted, raise_interrupts():
        work()
    assert removed
    assert interrupted.value.status == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raise_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


# --- the order of the file


class File:
    """Chunks of one row that count how many of them were read."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error = count, error
        self.read = 0

    def __iter__(self) -> Iterator[Batch]:
        for i in range(self.count):
            self.read += 1
            yield Batch({"text": [str(i)]}, i + 1, 1)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("limit", [1, 2, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_chunks_come_in_order_and_few_are_read_ahead(limit: int, count: int) -> None:
    file, seen = File(count), 0

    def predict(chunk: Batch) -> Any:
        time.sleep(random.random() / 1000)
        return chunk.columns["text"]

    with ThreadPoolExecutor(3) as threads:
        for chunk, predictions in in_file_order(iter(file), lambda chunk: threads.submit(predict, chunk), limit):
            assert file.read - seen <= limit
            assert predictions == chunk.columns["text"] == [str(seen)]
            seen += 1
    assert seen == count


def future(chunk: Batch, failing: dict[int, Exception]) -> Future[int]:
    done: Future[int] = Future()
    if error := failing.get(chunk.first):
        done.set_exception(error)
    else:
        done.set_result(chunk.first)
    return done


@pytest.mark.parametrize("error", [UserError("row 3"), WorkerError("row 3")])
def test_the_first_error_of_the_file_is_raised(error: Exception) -> None:
    """Later errors were known earlier."""
    file, given = File(1000), list[int]()
    failing = {3: error, 4: UserError("row 4"), 5: ZeroDivisionError()}
    ordered = in_file_order(iter(file), lambda chunk: future(chunk, failing), 6)
    with pytest.raises(type(error), match="row 3"):
        given.extend(predictions for _, predictions in ordered)
    assert given == [1, 2]
    assert file.read <= 2 + 6


def test_a_file_is_predicted_up_to_an_error_of_reading() -> None:
    given = list[int]()
    ordered = in_file_order(iter(File(5, UserError("row 6"))), lambda chunk: future(chunk, {}), 9)
    with refused("row 6"):
        given.extend(predictions for _, predictions in ordered)
    assert given == [1, 2, 3, 4, 5]
    with refused("row 2"):
        list(in_file_order(iter(File(5, UserError("6"))), lambda chunk: future(chunk, {2: UserError("row 2")}), 9))


# --- real processes


@contextlib.contextmanager
def started(folder: Path, **more: Any) -> Iterator[PredictorPool]:
    """Two processes; none of them is left afterwards."""
    processes: list[Any] = []
    try:
        with PredictorPool("tests.helpers.children.slow_predictor", "Slow", {"folder": folder, **more}, 2) as pool:
            processes = multiprocessing.active_children()
            yield pool
    finally:
        assert len(processes) == 2
        assert not multiprocessing.active_children()


def predict(pool: PredictorPool, texts: list[str], **more: Any) -> Iterator[tuple[Batch, Any]]:
    return pool.predict(lambda size, *_: iter(chunks(texts, size)), **more)


def test_the_environment_of_processes(
    eight: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlp_transfer.settings.extensions._CODE", {})  # files with code of other tests, which import torch
    texts = [str(i) for i in range(101)]
    with started(tmp_path) as pool:
        found = list(predict(pool, texts, recorded=lambda chunk: {"process": 0} if chunk.first == 5 else None))
    assert [text for chunk, _ in found for text in chunk.columns["text"]] == texts
    assert found.pop(2)[1] == {"process": 0}, "recorded predictions are not computed"
    environments = {tuple(predictions.items()) for _, predictions in found}
    assert {environment[1:] for environment in environments} == {
        (("torch", False), ("OMP_NUM_THREADS", "4"), ("RAYON_NUM_THREADS", "4"), ("RANK", None), ("table", None))
    }
    assert {chunk.table for chunk, _ in found} == {"for the writer"}, "columns that only the writer needs are not sent"
    assert os.getpid() not in {dict(environment)["process"] for environment in environments}
    assert "OMP_NUM_THREADS" not in os.environ
    assert capfd.readouterr().err.count("loaded, ") <= 1  # the other one may not have finished loading


def test_the_process_that_writes_needs_no_model() -> None:
    program = "import sys, nlp_transfer.inference.files; "
    program += "print('nlp_transfer.inference.worker_processes' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_errors_of_processes(tmp_path: Path) -> None:
    problems = Problems("in.csv")
    for row in range(1000):
        problems.add(f"in.csv, row {row}: {'a cell ' * 40}")
    with pytest.raises(UserError) as error, started(tmp_path, refuse=problems) as pool:
        list(predict(pool, ["a"]))
    assert len(str(error.value)) > 2 * LONGEST, "a long message is complete"
    assert str(error.value) == str(problems)
    assert error.value.problems is not None
    with pytest.raises(WorkerError, match=r"(?s)in __call__.*ZeroDivisionError: \['fail', 'h'\]"), started(tmp_path) as pool:
        list(predict(pool, [*"abcdef", "fail", *"hijkl"]))


def test_a_killed_process_is_reported(tmp_path: Path) -> None:
    """The chunks are larger than the buffer of a pipe."""
    texts = [*(4 * [100_000 * "a"]), *"ef", "sleep", *(7 * [100_000 * "b"])]
    killed: list[str] = []

    def kill(pool: PredictorPool) -> None:
        for chunk, _ in predict(pool, texts):
            if chunk.first == 5:  # the chunk below is the next
                killed.extend(wait_for(tmp_path, 1))
                os.kill(int(killed[0]), signal.SIGKILL)

    with pytest.raises(UserError) as error, started(tmp_path) as pool:
        kill(pool)
    facts = (f"pid {killed[0]}", "of 2", "SIGKILL", "rows 7 to 8", "Memory", "fewer --processes", "--batch-size")
    assert all(fact in str(error.value) for fact in facts), str(error.value)


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_while_it_loads_is_reported(tmp_path: Path, number: int) -> None:
    """At once, although the other process is still loading."""

    def kill(pool: PredictorPool) -> None:
        pool._workers[number].process.kill()
        list(predict(pool, ["a"]))

    facts = rf"process {number + 1} of 2 \(pid \d+\) .*SIGKILL while it loaded the model"
    with pytest.raises(UserError, match=facts), started(tmp_path, load_seconds=600) as pool:
        kill(pool)


def test_a_process_that_is_killed_while_it_writes_is_reported() -> None:
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"half")  # a message of 1000 bytes
    theirs.close()
    process = SimpleNamespace(join=lambda _: None, exitcode=-9, pid=17)
    with refused("process 1 of 2 (pid 17)", "SIGKILL while it predicted rows 4 to 6"):
        worker_processes._Worker(process, ours, "process 1 of 2").predict(Batch({"text": ["a"] * 3}, 4, 3))


def test_a_system_that_is_full_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn").Process.start
    already: list[Any] = []

    def full(process: Any) -> None:
        if already:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        already.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", full)
    pool = PredictorPool("tests.helpers.children.slow_predictor", "Slow", {"folder": tmp_path}, 2)
    with refused("process 2 of 2", "Resource temporarily unavailable", "allowed: fewer"):
        pool.__enter__()
    assert len(already) == 1
    assert already[0].exitcode == -signal.SIGKILL


def wait_for(folder: Path, count: int) -> list[str]:
    """Return the ids of the processes that hang, once there are `count`."""
    end = time.monotonic() + PATIENCE
    while len(found := [path.name for path in folder.iterdir()]) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} processes are at work"
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_is_left_after_a_signal(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A terminal sends Ctrl-C to all processes. A kill reaches only the first process, and the others notice its end."""
    command = [sys.executable, "-m", "tests.helpers.children.slow_predictor", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        found = wait_for(tmp_path, 2)
        (process.send_signal if number == signal.SIGKILL else lambda each: os.killpg(process.pid, each))(number)
        printed = process.communicate(timeout=PATIENCE)[1]  # ends when no process holds the pipe any more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status
    assert "Traceback" not in printed
    assert ("interrupted: by" in printed) == (number != signal.SIGKILL)
    assert len(found) == 2
