"""Rows with named columns, and the file and position of each row."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources.file_reading import format_of, has_lines
from nlp_transfer.data.sources.text_columns import GrowingColumn, Texts
from nlp_transfer.utils.errors import BadRow, Problems, did_you_mean, shorten

BLOCK = 10_000  # rows copied at once
UNTYPED = (".csv", ".tsv", ".txt")
TRANSLATION = "translation"  # the column of hub datasets with cells such as {"en": ..., "de": ...}
EMPTY_TEXT, NO_TEXT = "with an empty text", "with a cell that is not text"  # kinds of bad rows


@dataclass(frozen=True)
class Rows:
    """Named columns of equal length, with the file and position of each row.

    Attributes:
        columns: Cells as Python values: lists, or `Texts` for long texts.
        files: Names of the files.
        file_of: Index into `files` for each row, int32 of shape (rows,).
        position: Row number for messages, int64 of shape (rows,). Rows are counted from 1, and the header of a CSV or TSV file
            is row 1. 0: the row is a complete file.
        hashes: Maps the path of each file to its SHA-256.
        revision: Commit of a hub dataset.
        skipped: Rows that were skipped (`data.on_bad_rows: skip`) or filtered; `select` drops this list.
    """

    columns: Mapping[str, Sequence[Any]]
    files: list[str]
    file_of: np.ndarray
    position: np.ndarray
    hashes: dict[str, str] = field(default_factory=dict)
    revision: str | None = None
    skipped: list[BadRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.position)

    def where(self, row: int) -> str:
        """Return the location of a row for messages, such as `reviews.csv, row 17`."""
        name = self.files[self.file_of[row]]
        return f"{name}, row {self.position[row]}" if self.position[row] else name

    def bad(self, row: int, column: str, reason: str, kind: str) -> BadRow:
        """Return a description of a bad row, for `Problems.add_row`."""
        return BadRow(self.files[self.file_of[row]], int(self.position[row]), column, reason, kind)

    def without(self, bad: Mapping[int, BadRow]) -> "Rows":
        """Move the rows at the indices in `bad` to `skipped`."""
        if not bad:
            return self
        rows = self.select(np.delete(np.arange(len(self)), list(bad)))
        return replace(rows, skipped=[*self.skipped, *(bad[row] for row in sorted(bad))])

    def without_positions(self, bad: Mapping[int, BadRow] | None) -> "Rows":
        """Move the rows at the positions in `bad` to `skipped`. All rows must be from one file."""
        if not bad:
            return self
        remaining = np.flatnonzero(~np.isin(self.position, np.fromiter(bad, np.int64)))
        rows = self if len(remaining) == len(self) else self.select(remaining)
        return replace(rows, skipped=[*self.skipped, *(bad[position] for position in sorted(bad))])

    def has_types(self) -> bool:
        """Return whether the source distinguishes types of cells. In CSV, TSV and text files, all cells are text."""
        return not any(format_of(name) in UNTYPED for name in self.files)

    def select(self, indices: np.ndarray) -> "Rows":
        """Return the rows at `indices` (int), in that order."""
        columns = {
            name: values.select(indices) if isinstance(values, Texts) else [values[i] for i in indices]
            for name, values in self.columns.items()
        }
        return Rows(columns, self.files, self.file_of[indices], self.position[indices], self.hashes, self.revision)

    def batches(self, size: int) -> Iterator[dict[str, list[Any]]]:
        """Yield the columns in batches of `size` rows."""
        for start in range(0, len(self), size):
            yield {name: list(values[start : start + size]) for name, values in self.columns.items()}


def from_columns(columns: Mapping[str, Sequence[Any]], name: str, first: int = 1) -> Rows:
    """Build the rows of one source, with positions that start at `first`."""
    length = len(next(iter(columns.values()), []))
    return Rows(columns, [name], np.zeros(length, np.int32), np.arange(first, first + length))


def hash_cells(rows: Rows) -> str:
    """Return the SHA-256 of all cells, for rows that do not come from a file."""
    digest = hashlib.sha256()
    for block in rows.batches(BLOCK):
        try:
            text = json.dumps(block, default=repr)
        except (TypeError, ValueError):  # keys other than text, or a recursive object
            text = repr(block)
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def concatenate(sources: Sequence[Rows]) -> Rows:
    """Concatenate the rows of several sources with the same columns."""
    if len(sources) == 1:
        return sources[0]
    columns = {name: GrowingColumn() for name in sources[0].columns}
    for source in sources:
        for block in source.batches(BLOCK):
            for name, cells in block.items():
                columns[name].extend(cells)
    offsets = np.cumsum([0] + [len(source.files) for source in sources[:-1]])
    return Rows(
        {name: column.done() for name, column in columns.items()},
        [name for source in sources for name in source.files],
        np.concatenate([source.file_of + offset for source, offset in zip(sources, offsets, strict=True)]).astype(np.int32),
        np.concatenate([source.position for source in sources]),
        {name: digest for source in sources for name, digest in source.hashes.items()},
        skipped=[bad for source in sources for bad in source.skipped],
    )


def name_lines(columns: dict[str, list[Any]], path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Rename the column of a text file to the wanted column. Returns the columns of other files unchanged."""
    is_lines = has_lines(path) and list(columns) == ["text"]  # a task's reader may have read a file of the same extension
    return {wanted[0]: columns["text"]} if is_lines and len(wanted) == 1 else columns


def unfold(columns: dict[str, list[Any]], wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Add wanted columns, such as languages, that are keys in the cells of a column `translation`."""
    cells = columns.get(TRANSLATION, [])
    inside = [name for name in wanted if name not in columns and any(isinstance(cell, dict) and name in cell for cell in cells)]
    return columns | {name: [cell.get(name) if isinstance(cell, dict) else None for cell in cells] for name in inside}


def names_of(columns: dict[str, list[Any]], names: Sequence[str] = ()) -> list[str]:
    """Return the names of the columns and of the keys in the cells of a column `translation`.

    Args:
        columns: Columns of a file.
        names: Names of all columns of the file, if `columns` contains only some of them.
    """
    cells = (cell for cell in columns.get(TRANSLATION, []) if isinstance(cell, dict))
    return list(dict.fromkeys([*names, *columns, *(str(language) for cell in cells for language in cell)]))


def check_columns(names: list[str], wanted: list[str], source: str) -> None:
    """Raise a UserError if wanted columns are missing or ambiguous."""
    problems = Problems()
    counts = Counter(names)
    for name in wanted:
        if counts[name] > 1:
            problems.add(f"{source}: there are {counts[name]} columns called {name!r}; allowed: one")
        if name not in counts:
            listed = ", ".join(name if len(name) <= 40 else f"{name[:40]}..." for name in names[:40])
            more = f" and {len(names) - 40} more" if len(names) > 40 else ""
            problems.add(f"{source}: there is no column {name!r}{did_you_mean(name, names)}; found: {listed}{more}")
    if problems and len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        problems.add(f"{source}: the only column is {shorten(names[0])}; if the file has another separator, set data.delimiter")
    problems.raise_if_any()
