"""Read Parquet files in batches with a memory limit, since a few bytes can expand to gigabytes."""

from collections.abc import Callable, Collection, Iterator
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from nlp_transfer.data.sources.file_reading import MAX_ROW
from nlp_transfer.data.sources.memory_limit import LOCK, limited_memory
from nlp_transfer.data.sources.rows import TRANSLATION
from nlp_transfer.utils.errors import UserError, shorten

AT_ONCE = 64  # rows decoded at once; few, since the sizes of dictionary cells are unknown
LARGE_DICTIONARY = 2**20  # unused values are removed from dictionaries with more bytes; most writers create none that large
ROW_BYTES = 4 * MAX_ROW  # maximum size of a decoded row; a character takes at most four bytes
MEMORY = 2**30  # the process may grow by this many bytes plus twice the file size
EXPANSION = 1000  # maximum decoded bytes per byte of the file, in addition to `MEMORY`; about the highest ratio of gzip
POINTER = 8  # minimum bytes of an element in a Python list

T = TypeVar("T")
P = ParamSpec("P")
Content = tuple[dict[str, list[Any]], int, int, Any, list[str]]


def _limited(read: Callable[Concatenate[Path, P], Iterator[T]]) -> Callable[Concatenate[Path, P], Iterator[T]]:
    """Decorate a generator, whose first argument is the file that it reads, to limit the memory for each item."""

    @wraps(read)
    def limited(path: Path, *arguments: P.args, **options: P.kwargs) -> Iterator[T]:
        import pyarrow as pa
        import pyarrow.parquet  # loaded before the limit, so that its libraries do not count

        items = read(path, *arguments, **options)
        while True:
            with LOCK:  # memory pool and limit apply to the process
                before = pa.default_memory_pool()
                pa.allocate_buffer(64, memory_pool=before)  # some pools reserve 1 GiB at first use, outside the limit
                pa.set_memory_pool(pa.system_memory_pool())
                try:
                    with limited_memory(MEMORY + 2 * path.stat().st_size):
                        item = next(items)
                except StopIteration:
                    return
                finally:
                    pa.set_memory_pool(before)
            yield item

    return limited


def count_rows(path: Path) -> tuple[int, list[str]]:
    """Return the number of rows and the column names from the footer of a file.

    Raises:
        UserError: The file is not Parquet, or it is damaged.
    """
    [counts] = _count_rows(path)
    return counts


@_limited
def _count_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield file.metadata.num_rows, list(file.schema_arrow.names)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error})") from error


@_limited
def parquet_batches(
    path: Path,
    size: int,
    max_bytes: int,
    check_header: Callable[[list[str]], None],
    wanted: Collection[str] | None = None,
    keep_table: bool = False,
) -> Iterator[Content]:
    """Yield batches of at most `size` rows and about `max_bytes` bytes.

    Args:
        path: The file.
        size: Maximum rows of a batch.
        max_bytes: Size after which a batch ends.
        check_header: Called with the names of all columns.
        wanted: Columns to convert to Python values; None: all. If one of them is missing, a column `translation` is converted
            too, since it may contain texts by language.
        keep_table: Also return all columns as Arrow data, for a writer. If false, only the wanted columns are decoded.

    Yields:
        The wanted columns, the position of the first row of the batch, its number of rows, its `pyarrow.Table` or None, and the
        names of all columns of the file.

    Raises:
        UserError: The file is not Parquet or damaged, a row is too large, a value has no Python type, or decoding takes far more
            memory than the file size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, length, batch_bytes, batch_weight, total_weight = 1, 0, 0, 0, 0
    pieces: list[Any] = []
    metadata: Any = None
    read: list[str] = []
    max_decoded = MEMORY + EXPANSION * path.stat().st_size
    where = str(path)
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            metadata = file.metadata
            if metadata.num_rows == 0:
                raise UserError(f"{path}: has no rows; allowed: one row or more")
            names = file.schema_arrow.names
            check_header(names)
            is_missing = wanted is not None and not set(wanted) <= set(names)
            converted = [name for name in names if wanted is None or name in wanted or (is_missing and name == TRANSLATION)]
            read = names if keep_table else converted

            def batch() -> Content:
                table = pa.Table.from_batches(pieces)
                columns = {name: table.column(name).to_pylist() for name in converted}
                return columns, first, length, table.combine_chunks() if keep_table else None, names

            where = f"{path}, at or after row 1"
            # No threads and no pre-buffering: an out-of-memory error in an Arrow thread would abort the process.
            options = {"batch_size": min(size, _rows_at_once(metadata)), "columns": read, "use_threads": False}
            groups: list[Any] = [range(file.num_row_groups)]
            if any("dictionary<" in str(kind) and not pa.types.is_dictionary(kind) for kind in file.schema_arrow.types):
                groups = [[i] for i in groups[0]]  # Arrow cannot read nested dictionaries across row groups
            for compact, decoded in map(
                _compact, chain.from_iterable(file.iter_batches(row_groups=group, **options) for group in groups)
            ):
                step = compact.num_rows if _weight(decoded) <= ROW_BYTES else 1
                for start in range(0, compact.num_rows, max(step, 1)):
                    piece = decoded.slice(start, step)
                    weight = _weight(piece)
                    if step == 1 and weight > ROW_BYTES:
                        raise UserError(_too_long(piece, f"{path}, row {first + length}"))
                    pieces.append(compact.slice(start, step))
                    length, batch_bytes = length + piece.num_rows, batch_bytes + piece.nbytes
                    batch_weight, total_weight = batch_weight + weight, total_weight + weight
                    if total_weight > max_decoded:
                        raise MemoryError
                    if length + AT_ONCE > size or batch_bytes >= max_bytes or batch_weight >= ROW_BYTES:
                        yield batch()
                        first, length, batch_bytes, batch_weight, pieces = first + length, 0, 0, 0, []
                        where = f"{path}, at or after row {first}"
            if (count := first + length - 1) != metadata.num_rows:
                raise UserError(f"{path}: is damaged: it has {count} rows, but its footer says {metadata.num_rows}")
            if length:
                yield batch()
    except UserError:
        raise
    except MemoryError:
        pieces.clear()
        raise UserError(
            f"{where}{_largest(metadata, first + length, read)}: decoding takes more than {MEMORY >> 20} MiB, or more than "
            f"{EXPANSION} bytes per byte of the file; allowed: a file whose content is not much larger than the file"
        ) from None
    except Exception as error:  # errors of Arrow, and of Python for invalid dates, time zones and texts
        raise UserError(f"{where}: cannot be read as Parquet ({error})") from None


def _rows_at_once(metadata: Any) -> int:
    """Return the number of rows to decode at once, fewer if rows are large according to the metadata."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    average = max(group.total_byte_size // max(group.num_rows, 1) for group in groups)
    return max(1, min(AT_ONCE, MEMORY // 8 // max(average, 1)))


def _too_long(row: Any, where: str) -> str:
    """Return the error message for a row that is too large."""
    sizes = {name: _weight(row.select([i])) for i, name in enumerate(row.schema.names)}
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"{where}, column {shorten(largest)}: takes {sizes[largest]:,} bytes of {sum(sizes.values()):,} in the row; allowed: at "
        f"most {ROW_BYTES:,} bytes in a row"
    )


def _largest(metadata: Any, row: int, columns: Collection[str]) -> str:
    """Describe for a message, from the metadata, the row group that contains a row, and the largest column of the group.

    Sizes are those of `_weight`: the elements of a list of nulls take no bytes in the file, but a pointer each in Python.
    """
    if metadata is None:
        return ""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        row -= group.num_rows
        if row <= 0:
            chunks = [group.column(j) for j in range(group.num_columns)]
            sizes = {chunk.path_in_schema: chunk.total_uncompressed_size + POINTER * chunk.num_values for chunk in chunks}
            read = {name: size for name, size in sizes.items() if any(f"{name}.".startswith(f"{column}.") for column in columns)}
            return f", row group {i + 1}, largest column {shorten(max(read, key=lambda name: read[name]))}" if read else ""
    return ""


def _compact(batch: Any) -> tuple[Any, Any]:
    """Remove unused values from large dictionaries in a batch, and decode all dictionaries.

    Arrow repeats the dictionary of a row group in every batch, so several batches would contain many copies of it.

    Returns:
        The compacted batch and the decoded batch.
    """
    import pyarrow as pa

    decoded = batch
    for i, column in enumerate(batch.columns):
        if "dictionary<" not in str(column.type):
            continue
        field = batch.schema.field(i)
        values = column.cast(map_leaves(column.type, lambda kind: kind))
        decoded = decoded.set_column(i, field.with_type(values.type), values)
        if pa.types.is_dictionary(column.type) and column.dictionary.nbytes > LARGE_DICTIONARY:
            used = values.dictionary_encode()
            indices = used.indices.cast(column.type.index_type)
            compact = pa.DictionaryArray.from_arrays(indices, used.dictionary, ordered=column.type.ordered)
            batch = batch.set_column(i, field, compact)
    return batch, decoded


def _weight(batch: Any) -> int:
    """Return the size in bytes of a decoded batch and of its Python lists."""
    return int(batch.nbytes) + POINTER * sum(map(_elements, batch.columns))


def _elements(array: Any) -> int:
    """Return the number of elements of lists and maps in an array, at all depths.

    Elements of the null type take no bytes in Arrow, but a pointer each in Python.
    """
    import pyarrow as pa

    if isinstance(array, pa.BaseExtensionType):
        return _elements(array.storage)
    if pa.types.is_struct(array.type):
        return sum(map(_elements, array.flatten()))
    if pa.types.is_map(array.type):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return end - start + sum(_elements(inner.slice(start, end - start)) for inner in (array.keys, array.items))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        inner = array.flatten()
        return len(inner) + _elements(inner)
    return 0


def map_leaves(kind: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to the leaf types of an Arrow type. Dictionaries and extensions become the type of their values."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return map_leaves(kind.storage_type, change)
    if pa.types.is_dictionary(kind):
        return map_leaves(kind.value_type, change)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(map_leaves(field.type, change)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(map_leaves(kind.key_type, change), map_leaves(kind.item_type, change))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(map_leaves(kind.value_type, change)), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(map_leaves(kind.value_type, change)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(map_leaves(kind.value_type, change)))
    return change(kind)
