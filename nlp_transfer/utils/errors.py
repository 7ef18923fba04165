"""What goes wrong on the user's side: one error type, and a list that collects problems so that all are shown at once."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

SHOWN = 20
NEARLY_ALL = 0.9  # share of the rows from which on a fault is one of the column
LONGEST = 2000  # characters of one message: what was found may be a cell of megabytes
SUGGESTED = 100  # characters of a word, and a thousand words: comparing longer ones takes too long


class UserError(ValueError):
    """Something the user can put right: a setting, a file, a row.

    The message says what was found, where, what is allowed and what to do. The command line prints it without a
    traceback and ends with exit status 2. `problems` holds the single messages where several were collected.
    """

    def __init__(self, message: str, problems: "Problems | None" = None) -> None:
        super().__init__(brief(message) if problems is None else message)
        self.problems = problems


class UnfinishedError(UserError):
    """No mistake in the input: something was missing on this machine (room on the disk, memory), and the same command can be
    run again. Finished work is kept."""


@contextmanager
def converted(message: str) -> Iterator[None]:
    """Raise a UserError that begins with `message` for anything that a library raises over a hostile file.

    A panic in a library written in Rust counts as well, although it is no `Exception`.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{message}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


class Fault(NamedTuple):
    """Why a row cannot be used, wherever the row is.

    `kind` completes a sentence that counts rows, such as `with an empty text`; `column` is None where the whole row is meant.
    """

    kind: str
    reason: str
    column: str | None = None

    def __str__(self) -> str:
        return self.reason if self.column is None else f"column {self.column!r}: {self.reason}"

    def at(self, where: str) -> str:
        """The message about the row that is at `where`, such as `reviews.csv, row 17`."""
        return f"{where}: {self}" if self.column is None else f"{where}, {self}"

    def of_row(self, file: str, row: int) -> "BadRow":
        """The fault with its place."""
        return BadRow(file, row, self.column, self.reason, self.kind)


class BadRow(NamedTuple):
    """A row that cannot be used, and why (see `Fault`).

    `row` is counted as a person does (in CSV and TSV the header is row 1); 0: the file is the row.
    """

    file: str
    row: int
    column: str | None
    reason: str
    kind: str

    @property
    def fault(self) -> Fault:
        return Fault(self.kind, self.reason, self.column)

    def __str__(self) -> str:
        return self.fault.at(f"{self.file}, row {self.row}" if self.row else self.file)


class Problems:
    """Collects messages; `raise_if_any` shows the first twenty and counts the rest.

    Counting goes on after twenty, storing does not: ten million broken rows cost no memory.

    Args:
        heading: stands before the messages.
        skipped: takes the first fault of each bad row, by a number of the row, and then bad rows are no problems; None: they
            are problems.
        row_hint: a last line where bad rows are among the problems.
    """

    def __init__(self, heading: str = "", skipped: dict[int, BadRow] | None = None, row_hint: str = "") -> None:
        self.heading, self.skipped, self.row_hint = heading, skipped, row_hint
        self.messages: list[str] = []
        self.count = 0
        self.bad_rows = 0
        self._kinds: Counter[tuple[str, str | None, str]] = Counter()  # bad rows by file, column and kind
        self._examples: dict[tuple[str, str | None, str], BadRow] = {}
        self._row_messages: dict[str, tuple[str, str | None, str]] = {}  # those of `messages` that are about a row

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.messages) < SHOWN:
            self.messages.append(brief(message))

    def add_row(self, number: int, bad: BadRow) -> None:
        """Adds a fault of one row; `number` identifies the row in `skipped`."""
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
        """Replaces the messages about rows by one line for each fault that nearly all of the `rows` share: what is wrong then is
        the column, and skipping rows would help nobody."""
        for key, count in self._kinds.items():
            if count <= SHOWN or count < NEARLY_ALL * rows:
                continue
            example = self._examples[key]
            line = f"{count:,} of {rows:,} rows {example.kind}, the first of them: {example}"
            self.messages = [brief(line), *(message for message in self.messages if self._row_messages.get(message) != key)]
            self.count -= count - 1
            self.bad_rows -= count

    def extend(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.add(message)

    def absorb(self, error: UserError) -> None:
        """Takes over what another check found: each of its messages, and the count of those it did not keep."""
        if error.problems is None:
            self.add(str(error))
        else:
            self.merge(error.problems)

    def merge(self, other: "Problems") -> None:
        """Adds what another list collected."""
        self.extend(other.messages)
        self.count += other.count - len(other.messages)
        self.bad_rows += other.bad_rows

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        hint = [self.row_hint] if self.row_hint and self.bad_rows else []
        if self.count == 1 and not self.heading:
            return "\n".join([self.messages[0], *hint])
        counted = f"{self.count} problem{'s' if self.count > 1 else ''}"
        lines = [f"{self.heading}: {counted}" if self.heading else counted]
        lines += [f"  - {message}" for message in self.messages]
        if self.count > len(self.messages):
            lines.append(f"  ... and {self.count - len(self.messages)} more")
        return "\n".join([*lines, *hint])

    def raise_if_any(self) -> None:
        if self:
            raise UserError(str(self), self)


def brief(message: str) -> str:
    """A message that can be read: of a long one the beginning and the end."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST * 3 // 4]} ... {message[-LONGEST // 4 :]}"


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """A suggestion such as ` (did you mean 'lora'?)`, or nothing when no known word is near."""
    if len(str(word)) > SUGGESTED:
        return ""
    short = [name for name in islice(known, 10 * SUGGESTED) if len(name) <= SUGGESTED]
    near = difflib.get_close_matches(str(word), short, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shorten(value: Any, most: int = 120) -> str:
    """A value as a message shows it: a table or a long list must not fill the screen."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({type(value).__name__})"


def with_type(value: Any, most: int = 120) -> str:
    """A value as a message shows it where it is of the wrong kind."""
    text = repr(value)
    return f"{text[:most]}{'...' if len(text) > most else ''} ({type(value).__name__})"
