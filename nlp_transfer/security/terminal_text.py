"""Text that is safe to show on a terminal, whoever wrote it.

Labels, names of columns, paths and fields of a model's configuration come from strangers, and a terminal obeys the control
sequences in them: they clear the screen, hide or reorder what else is printed, or set the window's title.
"""

import re
from io import TextIOBase
from typing import TextIO

# Control characters but for tab and line feed, lone surrogates, marks that reorder text (embeddings, overrides, isolates), and
# the separators of lines and paragraphs. Joiners and single marks of direction belong to the spelling of languages.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with `\x1b` and the like spelled out; text without such characters stays as it is."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableStream(TextIOBase):
    """A stream of text to a terminal that makes what is written through it printable; the stream below stays open."""

    def __init__(self, below: TextIO) -> None:
        self.below = below

    def write(self, text: str) -> int:
        return self.below.write(printable(text))

    def flush(self) -> None:
        self.below.flush()

    def close(self) -> None:
        """Leave the stream below open."""
