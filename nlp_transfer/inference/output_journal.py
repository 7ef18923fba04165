"""An output file that can be resumed: a lock, a journal of predicted chunks, and a temporary file that becomes the output.

The journal (`.NAME.partial` beside the output) holds the predictions of each finished chunk under a digest of its rows. When the
same command runs again after an interruption, chunks with a known digest are read from the journal. The output itself is always
written from the start, and replaces an older file only when it is complete.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

from pydantic import Field, StrictInt, StrictStr, TypeAdapter

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.security.file_locks import Lock, lock_now, open_record
from nlp_transfer.utils.atomic_files import is_full, replacing
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Fault, UnfinishedError, UserError

FORMAT = 1
MARK = "nlp_transfer journal"
LONGEST_HEADER = 2**20  # bytes
LONGEST = 2**28  # bytes of a record: the predictions of a chunk, with probabilities of thousands of labels


class ChunkPredictions(NamedTuple):
    """The predictions of a chunk.

    Attributes:
        columns: Python values by column; None in rows without a prediction.
        in_pieces: number of texts that were translated in pieces.
        faults: why rows have no prediction, by row index.
        resumed: whether an earlier command predicted the chunk.
    """

    columns: dict[str, list[Any]]
    in_pieces: int = 0
    faults: dict[int, Fault] = {}
    resumed: bool = False


@dataclass
class _Record:
    """A line of the journal: the predictions of a chunk under the digest `window`."""

    window: StrictStr
    rows: StrictInt
    columns: dict[StrictStr, list[Any]]
    in_pieces: Annotated[StrictInt, Field(ge=0)]
    faults: list[tuple[StrictInt, StrictStr, StrictStr, StrictStr | None]]

    def __post_init__(self) -> None:
        if {len(cells) for cells in self.columns.values()} != {self.rows}:
            raise ValueError("the numbers of predictions and rows differ")
        if any(index not in range(self.rows) for index, *_ in self.faults):
            raise ValueError("a fault of a row that does not exist")


_RECORD = TypeAdapter(_Record)


class OutputFile:
    """The output of one command, with its lock and its journal.

    On exit, a finished command leaves only the output. A command that ends with an error in its input (`UserError`) removes a
    journal that it created, but keeps predictions of an earlier command. After any other end the journal stays.

    Args:
        output: path; a symbolic link is followed and stays.
        overwrite: whether the output may exist.
    """

    journaled = True

    def __init__(self, output: Path, overwrite: bool) -> None:
        self.name, self.output, self.overwrite = str(output), output.resolve(), overwrite
        self.journal = self.output.with_name(f".{self.output.name}.partial")
        self._lock_path = self.output.with_name(f".{self.output.name}.lock")
        self._file: BinaryIO | None = None
        self._lock: Lock | None = None
        self._made: list[Path] = []
        self._known: dict[str, int] = {}  # offset of the record of a chunk, by digest
        self._rows = 0
        self._earlier = False  # the journal holds predictions of an earlier command
        self._header: bytes | None = None  # replaces the header of another journal with the first predictions
        self._part = ExitStack()  # the temporary file that becomes the output
        self._finished = False

    def __str__(self) -> str:
        return self.name

    def __enter__(self) -> "OutputFile":
        self._made = [folder for folder in self.output.parents if not folder.exists()]
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.output.parent, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write in {self.output.parent}")
            self._lock = lock_now(
                self._lock_path,
                f"--output: another command is writing {self.name}; allowed: another file, or wait until it has ended",
                "nothing keeps a second command from writing",
            )
        except OSError as error:
            self._tidy()
            raise self._unwritable(error) from error
        return self

    def begin(self, identity: dict[str, Any]) -> None:
        """Open the journal. Chunks in it are reused if it was written with the same identity.

        Args:
            identity: everything besides the rows that determines the predictions, as JSON.

        Raises:
            UserError: another file has the journal's name, or the journal cannot be written.
        """
        header = json.dumps({MARK: FORMAT, **identity}, sort_keys=True).encode() + b"\n"
        try:
            file = open_record(self.journal)
            before = file.readline(LONGEST_HEADER)
            if not header.startswith(before) and not _is_header(before):
                file.close()
                raise UserError(f"--output: {self.journal} is not a journal of predictions; allowed: rename or remove it")
            self._file = file
            self._read()
            self._earlier = bool(self._known)
            if before != header:
                if self._known:
                    changed = ", ".join(_changed(before, header)) or "its form"
                    say(
                        f"starting over: {self.journal} holds predictions that were made differently ({changed} changed); "
                        "they are kept until the first new predictions"
                    )
                    self._known, self._rows, self._header = {}, 0, header
                else:
                    self._start(header)
            elif self._known:
                say(f"resuming: up to {self._rows} rows were predicted before")
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self) -> None:
        """Index the records, truncate the file at the first incomplete or damaged one, and seek to the end."""
        assert self._file is not None
        end = self._file.tell()
        while record := _record(line := self._file.readline(LONGEST)):
            self._known[record.window] = end
            self._rows += record.rows
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def _start(self, header: bytes) -> None:
        """Truncate the journal and write its header."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(header)
        self._file.flush()

    def find(self, chunk: Batch) -> ChunkPredictions | None:
        """Return the predictions of a chunk that an earlier command recorded, or None."""
        offset = self._known.get(_digest(chunk)) if self._known else None
        if offset is None:
            return None
        assert self._file is not None
        end = self._file.tell()
        self._file.seek(offset)
        record = _record(self._file.readline(LONGEST))
        self._file.seek(end)
        if record is None or record.rows != len(chunk):
            return None
        faults = {index: Fault(kind, reason, column) for index, kind, reason, column in record.faults}
        return ChunkPredictions(record.columns, record.in_pieces, faults, resumed=True)

    def add(self, chunk: Batch, predictions: ChunkPredictions) -> None:
        """Record the predictions of a chunk."""
        if predictions.resumed:
            return
        faults = [[index, *fault] for index, fault in predictions.faults.items()]
        if self._header is not None:
            with self.writing():
                self._start(self._header)
            self._header, self._earlier = None, False
        content = {"columns": predictions.columns, "in_pieces": predictions.in_pieces, "faults": faults}
        line = json.dumps({"window": _digest(chunk), "rows": len(chunk), **content}).encode() + b"\n"
        if len(line) > LONGEST:  # too long to be read again
            return
        assert self._file is not None
        with self.writing():
            self._file.write(line)
            self._file.flush()
        self._rows += len(chunk)

    def part(self) -> BinaryIO:
        """Create the temporary file that becomes the output."""
        with self.writing():
            return self._part.enter_context(replacing(self.output, self.overwrite, self._lock))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise a UserError if the output cannot be written inside."""
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self) -> None:
        """Rename the complete temporary file to the output.

        Raises:
            UnfinishedError: the output exists by now, or the disk is full.
        """
        try:
            self._part.close()
        except FileExistsError as error:
            raise UnfinishedError(f"--output: {self.name} was created meanwhile; allowed: --overwrite to replace it") from error
        except OSError as error:
            raise self._unwritable(error) from error
        self._finished = True

    def _unwritable(self, error: OSError) -> UserError:
        if is_full(error):
            return UnfinishedError(f"--output: {self.name} cannot be written: the disk is full ({error}); make room")
        return UnfinishedError(f"--output: {self.name} cannot be written: {error}; allowed: a file in a writable folder")

    def __exit__(self, kind: type[BaseException] | None, *how: Any) -> None:
        bad_input = kind is not None and issubclass(kind, UserError) and not issubclass(kind, UnfinishedError)
        keep = self._earlier or (bool(self._rows) and not bad_input)
        try:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
                if self._finished or not keep:
                    with suppress(OSError):
                        self.journal.unlink(missing_ok=True)
                elif self._header is not None:
                    say(f"{self.journal} is as it was; the command that began it resumes")
                else:
                    same = "the command that began it" if bad_input else "the same command"
                    say(f"the predictions of {self._rows} rows are kept in {self.journal}; {same} resumes")
        finally:  # even if nobody reads standard error any more
            with suppress(OSError):
                self._part.__exit__(kind, *how)
            self._tidy()

    def _tidy(self) -> None:
        if self._lock is not None:
            self._lock.release()
        for folder in self._made:
            with suppress(OSError):  # it does not exist, or it holds the output or the journal
                folder.rmdir()


def _digest(chunk: Batch) -> str:
    """Return a digest of the cells that a model reads from a chunk; `repr` of built-in types is exact."""
    content = (list(chunk.columns), list(chunk.names), len(chunk), sorted(chunk.faults.items()), list(chunk.columns.values()))
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()


def _is_header(line: bytes) -> bool:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and MARK in header


def _record(line: bytes) -> _Record | None:
    """Return the record in a line of the journal; None if the line is incomplete or damaged."""
    try:
        return _RECORD.validate_python(json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None


def _changed(before: bytes, now: bytes) -> list[str]:
    """Return the names of the fields that differ between two headers."""
    old, new = json.loads(before), json.loads(now)
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
