"""Escape control characters before untrusted text is shown on a terminal.

Labels, column names, paths and model configurations may contain control sequences that clear the screen, hide or reorder other
output, or set the window title.
"""

import re
from io import TextIOBase
from typing import TextIO

# Control characters except tab and line feed, lone surrogates, bidirectional embeddings, overrides and isolates, and line and
# paragraph separators. Joiners and single directional marks stay, since some languages need them.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return the text with control characters escaped, such as `\x1b`."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class PrintableStream(TextIOBase):
    """A text stream to a terminal that escapes control characters. Closing it leaves the underlying stream open."""

    def __init__(self, below: TextIO) -> None:
        self.below = below

    def write(self, text: str) -> int:
        return self.below.write(printable(text))

    def flush(self) -> None:
        self.below.flush()

    def close(self) -> None:
        """Leave the underlying stream open."""
