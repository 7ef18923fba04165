"""CSV, TSV, JSONL, Parquet and plain text files, read in batches: the same readers serve training and streaming.

Cells of CSV and TSV files are text and stay text: nothing here turns `NA` into a missing value or `1` into a number.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlp_transfer.config import DataConfig
from nlp_transfer.errors import Problems, UserError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")

csv.field_size_limit(2**31 - 1)  # the default refuses cells over 128 KiB


@dataclass(frozen=True)
class Batch:
    """Columns of equal length; `first` is the position of the first row as a person counts it."""

    columns: dict[str, list[Any]]
    first: int

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def check_ending(path: Path) -> str:
    """The lower-case ending of a table's name.

    Raises:
        UserError: it is none that can be read.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{path}: found the ending {path.suffix!r}; allowed: {', '.join(ENDINGS)}")
    return ending


def read_table(path: Path, data: DataConfig, size: int = 10_000) -> Iterator[Batch]:
    """The table's rows in batches of at most `size`.

    Raises:
        UserError: the file is missing or empty, a line cannot be parsed, or bytes are not in the given encoding; broken
            rows of a file are listed together.
    """
    ending = check_ending(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; allowed: a table with at least one row")
    if ending == ".parquet":
        yield from _read_parquet(path, size)
        return
    problems = Problems(str(path))
    encoding = choose_encoding(path, data)
    records = {".csv": _csv_records, ".tsv": _csv_records, ".jsonl": _jsonl_records, ".txt": _text_records}[ending]
    columns: dict[str, list[Any]] = {}
    first = expected = 0
    for position, record in records(path, data, encoding, problems):
        if not columns:
            first, expected = position, position
            columns = {name: [] for name in record}
        if position == expected and not problems:
            length = expected - first
            for name in record.keys() - columns.keys():  # JSON objects may bring a key late: earlier rows lack it
                columns[name] = [None] * length
            for name, values in columns.items():
                values.append(record.get(name))
            expected += 1
        if expected - first == size:
            yield Batch(columns, first)
            columns = {name: [] for name in columns}
            first = expected
    problems.raise_if_any()
    if expected == 0:
        raise UserError(f"{path}: has a header but no rows" if ending in (".csv", ".tsv") else f"{path}: has no rows")
    if expected > first:
        yield Batch(columns, first)


def choose_encoding(path: Path, data: DataConfig) -> str:
    """The encoding to read `path` with: the only one given, or the first of the list that decodes the whole file.

    Raises:
        UserError: an encoding has no such name, or no encoding of a list decodes the file.
    """
    given = [data.encoding] if isinstance(data.encoding, str) else data.encoding
    # A byte order mark is no part of the first column's name.
    names = ["utf-8-sig" if name.lower() in ("utf-8", "utf8") else name for name in given]
    for name in names:
        try:
            "".encode(name)
        except LookupError:
            raise UserError(
                f"data.encoding: there is no encoding {name!r}; common ones: utf-8, cp1252, latin-1, utf-16"
            ) from None
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff") and names == ["utf-8-sig"]:
        raise UserError(f"{path}: starts with the mark of UTF-16, read as utf-8; set data.encoding: utf-16")
    if len(names) == 1:
        return names[0]
    for name in names:
        try:
            with path.open(encoding=name) as file:
                while file.read(1 << 20):
                    pass
            return name
        except UnicodeError:
            continue
    raise UserError(f"{path}: is in none of the encodings given in data.encoding: {', '.join(given)}")


def undecodable(text: str) -> str | None:
    """The first byte that `surrogateescape` kept instead of a character, as text, or None where all was decoded."""
    for character in text:
        if "\udc80" <= character <= "\udcff":
            return f"0x{ord(character) - 0xDC00:02x}"
    return None


def _lines(path: Path, encoding: str, newline: str | None) -> Any:
    # Undecodable bytes are carried along as lone surrogates, so that each can be reported with its row and column.
    errors = "surrogateescape" if encoding.lower().startswith(("utf-8", "ascii")) else "strict"
    return path.open(encoding=encoding, errors=errors, newline=newline)


def _encoding_problem(path: Path, position: int, column: str, byte: str, encoding: str) -> str:
    return (
        f"{path}, row {position}, column {column!r}: byte {byte} is not {encoding.removesuffix('-sig')}; "
        "set data.encoding (cp1252 is common for files from Windows)"
    )


def _csv_records(path: Path, data: DataConfig, encoding: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = data.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    quoting: Any = csv.QUOTE_NONE if data.quoting == "none" else csv.QUOTE_MINIMAL
    with _lines(path, encoding, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        position = 0
        try:
            header = data.columns or next(reader, [])
            position = 0 if data.columns else 1
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise UserError(f"{path}: column {twice[0]!r} stands twice in the header; give each column its own name")
            for cells in reader:
                position += 1
                if not cells:  # a blank line
                    problems.add(f"{path}, row {position}: the line is blank; remove it")
                    continue
                if len(cells) != len(header):
                    problems.add(
                        f"{path}, row {position}: found {len(cells)} cells; the header has {len(header)} "
                        f"({', '.join(header[:6])}{', ...' if len(header) > 6 else ''})"
                    )
                    continue
                for name, cell in zip(header, cells, strict=True):
                    if not cell.isascii() and (byte := undecodable(cell)):
                        problems.add(_encoding_problem(path, position, name, byte, encoding))
                yield position, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{path}, row {position + 1} (line {reader.line_num}): {error}; a quote that is not closed or stands "
                "inside a cell must be doubled, or set data.quoting: none"
            ) from None
        except UnicodeError as error:
            raise UserError(f"{path}, row {position + 1}: {error}; set data.encoding") from None


def _jsonl_records(path: Path, data: DataConfig, encoding: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    with _lines(path, encoding, newline="\n") as file:
        position = 0
        try:
            for position, line in enumerate(file, start=1):
                if not line.strip():
                    problems.add(f"{path}, row {position}: the line is blank; remove it")
                    continue
                if not line.isascii() and (byte := undecodable(line)):
                    problems.add(_encoding_problem(path, position, "", byte, encoding).replace(", column ''", ""))
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    problems.add(f"{path}, row {position}: is not JSON ({error})")
                    continue
                if not isinstance(record, dict):
                    problems.add(f"{path}, row {position}: found {type(record).__name__}; allowed: an object, {{...}}")
                    continue
                yield position, record
        except UnicodeError as error:
            raise UserError(f"{path}, row {position + 1}: {error}; set data.encoding") from None


def _text_records(path: Path, data: DataConfig, encoding: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    with _lines(path, encoding, newline=None) as file:
        position = 0
        try:
            for position, line in enumerate(file, start=1):
                if not line.isascii() and (byte := undecodable(line)):
                    problems.add(_encoding_problem(path, position, "text", byte, encoding))
                yield position, {"text": line.rstrip("\n")}
        except UnicodeError as error:
            raise UserError(f"{path}, row {position + 1}: {error}; set data.encoding") from None


def _read_parquet(path: Path, size: int) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error})") from None
    if file.metadata.num_rows == 0:
        raise UserError(f"{path}: has no rows")
    first = 1
    for batch in file.iter_batches(batch_size=size):
        yield Batch(batch.to_pydict(), first)
        first += batch.num_rows
