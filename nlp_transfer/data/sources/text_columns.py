"""Store long text columns in a temporary file, since Python strings take much memory and are needed only for tokenization."""

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

from nlp_transfer.utils.environment import default_cache

IN_MEMORY = 2**22  # characters of a column; longer columns are stored in a file
BLOCK = 1000  # texts decoded at once
# Zero-width space, word joiner, byte order mark, soft hyphen, direction marks and variation selectors. Zero-width joiners are
# not included, since they distinguish words, for example in Persian.
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069\ufe0e\ufe0f\u034f]")
SURROGATES = "surrogatepass"  # unchecked cells may contain lone surrogates


class Texts(Sequence[str]):
    """Read-only sequence of texts in an unnamed temporary file.

    Args:
        content: The memory-mapped file, with concatenated texts in UTF-8.
        starts: Start of each text in bytes, int64 of shape (texts,).
        ends: End of each text in bytes, int64 of shape (texts,).
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
            return str(self.content[self.starts[index] : self.ends[index]], "utf-8", SURROGATES)
        places = zip(self.starts[index].tolist(), self.ends[index].tolist(), strict=True)
        return [str(self.content[start:end], "utf-8", SURROGATES) for start, end in places]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def select(self, indices: np.ndarray) -> "Texts":
        """Return the texts at `indices` (int), in that order, in the same file."""
        return Texts(self.content, self.starts[indices], self.ends[indices])


class GrowingColumn:
    """Builds a column block by block: a list in memory, or a file if the column is long and contains only text.

    If the file cannot be written, for example on a full disk, the column stays in memory.
    """

    def __init__(self) -> None:
        self._cells: list[Any] = []  # cells that are not in the file
        self._characters = 0
        self._file: IO[bytes] | None = None
        self._bounds = array("q", [0])  # byte offsets of the ends of texts in the file
        self._is_list = False

    def extend(self, cells: Iterable[Any]) -> None:
        """Append cells of any type."""
        cells = list(cells)
        self._cells += cells
        if self._is_list:
            return
        if not all(type(cell) is str for cell in cells):
            self._use_list()
            return
        self._characters += sum(map(len, cells))
        if self._file is not None or self._characters > IN_MEMORY:
            self._move()

    def done(self) -> Sequence[Any]:
        """Return all cells as a list or as `Texts`. Call it once, after the last `extend`."""
        if self._file is None:
            return self._cells
        with self._file:
            return self._read()

    def _move(self) -> None:
        """Move the cells from memory to the file."""
        texts = [cell.encode("utf-8", SURROGATES) for cell in self._cells]
        try:
            if self._file is None:
                folder = default_cache()  # the system's temporary folder is often in memory
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it outlives this call)
            self._file.write(b"".join(texts))
            self._file.flush()
        except OSError:
            self._use_list()
        else:
            self._bounds.extend(islice(accumulate(map(len, texts), initial=self._bounds[-1]), 1, None))
            self._cells = []

    def _use_list(self) -> None:
        """Read all cells back into memory and close the file."""
        self._is_list = True
        if self._file is not None:
            self._cells = (self._read()[:] if len(self._bounds) > 1 else []) + self._cells
            with contextlib.suppress(OSError):  # closing flushes, which fails on a full disk
                self._file.close()
            self._file = None

    def _read(self) -> Texts:
        assert self._file is not None
        bounds = np.frombuffer(self._bounds, np.int64)
        return Texts(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), bounds[:-1], bounds[1:])


def normalized(text: str) -> str:
    """Normalize a text for finding duplicates.

    Applies case folding, removes redundant white space and invisible characters, and normalizes to NFC. NFKC would equate x²
    with x2 and ½ with 1/2.
    """
    if not text.isascii():
        # Case folding can undo NFC, so normalize again; this is fast for texts in NFC.
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", INVISIBLE.sub("", text)).casefold())
        return " ".join(text.split())
    return " ".join(text.lower().split())


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """Return hashes of texts, int64 of shape (texts,), which are equal in every process.

    The probability of a collision among ten million texts is three in a million.
    """
    digests = (hashlib.blake2b(text.encode("utf-8", SURROGATES), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little", signed=True) for digest in digests), np.int64)
