"""Resumable output files: a lock, a journal of predicted chunks, and a temporary file that becomes the output.

The journal (`.NAME.partial` in the folder of the output) stores the predictions of each finished chunk under a digest of its
rows. When the same command runs again after an interruption, it uses these predictions for chunks with the same digest. The
output is always written from the start, and replaces an existing file only when it is complete.
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
LONGEST = 2**28  # bytes of a record, enough for a chunk with the probabilities of thousands of labels


class ChunkPredictions(NamedTuple):
    """The predictions of a chunk.

    Attributes:
        columns: Python values by column; None in rows without a prediction.
        long_texts: number of texts that were truncated, or translated in pieces.
        faults: reasons why rows have no prediction, by row index.
        resumed: whether an earlier command predicted the chunk.
    """

    columns: dict[str, list[Any]]
    long_texts: int = 0
    faults: dict[int, Fault] = {}
    resumed: bool = False


@dataclass
class _Record:
    """A line of the journal, with the predictions of a chunk. `window` is the digest of the chunk's rows."""

    window: StrictStr
    rows: StrictInt
    columns: dict[StrictStr, list[Any]]
    long_texts: Annotated[StrictInt, Field(ge=0)]
    faults: list[tuple[StrictInt, StrictStr, StrictStr, StrictStr | None]]

    def __post_init__(self) -> None:
        if {len(cells) for cells in self.columns.values()} != {self.rows}:
            raise ValueError("the numbers of predictions and rows differ")
        if any(index not in range(self.rows) for index, *_ in self.faults):
            raise ValueError("a fault of a row that does not exist")


_RECORD = TypeAdapter(_Record)


class OutputFile:
    """The output of a command, with a lock and a journal.

    On exit, a finished command leaves only the output. A command that fails on its input (`UserError`) deletes the journal,
    unless it contains predictions of an earlier command. After any other failure or interruption the journal remains.

    Args:
        output: path; symbolic links are followed and not replaced.
        overwrite: whether the output may exist.
    """

    journaled = True

    def __init__(self, output: Path, overwrite: bool) -> None:
        self.name, self.output, self.overwrite = str(output), output.resolve(), overwrite
        self.journal = self.output.with_name(f".{self.output.name}.partial")
        self._lock_path = self.output.with_name(f".{self.output.name}.lock")
        self._file: BinaryIO | None = None
        self._lock: Lock | None = None
        self._created_folders: list[Path] = []
        self._known: dict[str, int] = {}  # digest of a chunk -> offset of its record
        self._rows = 0
        self._has_earlier = False  # the journal contains predictions of an earlier command
        self._header: bytes | None = None  # replaces the journal of another command when the first chunk is added
        self._temporary = ExitStack()  # the temporary file that becomes the output
        self._finished = False

    def __str__(self) -> str:
        return self.name

    def __enter__(self) -> "OutputFile":
        self._created_folders = [folder for folder in self.output.parents if not folder.exists()]
        try:
            with self.writing():
                self.output.parent.mkdir(parents=True, exist_ok=True)
                if not os.access(self.output.parent, os.W_OK | os.X_OK):
                    raise PermissionError(f"no permission to write in {self.output.parent}")
                self._lock = lock_now(
                    self._lock_path,
                    f"--output: another command is writing {self.name}; allowed: another file, or wait until it has ended",
                    "a second command could write to the same output",
                )
        except UserError:
            self._clean_up()
            raise
        return self

    def begin(self, identity: dict[str, Any]) -> None:
        """Open the journal. Its predictions are reused if it was written with the same identity.

        Args:
            identity: everything that determines the predictions, except the rows, as JSON.

        Raises:
            UserError: another file has the journal's name, or the journal cannot be written.
        """
        header = json.dumps({MARK: FORMAT, **identity}, sort_keys=True).encode() + b"\n"
        with self.writing():
            file = open_record(self.journal)
            before = file.readline(LONGEST_HEADER)
            if not header.startswith(before) and not _is_header(before):
                file.close()
                raise UserError(f"--output: {self.journal} is not a journal of predictions; allowed: rename or remove it")
            self._file = file
            self._read()
            self._has_earlier = bool(self._known)
            if before != header:
                if self._known:
                    changed = ", ".join(_changed(before, header)) or "its format"
                    say(
                        f"starting over: {self.journal} contains predictions of another command ({changed} changed); they "
                        "are deleted when the first new predictions are saved"
                    )
                    self._known, self._rows, self._header = {}, 0, header
                else:
                    self._start(header)
            elif self._known:
                say(f"resuming: up to {self._rows} rows were predicted before")

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
        return ChunkPredictions(record.columns, record.long_texts, faults, resumed=True)

    def add(self, chunk: Batch, predictions: ChunkPredictions) -> None:
        """Record the predictions of a chunk."""
        if predictions.resumed:
            return
        faults = [[index, *fault] for index, fault in predictions.faults.items()]
        if self._header is not None:
            with self.writing():
                self._start(self._header)
            self._header, self._has_earlier = None, False
        content = {"columns": predictions.columns, "long_texts": predictions.long_texts, "faults": faults}
        line = json.dumps({"window": _digest(chunk), "rows": len(chunk), **content}).encode() + b"\n"
        if len(line) > LONGEST:  # too long for `_read`
            return
        assert self._file is not None
        with self.writing():
            self._file.write(line)
            self._file.flush()
        self._rows += len(chunk)

    def open(self) -> BinaryIO:
        """Create the temporary file that becomes the output."""
        with self.writing():
            return self._temporary.enter_context(replacing(self.output, self.overwrite, self._lock))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert OSErrors inside the context to a UserError about the output."""
        try:
            yield
        except OSError as error:
            reason = f"{error}; allowed: a file in a writable folder"
            if is_full(error):
                reason = f"the disk is full ({error}); free some space"
            raise UnfinishedError(f"--output: {self.name} cannot be written: {reason}") from error

    def finish(self) -> None:
        """Rename the complete temporary file to the output.

        Raises:
            UnfinishedError: the output was created in the meantime, or the disk is full.
        """
        with self.writing():
            try:
                self._temporary.close()
            except FileExistsError as error:
                raise UnfinishedError(
                    f"--output: {self.name} was created in the meantime; allowed: --overwrite to replace it"
                ) from error
        self._finished = True

    def __exit__(self, kind: type[BaseException] | None, *how: Any) -> None:
        bad_input = kind is not None and issubclass(kind, UserError) and not issubclass(kind, UnfinishedError)
        keep = self._has_earlier or (bool(self._rows) and not bad_input)
        try:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
                if self._finished or not keep:
                    with suppress(OSError):
                        self.journal.unlink(missing_ok=True)
                elif self._header is not None:
                    say(f"{self.journal} is unchanged; repeat the command that created it to resume")
                else:
                    same = "the command that created it" if bad_input else "the same command"
                    say(f"the predictions of {self._rows} rows are saved in {self.journal}; repeat {same} to resume")
        finally:  # even if standard error is closed
            with suppress(OSError):
                self._temporary.__exit__(kind, *how)
            self._clean_up()

    def _clean_up(self) -> None:
        if self._lock is not None:
            self._lock.release()
        for folder in self._created_folders:
            with suppress(OSError):  # the folder does not exist, or contains the output or the journal
                folder.rmdir()


def _digest(chunk: Batch) -> str:
    """Return a digest of the cells that the model reads from a chunk. `repr` of built-in types is exact."""
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
