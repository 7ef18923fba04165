"""Write columns to a CSV, TSV, JSONL, Parquet or text file, chunk by chunk."""

import csv
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from io import TextIOBase, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from nlp_transfer.utils.atomic_files import replacing, to_json
from nlp_transfer.utils.errors import UserError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
Columns = dict[str, list[Any]]
LINE_END = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # characters that any reader treats as a line end


class _UnixLines:
    """Writes `\\n` in place of the `\\r\\n` of `csv`, which quotes cells that contain `\\r` only if it writes `\\r\\n`."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, line: str) -> int:
        return self.file.write(line[:-2] + "\n")


class Writer:
    """Writes columns to a file, chunk by chunk, in the format of a file extension.

    Columns of a Parquet input are Arrow data. Parquet output gets them unchanged; `text_cells` converts them for text formats.
    """

    def __init__(self, target: Path | BinaryIO | TextIO, ending: str, types: Mapping[str, str] | None = None) -> None:
        """Create a file.

        Args:
            target: a path, whose file is written completely or not at all; or an open binary file or, for text formats, an open
                text stream, which is not closed.
            ending: the file extension.
            types: names of Arrow types by column, used for Parquet columns in which every value is null.
        """
        self.ending = ending
        self.names: list[str] = []
        self.rows = 0  # rows written so far, in CSV and JSONL
        self.not_finite = self.first_not_finite = 0  # values with null instead of a number, and the row of the first
        self.opened = ExitStack()
        file: Any = self.opened.enter_context(replacing(target)) if isinstance(target, Path) else target
        self.parquet: Any = None
        if ending == ".parquet":
            from nlp_transfer.inference.parquet_writer import ParquetOutput

            self.parquet = ParquetOutput(file, types)
        self.wrapper: TextIOWrapper | None = None
        if self.parquet is None and not isinstance(file, TextIOBase):
            file = self.wrapper = TextIOWrapper(file, encoding="utf-8", newline="")
        self.file: TextIO = file

    def write(self, columns: Columns, table: Any = None) -> None:
        """Append rows.

        Args:
            columns: Python values by column.
            table: a `pyarrow.Table` with the same number of rows, whose columns are written before `columns`; or None.

        Raises:
            UserError: the format does not support a value, or a column that first appears after the first rows.
        """
        if self.parquet is not None:
            self.parquet.write(columns, table)
            return
        if table is not None and self.ending != ".txt":
            from nlp_transfer.inference.parquet_writer import text_cells

            columns = {name: text_cells(table.column(name), name) for name in table.column_names} | columns
        if self.ending == ".jsonl":
            for row in zip(*columns.values(), strict=True):
                self.rows += 1
                self.file.write(self._json(dict(zip(columns, row, strict=True))) + "\n")
        elif self.ending == ".txt":
            predictions = columns["translation"] if "translation" in columns else columns["prediction"]
            lines = ("" if each is None else LINE_END.sub(" ", str(self._csv_cell(each))) for each in predictions)
            self.file.writelines(line + "\n" for line in lines)  # one line per row, even if a cell has line ends
        else:
            self._write_csv(columns)

    def _write_csv(self, columns: Columns) -> None:
        writer = csv.writer(_UnixLines(self.file), delimiter="\t" if self.ending == ".tsv" else ",", lineterminator="\r\n")
        if not self.names:
            self.names = list(columns)
            writer.writerow(columns)
        if new_names := [name for name in columns if name not in self.names]:
            raise UserError(
                f"--output: {self.ending} needs the same columns in all rows, and {new_names[0]!r} first appears after the "
                "first rows of the input; allowed: .jsonl, .parquet"
            )
        for row in zip(*(columns[name] for name in self.names), strict=True):  # the keys of a JSON row may be in another order
            self.rows += 1
            writer.writerow(map(self._csv_cell, row))

    def _csv_cell(self, value: object) -> object:
        """Convert a cell to a value that `csv` writes correctly."""
        if isinstance(value, (list, dict)):
            return self._json(value)
        return _json_text(value) if isinstance(value, bytes) else value

    def _json(self, value: Any) -> str:
        """Return a value as JSON. NaN and infinite numbers become null; the values with such numbers are counted."""
        try:
            return json.dumps(value, ensure_ascii=False, default=_json_text, allow_nan=False)
        except ValueError:
            self.not_finite, self.first_not_finite = self.not_finite + 1, self.first_not_finite or self.rows
            return to_json(value, ensure_ascii=False, default=_json_text)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *how: Any) -> None:
        """Finish the file. After an error, discard it and ignore further errors."""
        if kind is None:
            with self.opened:
                self._end(complete=True)
        else:
            with suppress(OSError, UserError):
                self._end(complete=False)
            self.opened.__exit__(kind, *how)

    def _end(self, complete: bool) -> None:
        if self.parquet is not None:
            self.parquet.close(complete)
        if self.wrapper is not None:
            self.wrapper.detach()


def _json_text(value: object) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)
