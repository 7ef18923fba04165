"""Handle SIGTERM and SIGINT during a run: save a checkpoint, then exit.

Schedulers send a preempted job SIGTERM and, some seconds later, SIGKILL.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from nlp_transfer.utils.distributed import rank, world_size
from nlp_transfer.utils.interrupts import SIGNALS, Interrupted

_ACTIVE = threading.local()  # its attribute `stack` lists the contexts that a thread has entered
FORWARDED = 2.0  # seconds in which a launcher forwards a signal that the terminal has already sent to every process


class Signals:
    """Context that handles signals. The first signal raises `Interrupted`, and the second one ends the process immediately.

    Inside `held`, the first signal is only recorded in `received`. Outside of the main thread, the context has no effect, since
    Python handles signals only in the main thread.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal."""
        self._since = 0.0
        self._holding = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrive) for number in SIGNALS}
        _ACTIVE.stack = [*getattr(_ACTIVE, "stack", ()), self]
        return self

    def __exit__(self, *_: object) -> None:
        _ACTIVE.stack = [signals for signals in _ACTIVE.stack if signals is not self]
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    @contextmanager
    def held(self, hold: bool = True) -> Iterator[None]:
        """Record signals without raising `Interrupted`. With `hold=False` inside an outer `held`, signals raise it again."""
        before, self._holding = self._holding, hold
        try:
            if not hold:
                self.raise_if_received()
            yield
        finally:
            self._holding = before

    def raise_if_received(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None:
            launched = world_size() > 1
            if not launched or now - self._since > FORWARDED:
                os._exit(128 + number)
            return
        self.received, self._since = number, now
        if not self._holding:
            raise Interrupted(number)
        if rank() == 0:  # `print` is not reentrant
            with suppress(OSError):  # standard error may be closed
                os.write(
                    2, f"{signal.Signals(number).name}: saving after this step; send it again to exit immediately\n".encode()
                )


def active_signals() -> Signals:
    """Return the innermost context that this thread has entered. If there is none, return a new one, which handles no signals."""
    stack: list[Signals] = getattr(_ACTIVE, "stack", [])
    return stack[-1] if stack else Signals()
