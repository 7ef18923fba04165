"""Columns that grow block by block, in memory or in files: a corpus of millions of rows is never held twice."""

import io
from typing import BinaryIO

import numpy as np

BLOCK = 2**20  # values that are written at once


class GrowingRagged:
    """A ragged column of int32 values, written to a stream as they come; only the lengths of its rows stay in memory.

    Values that are all the same, as the types of tokens in a single text are, are counted and not written.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.count = 0
        self.constant: int | None = None
        self._mixed = False
        self._lengths: list[np.ndarray] = []

    def add(self, values: np.ndarray, offsets: np.ndarray) -> None:
        """Rows as `Ragged` keeps them: int32 values of shape (all values,), int64 offsets of shape (rows + 1,)."""
        self._lengths.append(np.diff(offsets))
        if len(values) == 0:
            return
        if not self._mixed:
            first = int(values[0]) if self.constant is None else self.constant
            if (values == first).all():
                self.constant, self.count = first, self.count + len(values)
                return
            self._mixed, self.constant = True, None
            for start in range(0, self.count, BLOCK):  # what was only counted so far
                self.stream.write(np.full(min(BLOCK, self.count - start), first, np.int32).data)
        self.stream.write(np.ascontiguousarray(values, np.int32).data)
        self.count += len(values)

    def offsets(self) -> np.ndarray:
        """int64 of shape (rows + 1,)."""
        offsets = np.zeros(sum(map(len, self._lengths)) + 1, np.int64)
        if self._lengths:
            np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        return offsets


def in_memory(column: GrowingRagged) -> np.ndarray:
    """The values of a column that grew in memory, int32, without a copy."""
    assert isinstance(column.stream, io.BytesIO)
    if column.constant is not None:
        return np.broadcast_to(np.int32(column.constant), (column.count,))
    return np.frombuffer(column.stream.getbuffer(), np.int32)
