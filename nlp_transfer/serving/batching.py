"""Dynamic batching: requests that wait in a queue are predicted together, in one worker thread."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
from anyio import CapacityLimiter, Event

BATCH_ROWS = 256  # rows that are predicted together; the predictor sorts them by length
Columns = dict[str, list[Any]]
Records = list[dict[str, Any]]


class QueueFullError(Exception):
    """The queue has no room for a request.

    Attributes:
        seconds: When the waiting rows will probably have been predicted, in seconds from now.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(eq=False)
class _Job:
    """A request that waits for its predictions."""

    columns: Columns
    rows: int
    probabilities: bool
    done: Event = field(default_factory=Event)
    records: Records = field(default_factory=list)
    error: Exception | None = None


class Batcher:
    """A queue of requests, and the task that predicts them.

    While the model computes, requests wait; then all of them, up to `BATCH_ROWS` rows, are predicted together. A request that
    arrives at an idle server is predicted at once.

    Args:
        predict: Predicts columns, with the probability of each label if its second argument is true. It is called in one worker
            thread at a time.
        limit: The largest number of waiting rows. A single request may have more if nothing else waits.
        seconds: The longest time that a request waits for its predictions.
        observe: Called with the number of rows of each batch.
    """

    def __init__(
        self,
        predict: Callable[[Columns, bool], Records],
        limit: int,
        seconds: float,
        observe: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self._predict, self._limit, self._seconds, self._observe = predict, limit, seconds, observe
        self._waiting: deque[_Job] = deque()
        self._arrived = Event()
        self._seconds_per_row = 0.0

    @property
    def waiting_rows(self) -> int:
        """Number of rows in the queue."""
        return sum(job.rows for job in self._waiting)

    async def submit(self, columns: Columns, probabilities: bool) -> Records:
        """Return the predictions of one request, in the order of its rows.

        Raises:
            QueueFullError: Too many rows are waiting.
            TimeoutError: There was no prediction in time. If it has not begun, it is not computed.
            UserError: The rows cannot be predicted.
        """
        rows, waiting = len(next(iter(columns.values()))), self.waiting_rows
        if waiting and waiting + rows > self._limit:
            raise QueueFullError(max(1, math.ceil(waiting * self._seconds_per_row)))
        self._waiting.append(job := _Job(columns, rows, probabilities))
        self._arrived.set()
        try:
            with anyio.fail_after(self._seconds):
                await job.done.wait()
        finally:
            if job in self._waiting:
                self._waiting.remove(job)
        if job.error is not None:
            raise job.error
        return job.records

    async def run(self) -> None:
        """Predict requests until this task is cancelled."""
        one_thread = CapacityLimiter(1)
        while True:
            await self._arrived.wait()
            while jobs := self._take():
                rows, start = sum(job.rows for job in jobs), time.perf_counter()
                await anyio.to_thread.run_sync(self._predict_jobs, jobs, limiter=one_thread)
                self._seconds_per_row = (time.perf_counter() - start) / rows
                self._observe(rows)
                for job in jobs:
                    job.done.set()
            self._arrived = Event()

    def _take(self) -> list[_Job]:
        """Remove the jobs of the next batch from the queue."""
        jobs: list[_Job] = []
        while self._waiting and (not jobs or sum(job.rows for job in jobs) + self._waiting[0].rows <= BATCH_ROWS):
            jobs.append(self._waiting.popleft())
        return jobs

    def _predict_jobs(self, jobs: list[_Job]) -> None:
        for probabilities in (False, True):
            if same := [job for job in jobs if job.probabilities is probabilities]:
                self._predict_together(same)

    def _predict_together(self, jobs: list[_Job]) -> None:
        """Set the records or the error of each job. If the jobs fail together, each is tried alone: one may be at fault."""
        columns = {name: [cell for job in jobs for cell in job.columns[name]] for name in jobs[0].columns}
        rows = sum(job.rows for job in jobs)
        try:
            records = self._predict(columns, jobs[0].probabilities)
            if len(records) != rows:
                raise RuntimeError(f"found {len(records)} predictions for {rows} rows")
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    self._predict_together([job])
            return
        remaining = iter(records)
        for job in jobs:
            job.records = [next(remaining) for _ in range(job.rows)]
