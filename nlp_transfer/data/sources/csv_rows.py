"""Read rows from CSV and TSV files, and lines from text files."""

import csv
from collections.abc import Iterator
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
    format_of,
    undecoded,
)
from nlp_transfer.data.sources.json_rows import BLANK, Records
from nlp_transfer.data.sources.table_headers import check_header, check_separator, named_columns
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Fault, Problems

csv.field_size_limit(MAX_ROW)  # the default limit is 128 KiB


def csv_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    """Yield the records of a CSV or TSV file; blank lines at the end are ignored."""
    delimiter = data.delimiter or ("\t" if format_of(path) == ".tsv" else ",")
    quoting: Any = csv.QUOTE_NONE if data.quoting == "none" else csv.QUOTE_MINIMAL
    over: list[int] = []  # numbers of the lines over the length limit since the last row
    rows = _shortened(lines, over) if data.quoting == "none" else lines  # without quoting, each line is a row
    reader = csv.reader(rows, delimiter=delimiter, quoting=quoting, strict=True)
    hint = (
        "allowed: quotes that are closed, and doubled inside a quoted cell; if quotes are ordinary characters, set "
        "data.quoting: none (such a row cannot be skipped, since the start of the next row is unknown)"
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
        blank = range(0)  # pending blank lines: ignored at the end of the file, faults elsewhere
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
                cells_by_name = {name: cell for name, cell in zip(header, cells, strict=False) if name is not None}
                known, _, _ = _checked(cells_by_name, characters, encoding)
                yield position, dict.fromkeys(names) | known, characters, Fault("with too many or too few cells", reason)
                continue
            record = {name: cell for name, cell in zip(header, cells, strict=True) if name is not None}
            yield position, *_checked(record, characters, encoding)
    except RowTooLongError as error:
        problems.add(f"{path}, row {position + 1} (up to line {reader.line_num}): {error}. If a quote is not closed: {hint}")
    except csv.Error as error:
        problems.add(f"{path}, row {position + 1} (up to line {reader.line_num}): {error}; {hint}")


def _shortened(lines: Lines, over: list[int]) -> Iterator[str]:
    """Yield the lines. Replaces lines over the length limit with empty ones, and appends their numbers to `over`."""
    for number, line in enumerate(lines.each()):
        if line is None:
            over.append(number)
        yield "\n" if line is None else line


def _checked(record: dict[str, str], characters: int, encoding: str) -> tuple[dict[str, str], int, Fault | None]:
    """Return a row, its length, and a fault if it contains undecodable bytes, which are replaced with U+FFFD."""
    faults = {name: fault for name, cell in record.items() if (fault := undecoded(cell, encoding))}
    if not faults:
        return record, characters, None
    column = next(iter(faults)) if len(faults) == 1 else None
    reason = faults[column] if column is not None else "; ".join(f"column {name!r}: {fault}" for name, fault in faults.items())
    readable = {name: SURROGATE.sub("\ufffd", cell) for name, cell in record.items()}
    return readable, characters, Fault(UNDECODED, f"{reason}; {ENCODING}", column)


def text_records(path: Path, data: DataConfig, encoding: str, lines: Lines, problems: Problems) -> Records:
    r"""Yield the lines of a text file. Lines end in `\n` or `\r\n`; a lone `\r` does not end a line."""
    for position, line in enumerate(lines.each(), start=1):
        if line is None:
            yield position, {"text": None}, 0, Fault(TOO_LONG, str(RowTooLongError()))
        else:
            yield position, *_checked({"text": line.removesuffix("\n").removesuffix("\r")}, len(line), encoding)
