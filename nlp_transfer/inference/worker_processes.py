"""Predict the chunks of a file in several processes, each with a copy of the model.

On CPUs, several processes with few threads are faster than one process with many threads, which synchronizes them in every
operation. This module avoids heavy imports: the main process, which reads and writes the file, needs no model.
"""

import importlib
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.security.child_processes import WorkerPool
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.settings import extensions
from nlp_transfer.utils.console import console
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import Problems, UnfinishedError, UserError

CHUNKS_PER_PROCESS = 2  # chunks in memory for each process: waiting, being predicted, or waiting to be written
EXIT_SECONDS = 10.0  # maximum wait for the exit status of a process that has ended


class WorkerError(RuntimeError):
    """An unexpected error in a worker process; the message holds its traceback."""


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_processes(processes: int, problems: Problems) -> None:
    """Add a problem if `processes` is not between 1 and the number of cores."""
    if not 1 <= processes <= cores():
        allowed = f"1 to {cores()}" if cores() > 1 else "1"
        problems.add(f"--processes: found {processes}; this machine has {_count(cores(), 'core')}; allowed: {allowed}")


def threads_each(processes: int) -> int:
    """Return the number of threads per process: OMP_NUM_THREADS, or an equal share of the cores."""
    requested = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(requested) if requested.isdecimal() and int(requested) else max(1, cores() // processes)


def describe_processes(processes: int) -> str:
    """Return a message with the numbers of processes and threads."""
    return f"predicting with {_count(processes, 'process', 'es')}, {_count(threads_each(processes), 'thread')} each"


def _count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{ending if number != 1 else ''}"


class PredictorPool:
    """Processes that each create a predictor once and then predict chunks of a file.

    The predictor is a callable from a `Batch` to its predictions, with the attributes `chunk_rows`, `columns` and `identity` of
    `file_predictor.FilePredictor`. The processes run only inside the `with` block.

    Args:
        module: name of the module that defines the predictor's class.
        name: name of the class.
        arguments: keyword arguments of the class.
        processes: number of processes.
    """

    def __init__(self, module: str, name: str, arguments: dict[str, Any], processes: int) -> None:
        self._count = processes
        self._pool = WorkerPool(
            processes, _load, (module, name, arguments, threads_each(processes), extensions.files_for_child())
        )
        self._loading: list[Future[Any]] = []
        self._processes: list[Any] = []

    def __enter__(self) -> "PredictorPool":
        """Start the processes.

        Raises:
            UserError: the system cannot start a process.
        """
        try:
            for _ in range(self._count):
                self._loading.append(self._pool.submit(_describe))
        except OSError as error:
            self.__exit__()
            process = f"process {len(self._loading) + 1} of {self._count}"
            raise UserError(f"{process} cannot be started ({error.strerror}); allowed: fewer --processes") from error
        except BaseException:
            self.__exit__()
            raise
        self._processes = self._pool.processes()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def predict(
        self, read: Callable[..., Iterator[Batch]], recorded: Callable[[Batch], Any] = lambda _: None
    ) -> Iterator[tuple[Batch, Any]]:
        """Yield each chunk with its predictions, in the order of the file.

        At most `CHUNKS_PER_PROCESS` chunks per process are in memory. The Arrow data of a chunk is not sent to the processes,
        because only the writer needs it.

        Args:
            read: yields the chunks; called with the predictor's `chunk_rows`, `columns` and `identity` once one is loaded.
            recorded: returns recorded predictions of a chunk, or None if they must be computed.

        Raises:
            UserError: the first error in file order; the model cannot be loaded; or a process has ended.
            WorkerError: an unexpected error in a process.
        """

        def submit(chunk: Batch) -> Future[Any]:
            done: Future[Any] = Future()
            if (predictions := recorded(chunk)) is not None:
                done.set_result(predictions)
                return done
            try:
                return self._pool.submit(_predict, replace(chunk, table=None))
            except BrokenExecutor as error:  # raised when it is this chunk's turn
                done.set_exception(error)
                return done

        try:
            ready = wait(self._loading, return_when=FIRST_COMPLETED).done
            chunks = read(*ready.pop().result())
        except BrokenExecutor as error:
            raise self._process_lost("while it loaded the model") from error
        pending: deque[tuple[Batch, Future[Any]]] = deque()
        try:
            yield from in_file_order(chunks, submit, CHUNKS_PER_PROCESS * self._count, pending)
        except BrokenExecutor as error:
            unfinished = [chunk for chunk, future in pending if not future.done() or future.exception() is not None]
            first, last = unfinished[0].first, unfinished[-1].first + len(unfinished[-1]) - 1
            raise self._process_lost(f"and rows {first} to {last} were not finished") from error

    def _process_lost(self, when: str) -> UserError:
        end = time.monotonic() + EXIT_SECONDS
        while not (ended := [each for each in self._processes if each.exitcode]) and time.monotonic() < end:
            time.sleep(0.01)  # the executor ends the other processes with status 0
        process, ending = "one", "has ended"
        if ended:
            code = ended[0].exitcode
            process = f"process {self._processes.index(ended[0]) + 1} (pid {ended[0].pid})"
            ending = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return UnfinishedError(
            f"{process} of {self._count} processes {ending} {when}. Memory may be insufficient, since each process holds the "
            f"model; allowed: fewer --processes than {self._count}, or a smaller --batch-size"
        )


def in_file_order(
    chunks: Iterator[Batch],
    submit: Callable[[Batch], Future[Any]],
    limit: int,
    pending: deque[tuple[Batch, Future[Any]]],
) -> Iterator[tuple[Batch, Any]]:
    """Yield each chunk with the result of its future, in order.

    An error of reading or predicting is raised after all earlier chunks have been yielded.

    Args:
        submit: starts the prediction of a chunk.
        limit: maximum number of chunks in memory.
        pending: chunks that were read but not yet yielded; updated in place.
    """
    failure: Exception | None = None
    more = True
    while True:
        while more and len(pending) < limit:
            try:
                chunk = next(chunks, None)
            except Exception as error:
                chunk, failure = None, error
            more = chunk is not None
            if chunk is not None:
                pending.append((chunk, submit(chunk)))
        if not pending:
            break
        chunk, future = pending[0]
        predictions = future.result()
        yield chunk, predictions
        pending.popleft()
    if failure is not None:
        raise failure


# --- in the worker processes

_predictor: Any = None
_load_error: Exception | None = None


def _load(first: bool, module: str, name: str, arguments: dict[str, Any], threads: int, code: Sequence[str]) -> None:
    """Initialize a worker process. An error is stored and raised by its tasks, since the pool would not report it."""
    global _predictor, _load_error  # noqa: PLW0603
    guard_output()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before the libraries that read it are imported
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # tokenizers
    console.quiet = not first  # all processes would print the same messages while loading
    try:
        with importing():
            extensions.load_code(code)
            kind = getattr(importlib.import_module(module), name)
        _predictor = kind(**arguments)
    except Exception as error:
        _load_error = _portable(error)
    console.quiet = False


def _describe() -> tuple[int, list[str], dict[str, Any]]:
    return _run(lambda: (_predictor.chunk_rows, _predictor.columns, _predictor.identity))


def _predict(chunk: Batch) -> Any:
    return _run(partial(_predictor, chunk))


def _run(task: Callable[[], Any]) -> Any:
    if _load_error is not None:
        raise _load_error
    try:
        return task()
    except Exception as error:
        raise _portable(error) from None


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled, which some exceptions of libraries cannot."""
    if isinstance(error, UserError):
        return error
    return WorkerError(f"a process failed:\n{''.join(traceback.format_exception(error))}")
