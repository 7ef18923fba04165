"""Processes of this machine that answer the windows of a file, each with a model of its own.

One process with a thread for each core waits for its threads in every operation; processes that have few threads each wait for
nothing but their next window. Each loads the model by itself, so nothing heavy is imported here: the process that reads and
writes needs no model.
"""

import importlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import connection, parent_process
from types import FrameType
from typing import Any

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.ordered import Reply
from nlp_transfer.security.child_processes import ENDING, held_signals, start_worker
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.settings import extensions
from nlp_transfer.utils.console import console
from nlp_transfer.utils.environment import finish_output, importing
from nlp_transfer.utils.errors import Problems, UnfinishedError, UserError

GONE = 10.0  # seconds in which the system tells how a process ended whose pipe is closed


class Stopped(KeyboardInterrupt):
    """A signal ended the work; `status` is what the process should end with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"by {signal.Signals(number).name}")
        self.status = 128 + number


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_processes(processes: int, problems: Problems) -> None:
    found = cores()
    if not 1 <= processes <= found:
        allowed = f"1 to {found}" if found > 1 else "1"
        problems.add(f"--processes: found {processes}; this machine has {_count(found, 'core')}; allowed: {allowed}")


def threads_each(processes: int) -> int:
    """Threads of each process: OMP_NUM_THREADS, or an even share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) else max(1, cores() // processes)


def plan(processes: int) -> str:
    """What several processes are announced with."""
    return f"answering with {_count(processes, 'process', 'es')}, {_count(threads_each(processes), 'thread')} each"


def _count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{ending if number != 1 else ''}"


class Workers:
    """Processes that import `module`, make what it calls `name` with the given arguments, and call that with windows.

    What is made has `window`, the rows of a window, and `columns`, the names of those that it reads. While this is entered the
    processes run; afterwards there are none.
    """

    def __init__(self, module: str, name: str, arguments: dict[str, Any], processes: int) -> None:
        self._start = (module, name, arguments, threads_each(processes), extensions.files_for_child())
        self._count = processes
        self._processes: list[Any] = []
        self._pipes: list[connection.Connection] = []
        self._batches: list[Batch | None] = []

    def __enter__(self) -> "Workers":
        """Raises a UserError where the system lets no more processes be started."""
        try:
            with held_signals():
                for number in range(self._count):
                    process, pipe = start_worker(_work, (number, *self._start))
                    self._processes.append(process)
                    self._pipes.append(pipe)
                    self._batches.append(None)
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError):
                raise
            which = f"process {len(self._processes) + 1} of {self._count}"
            raise UserError(f"{which} cannot be started ({error.strerror}); allowed: fewer --processes") from error
        return self

    def __exit__(self, *_: object) -> None:
        """They have nothing to finish, so they are ended there and then."""
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            pipe.close()

    def send(self, number: int, batch: Batch) -> None:
        """Gives a process that waits a window, without the Arrow data that only the writer needs; it reads at once, so that this
        does not block.

        Raises:
            UserError: the process is gone.
        """
        self._batches[number] = batch
        try:
            self._pipes[number].send(replace(batch, table=None))
        except OSError as error:
            raise self._lost(number) from error

    def receive(self) -> tuple[int, Reply]:
        """Waits until a process says something.

        Raises:
            UserError: one is gone.
        """
        pipe: Any = connection.wait(self._pipes)[0]
        number = self._pipes.index(pipe)
        try:
            return number, pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost(number) from error

    def _lost(self, number: int) -> UserError:
        process, batch = self._processes[number], self._batches[number]
        process.join(GONE)
        code = process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with status {code}"
        when = "loaded the model" if batch is None else f"answered rows {batch.first} to {batch.first + len(batch) - 1}"
        return UnfinishedError(
            f"process {number + 1} of {self._count} (pid {process.pid}) {how} while it {when}. Often memory has run out, since "
            f"each process holds the model; allowed: fewer --processes than {self._count}, or a smaller --batch-size"
        )


@contextmanager
def at_once() -> Iterator[None]:
    """SIGTERM and SIGINT end what is inside by an exception, so that nothing half-written is left; a second one changes nothing.

    One that is ignored, as Ctrl-C is by jobs in the background of a script, stays so. Python lets only the main thread handle
    signals; in another one nothing changes.
    """

    def arrive(number: int, _: FrameType | None) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, arrive) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _work(pipe: Any, number: int, module: str, name: str, arguments: dict[str, Any], threads: int, code: list[str]) -> None:
    """One of the processes: loads, and answers windows until the pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    guard_output()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before anything is imported that reads it
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # tokenizers
    console.quiet = number > 0  # what all of them would say while loading is said once
    made: list[Any] = []

    def load() -> Reply:
        with importing():
            extensions.load_code(code)
            make = getattr(importlib.import_module(module), name)
        made.append(make(**arguments))
        return "ready", made[0].window, made[0].columns, made[0].identity

    def answer(batch: Batch) -> Reply:
        return "answer", made[0](batch)

    with suppress(EOFError, OSError):  # the process that started this one is gone, or needs it no more
        pipe.send(_reply(load))
        console.quiet = False
        while True:
            batch = pipe.recv()
            pipe.send(_reply(partial(answer, batch)))
    finish_output()
    os._exit(0)


def _reply(work: Callable[[], Reply]) -> Reply:
    """What is sent of an outcome. Errors go as their parts: a UserError that is pickled loses the length of its message."""
    try:
        return work()
    except UserError as error:
        return "refused", str(error), error.problems
    except Exception:
        return "failed", traceback.format_exc()


def _end_with_parent() -> None:
    """Ends this process when the one that started it has ended in whatever way, also in the middle of a window."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
