"""SIGTERM and SIGINT while a run is under way: what was learned is kept, and the process ends soon.

Schedulers that take a machine back (preemption) send SIGTERM and, some seconds later, SIGKILL.
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

FORWARDED = 2.0  # seconds in which a launcher passes on the signal that the terminal has sent to all processes already


class Signals:
    """While it is entered, a first signal raises `Interrupted`: at once, or where `held`, when the holder looks at `received`.
    A second one ends the process there and then.

    Python lets only the main thread handle signals; in another one nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._holding = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    @contextmanager
    def held(self, hold: bool = True) -> Iterator[None]:
        """Between two of the holder's looks nothing is broken off; with `hold` false, for that part, it is again."""
        before, self._holding = self._holding, hold
        try:
            if not hold:
                self.look()
            yield
        finally:
            self._holding = before

    def look(self) -> None:
        """Raises Interrupted where a signal has arrived."""
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
        if rank() == 0:  # no print: a handler may break into one
            with suppress(OSError):  # nobody may be reading
                os.write(2, f"{signal.Signals(number).name}: saving after this step; once more to leave at once\n".encode())
