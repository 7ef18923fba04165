"""Real processes with a stand-in for the model: what they find around them, and that none is left in any case."""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.inference import worker_processes
from nlp_transfer.inference.ordered import WorkerError, in_order
from nlp_transfer.inference.worker_processes import Stopped, Workers, at_once, check_processes, plan, threads_each
from nlp_transfer.utils.errors import LONGEST, Problems, UserError
from tests.processes import ROOT
from tests.unit.slow_answers import windows

PATIENCE = 300  # seconds until a test that waits for another process is given up


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize("processes", [0, -1, 9])
def test_a_number_of_processes_that_makes_no_sense_is_refused(eight: None, processes: int) -> None:
    problems = Problems()
    check_processes(processes, problems)
    assert problems.messages == [f"--processes: found {processes}; this machine has 8 cores; allowed: 1 to 8"]


def test_numbers_of_processes_that_make_sense(eight: None) -> None:
    problems = Problems()
    for processes in range(1, 9):
        check_processes(processes, problems)
    assert not problems


def test_threads_are_shared_out(eight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [threads_each(processes) for processes in (1, 2, 3, 5, 8)] == [8, 4, 2, 1, 1]
    assert plan(2) == "answering with 2 processes, 4 threads each"
    for value, threads in {"3": 3, " 2,1": 2, "": 4, "0": 4, "many": 4}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads_each(2) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert plan(2) == "answering with 2 processes, 1 thread each"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_is_under_way_once(number: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a script begin without it
    before = [signal.getsignal(each) for each in worker_processes.ENDING]
    tidied = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while it tidies up
            os.kill(os.getpid(), signal.SIGINT)
            tidied.append(True)

    with pytest.raises(Stopped, match=f"by {number.name}") as stopped, at_once():
        work()
    assert tidied
    assert stopped.value.status == 128 + number
    assert [signal.getsignal(each) for each in worker_processes.ENDING] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with at_once():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_long_list_of_problems_arrives_whole() -> None:
    problems = Problems("in.csv")
    for row in range(1000):
        problems.add(f"in.csv, row {row}: {'a cell ' * 40}")

    def work() -> Any:
        problems.raise_if_any()

    kind, *content = worker_processes._reply(work)
    again = UserError(*content)
    assert kind == "refused"
    assert len(str(again)) > 2 * LONGEST
    assert str(again) == str(problems)
    assert again.problems is problems


@contextlib.contextmanager
def started(folder: Path, **more: Any) -> Iterator[Workers]:
    """Two processes; none of them is there afterwards."""
    team = Workers("tests.unit.slow_answers", "Slow", {"folder": folder, **more}, 2)
    try:
        with team:
            yield team
    finally:
        assert not multiprocessing.active_children()
        assert len(team._processes) == 2
        assert not any(exists(process.pid) for process in team._processes)


def exists(process: int | str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    return True


def test_what_processes_find_around_them(
    eight: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlp_transfer.settings.extensions._CODE", {})  # files of code that other tests named, which import torch
    texts = [str(i) for i in range(101)]
    with started(tmp_path) as team:
        found = list(in_order(lambda size, *_: iter(windows(texts, size)), team, 2))
    assert [text for batch, _ in found for text in batch.columns["text"]] == texts
    around = {tuple(answer.items()) for _, answer in found}
    assert {tuple(answer)[1:] for answer in around} == {
        (("torch", False), ("OMP_NUM_THREADS", "4"), ("RAYON_NUM_THREADS", "4"), ("RANK", None), ("table", None))
    }
    assert {batch.table for batch, _ in found} == {"for the writer"}, "columns that only the writer needs are not sent"
    assert os.getpid() not in {dict(answer)["process"] for answer in around}
    assert "OMP_NUM_THREADS" not in os.environ
    assert capfd.readouterr().err.count("loaded, ") <= 1  # the other may not have come so far


def test_the_process_that_writes_needs_no_model() -> None:
    program = "import sys, nlp_transfer.inference.files; "
    program += "print('nlp_transfer.inference.worker_processes' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_errors_of_processes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"), started(tmp_path, refuse="no such model") as team:
        list(in_order(lambda size, *_: iter(windows(["a"], size)), team, 2))
    texts = [*"abcdef", "fail", *"hijkl"]
    with (
        pytest.raises(WorkerError, match=r"(?s)of 2 failed:.*in __call__.*ZeroDivisionError: \['fail', 'h'\]"),
        started(tmp_path) as team,
    ):
        list(in_order(lambda size, *_: iter(windows(texts, size)), team, 2))


def test_a_killed_process_is_named(tmp_path: Path) -> None:
    texts = [*"abcdef", "sleep", *"hijkl"]
    killed: list[str] = []

    def answer(team: Workers) -> None:
        for batch, _ in in_order(lambda size, *_: iter(windows(texts, size)), team, 2):
            if batch.first == 5:  # the window below is the next that can come
                killed.extend(wait_for(tmp_path, 1))
                os.kill(int(killed[0]), signal.SIGKILL)

    with pytest.raises(UserError) as error, started(tmp_path) as team:
        answer(team)
    assert f"of 2 (pid {killed[0]}) was ended by SIGKILL while it answered rows 7 to 8. Often memory has run" in str(error.value)
    assert "allowed: fewer --processes than 2, or a smaller --batch-size" in str(error.value)


def test_a_process_that_is_killed_while_it_loads_is_named(tmp_path: Path) -> None:
    def answer(team: Workers) -> None:
        team._processes[0].kill()
        while True:
            team.receive()

    says = r"process 1 of 2 \(pid \d+\) was ended by SIGKILL while it loaded the model"
    with pytest.raises(UserError, match=says), started(tmp_path) as team:
        answer(team)


def test_a_system_that_is_full_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn").Process.start
    already: list[Any] = []

    def full(process: Any) -> None:
        if already:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        already.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", full)
    team = Workers("tests.unit.slow_answers", "Slow", {"folder": tmp_path}, 2)
    with pytest.raises(
        UserError, match=r"^process 2 of 2 cannot be started \(Resource temporarily unavailable\); allowed: fewer"
    ):
        team.__enter__()
    assert len(already) == 1
    assert already[0].exitcode == -signal.SIGKILL


def wait_for(folder: Path, count: int) -> list[str]:
    """The processes that are at work for good, once there are so many."""
    end = time.monotonic() + PATIENCE
    while len(found := [path.name for path in folder.iterdir()]) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} processes are at work"
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_is_left_when_it_is_ended(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A terminal sends Ctrl-C to all processes; a kill reaches the first alone, the others see its end."""
    command = [sys.executable, "-m", "tests.unit.slow_answers", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        found = wait_for(tmp_path, 2)
        (process.send_signal if number == signal.SIGKILL else lambda each: os.killpg(process.pid, each))(number)
        said = process.communicate(timeout=PATIENCE)[1]  # ends when none of the three processes holds the pipe any more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status
    assert "Traceback" not in said
    assert ("interrupted: by" in said) == (number != signal.SIGKILL)
    assert len(found) == 2
