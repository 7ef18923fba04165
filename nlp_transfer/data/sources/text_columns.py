"""Long columns of text, kept in a file in place of memory.

A Python string takes more room than what stands in it, and all of a corpus is needed only once: when tokens are made of it.
"""

import contextlib
import hashlib
import mmap
import re
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import IO, Any, overload

import numpy as np

from nlp_transfer.data.sources.wheels import default_cache

IN_MEMORY = 2**22  # characters of a column; where there are more they go to a file
BLOCK = 1000  # texts that are decoded at once
# Zero-width space, word joiner, byte order mark, soft hyphen, marks of direction and variation selectors. Joiners are not among
# them: in Persian, say, they make other words.
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069\ufe0e\ufe0f\u034f]")
HALVES = "surrogatepass"  # a cell may hold half a character until it is checked


class Texts(Sequence[str]):
    """Texts in a file that has no name and is gone with the last reference to it; read-only.

    Args:
        content: the texts in UTF-8, one after the other.
        starts, ends: int64 of shape (texts,), where each stands, in bytes.
    """

    def __init__(self, content: mmap.mmap, starts: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.starts, self.ends = content, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return str(self.content[self.starts[index] : self.ends[index]], "utf-8", HALVES)
        places = zip(self.starts[index].tolist(), self.ends[index].tolist(), strict=True)
        return [str(self.content[start:end], "utf-8", HALVES) for start, end in places]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def select(self, indices: np.ndarray) -> "Texts":
        """The texts at `indices` (int), in that order; the file is shared."""
        return Texts(self.content, self.starts[indices], self.ends[indices])


class GrowingColumn:
    """A column that is read block by block: a list, and once it is long and text alone a file. It stays a list where no file can
    be written, on a full disk say."""

    def __init__(self) -> None:
        self._cells: list[Any] = []  # in memory: all cells, or those that are not in the file yet
        self._characters = 0
        self._file: IO[bytes] | None = None
        self._bounds = array("q", [0])  # where texts end in the file, in bytes
        self._stays = False

    def extend(self, cells: Iterable[Any]) -> None:
        """Adds cells of any type."""
        cells = list(cells)
        self._cells += cells
        if self._stays:
            return
        if not all(type(cell) is str for cell in cells):
            self._return()
            return
        self._characters += sum(map(len, cells))
        if self._file is not None or self._characters > IN_MEMORY:
            self._move()

    def done(self) -> Sequence[Any]:
        """All cells, as a list or as `Texts`; nothing may be added after that."""
        if self._file is None:
            return self._cells
        with self._file:
            return self._read()

    def _move(self) -> None:
        """Writes the cells in memory to the file."""
        texts = [cell.encode("utf-8", HALVES) for cell in self._cells]
        try:
            if self._file is None:
                folder = default_cache()  # not the system's folder for such files, which is often memory itself
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it outlives this call)
            self._file.write(b"".join(texts))
            self._file.flush()
        except OSError:
            self._return()
        else:
            self._bounds.extend(islice(accumulate(map(len, texts), initial=self._bounds[-1]), 1, None))
            self._cells = []

    def _return(self) -> None:
        """Gives the file up: all cells are in memory again, and stay there."""
        self._stays = True
        if self._file is not None:
            self._cells = (self._read()[:] if len(self._bounds) > 1 else []) + self._cells
            with contextlib.suppress(OSError):  # closing tries to write what did not go in
                self._file.close()
            self._file = None

    def _read(self) -> Texts:
        assert self._file is not None
        bounds = np.frombuffer(self._bounds, np.int64)
        return Texts(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), bounds[:-1], bounds[1:])


def normalized(text: str) -> str:
    """The text as it is compared with others to find copies: equal for near copies too.

    Near copies differ in case (Unicode case folding), in runs of white space of any kind, at the ends or inside, in invisible
    characters that do not change a word, or in the Unicode form (canonical: one code point or several for the same character).
    Compatibility forms stay different: NFKC would make the same text of x² and x2, or of ½ and 1/2, which mean different things.
    """
    if not text.isascii():
        # Folding case can bring a text out of its form. Texts that are in form NFC already, as most are, are only checked.
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", INVISIBLE.sub("", text)).casefold())
        return " ".join(text.split())
    return " ".join(text.lower().split())


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """int64 of shape (texts,), equal where texts are equal, in every process: they take eight bytes where a set of texts takes
    all of them. That two different ones among ten million are taken for equal has a probability of three in a million."""
    digests = (hashlib.blake2b(text.encode("utf-8", HALVES), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little", signed=True) for digest in digests), np.int64)
