"""Build ragged columns block by block, in memory or in a file, without a second copy of the data."""

import io
from typing import BinaryIO

import numpy as np

from nlp_transfer.data.ragged import row_offsets

BLOCK = 2**20  # values per write


class GrowingRagged:
    """Appends the int32 values of a ragged column to a stream, and keeps the lengths of its rows in memory.

    As long as all values are equal, such as the token types of single texts, they are counted but not written.

    Attributes:
        count: Number of values.
        constant: The common value, as long as all values are equal. None: the values differ, or there are none yet.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.count = 0
        self.constant: int | None = None
        self._mixed = False
        self._lengths: list[np.ndarray] = []

    def add(self, values: np.ndarray, offsets: np.ndarray) -> None:
        """Append rows: int32 values of shape (values,), int64 offsets of shape (rows + 1,); see `Ragged`."""
        self._lengths.append(np.diff(offsets))
        if len(values) == 0:
            return
        if not self._mixed:
            first = int(values[0]) if self.constant is None else self.constant
            if (values == first).all():
                self.constant, self.count = first, self.count + len(values)
                return
            self._mixed, self.constant = True, None
            for start in range(0, self.count, BLOCK):  # write the equal values that were only counted
                self.stream.write(np.full(min(BLOCK, self.count - start), first, np.int32).data)
        self.stream.write(np.ascontiguousarray(values, np.int32).data)
        self.count += len(values)

    def offsets(self) -> np.ndarray:
        """Return the offsets of all rows, int64 of shape (rows + 1,)."""
        return row_offsets(np.concatenate([np.zeros(0, np.int64), *self._lengths]))


def in_memory(column: GrowingRagged) -> np.ndarray:
    """Return the values of a column whose stream is a `BytesIO`, without copying them; int32 of shape (values,)."""
    assert isinstance(column.stream, io.BytesIO)
    if column.constant is not None:
        return np.broadcast_to(np.int32(column.constant), (column.count,))
    return np.frombuffer(column.stream.getbuffer(), np.int32)
