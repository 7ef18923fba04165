"""Convert SIGINT (Ctrl-C) and SIGTERM to an exception with an exit status."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal interrupted the command.

    Attributes:
        number: number of the signal.
        status: exit status of the process, 128 + `number`.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"by {signal.Signals(number).name}")
        self.number = number
        self.status = 128 + number


@contextmanager
def raise_interrupts() -> Iterator[None]:
    """Raise `Interrupted` in the block on SIGINT or SIGTERM, so that temporary files are removed; ignore further signals.

    Signals that are already ignored remain so, such as Ctrl-C in a background job of a script. Does nothing outside the main
    thread, where Python does not handle signals.
    """

    def handle(number: int, _: FrameType | None) -> None:
        for handled_signal in SIGNALS:
            signal.signal(handled_signal, signal.SIG_IGN)
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
