"""CSV, TSV, JSONL, Parquet and plain text files, read in batches: the same readers serve training and streaming.

Cells of CSV and TSV files are text and stay text: nothing here turns `NA` into a missing value or `1` into a number.
"""

import csv
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nlp_transfer.config import DataConfig, shorten
from nlp_transfer.console import say
from nlp_transfer.errors import BadRow, Problems, UserError
from nlp_transfer.sources.json_rows import Records, add_blank, check_count, json_records, jsonl_records
from nlp_transfer.sources.parquet import parquet_batches
from nlp_transfer.sources.reading import (
    ENCODING_HINT,
    MAX_ROW,
    TOO_LONG,
    Lines,
    RowTooLongError,
    check_regular,
    choose_encoding,
    format_of,
    has_lines,
    numbered_lines,
    open_binary,
    open_text,
    undecoded,
    undecoded_row,
)
from nlp_transfer.sources.reading import (
    ENDINGS as ENDINGS,
)

Skipped = dict[int, BadRow] | None  # by position, the bad rows that were skipped; None: they are refused
LOOKED_AT = 1 << 13  # bytes by which a file of lines is told from other formats
BATCH_CELLS = 2**20  # a batch ends early when it has as many cells, or as many characters as the longest row

csv.field_size_limit(MAX_ROW)  # the default refuses cells over 128 KiB


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
    places: Sequence[int] = ()
    """The positions of the rows, where some before or between them were skipped."""

    @property
    def positions(self) -> Sequence[int]:
        """The position of each row as a person counts it."""
        return self.places or range(self.first, self.first + self.rows)

    def __len__(self) -> int:
        return self.rows

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


def read_lines(path: Path, data: DataConfig, skipped: Skipped = None) -> Iterator[list[str]]:
    """The lines of a text file with any ending, in blocks. With `skipped`, bad lines are recorded there and still given.

    Raises:
        UserError: the file is missing or empty, or bytes are not in the given encoding.
    """
    for batch in _read(path, ".txt", data, 10_000, None, False, skipped):
        yield batch.columns["text"]


def read_table(
    path: Path, data: DataConfig, size: int = 10_000, wanted: Collection[str] | None = None, keep_table: bool = False,
    skipped: Skipped = None,
) -> Iterator[Batch]:  # fmt: skip
    """The table's rows in batches of at most `size`, fewer where rows are large.

    Args:
        wanted: columns that are needed as Python values; of a Parquet file no others are decoded. None: all.
        keep_table: for a Parquet file, give each batch with all columns as Arrow data too (`Batch.table`).
        skipped: takes the bad rows of a text file in place of an error; of a .txt file they are given all the same, so that
            lines keep their numbers.

    Raises:
        UserError: the file is missing, empty or no regular one, a line cannot be parsed or is too long, or bytes are not in the
            given encoding; broken rows of a file are listed together.
    """
    yield from _read(path, check_ending(path, wanted), data, size, wanted, keep_table, skipped)


def _read(
    path: Path, ending: str, data: DataConfig, size: int, wanted: Collection[str] | None, keep_table: bool, skipped: Skipped
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
            yield from _read_text(path, ending, data, size, skipped)
    except (OSError, EOFError, zlib.error) as error:  # the latter two: of a compressed file that was cut off or damaged
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read_text(path: Path, ending: str, data: DataConfig, size: int, skipped: Skipped) -> Iterator[Batch]:
    problems = Problems(str(path), skipped)
    encoding = choose_encoding(path, data)
    records = {
        ".csv": _csv_records, ".tsv": _csv_records, ".jsonl": jsonl_records, ".json": json_records, ".txt": _text_records,
    }[ending]  # fmt: skip
    columns: dict[str, list[Any]] = {}
    places: list[int] = []
    taken = position = 0
    is_csv = records is _csv_records
    with open_text(path, encoding, newline="" if is_csv else "\n") as file:
        lines = Lines(file, ("\n", "\r") if is_csv else ("\n",))
        try:
            for position, record, characters in records(path, data, encoding, lines, problems):
                if problems:
                    continue  # the rest is read for its problems alone
                if not record.keys() <= columns.keys():
                    for name in record:  # JSON objects may bring a key late: earlier rows lack it
                        columns.setdefault(name, [None] * len(places))
                    check_count(columns, f"{path}, row {position}")
                for name, values in columns.items():
                    values.append(record.get(name))
                places.append(position)
                taken += characters
                length = len(places)
                if length == size or length * len(columns) >= BATCH_CELLS or taken >= MAX_ROW:
                    yield Batch(columns, places[0], length, places=places)
                    columns, places, taken = {name: [] for name in columns}, [], 0
        except UnicodeError as error:
            # Files are decoded in blocks, so the bytes stand in this row or somewhat below it.
            problems.add(f"{path}, at or after row {position + 1}: {error}; set data.encoding to the file's encoding")
    problems.raise_if_any()
    if position == 0 and not skipped:
        raise UserError(f"{path}: has {'a header but ' * is_csv}no rows; allowed: one row or more")
    if places:
        yield Batch(columns, places[0], len(places), places=places)


def _csv_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    delimiter = data.delimiter or ("\t" if format_of(path) == ".tsv" else ",")
    quoting: Any = csv.QUOTE_NONE if data.quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = data.columns or next(reader, [])
    except (RowTooLongError, csv.Error) as error:
        problems.add(_broken_row(path, 1, reader.line_num, error, problems))
        return
    position = 0 if data.columns else 1
    _check_header(path, header, encoding)
    blank = range(0)  # at the very end they are harmless, and editors like to leave some
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (RowTooLongError, csv.Error) as error:
            position += 1
            if isinstance(error, csv.Error) or quoting != csv.QUOTE_NONE:  # where the next row begins cannot be known
                problems.add(_broken_row(path, position, reader.line_num, error, problems))
                return
            blank = add_blank(path, blank, problems)
            problems.add_row(position, BadRow(str(path), position, None, str(error), TOO_LONG))
            if problems:
                return
            lines.finish_line()
            continue
        position += 1
        characters, lines.length = lines.length, 0
        if not cells:
            blank = range(blank.start if blank else position, position + 1)
            continue
        blank = add_blank(path, blank, problems)
        if len(cells) != len(header):
            reason = f"found {len(cells)} cells; the header has {len(header)}"
            names = f"({', '.join(header[:6])}{', ...' if len(header) > 6 else ''})"
            problems.add_row(position, BadRow(str(path), position, None, f"{reason} {names}", "with too many or too few cells"))
            continue
        faults = [(name, fault) for name, cell in zip(header, cells, strict=True) if (fault := undecoded(cell, encoding))]
        for name, fault in faults:
            problems.add_row(position, undecoded_row(path, position, name, fault))
        if not faults:
            yield position, dict(zip(header, cells, strict=True)), characters


def _broken_row(path: Path, position: int, line: int, error: Exception, problems: Problems) -> str:
    """The message about a CSV row whose end cannot be found."""
    why = "" if problems.skipped is None else " (such a row cannot be skipped, since where the next one begins is not known)"
    then = "; " if isinstance(error, csv.Error) else ". If a quote is not closed: "
    return (
        f"{path}, row {position} (up to line {line}): {error}{why}{then}"
        "allowed: quotes that are closed, and doubled inside a quoted cell; if quotes are ordinary characters, set "
        "data.quoting: none"
    )


def _check_header(path: Path, header: list[str], encoding: str) -> None:
    problems = Problems()
    if not header:
        problems.add(f"{path}, row 1: the line is blank; allowed: a header with the names of the columns")
    check_count(header, str(path))
    for name, times in Counter(header).items():
        if times > 1:
            problems.add(f"{path}: column {shorten(name)} stands twice in the header; allowed: each name once")
        if fault := undecoded(name, encoding):
            problems.add(f"{path}, row 1, column {shorten(name)}: {fault}; {ENCODING_HINT}")
    problems.raise_if_any()


def _text_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    # A lone carriage return ends no line: as every other tool counts them, lines end in \n, perhaps after \r.
    for position, line in numbered_lines(path, lines, problems):
        text = line or ""
        if fault := undecoded(text, encoding):
            problems.add_row(position, undecoded_row(path, position, "text", fault))
        yield position, {"text": text.removesuffix("\n").removesuffix("\r")}, len(text)
