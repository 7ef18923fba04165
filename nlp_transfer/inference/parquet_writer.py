"""Write Parquet files. Input columns keep their type, and new columns get a type that fits all rows.

Importing this module loads pyarrow, so it is imported only where Arrow data is written.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nlp_transfer.data.sources.parquet_reader import map_leaves
from nlp_transfer.utils.errors import UserError

MOST_PARTS = 64  # parts that are open at the same time


class ParquetOutput:
    """A Parquet file with a schema that is not known in advance.

    A column may be null, have few fields or contain only integers for thousands of rows before its type is known. When a chunk
    needs a wider schema (a type instead of null, float64 instead of int64, more fields or columns), a new part is started in an
    unnamed temporary file. At the end all parts are cast to the widest schema. Usually there is only one part, the output.
    Each chunk is a row group, so memory use does not depend on the file size.
    """

    def __init__(self, file: BinaryIO, types: Mapping[str, str] | None = None) -> None:
        """Create a file.

        Args:
            file: an empty file, open for reading and writing. It is not closed.
            types: names of Arrow types by column, used for columns in which every value is null.
        """
        self.file, self.types = file, types or {}
        self.schema: Any = None
        self.writer: Any = None
        self.parts: list[IO[bytes]] = []

    def write(self, columns: dict[str, list[Any]], table: Any = None) -> None:
        """Append the columns of `table` (a `pyarrow.Table` or None) and then `columns` (Python values).

        Raises:
            UserError: the values of a column have no common type, or Parquet does not support them.
        """
        arrays = {name: _array(name, values) for name, values in columns.items()}
        if table is None:
            table = pa.table(arrays)
        else:
            for name, array in arrays.items():
                table = table.append_column(name, array)
        schema = table.schema if self.schema is None else _wider(self.schema, table.schema)
        if self.schema is None or not schema.equals(self.schema):
            self.schema = schema
            self._begin_part()
        self._write(_conform(table, self.schema))

    def close(self, complete: bool) -> None:
        """Finish the file.

        Args:
            complete: whether all rows were written. If not, the file is discarded.

        Raises:
            UserError: numbers in early rows do not fit the type that later rows require.
        """
        self._end_part()
        schema = self.schema
        if complete and schema is not None:
            self.schema = self._without_null(schema)
        if complete and (len(self.parts) > 1 or self.schema is not schema):
            self._merge()
            shutil.copyfileobj(self._rewound(self.parts[0]), self._rewound(self.file))
            self.file.truncate()

    def _without_null(self, schema: Any) -> Any:
        """Return the schema, in which columns without any value get their type from `types`."""
        empty = {field.name for field in schema if pa.types.is_null(field.type)} & set(self.types)
        kinds = {name: pa.type_for_alias(self.types[name]) for name in empty}
        fields = [field.with_type(kinds[field.name]) if field.name in kinds else field for field in schema]
        return pa.schema(fields, metadata=schema.metadata) if kinds else schema

    def _end_part(self) -> None:
        if self.writer is not None:
            try:
                self.writer.close()
            finally:
                self.writer.is_open = False  # otherwise garbage collection closes it again, and Python prints the error

    def _begin_part(self) -> None:
        self._end_part()
        if len(self.parts) >= MOST_PARTS:
            self._merge()
        self.parts.append(self._temporary_file() if self.parts else self.file)
        self.writer = None

    def _merge(self) -> None:
        """Merge the closed parts into one with the current schema."""
        merged = self._temporary_file()
        with pq.ParquetWriter(merged, self.schema) as self.writer:
            for table in self._rows():
                self._write(_conform(table, self.schema))
        self.parts = [merged]

    def _rows(self) -> Iterator[Any]:
        for part in self.parts:
            with pq.ParquetFile(self._rewound(part)) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group)

    def _temporary_file(self) -> IO[bytes]:
        """Create an unnamed temporary file on the disk of the output."""
        name = self.file.name
        return tempfile.TemporaryFile(dir=os.path.dirname(name) if isinstance(name, str) else None)

    @staticmethod
    def _rewound(part: Any) -> Any:
        part.seek(0)
        return part

    def _write(self, table: Any) -> None:
        try:
            if self.writer is None:
                self.writer = pq.ParquetWriter(self.parts[-1], self.schema)
            self.writer.write_table(table)
        except pa.ArrowException as error:  # such as an object without fields
            raise UserError(f"--output: a .parquet file cannot contain these values ({error}); allowed: .jsonl") from error


def _array(name: str, values: Sequence[Any]) -> Any:
    """Convert Python values to an Arrow array of their common type.

    Raises:
        UserError: the values have no common type.
    """
    kinds = {type(value) for value in values if value is not None}
    try:
        _check_no_mixed_booleans(values)
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        kind = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(
            f"--output: a .parquet column has one type; column {name!r} contains {kind} ({error}); allowed: .jsonl"
        ) from error


def _check_no_mixed_booleans(values: Iterable[Any]) -> None:
    """Raise a TypeError if booleans and numbers are mixed, also in lists and objects: Arrow would convert true to 1.0."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if bool in kinds and len(kinds) > 1:
        raise TypeError("booleans among numbers")
    if list in kinds:
        _check_no_mixed_booleans(element for value in present if isinstance(value, list) for element in value)
    objects = [value for value in present if isinstance(value, dict)]
    for name in {name for value in objects for name in value}:
        _check_no_mixed_booleans(value.get(name) for value in objects)


def _wider(known: Any, new: Any) -> Any:
    """Return the narrowest Arrow schema that fits the rows of both schemas.

    Raises:
        UserError: a column has incompatible types, such as text and numbers.
    """
    if new.equals(known):
        return known
    fields = {field.name: field for field in known}
    for field in new:
        before = fields.get(field.name, field)
        try:
            [fields[field.name]] = pa.unify_schemas([pa.schema([before]), pa.schema([field])], promote_options="permissive")
        except pa.ArrowException as error:
            raise UserError(
                f"--output: a .parquet column has one type; column {field.name!r} is {before.type} in the first rows and "
                f"{field.type} in later ones; allowed: .jsonl"
            ) from error
    return pa.schema(fields.values(), metadata=known.metadata)


def _conform(table: Any, schema: Any) -> Any:
    """Cast a table to a schema that is at least as wide; missing columns become null."""
    if table.schema.equals(schema):
        return table
    columns = []
    for field in schema:
        try:
            exists = field.name in table.column_names
            columns.append(table.column(field.name).cast(field.type) if exists else pa.nulls(len(table), field.type))
        except pa.ArrowException as error:
            raise UserError(
                f"--output: a .parquet column has one type; column {field.name!r} is {table.field(field.name).type} in some rows "
                f"and {field.type} in others ({error}); allowed: .jsonl"
            ) from error
    return pa.table(columns, schema=schema)


def text_cells(column: Any, name: str) -> list[Any]:
    """Convert an Arrow column to values for CSV, TSV and JSONL, without loss.

    Numbers, booleans and text are unchanged. Dictionary-encoded columns become their values, and bytes become base64. Decimals,
    dates and times become text with all digits, such as `2024-05-01 12:00:00.000000001` (followed by the offset of a time
    zone); durations become a number of their unit, as text. Lists, structs and maps (lists of pairs) are converted
    recursively; in CSV they become JSON.

    Raises:
        UserError: a value cannot be written as text, such as a time in an unknown time zone.
    """
    try:
        cells = list(column.cast(map_leaves(column.type, _text_leaf)).to_pylist())
        if pa.types.is_temporal(column.type) and any(str(cell).startswith("<value out of range") for cell in cells):
            raise ValueError("a time out of range")
        return cells
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"column {name!r} ({column.type}) cannot be written as text ({error}); allowed: a .parquet file as --output"
        ) from error


def _text_leaf(kind: Any) -> Any:
    """Return the string type for decimals, dates, times and durations, and any other type unchanged."""
    as_text = pa.types.is_decimal(kind) or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind))
    return pa.string() if as_text else kind
