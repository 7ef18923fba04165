"""Starting other processes, none of which searches the current folder for modules.

Python puts the current folder first among the places where a child of `python -m` or `python -c` finds modules. In a folder from
a stranger, a file `pickle.py` there would run. `multiprocessing` and `subprocess` are therefore used in this module alone, which
a test checks, and every command runs inside `isolated`, so that processes that libraries start are isolated as well.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nlp_transfer.utils.errors import UserError

if TYPE_CHECKING:
    import subprocess

ENDING = (signal.SIGINT, signal.SIGTERM)
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


def start_worker(target: Any, arguments: Sequence[Any]) -> tuple[Any, Any]:
    """Start a process that calls `target` with one end of a pipe and the arguments; return it and the other end."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    with isolated():
        process.start()
    theirs.close()  # so that the pipe ends with the process
    return process, ours


@contextmanager
def held_signals() -> Iterator[None]:
    """Processes that are started inside never see SIGINT and SIGTERM, which terminals and schedulers send to all of them: they
    end with this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    with isolated():
        resource_tracker.ensure_running()  # starting it later would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
