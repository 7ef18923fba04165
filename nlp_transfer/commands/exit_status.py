"""Exit statuses and error messages of commands, also under a launcher that starts several processes."""

import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from nlp_transfer.security.child_processes import isolated
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.distributed import local_rank, rank
from nlp_transfer.utils.environment import finish_output, output_is_closed
from nlp_transfer.utils.errors import UserError

SAME_MESSAGE = 5.0  # seconds to wait for the message of the first process


def run_command(run: Callable[[], Any]) -> Any:
    """Call `run` with secrets redacted in all output, and exit with a status that depends on the error.

    The status is 2, with a message, for a `UserError`; 1, with a traceback, for a crash; 128 plus the signal number for a signal;
    and 141 if standard output was closed.
    """
    guard_output()
    try:
        try:
            return _exit_on_error(run)
        finally:
            if not finish_output() and sys.exc_info()[0] is None:
                raise BrokenPipeError
    except BrokenPipeError:
        finish_output()
        sys.exit(141)


def _exit_on_error(run: Callable[[], Any]) -> Any:
    """Like `run_command`, but raise a BrokenPipeError if standard output was closed."""
    stdout = sys.stdout
    try:
        with isolated():
            return run()
    except (UserError, click.ClickException) as error:
        message, usage = f"{error}\n", io.StringIO()
        if isinstance(error, click.ClickException):
            error.show(usage)
            message = usage.getvalue()
        message = printable(redact(message))
        if (prefix := error_prefix(message)) is not None:
            click.echo(message if _rank() == 0 and usage.getvalue() else f"{prefix}{message}", err=True, nl=False)
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ or error  # click converts a KeyboardInterrupt to an Abort
        if str(cause) and _rank() == 0:
            click.echo(printable(redact(f"interrupted: {cause}")), err=True)
        sys.exit(getattr(cause, "status", 130))
    except SystemExit:
        if sys.stdout is not stdout:  # click wraps the streams if they were closed, and exits with status 1
            raise BrokenPipeError from None
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            raise
        click.echo(printable(redact(traceback.format_exc())), err=True, nl=False)
        sys.exit(1)
    finally:
        if accelerator := sys.modules.get("nlp_transfer.models.accelerator"):
            accelerator.destroy_process_group()


def _rank() -> int:
    """Return the rank, or 0 if an environment variable of the launcher is invalid (this error is reported elsewhere)."""
    with suppress(UserError):
        return rank()
    return 0


def error_prefix(message: str) -> str | None:
    """Return the prefix of this process's error message, or None if the first process of this machine printed the same message.

    The first process of a machine prints at once; the others wait for its message. Messages are exchanged in the sibling folders
    that torchrun and `accelerate launch` create for the processes; with any other launcher, every process prints.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    prefix = "error: " if _rank() == 0 else f"error (rank {_rank()}): "
    if not error_file:
        return prefix
    first_message = Path(error_file).parents[1] / "0" / "message.txt"
    if local_rank() == 0:
        from nlp_transfer.utils.atomic_files import replacing  # loads rich, which `--help` does not need

        try:
            with replacing(first_message, shared=True) as file:
                file.write(message.encode())
        except (OSError, ValueError):
            pass
        return prefix
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher terminates the other processes when the first one exits
    deadline = time.monotonic() + SAME_MESSAGE
    while time.monotonic() < deadline:
        try:
            return None if first_message.read_text(encoding="utf-8") == message else prefix
        except OSError:
            time.sleep(0.1)
    return prefix
