"""An output file in the making: a lock, a journal of the windows that are predicted, and the file that replaces the output.

The journal (`.NAME.partial` beside the output) holds the predictions of each finished window under a digest of the window's rows.
When the same command is run again after an interruption, a crash or a kill, windows with a known digest are taken from the
journal. The output itself is written from the start every time, and replaces an older one only when it is complete.
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
LONGEST = 2**28  # bytes of a record: the predictions of a window, with probabilities of thousands of labels


class Answer(NamedTuple):
    """The predictions of a window.

    Attributes:
        columns: Python values by column, None in rows without a prediction.
        in_pieces: how many texts were translated in pieces.
        faults: by row index, why rows have no prediction.
        resumed: whether they were predicted by an earlier command.
    """

    columns: dict[str, list[Any]]
    in_pieces: int = 0
    faults: dict[int, Fault] = {}
    resumed: bool = False


@dataclass
class _Record:
    """A line of the journal: the predictions of a window."""

    window: StrictStr
    rows: StrictInt
    columns: dict[StrictStr, list[Any]]
    in_pieces: Annotated[StrictInt, Field(ge=0)]
    faults: list[tuple[StrictInt, StrictStr, StrictStr, StrictStr | None]]

    def __post_init__(self) -> None:
        if {len(cells) for cells in self.columns.values()} != {self.rows}:
            raise ValueError("another number of predictions than of rows")
        if any(index not in range(self.rows) for index, *_ in self.faults):
            raise ValueError("a fault of a row that does not exist")


_RECORD = TypeAdapter(_Record)


class OutputFile:
    """The output of one command, from its lock to its last rename.

    On leaving, a finished command removes everything but the output. One that ends by a mistake in its input (`UserError`) also
    removes the journal that it began; predictions of an earlier command are kept. After any other end the journal stays.

    Args:
        output: where a symbolic link leads is written, and the link stays.
        overwrite: whether it may exist.
    """

    journaled = True

    def __init__(self, output: Path, overwrite: bool) -> None:
        self.name, self.output, self.overwrite = str(output), output.resolve(), overwrite
        self.journal = self.output.with_name(f".{self.output.name}.partial")
        self._lock_path = self.output.with_name(f".{self.output.name}.lock")
        self._file: BinaryIO | None = None
        self._lock: Lock | None = None
        self._made: list[Path] = []
        self._known: dict[str, int] = {}  # digest of a window to the offset of its record
        self._rows = 0
        self._earlier = False  # the journal holds predictions of an earlier command
        self._header: bytes | None = None  # of the journal that takes the place of another one with the first predictions
        self._part = ExitStack()  # the file that takes the output's place in the end
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
        """Open the journal; with the same identity as before, its windows need not be predicted again.

        Args:
            identity: all that decides predictions beside the rows, as JSON.

        Raises:
            UserError: the journal's name is taken by something else, or it cannot be written.
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
                        "they are kept until the first rows are predicted anew"
                    )
                    self._known, self._rows, self._header = {}, 0, header
                else:
                    self._start(header)
            elif self._known:
                say(f"resuming: up to {self._rows} rows were predicted before")
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self) -> None:
        """Index the records up to the first that is incomplete or damaged, remove the rest, and go to the end."""
        assert self._file is not None
        end = self._file.tell()
        while record := _record(line := self._file.readline(LONGEST)):
            self._known[record.window] = end
            self._rows += record.rows
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def _start(self, header: bytes) -> None:
        """Begin the journal anew."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(header)
        self._file.flush()

    def find(self, batch: Batch) -> Answer | None:
        """The predictions of a window that an earlier command made."""
        offset = self._known.get(_digest(batch)) if self._known else None
        if offset is None:
            return None
        assert self._file is not None
        end = self._file.tell()
        self._file.seek(offset)
        record = _record(self._file.readline(LONGEST))
        self._file.seek(end)
        if record is None or record.rows != len(batch):
            return None
        faults = {index: Fault(kind, reason, column) for index, kind, reason, column in record.faults}
        return Answer(record.columns, record.in_pieces, faults, resumed=True)

    def add(self, batch: Batch, answer: Answer) -> None:
        """Record the predictions of a window."""
        if answer.resumed:
            return
        faults = [[index, *fault] for index, fault in answer.faults.items()]
        if self._header is not None:
            with self.writing():
                self._start(self._header)
            self._header, self._earlier = None, False
        content = {"columns": answer.columns, "in_pieces": answer.in_pieces, "faults": faults}
        line = json.dumps({"window": _digest(batch), "rows": len(batch), **content}).encode() + b"\n"
        if len(line) > LONGEST:  # it could not be read again
            return
        assert self._file is not None
        with self.writing():
            self._file.write(line)
            self._file.flush()
        self._rows += len(batch)

    def part(self) -> BinaryIO:
        """Create the file that takes the output's place in the end."""
        with self.writing():
            return self._part.enter_context(replacing(self.output, self.overwrite, self._lock))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise a UserError where the output cannot be written inside."""
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self) -> None:
        """Put the complete file in the output's place.

        Raises:
            UnfinishedError: there is an output by now, or no room on the disk.
        """
        try:
            self._part.close()
        except FileExistsError as error:
            raise UnfinishedError(f"--output: {self.name} appeared meanwhile; allowed: --overwrite to replace it") from error
        except OSError as error:
            raise self._unwritable(error) from error
        self._finished = True

    def _unwritable(self, error: OSError) -> UserError:
        if is_full(error):
            return UnfinishedError(f"--output: {self.name} cannot be written: the disk is full ({error}); make room")
        return UnfinishedError(f"--output: {self.name} cannot be written: {error}; allowed: a file in a writable folder")

    def __exit__(self, kind: type[BaseException] | None, *how: Any) -> None:
        mistake = kind is not None and issubclass(kind, UserError) and not issubclass(kind, UnfinishedError)
        keep = self._earlier or (bool(self._rows) and not mistake)
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
                    same = "the command that began it" if mistake else "the same command"
                    say(f"the predictions of {self._rows} rows are kept in {self.journal}; {same} resumes")
        finally:  # also where nobody reads standard error any more
            with suppress(OSError):
                self._part.__exit__(kind, *how)
            self._tidy()

    def _tidy(self) -> None:
        if self._lock is not None:
            self._lock.release()
        for folder in self._made:
            with suppress(OSError):  # it was not made, or holds the output or the journal
                folder.rmdir()


def _digest(batch: Batch) -> str:
    """A digest of what a model reads of a window; `repr` of Python's own types is exact."""
    content = (list(batch.columns), list(batch.names), len(batch), sorted(batch.faults.items()), list(batch.columns.values()))
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()


def _is_header(line: bytes) -> bool:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and MARK in header


def _record(line: bytes) -> _Record | None:
    """The record in a line of the journal; None where the line is incomplete or damaged."""
    try:
        return _RECORD.validate_python(json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None


def _changed(before: bytes, now: bytes) -> list[str]:
    """Names of what differs between two headers."""
    old, new = json.loads(before), json.loads(now)
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
