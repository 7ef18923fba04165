"""CSV, TSV, JSONL, Parquet and plain text files, read in batches: the same readers serve training and streaming.

Cells of CSV and TSV files are text and stay text: nothing here turns `NA` into a missing value or `1` into a number.
"""

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nlp_transfer.config import DataConfig, shorten
from nlp_transfer.errors import Problems, UserError
from nlp_transfer.sources.parquet import parquet_batches
from nlp_transfer.sources.reading import MAX_ROW, Lines, RowTooLongError, check_regular, choose_encoding, open_text, undecoded

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")

MAX_COLUMNS = 4096
MAX_DEPTH = 100  # of lists and objects inside each other in a JSON row
BATCH_CELLS = 2**20  # a batch ends early when it has as many cells, or as many characters as the longest row

csv.field_size_limit(MAX_ROW)  # the default refuses cells over 128 KiB


Records = Iterator[tuple[int, dict[str, Any], int]]  # position, cells by column, characters


@dataclass(frozen=True)
class Batch:
    """Columns of equal length; `first` is the position of the first row as a person counts it. There may be rows, and no
    column: JSON objects can be empty.

    Of a Parquet file `columns` holds only the columns that were asked for, `names` are those of all its columns, and `table`
    (a `pyarrow.Table`) holds all of them unconverted where a writer needs them.
    """

    columns: dict[str, list[Any]]
    first: int
    rows: int
    table: Any = None
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return self.rows

    def has_column(self, name: str) -> bool:
        """Whether the file has a column `name`, asked for or not."""
        return name in self.columns or name in self.names


def check_ending(path: Path) -> str:
    """The lower-case ending of a table's name.

    Raises:
        UserError: it is none that can be read.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{path}: found the ending {path.suffix!r}; allowed: {', '.join(ENDINGS)}")
    return ending


def read_lines(path: Path, data: DataConfig) -> Iterator[list[str]]:
    """The lines of a text file with any ending, in blocks.

    Raises:
        UserError: the file is missing or empty, or bytes are not in the given encoding.
    """
    for batch in _read(path, ".txt", data, 10_000, None, False):
        yield batch.columns["text"]


def read_table(
    path: Path, data: DataConfig, size: int = 10_000, wanted: Collection[str] | None = None, keep_table: bool = False
) -> Iterator[Batch]:
    """The table's rows in batches of at most `size`, fewer where rows are large.

    Args:
        wanted: columns that are needed as Python values; of a Parquet file no others are decoded. None: all.
        keep_table: for a Parquet file, give each batch with all columns as Arrow data too (`Batch.table`).

    Raises:
        UserError: the file is missing, empty or no regular one, a line cannot be parsed or is too long, or bytes are not in the
            given encoding; broken rows of a file are listed together.
    """
    yield from _read(path, check_ending(path), data, size, wanted, keep_table)


def _read(
    path: Path, ending: str, data: DataConfig, size: int, wanted: Collection[str] | None, keep_table: bool
) -> Iterator[Batch]:
    try:
        check_regular(path)
        if path.stat().st_size == 0:
            least = "text, a line or more" if ending == ".txt" else "a table with at least one row"
            raise UserError(f"{path}: the file is empty; allowed: {least}")
        if ending == ".parquet":
            check = partial(_check_header, path, encoding="utf-8")
            for content in parquet_batches(path, size, MAX_ROW, check, wanted, keep_table):
                yield Batch(*content)
        else:
            yield from _read_text(path, ending, data, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_text(path: Path, ending: str, data: DataConfig, size: int) -> Iterator[Batch]:
    problems = Problems(str(path))
    encoding = choose_encoding(path, data)
    records = {".csv": _csv_records, ".tsv": _csv_records, ".jsonl": _jsonl_records, ".txt": _text_records}[ending]
    columns: dict[str, list[Any]] = {}
    first = length = taken = position = 0
    with open_text(path, encoding, newline="" if records is _csv_records else "\n") as file:
        lines = Lines(file)
        try:
            for position, record, characters in records(path, data, encoding, lines, problems):
                if problems:
                    continue  # the rest is read for its problems alone
                first = first or position
                if not record.keys() <= columns.keys():
                    for name in record:  # JSON objects may bring a key late: earlier rows lack it
                        columns.setdefault(name, [None] * length)
                    _check_count(columns, f"{path}, row {position}")
                for name, values in columns.items():
                    values.append(record.get(name))
                length, taken = length + 1, taken + characters
                if length == size or length * len(columns) >= BATCH_CELLS or taken >= MAX_ROW:
                    yield Batch(columns, first, length)
                    columns = {name: [] for name in columns}
                    first = length = taken = 0
        except UnicodeError as error:
            # Files are decoded in blocks, so the bytes stand in this row or somewhat below it.
            problems.add(f"{path}, at or after row {position + 1}: {error}; set data.encoding to the file's encoding")
    problems.raise_if_any()
    if position == 0:
        raise UserError(f"{path}: has {'a header but ' * (ending in ('.csv', '.tsv'))}no rows; allowed: one row or more")
    if length:
        yield Batch(columns, first, length)


def _csv_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    delimiter = data.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    quoting: Any = csv.QUOTE_NONE if data.quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    hint = (
        "allowed: quotes that are closed, and doubled inside a quoted cell; if quotes are ordinary characters, set "
        "data.quoting: none"
    )
    position = 0
    try:
        header = data.columns or next(reader, [])
        position = 0 if data.columns else 1
        _check_header(path, header, encoding)
        blank = range(0)  # at the very end they are harmless, and editors like to leave some
        for cells in reader:
            position += 1
            characters, lines.length = lines.length, 0
            if not cells:
                blank = range(blank.start if blank else position, position + 1)
                continue
            blank = _add_blank(path, blank, problems)
            if len(cells) != len(header):
                problems.add(
                    f"{path}, row {position}: found {len(cells)} cells; the header has {len(header)} "
                    f"({', '.join(header[:6])}{', ...' if len(header) > 6 else ''})"
                )
                continue
            for name, cell in zip(header, cells, strict=True):
                if fault := undecoded(cell, encoding):
                    problems.add(_encoding_problem(f"{path}, row {position}, column {name!r}", fault))
            yield position, dict(zip(header, cells, strict=True)), characters
    except RowTooLongError as error:
        problems.add(f"{path}, row {position + 1} (up to line {reader.line_num}): {error}. If a quote is not closed: {hint}")
    except csv.Error as error:
        problems.add(f"{path}, row {position + 1} (up to line {reader.line_num}): {error}; {hint}")


def _add_blank(path: Path, positions: range, problems: Problems) -> range:
    """Adds blank lines that another row follows; gives back none."""
    for position in positions:
        problems.add(f"{path}, row {position}: the line is blank; remove it")
    return range(0)


def _encoding_problem(where: str, fault: str) -> str:
    return f"{where}: {fault}; set data.encoding (cp1252 is common for files from Windows)"


def _check_header(path: Path, header: list[str], encoding: str) -> None:
    problems = Problems()
    if not header:
        problems.add(f"{path}, row 1: the line is blank; allowed: a header with the names of the columns")
    _check_count(header, str(path))
    for name, times in Counter(header).items():
        if times > 1:
            problems.add(f"{path}: column {shorten(name)} stands twice in the header; allowed: each name once")
        if fault := undecoded(name, encoding):
            problems.add(_encoding_problem(f"{path}, row 1, column {shorten(name)}", fault))
    problems.raise_if_any()


def _check_count(columns: Sized, where: str) -> None:
    if len(columns) > MAX_COLUMNS:
        raise UserError(f"{where}: found {len(columns):,} columns; allowed: at most {MAX_COLUMNS:,}")


def _jsonl_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    position = 0
    blank = range(0)
    try:
        for position, line in enumerate(lines, start=1):
            lines.length = 0
            if not line.strip():
                blank = range(blank.start if blank else position, position + 1)
                continue
            blank = _add_blank(path, blank, problems)
            where = f"{path}, row {position}"
            if fault := undecoded(line, encoding):
                problems.add(_encoding_problem(where, fault))
                continue
            try:
                record = _DECODER.decode(line)
                found = _json_fault(record, line)
            except _KeyTwiceError as error:
                found = f"the key {shorten(error.args[0])} stands twice in an object; allowed: each key once"
            except RecursionError:
                found = TOO_DEEP
            except ValueError as error:
                found = f"is not JSON ({error})"
            if found:
                problems.add(f"{where}: {found}")
            else:
                yield position, record, len(line)
    except RowTooLongError as error:
        problems.add(f"{path}, row {position + 1}: {error}")


class _KeyTwiceError(ValueError):
    """Which of the two values is meant cannot be told."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _KeyTwiceError(next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
TOO_DEEP = f"lists and objects stand inside each other more than {MAX_DEPTH} deep; allowed: at most {MAX_DEPTH}"


def _json_fault(record: Any, line: str) -> str | None:
    """Why what a line of JSON holds is no row, or None."""
    if line.count("[") + line.count("{") > MAX_DEPTH and _is_deep(record):
        return TOO_DEEP
    if not isinstance(record, dict):
        return f"found {shorten(record)} ({type(record).__name__}); allowed: an object, {{...}}"
    if "\\ud" in line.lower() and (half := _half_character(record)):
        return f"found {half}, half of a character; allowed: both halves or none"
    return None


def _is_deep(value: Any) -> bool:
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
    r"""The first surrogate without its partner, such as `\ud83d`: JSON can spell it, but no file can hold it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return ascii(error.object[error.start])[1:-1]
    return None


def _text_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    # A lone carriage return ends no line: as every other tool counts them, lines end in \n, perhaps after \r.
    position = 0
    try:
        for position, line in enumerate(lines, start=1):
            lines.length = 0
            if fault := undecoded(line, encoding):
                problems.add(_encoding_problem(f"{path}, row {position}, column 'text'", fault))
            yield position, {"text": line.removesuffix("\n").removesuffix("\r")}, len(line)
    except RowTooLongError as error:
        problems.add(f"{path}, row {position + 1}: {error}")
