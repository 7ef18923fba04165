"""CSV, TSV, JSONL, Parquet and plain text files, read in batches: the same readers serve training and streaming.

Cells of CSV and TSV files are text and stay text: nothing here turns `NA` into a missing value or `1` into a number.
"""

import csv
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.file_reading import (
    ENCODING,
    MAX_ROW,
    SURROGATE,
    TOO_LONG,
    UNDECODED,
    Lines,
    RowTooLongError,
    check_regular,
    choose_encoding,
    format_of,
    has_lines,
    open_binary,
    open_text,
    undecoded,
)
from nlp_transfer.data.sources.file_reading import ENDINGS as ENDINGS
from nlp_transfer.data.sources.json_rows import BLANK, Records, check_count, json_records, jsonl_records
from nlp_transfer.data.sources.parquet_reader import count_rows, parquet_batches
from nlp_transfer.data.sources.table_headers import check_header, check_separator, named_columns
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import BadRow, Fault, Problems, UserError

LOOKED_AT = 1 << 13  # bytes by which a file of lines is told from other formats
BATCH_CELLS = 2**20  # a batch ends early when it has as many cells, or as many characters as the longest row

csv.field_size_limit(MAX_ROW)  # the default refuses cells over 128 KiB


@dataclass(frozen=True)
class Batch:
    """Columns of equal length; `first` is the position of the first row as a person counts it. There may be rows, and no
    column: JSON objects can be empty.

    Of a Parquet file `columns` holds only the columns that were asked for, `names` are those of all its columns, and `table`
    (a `pyarrow.Table`) holds all of them unconverted where a writer needs them.

    `faults`: by index, why rows could not be read, where the reader was asked to go on; their cells are None, except that a row
    with too many or too few cells keeps the first ones, and that bytes in a wrong encoding are replaced by U+FFFD.
    """

    columns: dict[str, list[Any]]
    first: int
    rows: int
    table: Any = None
    names: Sequence[str] = ()
    faults: Mapping[int, Fault] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.rows

    def bad_rows(self, path: Path) -> dict[int, BadRow]:
        """The rows in `faults` by their position in the file that the batch was read from."""
        places = {self.first + index: fault for index, fault in self.faults.items()}
        return {place: fault.of_row(str(path), place) for place, fault in places.items()}

    def has_column(self, name: str) -> bool:
        """Whether the file has a column `name`, asked for or not."""
        return name in self.columns or name in self.names


def check_ending(path: Path, wanted: Collection[str] | None) -> str:
    """The lower-case ending that says how a table is read, `.gz` left out. A file with an ending that says nothing is one text a
    line (`.txt`) where a single column is wanted and nothing in it looks like another format.

    Raises:
        UserError: the file cannot be read as a table.
    """
    if ending := format_of(path):
        return ending
    if wanted is None or len(wanted) != 1 or not has_lines(path):
        raise UserError(
            f"{path}: found the ending {path.suffix!r}; allowed: {', '.join(ENDINGS)}, each also with .gz except .parquet (a "
            "file of lines may have any ending where one column of text is all that is needed)"
        )
    check_lines(path, next(iter(wanted)))
    say(f"{path}: the name ends in none of {', '.join(ENDINGS)}: each line is read as one text")
    return ".txt"


def check_lines(path: Path, column: str) -> None:
    """Raises a UserError where a file whose ending says nothing does not look like one text a line.

    Args:
        column: the name that a header would have for the texts.
    """
    with open_binary(path) as file:
        start = file.read(LOOKED_AT)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    first = text.partition(b"\n")[0].decode(errors="replace")
    utf_16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    looks_like = None
    if not utf_16 and any(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in start):
        looks_like = "a binary file"
    elif text.startswith((b"{", b"[")) and text[1:2].strip() in (b"", b'"', b"{", b"[", b"}", b"]"):
        looks_like = "JSON"
    elif text[:9].lower().startswith((b"<?xml", b"<!doctype", b"<html")):
        looks_like = "markup"
    elif "\t" in first or any(column in [cell.strip().strip('"') for cell in first.split(mark)] for mark in ",;|"):
        looks_like = "a table with several columns or a header"
    if looks_like:
        raise UserError(
            f"{path}: the name ends in no known format, and the file looks like {looks_like}; allowed: one text a line, or a "
            f"name with the ending of the format ({', '.join(ENDINGS)})"
        )


def read_lines(path: Path, data: DataConfig, skipped: dict[int, BadRow] | None = None) -> Iterator[list[str]]:
    """The lines of a text file with any ending, in blocks.

    Args:
        skipped: takes the lines that cannot be read, by position, and then they are given as empty text; None: they are refused.

    Raises:
        UserError: the file is missing or empty, or bytes are not in the given encoding.
    """
    for batch in _read(path, ".txt", data, 10_000, None, False, skipped is not None):
        if skipped is not None:
            skipped |= batch.bad_rows(path)
        yield [line or "" for line in batch.columns["text"]]


def read_table(
    path: Path,
    data: DataConfig,
    size: int = 10_000,
    wanted: Collection[str] | None = None,
    keep_table: bool = False,
    mark_faults: bool = False,
) -> Iterator[Batch]:
    """The table's rows in batches of at most `size`, fewer where rows are large.

    Args:
        wanted: columns that are needed as Python values; of a Parquet file no others are decoded. None: all.
        keep_table: for a Parquet file, give each batch with all columns as Arrow data too (`Batch.table`).
        mark_faults: keep rows that cannot be read in their places, with the reason in `Batch.faults`, wherever it is clear where
            the next row begins; by default they are problems.

    Raises:
        UserError: the file is missing, empty or no regular one, a line cannot be parsed or is too long, or bytes are not in the
            given encoding; broken rows of a file are listed together.
    """
    yield from _read(path, check_ending(path, wanted), data, size, wanted, keep_table, mark_faults)


def scan_table(path: Path, data: DataConfig) -> tuple[int, list[str]]:
    """Count the rows of a table and list its columns, those that come late in a JSONL file too.

    A text file is read as a whole, which takes far less time than predicting it, so that what breaks it shows at once.

    Raises:
        UserError: as `read_table` with `mark_faults`.
    """
    ending = format_of(path) or ".txt"
    if ending == ".parquet":
        check_regular(path)
        return count_rows(path)
    rows, columns = 0, dict[str, None]()
    for batch in _read(path, ending, data, 10_000, None, False, True):
        rows += len(batch)
        columns |= dict.fromkeys(batch.columns)
    return rows, list(columns)


def _read(
    path: Path,
    ending: str,
    data: DataConfig,
    size: int,
    wanted: Collection[str] | None,
    keep_table: bool,
    mark_faults: bool,
) -> Iterator[Batch]:
    try:
        check_regular(path)
        if path.stat().st_size == 0:
            least = "text, a line or more" if ending == ".txt" else "a table with at least one row"
            raise UserError(f"{path}: the file is empty; allowed: {least}")
        if ending == ".parquet":
            check = partial(check_header, path, encoding="utf-8")
            for content in parquet_batches(path, size, MAX_ROW, check, wanted, keep_table):
                yield Batch(*content)
        else:
            yield from _read_text(path, ending, data, size, mark_faults)
    except (OSError, EOFError, zlib.error) as error:  # the latter two: of a compressed file that was cut off or damaged
        hint = "; a file that is not compressed has no .gz at the end of its name" * isinstance(error, BadGzipFile)
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}){hint}") from error


def _read_text(path: Path, ending: str, data: DataConfig, size: int, mark_faults: bool) -> Iterator[Batch]:
    problems = Problems(str(path))
    encoding = choose_encoding(path, data)
    records = {
        ".csv": _csv_records, ".tsv": _csv_records, ".jsonl": jsonl_records, ".json": json_records, ".txt": _text_records,
    }[ending]  # fmt: skip
    columns: dict[str, list[Any]] = {}
    faults: dict[int, Fault] = {}
    first = length = taken = position = 0
    with open_text(path, encoding, newline="" if records is _csv_records else "\n") as file:
        lines = Lines(file, ("\n", "\r") if records is _csv_records else ("\n",))
        try:
            for position, record, characters, fault in records(path, data, encoding, lines, problems):
                if fault is not None:
                    if not mark_faults:
                        problems.add_row(position, fault.of_row(str(path), position))
                        if fault.kind == TOO_LONG:  # it may have no end
                            break
                    faults[length] = fault
                if problems:
                    continue  # the rest is read for its problems alone
                first = first or position
                if not record.keys() <= columns.keys():
                    for name in record:  # JSON objects may bring a key late: earlier rows lack it
                        columns.setdefault(name, [None] * length)
                    check_count(columns, f"{path}, row {position}")
                for name, values in columns.items():
                    values.append(record.get(name))
                length, taken = length + 1, taken + characters
                if length == size or length * len(columns) >= BATCH_CELLS or taken >= MAX_ROW:
                    yield Batch(columns, first, length, faults=faults)
                    columns, faults = {name: [] for name in columns}, {}
                    first = length = taken = 0
        except UnicodeError as error:
            # Files are decoded in blocks, so the bytes stand in this row or somewhat below it.
            problems.add(f"{path}, at or after row {position + 1}: {error}; set data.encoding to the file's encoding")
    problems.raise_if_any()
    if position == 0:
        raise UserError(f"{path}: has {'a header but ' * (ending in ('.csv', '.tsv'))}no rows; allowed: one row or more")
    if length:
        yield Batch(columns, first, length, faults=faults)


def _csv_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    delimiter = data.delimiter or ("\t" if format_of(path) == ".tsv" else ",")
    quoting: Any = csv.QUOTE_NONE if data.quoting == "none" else csv.QUOTE_MINIMAL
    over: list[int] = []  # the numbers of lines over the limit that were read last
    rows = _shortened(lines, over) if data.quoting == "none" else lines  # without quotes a line is a row
    reader = csv.reader(rows, delimiter=delimiter, quoting=quoting, strict=True)
    hint = (
        "allowed: quotes that are closed, and doubled inside a quoted cell; if quotes are ordinary characters, set "
        "data.quoting: none (such a row cannot be skipped, since where the next one begins is not known)"
    )
    position = 0
    try:
        first = data.columns or next(reader, [])
        position = 0 if data.columns else 1
        while not first and data.on_bad_rows == "skip" and (cells := next(reader, None)) is not None:
            first, position = cells, position + 1
        if position > 1:
            say(f"{path}: the header is row {position}; blank lines before it were skipped")
        if not data.columns and data.delimiter is None:
            check_separator(path, first, delimiter)
        header = named_columns(path, first)
        names = [name for name in header if name is not None]
        check_header(path, names, encoding)
        blank = range(0)  # at the very end they are harmless, and editors like to leave some
        for cells in reader:
            position += 1
            characters, lines.length = lines.length, 0
            if over:
                over.clear()
                yield position, dict.fromkeys(names), 0, Fault(TOO_LONG, str(RowTooLongError()))
                continue
            if not cells:
                blank = range(blank.start if blank else position, position + 1)
                continue
            yield from ((each, dict.fromkeys(names), 0, BLANK) for each in blank)
            blank = range(0)
            if len(cells) != len(header):
                listed = f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
                reason = f"found {len(cells)} cells; the header has {len(header)} ({listed})"
                cells_there = {name: cell for name, cell in zip(header, cells, strict=False) if name is not None}
                known, _, _ = _checked(cells_there, characters, encoding)
                yield position, dict.fromkeys(names) | known, characters, Fault("with too many or too few cells", reason)
                continue
            record = {name: cell for name, cell in zip(header, cells, strict=True) if name is not None}
            yield position, *_checked(record, characters, encoding)
    except RowTooLongError as error:
        problems.add(f"{path}, row {position + 1} (up to line {reader.line_num}): {error}. If a quote is not closed: {hint}")
    except csv.Error as error:
        problems.add(f"{path}, row {position + 1} (up to line {reader.line_num}): {error}; {hint}")


def _shortened(lines: Lines, over: list[int]) -> Iterator[str]:
    """The lines, with an empty one in place of each that is over the limit, which is noted in `over`."""
    for number, line in enumerate(lines.each()):
        if line is None:
            over.append(number)
        yield "\n" if line is None else line


def _checked(record: dict[str, str], characters: int, encoding: str) -> tuple[dict[str, str], int, Fault | None]:
    """A row of text with the fault that some of its bytes are no characters."""
    found = {name: fault for name, cell in record.items() if (fault := undecoded(cell, encoding))}
    if not found:
        return record, characters, None
    column = next(iter(found)) if len(found) == 1 else None
    reason = found[column] if column is not None else "; ".join(f"column {name!r}: {fault}" for name, fault in found.items())
    readable = {name: SURROGATE.sub("\ufffd", cell) for name, cell in record.items()}
    return readable, characters, Fault(UNDECODED, f"{reason}; {ENCODING}", column)


def _text_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    # A lone carriage return ends no line: as every other tool counts them, lines end in \n, perhaps after \r.
    for position, line in enumerate(lines.each(), start=1):
        if line is None:
            yield position, {"text": None}, 0, Fault(TOO_LONG, str(RowTooLongError()))
        else:
            yield position, *_checked({"text": line.removesuffix("\n").removesuffix("\r")}, len(line), encoding)
