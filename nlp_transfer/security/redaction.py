"""Redact secrets in everything that this process prints, even if a secret is split over several writes.

`sys.stdout` and `sys.stderr` become text streams with a `Redactor` as their `buffer`. Direct writes to the file descriptors are
not redacted. These are messages of C libraries, and predictions on standard output, which are the user's data
(`standard_streams.py`).
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

from nlp_transfer.security.secret_patterns import hide, redact, spans, unfinished
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.environment import finish_output, open_streams

_redactors: "weakref.WeakSet[Redactor]" = weakref.WeakSet()
MOST_HELD = 1 << 16  # maximum number of characters to hold back; no secret is longer
CONTEXT = 512  # maximum number of characters of an unfinished line to remember as context of the next write


class Redactor(io.BufferedIOBase):
    """A binary stream that redacts secrets and writes everything else to the underlying stream.

    If a write may end inside a secret, the text from the start of that secret is held back until the next write or `release`. If
    a secret is written in parts, at most its first three characters, or its prefix such as `hf_`, are printed.
    """

    def __init__(self, below: Any) -> None:
        self.below = below
        self._binary = getattr(below, "buffer", None) or _Encoded(below)
        self._before = ""  # the end of the current line that is already printed
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # all bytes round-trip
        self._lock = threading.RLock()  # a signal handler may print during a write of the same thread
        _redactors.add(self)

    def write(self, data: Any) -> int:
        """Print all text that cannot be part of a secret."""
        with self._lock:
            text = f"{self._before}{self._held}{self._decoder.decode(memoryview(data).tobytes())}"
            secrets = spans(text)
            end = unfinished(text, secrets)
            if len(text) - end > MOST_HELD:
                end = len(text)
            self._print(text, secrets, max(end, len(self._before)))
        return len(data)

    def _print(self, text: str, secrets: list[tuple[int, int]], end: int) -> None:
        shown = hide(text, secrets, len(self._before), end)
        line = max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1
        self._before, self._held = text[max(line, end - CONTEXT) : end], text[end:]
        if shown:
            self._binary.write(shown.encode("utf-8", "surrogateescape"))

    def release(self) -> None:
        """Print the text that is held back, since no write follows."""
        with self._lock:
            text = f"{self._before}{self._held}{self._decoder.decode(b'', final=True)}"
            self._print(text, spans(text), len(text))
            self.flush()

    def flush(self) -> None:
        self._binary.flush()

    def close(self) -> None:
        """Print the text that is held back. The underlying stream remains open, since other code may use it."""
        with suppress(ValueError):  # the underlying stream is closed
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
    """Reset all redactors after a fork: another thread may have held a lock, and the parent prints the held text."""
    for redactor in _redactors:
        redactor._lock, redactor._held = threading.RLock(), ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


class _Encoded:
    """Converts writes of bytes to writes of text, for a text stream without `buffer`, such as in a notebook."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: bytes) -> None:
        self.stream.write(self._decoder.decode(data))

    def flush(self) -> None:
        self.stream.flush()


def guard_output() -> None:
    """Redact secrets in everything that this process prints from now on, including warnings, tracebacks and library output."""
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
    """Redact secrets and escape control characters in all log records and warnings from now on."""
    factory = logging.getLogRecordFactory()
    if not getattr(factory, "is_guarded", False):
        logging.setLogRecordFactory(_guarded(factory))
        show = warnings.formatwarning
        warnings.formatwarning = lambda *arguments, **named: printable(show(*arguments, **named))


def _guarded(make: Any) -> Any:
    """Return a factory of redacted log records, for handlers that do not write to the guarded streams."""

    def make_record(*arguments: Any, **fields: Any) -> logging.LogRecord:
        record: logging.LogRecord = make(*arguments, **fields)
        try:
            text = record.getMessage()
        except Exception:  # the arguments do not match the message; logging reports it
            return record
        if (shown := printable(redact(text))) != text:
            record.msg, record.args = shown, None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = printable(redact(logging.Formatter().formatException(record.exc_info)))
        return record

    make_record.is_guarded = True  # type: ignore[attr-defined]
    return make_record
