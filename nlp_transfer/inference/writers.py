"""A file or stream that predictions are written to, window after window."""

import csv
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from io import TextIOBase, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from nlp_transfer.inference.parquet_writer import ParquetOutput, text_cells
from nlp_transfer.utils.atomic_files import replacing, to_json
from nlp_transfer.utils.errors import UserError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
Columns = dict[str, list[Any]]
LINE_END = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # whatever some reader takes for the end of a line


class _UnixLines:
    """csv quotes only the characters of its own line end. It is told both, so that a lone one in a cell is quoted; lines
    themselves end in one character."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, line: str) -> int:
        return self.file.write(line[:-2] + "\n")


class Writer:
    """Columns to a file, batch after batch; the format is the ending's.

    Columns of a Parquet input arrive as Arrow data. A Parquet output gets them as they are; in text formats `text_cells` says
    what becomes of them.
    """

    def __init__(self, target: Path | BinaryIO | TextIO, ending: str, types: Mapping[str, str] | None = None) -> None:
        """Begin a file.

        Args:
            target: the name of a file, which is written whole or not at all; or an open file, which is not closed in the end, or
                text stream, which is only for text formats.
            types: Arrow types by column, for a Parquet file in which a column has no value at all.
        """
        self.ending = ending
        self.names: list[str] = []
        self.rows = 0  # written so far, in text formats
        self.not_finite = self.first_not_finite = 0  # values with null in place of a number, and the row of the first
        self.opened = ExitStack()
        file: Any = self.opened.enter_context(replacing(target)) if isinstance(target, Path) else target
        self.parquet = ParquetOutput(file, types) if ending == ".parquet" else None
        self.wrapper: TextIOWrapper | None = None
        if self.parquet is None and not isinstance(file, TextIOBase):
            file = self.wrapper = TextIOWrapper(file, encoding="utf-8", newline="")
        self.file: TextIO = file

    def write(self, columns: Columns, table: Any = None) -> None:
        """Appends rows.

        Args:
            columns: Python values by column.
            table: a `pyarrow.Table` of as many rows, whose columns come before `columns`; None: there are no others.

        Raises:
            UserError: the format has no place for a value or for a column that comes late.
        """
        if self.parquet is not None:
            self.parquet.write(columns, table)
            return
        if table is not None and self.ending != ".txt":
            columns = {name: text_cells(table.column(name), name) for name in table.column_names} | columns
        if self.ending == ".jsonl":
            self._write_jsonl(columns)
        elif self.ending == ".txt":
            answers = columns["translation"] if "translation" in columns else columns["prediction"]
            lines = ("" if answer is None else LINE_END.sub(" ", str(answer)) for answer in answers)
            self.file.writelines(line + "\n" for line in lines)  # a line a row, whatever it says
        else:
            self._write_csv(columns)

    def _write_jsonl(self, columns: Columns) -> None:
        for row in zip(*columns.values(), strict=True):
            record = dict(zip(columns, row, strict=True))
            self.rows += 1
            self.file.write(self._json(record) + "\n")

    def _write_csv(self, columns: Columns) -> None:
        writer = csv.writer(_UnixLines(self.file), delimiter="\t" if self.ending == ".tsv" else ",", lineterminator="\r\n")
        if not self.names:
            self.names = list(columns)
            writer.writerow(columns)
        if late := [name for name in columns if name not in self.names]:
            raise UserError(
                f"--output: {self.ending} needs the same columns in all rows, and {late[0]!r} comes only after the first "
                "rows of the input; allowed: .jsonl, .parquet"
            )
        for row in zip(*(columns[name] for name in self.names), strict=True):  # a late JSON key may stand elsewhere
            self.rows += 1
            writer.writerow(map(self._csv_cell, row))

    def _csv_cell(self, value: object) -> object:
        """What `csv` writes of a cell as it should be."""
        if isinstance(value, (list, dict)):
            return self._json(value)
        return _json_text(value) if isinstance(value, bytes) else value

    def _json(self, value: Any) -> str:
        """JSON of a value, with null for numbers that JSON does not have, which are counted."""
        try:
            return json.dumps(value, ensure_ascii=False, default=_json_text, allow_nan=False)
        except ValueError:
            self.not_finite, self.first_not_finite = self.not_finite + 1, self.first_not_finite or self.rows
            return to_json(value, ensure_ascii=False, default=_json_text)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *how: Any) -> None:
        """End the file; after an error it will be thrown away, and that it cannot be completed is no further error."""
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
