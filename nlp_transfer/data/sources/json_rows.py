"""Read rows from JSON: one object per line (.jsonl), or a document with all rows (.json)."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, TextIO

from nlp_transfer.data.sources.file_reading import ENCODING, MAX_ROW, TOO_LONG, UNDECODED, Lines, RowTooLongError, undecoded
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import Fault, Problems, UserError, shorten

MAX_COLUMNS = 4096
MAX_DEPTH = 100  # maximum depth of nested lists and objects in a row
CHUNK = 1 << 16  # characters read at once; doubled until a row ends

Records = Iterator[tuple[int, dict[str, Any], int, Fault | None]]  # position, cells by column, characters, problem
BLANK = Fault("on a blank line", "the line is blank; remove it")
NO_OBJECT = "without a JSON object"


def check_count(columns: Sized, where: str) -> None:
    """Raise a UserError if there are too many columns."""
    if len(columns) > MAX_COLUMNS:
        raise UserError(f"{where}: found {len(columns):,} columns; allowed: at most {MAX_COLUMNS:,}")


def jsonl_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    """Yield the records of a .jsonl file; blank lines at the end are ignored."""
    blank = range(0)
    for position, line in enumerate(lines.each(), start=1):
        if line is not None and not line.strip():
            blank = range(blank.start if blank else position, position + 1)
            continue
        yield from ((each, {}, 0, BLANK) for each in blank)
        blank = range(0)
        record, fault = (None, Fault(TOO_LONG, str(RowTooLongError()))) if line is None else _parse_record(line, encoding)
        yield position, record or {}, len(line or ""), fault


def _parse_record(line: str, encoding: str) -> tuple[Any, Fault | None]:
    """Return the object in a line of JSON, or a fault."""
    if fault := undecoded(line, encoding):
        return None, Fault(UNDECODED, f"{fault}; {ENCODING}")
    try:
        record = _DECODER.decode(line)
        reason = _json_fault(record, line)
    except _KeyTwiceError as error:
        reason = str(error)
    except RecursionError:
        reason = TOO_DEEP
    except ValueError as error:
        reason = f"is not JSON ({error})"
    return (None, Fault(NO_OBJECT, reason)) if reason else (record, None)


class _KeyTwiceError(ValueError):
    """A key occurs twice in an object, so that its value is ambiguous."""

    def __str__(self) -> str:
        return f"the key {shorten(self.args[0])} occurs twice in an object; allowed: each key once"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _KeyTwiceError(next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1))
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep; allowed: at most {MAX_DEPTH}"


def _json_fault(record: Any, line: str) -> str | None:
    """Return why a JSON value is not a valid row, or None."""
    if line.count("[") + line.count("{") > MAX_DEPTH and _is_deep(record):
        return TOO_DEEP
    if not isinstance(record, dict):
        return f"found {shorten(record)} ({type(record).__name__}); allowed: an object, {{...}}"
    if "\\ud" in line.lower() and (half := _half_character(record)):
        return f"found {half}, half of a character; allowed: both halves or none"
    return None


def _is_deep(value: Any) -> bool:
    """Return whether lists and objects are nested more than `MAX_DEPTH` deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _half_character(record: dict[str, Any]) -> str | None:
    r"""Return the first lone surrogate, such as `\ud83d`, which is allowed in JSON but not in UTF-8; None if there is none."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return ascii(error.object[error.start])[1:-1]
    return None


SHAPES = 'an array of objects, {"data": [...]}, or one object per line'
SPACE = re.compile(r"[ \t\r\n]*")


def json_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    """Yield the records of a .json file: an array of objects, an object with such an array as `data`, or a sequence of objects.

    Parses one value at a time, so only one row of bounded size is in memory.
    """
    position, is_lines = 0, False
    text = _JsonText(lines.file)
    try:
        is_lines = text.peek() == "{"
        for position, (record, source) in enumerate(_rows(text), start=1):
            if fault := undecoded(source, encoding):
                yield position, {}, 0, Fault(UNDECODED, f"{fault}; {ENCODING}")
            elif fault := _json_fault(record, source):
                yield position, {}, 0, Fault(NO_OBJECT, fault)
            else:
                yield position, record, len(source), None
    except (_KeyTwiceError, RowTooLongError) as error:
        problems.add(f"{path}, row {position + 1}: {error}")
    except RecursionError:
        problems.add(f"{path}, row {position + 1}: {TOO_DEEP}")
    except _NotJsonError as error:
        hint = (
            "; a file with one object per line should have the extension .jsonl, so that broken lines can be skipped"
            if is_lines
            else ""
        )
        problems.add(f"{path}, row {position + 1}: is not JSON ({error}); allowed: {SHAPES}{hint}")


def _rows(text: "_JsonText") -> Iterator[tuple[Any, str]]:
    """Yield the rows, each with its JSON text."""
    if text.peek() == "[":
        yield from text.array()
    elif text.peek() == "{":
        record, source = text.members()
        if text.peek() == "[":  # the value of `data`
            yield from text.array()
            text.members(known=record)
        else:
            if record and not text.peek() and all(isinstance(value, (list, dict)) for value in record.values()):
                raise _NotJsonError("it is one object with columns; with pandas, write to_json(orient='records')")
            yield record, source
            while text.peek():
                yield text.value()
    elif character := text.peek():
        raise _NotJsonError(f"found {character!r}")
    if text.peek():
        raise _NotJsonError("there is more after the end of the table")


class _NotJsonError(ValueError):
    """The text is not a JSON table."""


class _JsonText:
    """Parses a file value by value, without loading it completely."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.buffer = ""
        self.start = 0

    def _read_more(self) -> bool:
        """Read the next chunk, and return whether there was one.

        Raises:
            RowTooLongError: The pending value has more than `MAX_ROW` characters.
        """
        pending = len(self.buffer) - self.start
        if pending > MAX_ROW:
            raise RowTooLongError
        chunk = self.file.read(max(CHUNK, pending))
        self.buffer, self.start = self.buffer[self.start :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character other than white space, without consuming it; empty at the end."""
        while True:
            self.start = SPACE.match(self.buffer, self.start).end()  # type: ignore[union-attr]
            if self.start < len(self.buffer):
                return self.buffer[self.start]
            if not self._read_more():
                return ""

    def take(self, mark: str) -> None:
        """Consume an expected character."""
        if (character := self.peek()) != mark:
            raise _NotJsonError(
                f"expected {mark!r}, found {character!r}" if character else f"the file ends where {mark!r} is expected"
            )
        self.start += 1

    def value(self) -> tuple[Any, str]:
        """Return the next value and its JSON text."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.start)
                if end < len(self.buffer) or not self._read_more():  # a number may continue in the next chunk
                    break
            except json.JSONDecodeError as error:
                at_end = error.pos >= len(self.buffer) - 16 or error.msg.startswith("Unterminated")
                excerpt = self.buffer[error.pos : error.pos + 40]
                if not at_end or not self._read_more():
                    raise _NotJsonError(f"{error.msg}, at {shorten(excerpt)}") from None
        source = self.buffer[self.start : end]
        if len(source) > MAX_ROW:
            raise RowTooLongError
        self.start = end
        return value, source

    def array(self) -> Iterator[tuple[Any, str]]:
        """Yield the values of an array, each with its JSON text."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",")
                if self.peek() == "]":
                    raise _NotJsonError("there is a comma before the closing bracket")
        self.take("]")

    def members(self, known: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
        """Read the members of an object up to its end, or up to an array named `data`.

        Args:
            known: Members that were read before that array. If given, reading continues after the array.

        Returns:
            The members and their JSON text.
        """
        pieces, record = list[str](), dict(known or {})
        if known is None:
            self.take("{")
        while self.peek() != "}":
            if record or known is not None:
                self.take(",")
            name, source = self.value()
            if not isinstance(name, str):
                raise _NotJsonError(f"found {shorten(name)} as a key")
            if name in record or (known is not None and name == "data"):
                raise _KeyTwiceError(name)
            self.take(":")
            if name == "data" and known is None and self.peek() == "[":
                return record, ""
            record[name], value = self.value()
            pieces += [source, value]
            if sum(map(len, pieces)) > MAX_ROW or len(record) > MAX_COLUMNS:
                raise RowTooLongError
        self.take("}")
        return record, f"{{{' '.join(pieces)}}}"
