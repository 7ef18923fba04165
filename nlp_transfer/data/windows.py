"""Plan windows and divide them into micro-batches. A window is the rows of one optimizer step in all processes.

The plan of an epoch depends only on the seed and the epoch, so a run resumes from two integers, epoch and window, at constant
cost. A window is planned for all processes and then divided among processes and micro-batches. One micro-batch of 32 rows, four
of 8 rows, and two processes with 16 rows each therefore see the same rows in the same step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nlp_transfer.data.oversampling import Repeats

BUCKET = 200  # number of windows whose rows are sorted together by length: little padding, but still well shuffled
PADDING_SHARE = 16  # the padding of an inference batch is at most 1/16 of its token limit
BLUR = 0.25  # relative noise on lengths before sorting, to separate the copies of repeated rows


@dataclass(frozen=True)
class MicroBatch:
    """Row indices of one process. If `counted` is false, the loss is zero, and the batch only synchronizes the processes."""

    rows: np.ndarray
    counted: bool = True


@dataclass(frozen=True)
class Window:
    """Row indices (int64) of one optimizer step in all processes.

    `index` counts from 0, and `of` is the number of windows in the epoch.
    """

    epoch: int
    index: int
    of: int
    rows: np.ndarray


@dataclass(frozen=True)
class WindowPlan:
    """Plan that divides the rows of a split into windows.

    Attributes:
        lengths: Tokens of each row, int64 of shape (rows,).
        batch_size: Rows per process and micro-batch.
        accumulation: Micro-batches per process and window.
        batch_tokens: Padded tokens per process and micro-batch. Overrides `batch_size`.
        side_lengths: Lengths of the sides that are padded separately, such as source and target; int64 of shape (rows, sides).
            None: the same as `lengths`.
        repeats: Number of occurrences of each row in an epoch; None: each row occurs once.
        phase: Index of the training phase. Each phase shuffles differently: with the same order, all phases shorter than an
            epoch would see the same rows.
    """

    lengths: np.ndarray
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    batch_tokens: int | None = None
    seed: int = 0
    side_lengths: np.ndarray | None = None
    repeats: Repeats | None = None
    phase: int = 0

    def windows(self, epoch: int) -> list[np.ndarray]:
        """Return the row indices (int64) of each window of an epoch.

        Every row occurs once, or as often as `repeats` defines. The last window may be short.
        """
        generator = np.random.default_rng([self.seed, epoch, self.phase] if self.phase else [self.seed, epoch])
        order = generator.permutation(len(self.lengths) if self.repeats is None else self.repeats.rows(generator))
        batches_per_window = self.accumulation * self.processes
        if self.batch_tokens is None:
            size = self.batch_size * batches_per_window
            windows = [
                chunk
                for start in range(0, len(order), size * BUCKET)
                for chunk in _chunks(self._by_length(order[start : start + size * BUCKET], size, generator), size)
            ]
        else:
            windows = []
            size = max(1, int(self.batch_tokens * batches_per_window / max(1.0, float(self.lengths.mean()))))
            for start in range(0, len(order), size * BUCKET):
                bucket = self._by_length(order[start : start + size * BUCKET], size, generator)
                windows += self._by_tokens(bucket, self.batch_tokens * batches_per_window)
        # A short window has more gradient noise; it stays last, so that its position does not depend on the shuffle.
        short = [windows.pop()] if len(windows) > 1 and len(windows[-1]) < len(windows[0]) else []
        return [windows[i] for i in generator.permutation(len(windows))] + short

    def _by_length(self, rows: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
        lengths = (self.lengths[:, None] if self.side_lengths is None else self.side_lengths)[rows]
        if self.repeats is not None:  # so that copies of a row are not in the same window
            lengths = lengths * generator.uniform(1 - BLUR, 1 + BLUR, (len(rows), 1))
        return rows[sort_by_length(lengths, size)]

    def _by_tokens(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        """Split sorted rows into windows of at most `budget` padded tokens."""
        windows, start, longest = [], 0, 0
        for end, length in enumerate(self.lengths[rows].tolist()):
            longest = max(longest, length)
            if end > start and longest * (end + 1 - start) > budget:
                windows.append(rows[start:end])
                start, longest = end, length
        return [*windows, rows[start:]]

    @property
    def rows_in_epoch(self) -> int:
        """Rows of an epoch, with repetitions."""
        return len(self.lengths) if self.repeats is None else len(self.repeats)

    @cached_property  # with `batch_tokens`, all windows are planned to count them
    def windows_in_epoch(self) -> int:
        """Windows of the first epoch; with `batch_tokens`, other epochs may have a few more or less."""
        size = self.batch_size * self.accumulation * self.processes
        return len(self.windows(0)) if self.batch_tokens else -(-self.rows_in_epoch // size)

    def steps(self, epochs: float) -> int:
        """Return the number of optimizer steps in `epochs`, at least one. A fraction of an epoch is rounded up."""
        full = int(epochs)
        planned = full * self.windows_in_epoch
        total = sum(len(self.windows(epoch)) for epoch in range(full)) if self.batch_tokens else planned
        return max(1, total + math.ceil(round((epochs - full) * self.windows_in_epoch, 6)))

    def micro_batches(self, window: np.ndarray, process: int, pieces: int = 1) -> list[MicroBatch]:
        """Return the micro-batches of one process. Every process gets the same number, so that collective operations match.

        Args:
            window: Row indices (int64).
            process: Rank of the process.
            pieces: Number of parts into which each micro-batch is divided, if it has enough rows.
        """
        rows = -(-len(window) // self.processes)
        number = min(self.accumulation, rows)
        if self.batch_tokens is not None:  # `rows / number` is rounded up, which could exceed `batch_tokens`
            most_rows = max(1, self.batch_tokens // int(self.lengths[window].max()))
            number = max(number, -(-rows // most_rows))
        number = min(number * pieces, rows)
        total = number * self.processes
        batches = [window[i::total] for i in range(process, total, self.processes)]
        return [MicroBatch(rows) if len(rows) else MicroBatch(window[:1], counted=False) for rows in batches]

    def windows_from(self, epoch: int, index: int) -> Iterator[Window]:
        """Yield windows indefinitely, starting with window `index` of `epoch`."""
        while True:
            windows = self.windows(epoch)
            for i in range(index, len(windows)):
                yield Window(epoch, i, len(windows), windows[i])
            epoch, index = epoch + 1, 0


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def sort_by_length(lengths: np.ndarray, size: int) -> np.ndarray:
    """Return an order of rows (int64) in which batches of `size` consecutive rows need little padding.

    Rows with one side are sorted by length. Rows with several sides are split recursively at the median of the side with the
    largest variance, down to `size` rows, as in a k-d tree (Bentley 1975).

    Args:
        lengths: Lengths of the sides that are padded separately, of shape (rows, sides).
        size: Rows in a batch.
    """
    if lengths.shape[1] == 1:
        return np.argsort(lengths[:, 0], kind="stable")

    def halved(rows: np.ndarray) -> np.ndarray:
        batches = -(-len(rows) // size)
        if batches <= 1:
            return rows
        widest = lengths[rows, lengths[rows].std(0).argmax()]
        rows, middle = rows[np.argsort(widest, kind="stable")], batches // 2 * size
        return np.concatenate([halved(rows[:middle]), halved(rows[middle:])])

    return halved(np.arange(len(lengths)))


def inference_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row indices with little padding, the longest first, so that out-of-memory errors occur at once.

    Args:
        lengths: See `sort_by_length`.
        batch_size: Rows in a batch.
    """
    batches = _chunks(sort_by_length(-lengths, batch_size), batch_size)
    return sorted(batches, key=lambda rows: -int(lengths[rows].max(0).sum()))


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Return batches of row indices with at most `tokens` tokens, padding included, the longest rows first.

    A row with more than `tokens` tokens is a batch by itself. A batch also ends when more rows would add more padding than
    another batch costs, which is estimated as `tokens` / `PADDING_SHARE` tokens.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(1, tokens // max(1, longest))]
        batches.append(rows[np.cumsum(longest - lengths[rows]) <= tokens // PADDING_SHARE])
        start += len(batches[-1])
    return batches
