"""Parquet files, read in batches."""

from collections.abc import Callable, Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from nlp_transfer.errors import UserError
from nlp_transfer.sources.rows import TRANSLATION

AT_ONCE = 64  # rows decoded at once: cells may be large, and a dictionary hides how large
LARGE_DICTIONARY = 2**20  # bytes, above which Parquet writes no dictionary: each batch keeps only the values that occur in it


def parquet_batches(
    path: Path,
    size: int,
    most_bytes: int,
    check_header: Callable[[list[str]], None],
    wanted: Collection[str] | None = None,
    keep_table: bool = False,
) -> Iterator[tuple[dict[str, list[Any]], int, int, Any, list[str]]]:
    """Batches of at most `size` rows, fewer where they have more than about `most_bytes` bytes.

    Args:
        wanted: columns that are converted to Python values; None: all. Texts of a language may lie inside a column
            `translation`, which is converted where a wanted column is missing.
        keep_table: also give every column of the file as Arrow data, for a writer. Otherwise columns that are not wanted are
            not even decoded.

    Yields:
        The wanted columns, the position of the batch's first row, the number of its rows, its `pyarrow.Table` or None, and the
        names of all columns of the file.

    Raises:
        UserError: the file is no Parquet or damaged, or a wanted column holds values that Python has no type for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, length, taken = 1, 0, 0
    parts: list[Any] = []
    where = str(path)
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{path}: has no rows; allowed: one row or more")
            names = file.schema_arrow.names
            check_header(names)
            inside = wanted is not None and not set(wanted) <= set(names)
            asked = [name for name in names if wanted is None or name in wanted or (inside and name == TRANSLATION)]

            def batch() -> tuple[dict[str, list[Any]], int, int, Any, list[str]]:
                table = pa.Table.from_batches(parts)
                columns = {name: table.column(name).to_pylist() for name in asked}
                return columns, first, length, table.combine_chunks() if keep_table else None, names

            where = f"{path}, at or after row 1"
            how = {"batch_size": min(size, AT_ONCE), "columns": None if keep_table else asked}
            groups: list[Any] = [range(file.num_row_groups)]
            if any("dictionary<" in str(kind) and not pa.types.is_dictionary(kind) for kind in file.schema_arrow.types):
                groups = [[i] for i in groups[0]]  # Arrow cannot read a batch across two of them where dictionaries are nested
            for read in chain.from_iterable(file.iter_batches(row_groups=group, **how) for group in groups):
                part, decoded = _compact(read)
                parts.append(part)
                length += part.num_rows
                taken += decoded
                if length + AT_ONCE > size or taken >= most_bytes:
                    yield batch()
                    first, length, taken, parts = first + length, 0, 0, []
                    where = f"{path}, at or after row {first}"
            if (found := first + length - 1) != file.metadata.num_rows:
                raise UserError(f"{path}: is damaged: found {found} rows where it says {file.metadata.num_rows}")
            if length:
                yield batch()
    except UserError:
        raise
    except Exception as error:  # Arrow's own, and what Python raises at a date, a time zone or a text that is none
        raise UserError(f"{where}: cannot be read as Parquet ({error})") from None


def _compact(batch: Any) -> tuple[Any, int]:
    """The batch without the unused values of large dictionaries, and its size in bytes once dictionaries are decoded.

    Arrow repeats the dictionary of a whole row group in every batch: a window of batches would hold, and its writer would
    write, many times the column.
    """
    import pyarrow as pa

    size = 0
    for i, column in enumerate(batch.columns):
        if not pa.types.is_dictionary(column.type):
            size += column.nbytes
            continue
        values = column.dictionary_decode()
        size += values.nbytes
        if column.dictionary.nbytes > LARGE_DICTIONARY:
            used = values.dictionary_encode()
            indices = used.indices.cast(column.type.index_type)
            compact = pa.DictionaryArray.from_arrays(indices, used.dictionary, ordered=column.type.ordered)
            batch = batch.set_column(i, batch.schema.field(i), compact)
    return batch, size
