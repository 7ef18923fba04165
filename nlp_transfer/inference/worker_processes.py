"""Predict the chunks of a file in several processes, each with a copy of the model.

On CPUs, several processes with few threads are faster than one process with many threads, since threads are synchronized in
every operation. This module avoids heavy imports, since the main process only reads and writes files and needs no model.
"""

import importlib
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.security.child_processes import end_with_parent, start_workers
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.settings import extensions
from nlp_transfer.utils.console import console
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import Problems, UnfinishedError, UserError

CHUNKS_PER_PROCESS = 2  # chunks in memory for each process: waiting, being predicted, or waiting to be written
EXIT_SECONDS = 10.0  # maximum wait for the exit status of a process that has ended


class WorkerError(RuntimeError):
    """An unexpected error in a worker process; the message contains its traceback."""


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


class _Worker:
    """A worker process that predicts one chunk at a time, and the main process's end of the pipe to it."""

    def __init__(self, process: Any, pipe: Any, name: str) -> None:
        self.process, self.pipe, self.name = process, pipe, name
        self.error: Exception | None = None  # the error while loading, after which the process cannot be used

    def load(self) -> tuple[Any, ...]:
        """Wait until the predictor is loaded, and return its `chunk_rows`, `columns`, `identity` and `readers`."""
        try:
            description: tuple[Any, ...] = self._receive("while it loaded the model")
        except Exception as error:
            self.error = error
            raise
        return description

    def predict(self, chunk: Batch) -> Any:
        """Return the predictions of a chunk. The process does not get the Arrow data, which only the writer needs."""
        if self.error is not None:
            raise self.error
        with suppress(OSError):  # the process has ended, so it does not reply either
            self.pipe.send(replace(chunk, table=None))
        return self._receive(f"while it predicted rows {chunk.first} to {chunk.first + len(chunk) - 1}")

    def _receive(self, when: str) -> Any:
        try:
            reply = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(EXIT_SECONDS)
            code = self.process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            raise UnfinishedError(
                f"{self.name} (pid {self.process.pid}) {how} {when}. Memory may be insufficient, since each process loads "
                "the model; allowed: fewer --processes, or a smaller --batch-size"
            ) from error
        if isinstance(reply, Exception):
            raise reply
        return reply


class PredictorPool:
    """Processes that each create a predictor once and then predict chunks of a file.

    The predictor is a callable from a `Batch` to its predictions, with the attributes `chunk_rows`, `columns`, `identity` and
    `readers` of `file_predictor.FilePredictor`. The processes run only inside the `with` block.

    A thread waits for each process. `concurrent.futures.ProcessPoolExecutor` is not used, since all of its processes share one
    pipe: it waits forever when a process is killed while it writes to the pipe.

    Args:
        module: name of the module that defines the predictor's class.
        name: name of the class.
        arguments: keyword arguments of the class.
        processes: number of processes.
    """

    def __init__(self, module: str, name: str, arguments: dict[str, Any], processes: int) -> None:
        self._count = processes
        self._arguments = (module, name, arguments, threads_each(processes), extensions.files_for_child())
        self._threads = ThreadPoolExecutor(processes)
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()

    def __enter__(self) -> "PredictorPool":
        """Start the processes.

        Raises:
            UserError: the system cannot start a process.
        """
        try:
            for process, pipe in start_workers(self._count, _work, self._arguments):
                self._workers.append(_Worker(process, pipe, f"process {len(self._workers) + 1} of {self._count}"))
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError):
                raise
            which = f"process {len(self._workers) + 1} of {self._count}"
            raise UserError(f"{which} cannot be started ({error.strerror}); allowed: fewer --processes") from error
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the processes: they have nothing to finish."""
        for worker in self._workers:
            worker.process.kill()
        self._threads.shutdown(cancel_futures=True)  # the threads see the end of their pipes
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def predict(
        self, read: Callable[..., Iterator[Batch]], recorded: Callable[[Batch], Any] = lambda _: None
    ) -> Iterator[tuple[Batch, Any]]:
        """Yield each chunk with its predictions, in the order of the file.

        At most `CHUNKS_PER_PROCESS` chunks per process are in memory. The Arrow data of a chunk is not sent to the processes,
        because only the writer needs it.

        Args:
            read: yields the chunks. It is called with `chunk_rows`, `columns`, `identity` and `readers` of the predictor, once it
                is loaded.
            recorded: returns the recorded predictions of a chunk, or None if they must be computed.

        Raises:
            UserError: rows cannot be predicted (first error in file order), the model cannot be loaded, or a process has ended.
            WorkerError: an unexpected error in a process.
        """

        def submit(chunk: Batch) -> Future[Any]:
            if (predictions := recorded(chunk)) is None:
                return self._threads.submit(self._predict, chunk)
            done: Future[Any] = Future()
            done.set_result(predictions)
            return done

        loading = [self._threads.submit(self._load, worker) for worker in self._workers]
        first = next(as_completed(loading)).result()
        yield from in_file_order(read(*first), submit, CHUNKS_PER_PROCESS * self._count)

    def _load(self, worker: _Worker) -> tuple[Any, ...]:
        try:
            return worker.load()
        finally:
            self._idle.put(worker)

    def _predict(self, chunk: Batch) -> Any:
        worker = self._idle.get()  # there is a worker for each thread
        try:
            return worker.predict(chunk)
        finally:
            self._idle.put(worker)


def in_file_order(
    chunks: Iterator[Batch],
    submit: Callable[[Batch], Future[Any]],
    limit: int,
) -> Iterator[tuple[Batch, Any]]:
    """Yield each chunk with the result of its future, in order.

    An error of reading or predicting is raised after all earlier chunks have been yielded.

    Args:
        submit: starts the prediction of a chunk.
        limit: maximum number of chunks in memory.
    """
    pending: deque[tuple[Batch, Future[Any]]] = deque()
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
        chunk, future = pending.popleft()
        yield chunk, future.result()
    if failure is not None:
        raise failure


# --- in the worker processes


def _work(pipe: Any, number: int, module: str, name: str, arguments: dict[str, Any], threads: int, code: Sequence[str]) -> None:
    """Load the predictor, and predict chunks until the process is killed."""
    end_with_parent()
    guard_output()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before the libraries that read it are imported
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # tokenizers
    console.quiet = number > 0  # every process would print the same messages while loading
    predictors: list[Any] = []

    def load() -> tuple[int, list[str], dict[str, Any], dict[str, Any]]:
        with importing():
            extensions.load_code(code)
            kind = getattr(importlib.import_module(module), name)
        predictors.append(kind(**arguments))
        predictor = predictors[0]
        return predictor.chunk_rows, predictor.columns, predictor.identity, dict(predictor.readers)

    with suppress(EOFError, OSError):  # the parent has ended
        pipe.send(_reply(load))
        console.quiet = False
        while True:
            chunk = pipe.recv()
            pipe.send(_reply(partial(predictors[0], chunk)))
    os._exit(1)


def _reply(task: Callable[[], Any]) -> Any:
    """Return the result of a task, or its error in a form that can be pickled, since some exceptions of libraries cannot."""
    try:
        return task()
    except UserError as error:
        return error
    except Exception:
        return WorkerError(f"a process failed:\n{traceback.format_exc()}")
