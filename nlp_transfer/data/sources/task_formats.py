"""Read files in formats that only a task supports, with its readers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.file_reading import new_skipped
from nlp_transfer.data.sources.rows import BLOCK, check_columns
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.data.sources.text_columns import GrowingColumn
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import BadRow, Fault, Problems

Record = Mapping[str, Any] | Fault
"""The cells of a row by column, or why the row cannot be used."""
Readers = Mapping[str, Callable[[Path], Iterable[Record] | None]]
NO_READERS: Readers = {}


def record_batches(records: Iterable[Record], size: int) -> Iterator[Batch]:
    """Yield the rows of a task's reader in batches; a row may lack columns."""
    remaining, first = iter(records), 1
    names: dict[str, None] = {}
    while rows := list(islice(remaining, size)):
        faults = {index: row for index, row in enumerate(rows) if isinstance(row, Fault)}
        cells = [{} if isinstance(row, Fault) else row for row in rows]
        names |= dict.fromkeys(name for row in cells for name in row)
        yield Batch({name: [row.get(name) for row in cells] for name in names}, first, len(rows), faults=faults)
        first += len(rows)


def read_records(
    records: Iterable[Record], columns: Mapping[str, GrowingColumn], path: Path, data: DataConfig, source: str
) -> dict[int, BadRow] | None:
    """Append the rows of a task's reader to `columns`; a row may lack columns.

    Args:
        path: The file, for messages about rows.
        source: The setting and the file, for messages about columns.

    Returns:
        The rows to skip by position, None if bad rows are errors.

    Raises:
        UserError: A column is missing, or rows cannot be used and are not skipped.
    """
    skipped = new_skipped(data)
    problems = Problems(str(path), skipped)
    names: dict[str, None] = {}
    for batch in record_batches(records, BLOCK):
        names |= dict.fromkeys(batch.columns)
        for position, bad in batch.bad_rows(path).items():
            problems.add_row(position, bad)
        for name, column in columns.items():
            column.extend(batch.columns.get(name, [None] * len(batch)))
    problems.raise_if_any()
    if names or not skipped:  # rows that are skipped have no columns
        check_columns(list(names), list(columns), source)
    return skipped
