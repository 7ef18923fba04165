"""Optimiser windows: which rows one optimiser step sees, over all processes, and how they are cut.

The plan of an epoch depends on the seed and the epoch alone. Where a run stands is therefore two integers, epoch and
window, and going on from there costs the same at step 10 and at step 10 million. A window is planned whole and only then
cut by process and micro-batch, so 1 x 32, 4 x 8 and 2 processes x 16 see the same rows in the same step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nlp_transfer.data.repeats import Repeats

BUCKET = 50  # windows whose rows are sorted by length together: little padding, and still well mixed
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
    it) padded tokens. Rows of similar `order` (int64, rows) stand together; by default that is their length. `repeats` says
    which rows stand more than once in an epoch. Phases of training, counted from 0, have orders of their own: where each is a
    part of an epoch, all would see the same rows.
    """

    lengths: np.ndarray
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    batch_tokens: int | None = None
    seed: int = 0
    order: np.ndarray | None = None
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
                for chunk in _chunks(self._sorted(order[start : start + size * BUCKET], generator), size)
            ]
        else:
            windows = []
            rows_a_bucket = max(1, int(self.batch_tokens * share * BUCKET / max(1.0, float(self.lengths.mean()))))
            for start in range(0, len(order), rows_a_bucket):
                bucket = self._sorted(order[start : start + rows_a_bucket], generator)
                windows += self._by_tokens(bucket, self.batch_tokens * share)
        # A short window stays last: in the middle of an epoch its larger steps would depend on the shuffle.
        short = [windows.pop()] if len(windows) > 1 and len(windows[-1]) < len(windows[0]) else []
        return [windows[i] for i in generator.permutation(len(windows))] + short

    def _sorted(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        order = (self.lengths if self.order is None else self.order)[rows]
        if self.repeats is not None:  # by length alone the copies of a row would meet in one window
            order = order * generator.uniform(1 - BLUR, 1 + BLUR, len(rows))
        return rows[np.argsort(order, kind="stable")]

    def _by_tokens(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        """Sorted rows, cut where the longest times the number of rows would pass the budget."""
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


def inference_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row indices in batches of similar length, the longest first: what would not fit in memory shows at once."""
    return _chunks(np.argsort(-lengths, kind="stable"), batch_size)


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """The same with as many rows in a batch as `tokens` allow, padding counted; a row that is longer stands alone."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, tokens // max(1, int(lengths[order[start]])))  # the first row is the longest
        batches.append(order[start : start + size])
        start += size
    return batches
