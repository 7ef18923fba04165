"""Times training loops from outside, through PyTorch's optimizer hooks, so that every library is timed in the same way.

A cycle lasts from the end of one optimizer step to the end of the next, batch preparation included.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from protocol import Channel, training_seconds
from torch.optim.optimizer import register_optimizer_step_post_hook


def finish_device() -> None:
    """Wait for the work queued on a GPU, which would otherwise not be counted."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Turns:
    """Divides the steps of a loop into turns: after each turn the loop waits inside the hook for the next request.

    `count` returns (rows, tokens without padding, padded tokens or 0) so far. With `late`, for loops that count a step only after
    its optimizer step, it is called one step later.
    """

    def __init__(self, channel: Channel, count: Callable[[], tuple[int, int, int]], late: bool = False) -> None:
        self.channel, self.count, self.late = channel, count, late
        self.request: dict[str, Any] | None = None
        self.steps = 0
        self.pending: float | None = None
        self.more: dict[str, Any] = {}
        """Further figures for the next answer."""
        self.hook = register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, *_: Any) -> None:
        if self.request is not None:
            wanted = (self.request["warmup"], self.request["warmup"] + self.request["steps"])
            if not {self.steps + 1, self.steps + 2}.isdisjoint(wanted):
                finish_device()
        now = time.perf_counter()
        if self.request is None:  # the first step of all has shown that it works
            self.channel.ready()
            self._begin()
            return
        if self.late:
            now, self.pending = self.pending, now
            if now is None:  # the first step of a turn: its counts are known after the next one
                return
        self.steps += 1
        if self.steps == self.request["warmup"]:
            self.start = now, self.count()
        if self.steps == self.request["warmup"] + self.request["steps"]:
            began, before = self.start
            seconds = now - began
            rows, tokens, padded = (after - one for after, one in zip(self.count(), before, strict=True))
            self.channel.answer(
                {"seconds": seconds, "steps": self.request["steps"], "rows": rows, "tokens": tokens, "padded_tokens": padded,
                 "tokens_per_second": tokens / seconds, **self.more}
            )  # fmt: skip
            self._begin()

    def _begin(self) -> None:
        self.request, self.steps, self.pending = self.channel.next(), 0, None


class Stopwatch:
    """Seconds of training alone in a loop that also evaluates.

    A cycle with an evaluation counts as the median cycle, and so does the first one, which includes loading.
    """

    def __init__(self, after_step: Callable[[int], None] = lambda step: None) -> None:
        self.times: list[float] = []
        self.after_step = after_step
        self.hook = register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, *_: Any) -> None:
        finish_device()
        self.times.append(time.perf_counter())
        self.after_step(len(self.times))

    def stop(self) -> None:
        self.hook.remove()

    def seconds(self, step: int, evaluated_after: Collection[int] = ()) -> float:
        """Return the seconds of the first `step` steps (counted from 1), given evaluations after the steps `evaluated_after`."""
        return training_seconds(self.times, step, evaluated_after)
