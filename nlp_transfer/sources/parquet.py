"""Parquet files, read in batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nlp_transfer.errors import UserError

AT_ONCE = 64  # rows decoded at once: cells may be large, and a dictionary hides how large


def parquet_batches(
    path: Path, size: int, most_bytes: int, check_header: Callable[[list[str]], None]
) -> Iterator[tuple[dict[str, list[Any]], int, int]]:
    """The columns of each batch, the position of its first row and the number of its rows: at most `size`, and fewer where they
    have more than about `most_bytes` bytes.

    Raises:
        UserError: the file is no Parquet or damaged, or holds values that Python has no type for.
    """
    import pyarrow.parquet as pq

    first, length, taken = 1, 0, 0
    columns: dict[str, list[Any]] = {}
    where = str(path)
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{path}: has no rows; allowed: one row or more")
            check_header(file.schema_arrow.names)
            where = f"{path}, at or after row 1"
            for part in file.iter_batches(batch_size=min(size, AT_ONCE)):
                for name, values in part.to_pydict().items():
                    columns.setdefault(name, []).extend(values)
                length += part.num_rows
                taken += part.nbytes
                if length + AT_ONCE > size or taken >= most_bytes:
                    yield columns, first, length
                    first, length, taken, columns = first + length, 0, 0, {}
                    where = f"{path}, at or after row {first}"
            if (found := first + length - 1) != file.metadata.num_rows:
                raise UserError(f"{path}: is damaged: found {found} rows where it says {file.metadata.num_rows}")
            if length:
                yield columns, first, length
    except UserError:
        raise
    except Exception as error:  # Arrow's own, and what Python raises at a date, a time zone or a text that is none
        raise UserError(f"{where}: cannot be read as Parquet ({error})") from None
