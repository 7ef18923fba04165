"""Optimiser windows: which rows one optimiser step sees, over all processes, and how they are cut.

The plan of an epoch depends on the seed and the epoch alone. Where a run stands is therefore two integers, epoch and
window, and going on from there costs the same at step 10 and at step 10 million. A window is planned whole and only then
cut by process and micro-batch, so 1 x 32, 4 x 8 and 2 processes x 16 see the same rows in the same step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nlp_transfer.data.oversampling import Repeats

BUCKET = 200  # windows whose rows are sorted by length together: little padding, and still well mixed
BLUR = 0.25  # share by which lengths are blurred before sorting where rows are repeated


@dataclass(frozen=True)
class MicroBatch:
    """Row indices for one process. With `counted` false the rows only keep the processes in step: their loss is zero."""

    rows: np.ndarray
    counted: bool = True


@dataclass(frozen=True)
class Window:
    """The rows (int64) of one optimiser step, over all processes: window `index` of `of` in its epoch."""

    epoch: int
    index: int
    of: int
    rows: np.ndarray


@dataclass(frozen=True)
class WindowPlan:
    """How the rows of a split become optimiser windows.

    `lengths` is int64 of shape (rows,); `batch_size` counts rows a process and micro-batch, `batch_tokens` (which beats
    it) padded tokens. `sides` (int64, (rows, sides)) is the length of each part that is padded for itself, such as source and
    target; by default a row has one, its length. `repeats` says which rows stand more than once in an epoch. Phases of
    training, counted from 0, have orders of their own: where each is a part of an epoch, all would see the same rows.
    """

    lengths: np.ndarray
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    batch_tokens: int | None = None
    seed: int = 0
    sides: np.ndarray | None = None
    repeats: Repeats | None = None
    phase: int = 0

    def windows(self, epoch: int) -> list[np.ndarray]:
        """Row indices (int64) of each window of an epoch; every row stands in exactly one, or as often as `repeats` says. The
        last window may be short."""
        generator = np.random.default_rng([self.seed, epoch, self.phase] if self.phase else [self.seed, epoch])
        order = generator.permutation(len(self.lengths) if self.repeats is None else self.repeats.rows(generator))
        share = self.accumulation * self.processes
        if self.batch_tokens is None:
            size = self.batch_size * share
            windows = [
                chunk
                for start in range(0, len(order), size * BUCKET)
                for chunk in _chunks(self._alike(order[start : start + size * BUCKET], size, generator), size)
            ]
        else:
            windows = []
            size = max(1, int(self.batch_tokens * share / max(1.0, float(self.lengths.mean()))))
            for start in range(0, len(order), size * BUCKET):
                bucket = self._alike(order[start : start + size * BUCKET], size, generator)
                windows += self._by_tokens(bucket, self.batch_tokens * share)
        # A short window stays last: in the middle of an epoch its larger steps would depend on the shuffle.
        short = [windows.pop()] if len(windows) > 1 and len(windows[-1]) < len(windows[0]) else []
        return [windows[i] for i in generator.permutation(len(windows))] + short

    def _alike(self, rows: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
        sides = (self.lengths[:, None] if self.sides is None else self.sides)[rows]
        if self.repeats is not None:  # by length alone the copies of a row would meet in one window
            sides = sides * generator.uniform(1 - BLUR, 1 + BLUR, (len(rows), 1))
        return rows[alike(sides, size)]

    def _by_tokens(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        """Rows of which neighbours are alike, cut where the longest times the number of rows would pass the budget."""
        windows, start, longest = [], 0, 0
        for end, length in enumerate(self.lengths[rows].tolist()):
            longest = max(longest, length)
            if end > start and longest * (end + 1 - start) > budget:
                windows.append(rows[start:end])
                start, longest = end, length
        return [*windows, rows[start:]]

    @property
    def rows_in_epoch(self) -> int:
        """Rows of an epoch, a repeated one as often as it stands in it."""
        return len(self.lengths) if self.repeats is None else len(self.repeats)

    @property
    def windows_in_epoch(self) -> int:
        """Windows of the first epoch; with a token budget others may have a few more or less."""
        size = self.batch_size * self.accumulation * self.processes
        return len(self.windows(0)) if self.batch_tokens else -(-self.rows_in_epoch // size)

    def steps(self, epochs: float) -> int:
        """Optimiser steps in `epochs`, at least one; a fraction of an epoch is rounded up to whole windows."""
        whole = int(epochs)
        fixed = whole * self.windows_in_epoch
        total = sum(len(self.windows(epoch)) for epoch in range(whole)) if self.batch_tokens else fixed
        return max(1, total + math.ceil(round((epochs - whole) * self.windows_in_epoch, 6)))

    def cut(self, window: np.ndarray, process: int, pieces: int = 1) -> list[MicroBatch]:
        """The micro-batches of one process, each in `pieces` where it has as many rows; every process gets the same number, so
        that none waits for another."""
        rows = -(-len(window) // self.processes)
        number = min(self.accumulation, rows)
        if self.batch_tokens is not None:  # rounding up may put a row too many into a micro-batch
            fitting = max(1, self.batch_tokens // int(self.lengths[window].max()))
            number = max(number, -(-rows // fitting))
        number = min(number * pieces, rows)
        share = number * self.processes
        mine = [window[i::share] for i in range(process, share, self.processes)]
        return [MicroBatch(part) if len(part) else MicroBatch(window[:1], counted=False) for part in mine]

    def windows_from(self, epoch: int, index: int) -> Iterator[Window]:
        """The windows from a position on, epoch after epoch, without end."""
        while True:
            windows = self.windows(epoch)
            for i in range(index, len(windows)):
                yield Window(epoch, i, len(windows), windows[i])
            epoch, index = epoch + 1, 0


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def alike(sides: np.ndarray, size: int) -> np.ndarray:
    """An order of rows (int64) in which each `size` rows after one another pad each other little.

    `sides` is (rows, sides). With one side that is the order of lengths. With several, rows are halved by the side that
    differs most among them, and the halves again, as a k-d tree does (Bentley 1975), down to `size` rows.
    """
    if sides.shape[1] == 1:
        return np.argsort(sides[:, 0], kind="stable")

    def halved(rows: np.ndarray) -> np.ndarray:
        parts = -(-len(rows) // size)
        if parts <= 1:
            return rows
        widest = sides[rows, sides[rows].std(0).argmax()]
        rows, middle = rows[np.argsort(widest, kind="stable")], parts // 2 * size
        return np.concatenate([halved(rows[:middle]), halved(rows[middle:])])

    return halved(np.arange(len(sides)))


def inference_batches(sides: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row indices in batches that pad little, the longest first: what would not fit in memory shows at once. `sides` is as for
    `alike`."""
    batches = _chunks(alike(-sides, batch_size), batch_size)
    return sorted(batches, key=lambda rows: -int(sides[rows].max(0).sum()))


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """The same with as many rows in a batch as `tokens` allow, padding counted; a row that is longer stands alone."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, tokens // max(1, int(lengths[order[start]])))  # the first row is the longest
        batches.append(order[start : start + size])
        start += size
    return batches
