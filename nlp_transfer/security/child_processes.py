"""Start child processes that do not import modules from the current folder.

With `python -m` and `python -c`, Python searches the current folder first, so a file `pickle.py` in a downloaded folder would
run. Therefore, only this module starts processes; a test checks this. Every command also runs inside `isolated`, which protects
processes that libraries start.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nlp_transfer.utils.errors import UserError
from nlp_transfer.utils.interrupts import SIGNALS

if TYPE_CHECKING:
    import subprocess

_SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def isolated() -> Iterator[None]:
    """Remove the current folder from the module search path of all processes that are started in the block.

    Child processes inherit `PYTHONSAFEPATH`. `multiprocessing` also sends `sys.path`, where an empty entry, as in notebooks,
    means the current folder.

    Raises:
        UserError: Python was started with -E and ignores the variable.
    """
    if sys.flags.ignore_environment and not sys.flags.safe_path:
        raise UserError("python: found -E, with which a child process searches the current folder; allowed: -I, or -E with -P")
    paths, previous = sys.path[:], os.environ.get(_SAFE_PATH)
    sys.path[:] = filter(None, paths)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        sys.path[:] = paths
        if previous is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = previous


def run_module(module: str, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run an installed module as a command, such as pip, and return its exit status and output."""
    import subprocess

    with isolated():
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip


def start_program(program: str, arguments: Sequence[str], errors: Any) -> "subprocess.Popen[bytes]":
    """Start a Python program with the module search path of this process, and with pipes for standard input and output.

    Args:
        program: source code.
        arguments: `sys.argv[1:]` of the program.
        errors: an open file for standard error.
    """
    import subprocess

    with isolated():
        return subprocess.Popen(
            [sys.executable, "-u", "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip


def run_forked(target: Callable[..., None], *arguments: Any) -> int:
    """Call `target` in a fork of this process and return the exit status, negative for a signal.

    The fork is killed when standard input is closed or receives data.
    """
    import multiprocessing
    from multiprocessing import connection

    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    if 0 in connection.wait([0, process.sentinel]):
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def end_with_input() -> None:
    """End this process as soon as standard input is closed or receives data."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def start_workers(count: int, target: Callable[..., None], arguments: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Start processes that call `target(pipe, number, *arguments)`, with SIGINT and SIGTERM blocked.

    Terminals and schedulers send these signals to all processes of a command; the caller has to end the workers.

    Yields:
        The `multiprocessing.Process`, and this process's end of the pipe. Reading from the pipe fails when the worker has ended.

    Raises:
        OSError: the system cannot start another process.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with _protected_start():  # also while the caller stores each process, so that it can end all of them
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, number, *arguments), daemon=True)
            process.start()
            theirs.close()
            yield process, ours


def end_with_parent() -> None:
    """End this process as soon as its parent ends, even if the parent is killed or this process is computing."""
    from multiprocessing import parent_process

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _protected_start() -> Iterator[None]:
    """Isolate processes that are started in the block, and block SIGINT and SIGTERM in them.

    Terminals and schedulers send these signals to all processes of a command; this process handles them and ends the others.
    """
    with isolated():
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # starting it unblocks the signals
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
