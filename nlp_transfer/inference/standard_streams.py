"""Standard input as a file, and standard output reserved for predictions."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.output_journal import ChunkPredictions
from nlp_transfer.security.terminal_text import PrintableStream
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UnfinishedError, UserError

DASH = Path("-")


@contextmanager
def opened_input(source: Path, form: str) -> Iterator[Path]:
    """Yield `source`, or for `-` a temporary file with the content of standard input, which is removed on exit.

    Args:
        form: format of standard input, such as `csv`.

    Raises:
        UserError: standard input is closed. Errors about the temporary file name it `standard input`.
    """
    if source != DASH:
        yield source
        return
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("--input -: standard input is closed; allowed: a pipe or a file (predict MODEL --input - < FILE)")
    if sys.stdin.isatty():
        say("reading rows from the terminal; press Ctrl-D on an empty line to finish")
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"input.{form}"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise UnfinishedError(
                f"--input -: standard input cannot be copied to a temporary file ({error}); allowed: a folder with free space in "
                "the environment variable TMPDIR, or a file as --input"
            ) from error
        try:
            yield path
        except UserError as error:
            if str(path) not in str(error):
                raise
            raise type(error)(str(error).replace(str(path), "standard input")) from error


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Convert OSErrors inside the context to a UserError about standard output, except BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"standard output cannot be written: {error}; allowed: a pipe, or a file on a disk with free space"
        ) from error


@contextmanager
def redirected_stdout() -> Iterator[TextIO]:
    """Yield standard output as a UTF-8 text stream; redirect all other output to standard error.

    Other output includes that of libraries and of child processes.

    Raises:
        UserError: standard output is closed or cannot be written.
        BrokenPipeError: the reader of standard output has closed it.
    """
    sys.stdout.flush()
    try:
        original = os.dup(1)
    except OSError as error:
        raise UserError("--output -: standard output is closed; allowed: a terminal, a pipe or a file") from error
    os.dup2(2, 1)
    stream = open(os.dup(original), "w", encoding="utf-8", newline="")  # noqa: SIM115  closing must not hide an error
    try:
        yield stream
        with writing_stdout():
            stream.close()
    finally:
        with suppress(OSError):
            stream.close()
        sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


class OutputStream:
    """Standard output with the interface of `OutputFile`, but without a journal.

    Text is written after each chunk; a Parquet file is written at the end.
    """

    journaled = False

    def __init__(self, stream: TextIO, ending: str) -> None:
        self.stream = stream
        with self.writing():
            self.file = tempfile.TemporaryFile() if ending == ".parquet" else None  # noqa: SIM115  closed in __exit__

    def __str__(self) -> str:
        return "standard output"

    def __enter__(self) -> "OutputStream":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # the content was written or is no longer needed
                self.file.close()

    def begin(self, identity: Any) -> None:
        """Do nothing: there is no journal."""

    def find(self, chunk: Batch) -> ChunkPredictions | None:
        """Return None: there is no journal."""
        return None

    def add(self, chunk: Batch, predictions: ChunkPredictions) -> None:
        """Flush the chunks written so far."""
        with self.writing():
            self.stream.flush()

    def open(self) -> BinaryIO | TextIO:
        """Return the target of a `Writer`."""
        if self.file is not None:
            return self.file
        return cast(TextIO, PrintableStream(self.stream)) if self.stream.isatty() else self.stream

    writing = staticmethod(writing_stdout)

    def finish(self) -> None:
        """Write the remaining text or the Parquet file."""
        with self.writing():
            self.stream.flush()
            if self.file is not None:
                self.file.seek(0)
                shutil.copyfileobj(self.file, self.stream.buffer)
                self.stream.buffer.flush()
