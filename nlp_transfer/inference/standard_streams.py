"""Standard input as a file to be predicted, and standard output for predictions alone."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.output_journal import Answer
from nlp_transfer.security.terminal_text import PrintableStream
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UnfinishedError, UserError

DASH = Path("-")


@contextmanager
def opened_input(source: Path, form: str) -> Iterator[Path]:
    """`source`, or for `-` a temporary file with all of standard input, which is removed afterwards.

    Args:
        form: the format of standard input, such as `csv`.

    Raises:
        UserError: standard input is closed; also any error about the temporary file, with `standard input` for its name.
    """
    if source != DASH:
        yield source
        return
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("--input -: standard input is closed; allowed: a pipe or a file (predict MODEL --input - < FILE)")
    if sys.stdin.isatty():
        say("reading rows from the terminal; Ctrl-D on an empty line ends them")
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"input.{form}"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise UnfinishedError(
                f"--input -: standard input cannot be kept in a temporary file ({error}); allowed: a folder with room in the "
                "environment variable TMPDIR, or a file as --input"
            ) from error
        try:
            yield path
        except UserError as error:
            if str(path) not in str(error):
                raise
            raise type(error)(str(error).replace(str(path), "standard input")) from error


@contextmanager
def writing() -> Iterator[None]:
    """Raise a UserError where standard output cannot be written inside, but for a pipe that nobody reads any more."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"standard output cannot be written: {error}; allowed: a pipe, or a file on a disk with room") from error


@contextmanager
def results() -> Iterator[TextIO]:
    """Standard output as UTF-8 text, for results alone: what else this process and those that it starts print there goes to
    standard error meanwhile.

    Raises:
        UserError: standard output is closed, or cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    sys.stdout.flush()
    try:
        own = os.dup(1)
    except OSError as error:
        raise UserError("--output -: standard output is closed; allowed: a terminal, a pipe or a file") from error
    os.dup2(2, 1)
    stream = open(os.dup(own), "w", encoding="utf-8", newline="")  # noqa: SIM115 (after an error, closing must not raise another)
    try:
        yield stream
        with writing():
            stream.close()
    finally:
        with suppress(OSError):
            stream.close()
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


class OutputStream:
    """Standard output in place of an `OutputFile`: nothing to resume, nothing to replace.

    Text is written as it comes; Parquet, whose end is needed to read it, when it is complete.
    """

    journaled = False

    def __init__(self, stream: TextIO, ending: str) -> None:
        self.stream = stream
        with self.writing():
            self.file = tempfile.TemporaryFile() if ending == ".parquet" else None  # noqa: SIM115 (closed in the end)

    def __str__(self) -> str:
        return "standard output"

    def __enter__(self) -> "OutputStream":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # what was not written is not needed
                self.file.close()

    def begin(self, identity: Any) -> None:
        """Nothing is kept."""

    def find(self, batch: Batch) -> Answer | None:
        """Nothing was predicted before."""
        return None

    def add(self, batch: Batch, answer: Answer) -> None:
        """Hand over what is written so far."""
        with self.writing():
            self.stream.flush()

    def part(self) -> BinaryIO | TextIO:
        """Where a `Writer` writes to."""
        if self.file is not None:
            return self.file
        return cast(TextIO, PrintableStream(self.stream)) if self.stream.isatty() else self.stream

    writing = staticmethod(writing)

    def finish(self) -> None:
        """Send what was not sent yet."""
        with self.writing():
            self.stream.flush()
            if self.file is not None:
                self.file.seek(0)
                shutil.copyfileobj(self.file, self.stream.buffer)
                self.stream.buffer.flush()
