"""Errors that the user can fix, and a collection of problems that are reported together."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

SHOWN = 20
NEARLY_ALL = 0.9  # a fault in at least this share of the rows is reported as a fault of the column
LONGEST = 2000  # characters of one message, since it may quote a cell of megabytes
SUGGESTED = 100  # characters of a word to compare; comparing longer words is slow


class UserError(ValueError):
    """An error that the user can fix, in a setting, a file or a row.

    The message names the place, the invalid value, the allowed values and the remedy. The command line prints it without a
    traceback and exits with status 2.

    Args:
        message: the complete message.
        problems: the individual problems, if the message lists several.
    """

    def __init__(self, message: str, problems: "Problems | None" = None) -> None:
        super().__init__(brief(message) if problems is None else message)
        self.problems = problems

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle `problems` with the message; without them, the constructor would shorten it."""
        return UserError, (str(self), self.problems)


class UnfinishedError(UserError):
    """The machine ran out of disk space or memory. Finished work is saved, and the same command can be run again."""


@contextmanager
def converted(message: str) -> Iterator[None]:
    """Convert any error of a library that reads an untrusted file to a UserError that begins with `message`.

    This includes panics of Rust libraries, which are not subclasses of `Exception`.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{message}: {first_line(error)}") from error


@contextmanager
def prefixed(place: str) -> Iterator[None]:
    """Put `PLACE: ` before the messages of UserErrors that the block raises; it replaces the prefix `model: `, if present."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {str(error).removeprefix('model: ')}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error message; the first two if the first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


class Fault(NamedTuple):
    """The reason why a row cannot be used, without its position.

    `kind` continues the text `17 rows`, such as `with an empty text`; `column` is None if the entire row is at fault.
    """

    kind: str
    reason: str
    column: str | None = None

    def __str__(self) -> str:
        return self.reason if self.column is None else f"column {self.column!r}: {self.reason}"

    def at(self, where: str) -> str:
        """Return the message for a row; `where` is its position, such as `reviews.csv, row 17`."""
        return f"{where}: {self}" if self.column is None else f"{where}, {self}"

    def of_row(self, file: str, row: int) -> "BadRow":
        """Return the fault with its position."""
        return BadRow(file, row, self.column, self.reason, self.kind)


class BadRow(NamedTuple):
    """A row that cannot be used, with the reason (see `Fault`).

    `row` counts from 1, including the header of CSV and TSV files; 0 if the file is a single row.
    """

    file: str
    row: int
    column: str | None
    reason: str
    kind: str

    @property
    def fault(self) -> Fault:
        """The fault without its position."""
        return Fault(self.kind, self.reason, self.column)

    def __str__(self) -> str:
        return self.fault.at(f"{self.file}, row {self.row}" if self.row else self.file)


class Problems:
    """A collection of problems that are raised together.

    Only the first 20 messages are stored and shown, so millions of bad rows need little memory; the others are counted.

    Args:
        heading: precedes the messages.
        skipped: receives the first fault of each bad row, by row number, and bad rows are not problems. None: they are problems.
        row_hint: last line of the message, if there are bad rows.
    """

    def __init__(self, heading: str = "", skipped: dict[int, BadRow] | None = None, row_hint: str = "") -> None:
        self.heading, self.skipped, self.row_hint = heading, skipped, row_hint
        self.messages: list[str] = []
        self.count = 0
        self.bad_rows = 0
        self.unused: dict[str, str] = {}
        self._notes: dict[str, None] = {}
        self._kinds: Counter[tuple[str, str | None, str]] = Counter()  # bad rows by file, column and kind
        self._examples: dict[tuple[str, str | None, str], BadRow] = {}
        self._row_messages: dict[str, tuple[str, str | None, str]] = {}  # for messages about single rows: their keys in `_kinds`

    def add(self, message: str) -> None:
        """Add a problem."""
        self.count += 1
        if len(self.messages) < SHOWN:
            self.messages.append(brief(message))

    def no_effect(self, name: str, reason: str) -> None:
        """Record in `unused` that the setting `name` has no effect, with the reason. This is not a problem."""
        self.unused[name] = reason

    def note(self, line: str) -> None:
        """Add a line that follows the messages once, such as the allowed labels, which apply to many rows."""
        if self.skipped is None:
            self._notes[brief(line)] = None

    def add_row(self, number: int, bad: BadRow) -> None:
        """Add a bad row; `number` is its key in `skipped`."""
        if self.skipped is not None:
            self.skipped.setdefault(number, bad._replace(reason=brief(bad.reason)))
            return
        self.bad_rows += 1
        key = bad.file, bad.column, bad.kind
        self._kinds[key] += 1
        self._examples.setdefault(key, bad)
        if len(self.messages) < SHOWN:
            self._row_messages[brief(str(bad))] = key
        self.add(str(bad))

    def summarize(self, rows: int) -> None:
        """Replace the messages about each fault of nearly all of the `rows` rows with one line.

        Such a fault is one of the column, for example the wrong column, rather than of its rows.
        """
        for key, count in self._kinds.items():
            if count <= SHOWN or count < NEARLY_ALL * rows:
                continue
            example = self._examples[key]
            line = f"{count:,} of {rows:,} rows {example.kind}, the first of them: {example}"
            self.messages = [brief(line), *(message for message in self.messages if self._row_messages.get(message) != key)]
            self.count -= count - 1
            self.bad_rows -= count

    def extend(self, messages: Iterable[str]) -> None:
        """Add several problems."""
        for message in messages:
            self.add(message)

    def absorb(self, error: UserError) -> None:
        """Add the problems of an error."""
        if error.problems is None:
            self.add(str(error))
        else:
            self.merge(error.problems)

    def merge(self, other: "Problems") -> None:
        """Add the problems of another collection, including those that are only counted, and its `unused` settings."""
        self.unused |= other.unused
        self._notes |= other._notes
        self.extend(other.messages)
        self.count += other.count - len(other.messages)
        self.bad_rows += other.bad_rows

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        hint = [*(f"  {note}" for note in self._notes), *([self.row_hint] if self.row_hint and self.bad_rows else [])]
        if self.count == 1 and not self.heading:
            return "\n".join([self.messages[0], *hint])
        counted = f"{self.count} problem{'s' if self.count > 1 else ''}"
        lines = [f"{self.heading}: {counted}" if self.heading else counted]
        lines += [f"  - {message}" for message in self.messages]
        if self.count > len(self.messages):
            lines.append(f"  ... and {self.count - len(self.messages)} more")
        return "\n".join([*lines, *hint])

    def raise_if_any(self) -> None:
        """Raise a UserError with all problems, if there are any."""
        if self:
            raise UserError(str(self), self)


def brief(message: str) -> str:
    """Shorten a long message to its beginning and end."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST * 3 // 4]} ... {message[-LONGEST // 4 :]}"


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """Return a suggestion such as ` (did you mean 'lora'?)`, or an empty string if no known word is similar."""
    if len(str(word)) > SUGGESTED:
        return ""
    short = [name for name in islice(known, 10 * SUGGESTED) if len(name) <= SUGGESTED]
    near = difflib.get_close_matches(str(word), short, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shorten(value: Any, most: int = 120) -> str:
    """Return the `repr` of a value for a message, shortened to `most` characters; in that case the type is appended."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({type(value).__name__})"


def with_type(value: Any, most: int = 120) -> str:
    """Return the `repr` of a value for a message, shortened to `most` characters, with the type."""
    text = repr(value)
    return f"{text[:most]}{'...' if len(text) > most else ''} ({type(value).__name__})"
