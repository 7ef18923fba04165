"""CSV, TSV, JSONL, Parquet and plain text files, read in batches: the same readers serve training and streaming.

Cells of CSV and TSV files are text and stay text: nothing here turns `NA` into a missing value or `1` into a number.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlp_transfer.config import DataConfig, shorten
from nlp_transfer.errors import Problems, UserError, did_you_mean

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


def read_lines(path: Path, data: DataConfig) -> list[str]:
    """The lines of a text file with any ending.

    Raises:
        UserError: the file is missing or empty, or bytes are not in the given encoding.
    """
    return [line for batch in _read(path, ".txt", data, 10_000) for line in batch.columns["text"]]


def read_table(path: Path, data: DataConfig, size: int = 10_000) -> Iterator[Batch]:
    """The table's rows in batches of at most `size`.

    Raises:
        UserError: the file is missing or empty, a line cannot be parsed, or bytes are not in the given encoding; broken
            rows of a file are listed together.
    """
    yield from _read(path, check_ending(path), data, size)


def _read(path: Path, ending: str, data: DataConfig, size: int) -> Iterator[Batch]:
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; allowed: a file")
        if not path.is_file():
            near = did_you_mean(path.name, _siblings(path))
            raise UserError(f"{path}: there is no such file{near}; allowed: a file that exists")
        if path.stat().st_size == 0:
            least = "text, a line or more" if ending == ".txt" else "a table with at least one row"
            raise UserError(f"{path}: the file is empty; allowed: {least}")
        yield from _read_parquet(path, size) if ending == ".parquet" else _read_text(path, ending, data, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _siblings(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def _read_text(path: Path, ending: str, data: DataConfig, size: int) -> Iterator[Batch]:
    problems = Problems(str(path))
    encoding = choose_encoding(path, data)
    records = {".csv": _csv_records, ".tsv": _csv_records, ".jsonl": _jsonl_records, ".txt": _text_records}[ending]
    columns: dict[str, list[Any]] = {}
    first = length = position = 0
    for position, record in records(path, data, encoding, problems):
        if problems:
            continue  # the rest is read for its problems alone
        first = first or position
        if not record.keys() <= columns.keys():
            for name in record:  # JSON objects may bring a key late: earlier rows lack it
                columns.setdefault(name, [None] * length)
        for name, values in columns.items():
            values.append(record.get(name))
        length += 1
        if length == size:
            yield Batch(columns, first)
            columns = {name: [] for name in columns}
            first = length = 0
    problems.raise_if_any()
    if position == 0:
        raise UserError(f"{path}: has {'a header but ' * (ending in ('.csv', '.tsv'))}no rows; allowed: one row or more")
    if length:
        yield Batch(columns, first)


def choose_encoding(path: Path, data: DataConfig) -> str:
    """The encoding to read `path` with: the only one given, or the first of the list that decodes the whole file.

    Raises:
        UserError: an encoding has no such name, or no encoding of a list decodes the file.
    """
    given = [data.encoding] if isinstance(data.encoding, str) else data.encoding
    names = [_normalised(name) for name in given]
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


def _normalised(name: str) -> str:
    try:
        "".encode(name)  # a name such as rot13 is known, but encodes no text
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(
            f"data.encoding: there is no encoding {name!r}; allowed: an encoding of text, such as utf-8, cp1252, latin-1, utf-16"
        ) from None
    return "utf-8-sig" if known == "utf-8" else known  # a byte order mark is no part of the first column's name


def undecodable(text: str) -> str | None:
    """The first byte that `surrogateescape` kept instead of a character, as text, or None where all was decoded."""
    for character in text:
        if "\udc80" <= character <= "\udcff":
            return f"0x{ord(character) - 0xDC00:02x}"
    return None


def _lines(path: Path, encoding: str, newline: str | None) -> Any:
    # Undecodable bytes are carried along as lone surrogates, so that each can be reported with its row and column.
    # In encodings of two bytes and more there is no going on after a broken one.
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
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
            _check_header(path, header, encoding)
            blank: list[int] = []  # at the very end they are harmless, and editors like to leave some
            for cells in reader:
                position += 1
                if not cells:
                    blank.append(position)
                    continue
                _add_blank(path, blank, problems)
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
            problems.add(
                f"{path}, row {position + 1} (up to line {reader.line_num}): {error}; allowed: quotes that are closed, and "
                "doubled inside a quoted cell; if quotes are ordinary characters, set data.quoting: none"
            )
        except UnicodeError as error:
            problems.add(_undecoded(path, position, error))


def _add_blank(path: Path, positions: list[int], problems: Problems) -> None:
    """Blank lines that another row follows; they are taken off the list."""
    for position in positions:
        problems.add(f"{path}, row {position}: the line is blank; remove it")
    positions.clear()


def _undecoded(path: Path, position: int, error: UnicodeError) -> str:
    # Files are decoded in blocks, so the bytes stand in this row or somewhat below it.
    return f"{path}, at or after row {position + 1}: {error}; set data.encoding to the file's encoding"


def _check_header(path: Path, header: list[str], encoding: str) -> None:
    problems = Problems()
    if not header:
        problems.add(f"{path}, row 1: the line is blank; allowed: a header with the names of the columns")
    for name in dict.fromkeys(header):
        if header.count(name) > 1:
            problems.add(f"{path}: column {name!r} stands twice in the header; allowed: each name once")
        if byte := undecodable(name):
            problems.add(_encoding_problem(path, 1, name, byte, encoding))
    problems.raise_if_any()


def _jsonl_records(path: Path, data: DataConfig, encoding: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    with _lines(path, encoding, newline="\n") as file:
        position = 0
        try:
            blank: list[int] = []
            for position, line in enumerate(file, start=1):
                if not line.strip():
                    blank.append(position)
                    continue
                _add_blank(path, blank, problems)
                if not line.isascii() and (byte := undecodable(line)):
                    problems.add(_encoding_problem(path, position, "", byte, encoding).replace(", column ''", ""))
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    problems.add(f"{path}, row {position}: is not JSON ({error})")
                    continue
                if not isinstance(record, dict):
                    problems.add(
                        f"{path}, row {position}: found {shorten(record)} ({type(record).__name__}); allowed: an object, {{...}}"
                    )
                    continue
                if "\\ud" in line.lower() and (half := _half_character(record)):
                    problems.add(f"{path}, row {position}: found {half}, half of a character; allowed: both halves or none")
                    continue
                yield position, record
        except UnicodeError as error:
            problems.add(_undecoded(path, position, error))


def _half_character(record: dict[str, Any]) -> str | None:
    r"""The first surrogate without its partner, such as `\ud83d`: JSON can spell it, but no file can hold it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return ascii(error.object[error.start])[1:-1]
    return None


def _text_records(path: Path, data: DataConfig, encoding: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    # A lone carriage return ends no line: as every other tool counts them, lines end in \n, perhaps after \r.
    with _lines(path, encoding, newline="\n") as file:
        position = 0
        try:
            for position, line in enumerate(file, start=1):
                if not line.isascii() and (byte := undecodable(line)):
                    problems.add(_encoding_problem(path, position, "text", byte, encoding))
                yield position, {"text": line.removesuffix("\n").removesuffix("\r")}
        except UnicodeError as error:
            problems.add(_undecoded(path, position, error))


def _read_parquet(path: Path, size: int) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise UserError(f"{path}: has no rows; allowed: one row or more")
        _check_header(path, file.schema_arrow.names, "utf-8")
        first = 1
        for batch in file.iter_batches(batch_size=size):
            yield Batch(batch.to_pydict(), first)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error})") from None
