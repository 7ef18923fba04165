"""Safe reading of files: only regular files, text in a given encoding, and rows of bounded length."""

import codecs
import errno
import gzip
import io
import os
import re
import stat
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import BadRow, UnfinishedError, UserError, did_you_mean

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
OTHERS = frozenset(
    ".xls .xlsx .ods .doc .docx .odt .rtf .pdf .html .htm .xml .zip .tar .7z .bz2 .xz .zst .pkl .pickle .npy .npz .arrow "
    ".feather .h5 .hdf5 .sqlite .db .dta .sav .yaml .yml .toml .ini .py .ipynb .sh .png .jpg .jpeg .bin .pt .safetensors".split()
)  # extensions of other formats: such files are never read as lines of text
MAX_ROW = 2**24  # characters of one row, or of one file of a class folder
SURROGATE = re.compile("[\ud800-\udfff]")
ENCODING = "set data.encoding (cp1252 is common for files from Windows)"
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
LOOKED_AT = 1000  # files in the same folder that are compared with a mistyped name
UNDECODED, TOO_LONG = "with bytes that are not in the encoding", "over the size limit"  # kinds of bad rows


def no_bad_rows(data: DataConfig) -> dict[int, BadRow] | None:
    """Return an empty dict for the rows that a reader skips, by position; None if bad rows are errors."""
    return {} if data.on_bad_rows == "skip" else None


def format_of(path: str | Path) -> str | None:
    """Return the known file extension in lower case and without `.gz` (`.csv` for A.CSV.gz); None if it is not known."""
    name = Path(path).name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    return ending if ending in ENDINGS and (ending != ".parquet" or not name.endswith(".gz")) else None


def names_no_format(path: str | Path) -> bool:
    """Return whether the extension does not name a format, such as `.en` or none, so that a file may hold lines of text."""
    ending = Path(Path(path).name.lower().removesuffix(".gz")).suffix
    return format_of(path) is None and ending not in OTHERS and ending != ".parquet"


def has_lines(path: str | Path) -> bool:
    """Return whether a file holds one text per line: `.txt`, or an existing file whose extension names no format."""
    return format_of(path) == ".txt" or (names_no_format(path) and os.path.isfile(path))


def at_home(text: str) -> Path:
    """Replace a leading `~` by the home folder; `~name` stays if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def kind_of(path: Path) -> str | None:
    """Return what is at `path`, such as "a pipe"; None if it is a regular file or a link to one.

    Raises:
        OSError: Nothing is there, or it cannot be accessed.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except ValueError:  # a name that no file can have, for example with a NUL
        raise FileNotFoundError(path) from None
    return None if kind == stat.S_IFREG else KINDS.get(kind, "a device")


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file, since a pipe or a device may never end.

    Raises:
        UserError: It is missing, or something else.
        OSError: It cannot be accessed.
    """
    try:
        kind = kind_of(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, which does not exist; allowed: a file that exists"
            ) from None
        near = did_you_mean(path.name, _siblings(path))
        raise UserError(f"{path}: there is no such file{near}; allowed: a file that exists") from None
    if kind:
        raise UserError(f"{path}: is {kind}; allowed: a file")


def _siblings(path: Path) -> list[str]:
    return [entry.name for entry in islice(path.parent.iterdir(), LOOKED_AT)] if path.parent.is_dir() else []


def state_of(path: Path) -> tuple[int, ...]:
    """Return inode, size and modification time of a file, to detect changes; empty if there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, ...]) -> None:
    """Raise an UnfinishedError if the file has changed since `before`, so that its rows and its hash would not match."""
    if state_of(path) != before:
        raise UnfinishedError(f"{path}: was changed while it was read; allowed: a file that does not change. Try again")


def read_start(path: Path, most: int) -> bytes:
    """Return at most `most` bytes of a file.

    A file of size 0 is not read: files that the system generates, such as /proc/kmsg, have no size and may have no end.
    """
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return file.read(most)


class WrongEncodingError(UserError):
    """A file is not in the expected encoding; `reason` describes that without the name of the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class RowTooLongError(Exception):
    """A row has more than `MAX_ROW` characters."""

    def __str__(self) -> str:
        return f"is longer than {MAX_ROW:,} characters; allowed: at most that many in a row"


class Lines:
    """An iterator over the lines of a text file that limits the length of a row.

    Attributes:
        length: Characters returned since the start of the row. The caller resets it to 0 at the end of each row.

    Raises:
        RowTooLongError: A row has more than `MAX_ROW` characters.
    """

    def __init__(self, file: TextIO, ends: tuple[str, ...] = ("\n",)) -> None:
        self.file, self.ends = file, ends
        self.length = 0
        self._inside = False  # whether the rest of a line that is too long is still to be read

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_ROW + 1)
        self.length += len(line)
        if self.length > MAX_ROW:
            self._inside = not line.endswith(self.ends)
            raise RowTooLongError
        if not line:
            raise StopIteration
        return line

    def each(self) -> Iterator[str | None]:
        """Yield every line as a row; None for a line that is too long, whose rest is skipped."""
        while True:
            self.length = 0
            try:
                line = next(self, None)
            except RowTooLongError:
                yield None
                while self._inside:
                    self._inside = bool(rest := self.file.readline(MAX_ROW)) and not rest.endswith(self.ends)
                continue
            if line is None:
                return
            yield line


class _RegularFile(io.FileIO):
    """A regular file that is read up to its size when it was opened, even if it grows.

    Raises:
        OSError: It is a pipe or a device, which may never end.
    """

    read = io.RawIOBase.read  # type: ignore[assignment]  # this and the next one call `readinto`
    readall = io.RawIOBase.readall

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
        status = os.fstat(self.fileno())
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "is not a regular file")
        self._end = status.st_size

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer).cast("B")[: max(0, self._end - self.tell())]) or 0


def open_binary(path: Path) -> Any:
    """Open a file for reading bytes; `.gz` files are decompressed while they are read."""
    file = io.BufferedReader(_RegularFile(path))
    if path.suffix.lower() != ".gz":
        return file
    unpacked = gzip.GzipFile(fileobj=file)
    unpacked.myfileobj = file  # type: ignore[assignment]  # closed with it
    return unpacked


def open_text(path: Path, encoding: str, newline: str | None) -> TextIO:
    """Open a text file; undecodable bytes become lone surrogates, so that they can be reported with row and column.

    In UTF-16 and UTF-32 an undecodable byte is an error, since the rest cannot be decoded.
    """
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return TextIOWrapper(open_binary(path), encoding=encoding, errors=errors, newline=newline)


def choose_encoding(path: Path, data: DataConfig) -> str:
    """Return the encoding of a file: `data.encoding`, or the first of a list that decodes the file.

    Raises:
        UserError: An encoding does not exist, or none of the list decodes the file.
        OSError: The file cannot be read.
    """
    encodings = [data.encoding] if isinstance(data.encoding, str) else data.encoding
    names = [_normalized(name) for name in encodings]
    if names == ["utf-8-sig"]:
        _check_no_utf16(path)
    if len(names) == 1:
        return names[0]
    for name in names:
        try:
            with TextIOWrapper(open_binary(path), encoding=name) as file:
                while file.read(1 << 20):
                    pass
            return name
        except UnicodeError:
            continue
    raise WrongEncodingError(path, f"is in none of the encodings given in data.encoding: {', '.join(encodings)}")


def _check_no_utf16(path: Path) -> None:
    """Raise an error if a file looks like UTF-16, since English text in UTF-16 is also valid UTF-8 with NULs."""
    with open_binary(path) as file:
        start = file.read(64)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise WrongEncodingError(path, "starts with a byte order mark of UTF-16 but is read as utf-8; set data.encoding: utf-16")
    even, odd = set(start[::2]), set(start[1::2])
    for name, zeros, letters in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if len(start) >= 8 and zeros == {0} and 0 not in letters:
            raise WrongEncodingError(
                path, f"looks like UTF-16 (no byte order mark) but is read as utf-8; set data.encoding: {name}"
            )


def _normalized(name: str) -> str:
    try:
        "".encode(name)  # codecs such as rot13 exist but do not encode text
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(
            f"data.encoding: there is no encoding {name!r}; allowed: an encoding of text, such as utf-8, cp1252, latin-1, utf-16"
        ) from None
    return "utf-8-sig" if known == "utf-8" else known  # so that a byte order mark is not part of the first column name


def undecoded(text: str, encoding: str) -> str | None:
    """Describe the first undecodable byte or lone surrogate of a text for a message; None if there is none."""
    surrogate = None if text.isascii() else SURROGATE.search(text)
    if surrogate is None:
        return None
    code = ord(surrogate.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} is not {encoding.removesuffix('-sig')}"
    return f"{surrogate.group()!a} is half of a character"
