"""Starting other processes, none of which searches the current folder for modules.

Python puts the current folder first among the places where a child of `python -m` or `python -c` finds modules. In a folder from
a stranger, a file `pickle.py` there would run. `multiprocessing` and `subprocess` are therefore used in this module alone, which
a test checks, and every command runs inside `isolated`, so that processes that libraries start are isolated as well.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from nlp_transfer.utils.errors import UserError
from nlp_transfer.utils.interrupts import SIGNALS

if TYPE_CHECKING:
    import subprocess
    from concurrent.futures import Future

_SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def isolated() -> Iterator[None]:
    """Keep the current folder out of the module search of all processes that are started inside, in whatever way.

    `PYTHONSAFEPATH` does that for Python's own search path, also in their children. `multiprocessing` sends `sys.path` as well,
    where an empty entry (interactive sessions and notebooks have one) is the current folder.

    Raises:
        UserError: this process was started in a way in which Python ignores the variable.
    """
    if sys.flags.ignore_environment and not sys.flags.safe_path:
        raise UserError("python: found -E, with which a child process searches the current folder; allowed: -I, or -E with -P")
    paths, before = sys.path[:], os.environ.get(_SAFE_PATH)
    sys.path[:] = filter(None, paths)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        sys.path[:] = paths
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


def run_module(module: str, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run an installed module as a command, such as pip, and return its exit status and what it printed."""
    import subprocess

    with isolated():
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip


def start_program(program: str, arguments: Sequence[str], errors: Any) -> "subprocess.Popen[bytes]":
    """Start a Python program that finds the same modules as this process; its standard input and output are unbuffered pipes.

    Args:
        program: the source.
        errors: a file for its standard error.
    """
    import subprocess

    with isolated():
        return subprocess.Popen(
            [sys.executable, "-u", "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip


class WorkerPool:
    """A `concurrent.futures.ProcessPoolExecutor` of isolated processes that end with this process and never handle signals.

    Entering starts nothing; `submit` starts the processes. Leaving kills them: they have nothing to finish.

    Args:
        processes: their number.
        initialize: called in each process before its first task. The first argument is true in one of the processes.
        arguments: further arguments of `initialize`.
    """

    def __init__(self, processes: int, initialize: Callable[..., None], arguments: Sequence[Any]) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())
        with _protected_start():
            arguments = (context.Lock(), initialize, arguments)
            self._executor = ProcessPoolExecutor(processes, context, _initialize_worker, arguments)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call a function in one of the processes.

        Raises:
            BrokenExecutor: a process has ended.
            OSError: the system cannot start another process.
        """
        with _protected_start():
            return self._executor.submit(function, *arguments)

    def processes(self) -> list[Any]:
        """Return the `multiprocessing.Process` objects of the pool."""
        import multiprocessing

        return [process for process in multiprocessing.active_children() if process not in self._others]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            process.kill()
        self._executor.shutdown(cancel_futures=True)


def _initialize_worker(lock: Any, initialize: Callable[..., None], arguments: Sequence[Any]) -> None:
    end_with_parent()
    initialize(lock.acquire(block=False), *arguments)  # nobody releases the lock


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, even if the parent was killed and even in the middle of a computation."""
    from multiprocessing import parent_process

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _protected_start() -> Iterator[None]:
    """Isolate processes that are started inside, and block SIGINT and SIGTERM in them: they are ended by this process.

    Terminals and schedulers send these signals to all processes of a command.
    """
    with isolated():
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # it unblocks the signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
