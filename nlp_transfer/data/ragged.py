"""Ragged columns: rows of different lengths in a flat array of values, with an array of row offsets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


def row_offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the offsets of rows with these lengths, int64 of shape (rows + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Ragged:
    """A column of rows of different lengths. Its arrays may be read-only (broadcast or memory-mapped).

    Attributes:
        values: Values of all rows, int32 of shape (values,); for cached hidden states, float32 of shape (tokens, width).
        offsets: int64 of shape (rows + 1,); row i is `values[offsets[i] : offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, rows: Iterable[list[int]]) -> "Ragged":
        """Build a column from lists of ints, one per row."""
        rows = list(rows)
        offsets = row_offsets([len(row) for row in rows])
        return cls(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets)

    @classmethod
    def concatenate(cls, columns: "list[Ragged]") -> "Ragged":
        """Concatenate the rows of several columns."""
        starts = np.cumsum([0] + [len(column.values) for column in columns])
        offsets = [column.offsets[1:] + start for column, start in zip(columns, starts[:-1], strict=True)]
        return cls(np.concatenate([column.values for column in columns]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> list[int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        values: list[int] = self.values[self.offsets[row] : self.offsets[row + 1]].tolist()
        return values

    @property
    def lengths(self) -> np.ndarray:
        """Number of values in each row, int64 of shape (rows,)."""
        return np.diff(self.offsets)

    def padded(self, indices: np.ndarray, fill: int) -> np.ndarray:
        """Return the rows at `indices`, padded on the right with `fill`.

        Returns:
            int64 of shape (len(indices), longest row); for hidden states float32 of shape (len(indices), longest row, width).
        """
        positions, inside = self._positions(indices)
        if self.values.ndim > 1:
            return np.where(inside[..., None], self.values[positions], np.float32(fill))
        return np.where(inside, self.values[positions] if len(self.values) else fill, fill).astype(np.int64)

    def select(self, indices: np.ndarray) -> "Ragged":
        """Return the rows at `indices`, in that order."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        offsets = row_offsets(lengths)
        positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
        return Ragged(self.values[positions], offsets)

    def _positions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions in `values` (int64) and a mask that excludes padding (bool), both of shape (len(indices), longest
        row)."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        columns = np.arange(int(lengths.max(initial=1)))
        inside = columns < lengths[:, None]
        return np.where(inside, starts[:, None] + columns, 0), inside


def share_offsets(columns: dict[str, Ragged]) -> dict[str, Ragged]:
    """Make columns with the same offsets as the first column share its array."""
    first = next(iter(columns.values()), None)
    if first is None:
        return columns
    same = {name: np.array_equal(column.offsets, first.offsets) for name, column in columns.items()}
    return {name: Ragged(column.values, first.offsets) if same[name] else column for name, column in columns.items()}
