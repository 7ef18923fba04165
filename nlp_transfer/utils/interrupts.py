"""Convert SIGINT (Ctrl-C) and SIGTERM to an exception with an exit status, and keep the stack on which signals are handled."""

import ctypes
import signal
import sys
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


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """After the block, restore the stack on which this thread handles signals.

    Each `openvino.Core` replaces that stack by its own, and frees it with itself. If two of them are not destroyed in reverse
    order, the thread keeps a stack that has been freed, and the next signal, such as Ctrl-C, ends the process by a segmentation
    fault.
    """
    if sys.platform != "linux":  # elsewhere OpenVINO leaves the stack alone
        yield
        return
    system, stack = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # more than the size of a `stack_t`
    system.sigaltstack(None, stack)
    try:
        yield
    finally:
        system.sigaltstack(stack, None)
