"""Escape control characters in untrusted text before it is shown on a terminal.

Labels, column names, paths and model configurations may contain control sequences that clear the screen, hide or reorder output,
or set the window title.
"""

import re
from io import TextIOBase
from typing import TextIO

# Control characters (but not tab and line feed), lone surrogates, bidirectional embeddings, overrides and isolates, and line and
# paragraph separators. Joiners and single directional marks are allowed, since some languages need them.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Escape the control characters in a text, such as `\x1b`."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class PrintableStream(TextIOBase):
    """A text stream that escapes control characters. Closing it does not close the underlying stream."""

    def __init__(self, below: TextIO) -> None:
        self.below = below

    def write(self, text: str) -> int:
        return self.below.write(printable(text))

    def flush(self) -> None:
        self.below.flush()

    def close(self) -> None:
        """Do nothing."""
