"""Read CSV, TSV, JSON, JSONL, Parquet and text files in batches.

Cells of CSV and TSV files are not converted: `NA` and `1` are texts.
"""

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.csv_rows import csv_records, text_records
from nlp_transfer.data.sources.file_reading import ENDINGS as ENDINGS
from nlp_transfer.data.sources.file_reading import (
    MAX_ROW,
    TOO_LONG,
    Lines,
    check_regular,
    choose_encoding,
    format_of,
    has_lines,
    open_binary,
    open_text,
)
from nlp_transfer.data.sources.json_rows import check_count, json_records, jsonl_records
from nlp_transfer.data.sources.parquet_reader import count_rows, parquet_batches
from nlp_transfer.data.sources.table_headers import check_header
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import BadRow, Fault, Problems, UserError

SNIFFED = 1 << 13  # bytes read to distinguish plain text from other formats
BATCH_CELLS = 2**20  # maximum cells of a batch; a batch also ends after `MAX_ROW` characters


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a file.

    Attributes:
        columns: Cells by column; for Parquet, only the wanted columns. Empty if all JSON objects are empty.
        first: Position of the first row, as in `Rows.position`.
        rows: Number of rows.
        table: For Parquet, a `pyarrow.Table` with all columns, if requested.
        names: For Parquet, the names of all columns.
        faults: Maps the index of each faulty row to its fault. The cells of such rows are None, with two exceptions: rows with
            too many or too few cells keep the cells that belong to a column, and undecodable bytes are replaced with U+FFFD.
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
        """Return the rows in `faults` by position in the file."""
        positions = {self.first + index: fault for index, fault in self.faults.items()}
        return {position: fault.of_row(str(path), position) for position, fault in positions.items()}

    def has_column(self, name: str) -> bool:
        """Return whether the file has a column, even if the column is not wanted."""
        return name in self.columns or name in self.names


def check_extension(path: Path, wanted: Collection[str] | None) -> str:
    """Return the file extension of the format, in lower case and without `.gz`.

    Returns `.txt` (one text per line) for a file with an unknown extension, if one column is wanted and the content does not look
    like another format.

    Raises:
        UserError: The file cannot be read as a table.
    """
    if extension := format_of(path):
        return extension
    if wanted is None or len(wanted) != 1 or not has_lines(path):
        raise UserError(
            f"{path}: found the file extension {path.suffix!r}; allowed: {', '.join(ENDINGS)}, each also with .gz except "
            ".parquet (a file of lines may have any extension if a single column of text is needed)"
        )
    check_lines(path, next(iter(wanted)))
    say(f"{path}: the extension is none of {', '.join(ENDINGS)}, so each line is read as one text")
    return ".txt"


def check_lines(path: Path, column: str) -> None:
    """Raise a UserError if a file with an unknown extension does not look like one text per line.

    Args:
        path: The file.
        column: Name of the text column, which a header would contain.
    """
    with open_binary(path) as file:
        start = file.read(SNIFFED)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line = text.partition(b"\n")[0].decode(errors="replace")
    utf_16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    looks_like = None
    if not utf_16 and any(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in start):
        looks_like = "a binary file"
    elif text.startswith((b"{", b"[")) and text[1:2].strip() in (b"", b'"', b"{", b"[", b"}", b"]"):
        looks_like = "JSON"
    elif text[:9].lower().startswith((b"<?xml", b"<!doctype", b"<html")):
        looks_like = "markup"
    elif "\t" in first_line or any(column in [cell.strip().strip('"') for cell in first_line.split(mark)] for mark in ",;|"):
        looks_like = "a table with several columns or a header"
    if looks_like:
        raise UserError(
            f"{path}: the file extension is unknown, and the content looks like {looks_like}; allowed: one text per line, "
            f"or a name with the extension of the format ({', '.join(ENDINGS)})"
        )


def read_lines(path: Path, data: DataConfig, skipped: dict[int, BadRow] | None = None) -> Iterator[list[str]]:
    """Yield lists of lines of a text file with any extension.

    Args:
        path: The file.
        data: Settings for reading.
        skipped: Receives the lines that cannot be read, by position; empty texts are yielded in their place. None: such lines
            are errors.

    Raises:
        UserError: The file is missing or empty, or cannot be decoded.
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
    """Yield the rows of a table in batches.

    Args:
        path: The file.
        data: Settings for reading.
        size: Maximum rows of a batch; large rows come in smaller batches.
        wanted: Columns needed as Python values; other columns of a Parquet file are not decoded. None: all.
        keep_table: For Parquet, also return all columns as Arrow data (`Batch.table`).
        mark_faults: Also return rows that cannot be read, with the reason in `Batch.faults`, if the start of the next row is
            known. In all other cases, such rows are errors.

    Raises:
        UserError: The file is missing, empty or not a regular file, or a row cannot be decoded or parsed or is too long. The
            message lists all bad rows.
    """
    yield from _read(path, check_extension(path, wanted), data, size, wanted, keep_table, mark_faults)


def scan_table(path: Path, data: DataConfig) -> tuple[int, list[str]]:
    """Return the number of rows and the column names of a table.

    Reads the complete file (except for Parquet), so that errors are found before prediction, which takes far longer.

    Raises:
        UserError: See `read_table` with `mark_faults`.
    """
    extension = format_of(path) or ".txt"
    if extension == ".parquet":
        check_regular(path)
        return count_rows(path)
    rows, columns = 0, dict[str, None]()
    for batch in _read(path, extension, data, 10_000, None, False, True):
        rows += len(batch)
        columns |= dict.fromkeys(batch.columns)
    return rows, list(columns)


def _read(
    path: Path,
    extension: str,
    data: DataConfig,
    size: int,
    wanted: Collection[str] | None,
    keep_table: bool,
    mark_faults: bool,
) -> Iterator[Batch]:
    try:
        check_regular(path)
        if path.stat().st_size == 0:
            minimum = "at least one line of text" if extension == ".txt" else "a table with at least one row"
            raise UserError(f"{path}: the file is empty; allowed: {minimum}")
        if extension == ".parquet":
            check = partial(check_header, path, encoding="utf-8")
            for content in parquet_batches(path, size, MAX_ROW, check, wanted, keep_table):
                yield Batch(*content)
        else:
            yield from _read_text(path, extension, data, size, mark_faults)
    except (OSError, EOFError, zlib.error) as error:  # the last two occur in damaged compressed files
        hint = "; a file that is not compressed must not have the extension .gz" * isinstance(error, BadGzipFile)
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}){hint}") from error


def _read_text(path: Path, extension: str, data: DataConfig, size: int, mark_faults: bool) -> Iterator[Batch]:
    problems = Problems(str(path))
    encoding = choose_encoding(path, data)
    records = {
        ".csv": csv_records, ".tsv": csv_records, ".jsonl": jsonl_records, ".json": json_records, ".txt": text_records,
    }[extension]  # fmt: skip
    columns: dict[str, list[Any]] = {}
    faults: dict[int, Fault] = {}
    first = length = batch_characters = position = 0
    with open_text(path, encoding, newline="" if records is csv_records else "\n") as file:
        lines = Lines(file, ("\n", "\r") if records is csv_records else ("\n",))
        try:
            for position, record, characters, fault in records(path, data, encoding, lines, problems):
                if fault is not None:
                    if not mark_faults:
                        problems.add_row(position, fault.of_row(str(path), position))
                        if fault.kind == TOO_LONG:  # the row may have no end
                            break
                    faults[length] = fault
                if problems:
                    continue  # continue only to find more problems
                first = first or position
                if not record.keys() <= columns.keys():
                    for name in record:  # a key that is new in this JSON object
                        columns.setdefault(name, [None] * length)
                    check_count(columns, f"{path}, row {position}")
                for name, values in columns.items():
                    values.append(record.get(name))
                length, batch_characters = length + 1, batch_characters + characters
                if length == size or length * len(columns) >= BATCH_CELLS or batch_characters >= MAX_ROW:
                    yield Batch(columns, first, length, faults=faults)
                    columns, faults = {name: [] for name in columns}, {}
                    first = length = batch_characters = 0
        except UnicodeError as error:
            # Files are decoded in blocks, so the error is in this row or in one of the next.
            problems.add(f"{path}, at or after row {position + 1}: {error}; set data.encoding to the file's encoding")
    problems.raise_if_any()
    if position == 0:
        raise UserError(f"{path}: has {'a header but ' * (extension in ('.csv', '.tsv'))}no rows; allowed: one row or more")
    if length:
        yield Batch(columns, first, length, faults=faults)
