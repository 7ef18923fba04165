"""Hides secrets in whatever this process prints, wherever one write ends and the next begins.

Text and bytes take one path: `sys.stdout` and `sys.stderr` become text layers over a `Redactor`, which is also their `buffer`.
What is written to the file descriptors directly goes past it: messages of C libraries, and predictions on standard output,
which are the user's data (`standard_streams`).
"""

import atexit
import codecs
import io
import logging
import os
import sys
import threading
import warnings
import weakref
from contextlib import suppress
from typing import Any, TextIO

from nlp_transfer.security.secret_patterns import begun, hide, redact, spans
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.environment import finish_output, open_streams

_redactors: "weakref.WeakSet[Redactor]" = weakref.WeakSet()
MOST_HELD = 1 << 16  # bytes; what is longer and still no complete secret is none
CONTEXT = 512  # characters of an unfinished line by which the next write is judged


class Redactor(io.BufferedIOBase):
    """A binary stream that writes to the one below all but secrets.

    The end of a write is held back where a secret may begin in it: until the next write, or `release`. Of a secret that is
    written in parts, at most three characters or what its kind begins with (`hf_`) are printed.
    """

    def __init__(self, below: Any) -> None:
        self.below = below
        self._binary = getattr(below, "buffer", None) or _Encoded(below)
        self._before = ""  # of the last line, what is printed already
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # any bytes come back as they were
        self._lock = threading.RLock()  # a signal's handler may print while the same thread does
        _redactors.add(self)

    def write(self, data: Any) -> int:
        """Print all that cannot be part of a secret any more."""
        with self._lock:
            text = f"{self._before}{self._held}{self._decoder.decode(memoryview(data).tobytes())}"
            found = spans(text)
            end = begun(text, found)
            if len(text) - end > MOST_HELD:
                end = len(text)
            self._print(text, found, max(end, len(self._before)))
        return len(data)

    def _print(self, text: str, found: list[tuple[int, int]], end: int) -> None:
        shown = hide(text, found, len(self._before), end)
        line = max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1
        self._before, self._held = text[max(line, end - CONTEXT) : end], text[end:]
        if shown:
            self._binary.write(shown.encode("utf-8", "surrogateescape"))

    def release(self) -> None:
        """Print what is held back, since nothing follows."""
        with self._lock:
            text = f"{self._before}{self._held}{self._decoder.decode(b'', final=True)}"
            self._print(text, spans(text), len(text))
            self.flush()

    def flush(self) -> None:
        self._binary.flush()

    def close(self) -> None:
        """Release; the stream below stays open, since others may hold it."""
        with suppress(ValueError):  # closed by others
            self.release()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.below.fileno())

    def isatty(self) -> bool:
        return bool(self.below.isatty())

    @property
    def raw(self) -> "Redactor":
        return self

    @property
    def name(self) -> Any:
        return getattr(self.below, "name", None)


def _begin_child() -> None:
    """After a fork: another thread may have held a lock, and what is held back is printed by the parent."""
    for redactor in _redactors:
        redactor._lock, redactor._held = threading.RLock(), ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


class _Encoded:
    """A text stream without a `buffer`, such as a notebook's, as a binary one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: bytes) -> None:
        self.stream.write(self._decoder.decode(data))

    def flush(self) -> None:
        self.stream.flush()


def guard_output() -> None:
    """From now on nothing secret is printed by this process: not by its threads, warnings, other libraries, or a traceback."""
    open_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(getattr(stream, "buffer", None), Redactor):
            continue
        below = Redactor(stream)
        text = isinstance(stream, io.TextIOWrapper)
        guarded = io.TextIOWrapper(
            below,
            encoding=stream.encoding if text else "utf-8",
            errors=stream.errors if text else "backslashreplace",
            line_buffering=stream.line_buffering if text else True,
            write_through=stream.write_through if text else False,
        )
        setattr(sys, name, guarded)
        if getattr(sys, f"__{name}__") is stream:
            setattr(sys, f"__{name}__", guarded)
    atexit.register(finish_output)
    guard_messages()


def guard_messages() -> None:
    """From now on log records and warnings of all libraries are without secrets and control sequences."""
    before = logging.getLogRecordFactory()
    if not getattr(before, "is_guarded", False):
        logging.setLogRecordFactory(_guarded(before))
        show = warnings.formatwarning
        warnings.formatwarning = lambda *arguments, **named: printable(show(*arguments, **named))


def _guarded(make: Any) -> Any:
    """Log records without secrets and control sequences; handlers may write past the streams that are guarded."""

    def record(*arguments: Any, **fields: Any) -> logging.LogRecord:
        made: logging.LogRecord = make(*arguments, **fields)
        try:
            text = made.getMessage()
        except Exception:  # the arguments do not fit the message: logging itself complains about that
            return made
        if (shown := printable(redact(text))) != text:
            made.msg, made.args = shown, None
        if made.exc_info and made.exc_info[0] is not None:
            made.exc_text = printable(redact(logging.Formatter().formatException(made.exc_info)))
        return made

    record.is_guarded = True  # type: ignore[attr-defined]
    return record
