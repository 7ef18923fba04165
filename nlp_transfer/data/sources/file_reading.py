"""Read files safely: check for regular files, decode text, and limit the length of rows."""

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
)  # extensions of unsupported formats: such files are not read as plain text
MAX_ROW = 2**24  # maximum characters of a row, or of a file in a class folder
SURROGATE = re.compile("[\ud800-\udfff]")
ENCODING = "set data.encoding (cp1252 is common for files from Windows)"
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
COMPARED = 1000  # files in a folder that are compared with a mistyped name
UNDECODED, TOO_LONG = "with bytes that are not in the encoding", "over the size limit"  # kinds of bad rows


def new_skipped(data: DataConfig) -> dict[int, BadRow] | None:
    """Return an empty dict that will map positions to skipped rows; None if bad rows are errors."""
    return {} if data.on_bad_rows == "skip" else None


def format_of(path: str | Path) -> str | None:
    """Return the file extension in lower case, without `.gz` (`.csv` for A.CSV.gz); None if the format is not supported."""
    name = Path(path).name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    return ending if ending in ENDINGS and (ending != ".parquet" or not name.endswith(".gz")) else None


def names_no_format(path: str | Path) -> bool:
    """Return whether a file may be plain text, since its extension is unknown (such as `.en`) or missing."""
    ending = Path(Path(path).name.lower().removesuffix(".gz")).suffix
    return format_of(path) is None and ending not in OTHERS and ending != ".parquet"


def has_lines(path: str | Path) -> bool:
    """Return whether a file is read as one text per line: `.txt`, or an existing file with an unknown extension."""
    return format_of(path) == ".txt" or (names_no_format(path) and os.path.isfile(path))


def kind_of(path: Path) -> str | None:
    """Return the kind of a path, such as "a pipe"; None for a regular file or a link to one.

    Raises:
        OSError: The path does not exist or cannot be accessed.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except ValueError:  # an invalid name, for example with a NUL
        raise FileNotFoundError(path) from None
    return None if kind == stat.S_IFREG else KINDS.get(kind, "a device")


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file; reading a pipe or a device may never end.

    Raises:
        UserError: The path does not exist, or is not a regular file.
        OSError: The path cannot be accessed.
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
    return [entry.name for entry in islice(path.parent.iterdir(), COMPARED)] if path.parent.is_dir() else []


def state_of(path: Path) -> tuple[int, ...]:
    """Return inode, size and modification time of a file, to detect changes; empty if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, ...]) -> None:
    """Raise an UnfinishedError if a file was changed while it was read.

    Args:
        path: The file.
        before: Its earlier state; see `state_of`.
    """
    if state_of(path) != before:
        raise UnfinishedError(f"{path}: was changed while it was read; allowed: a file that does not change. Try again")


def read_start(path: Path, size: int) -> bytes:
    """Return at most `size` bytes from the start of a file.

    Returns no bytes for a file of size 0 without reading it: a generated file, such as /proc/kmsg, may have no end.
    """
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return file.read(size)


class WrongEncodingError(UserError):
    """A file is not in the expected encoding.

    Attributes:
        reason: The message without the name of the file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class RowTooLongError(Exception):
    """A row has more than `MAX_ROW` characters."""

    def __str__(self) -> str:
        return f"is longer than {MAX_ROW:,} characters; allowed: at most that many in a row"


class Lines:
    """Iterator over the lines of a text file, with a limit on the length of a row.

    Attributes:
        length: Characters since the start of the row. The caller sets it to 0 at the end of a row.

    Raises:
        RowTooLongError: A row has more than `MAX_ROW` characters.
    """

    def __init__(self, file: TextIO, ends: tuple[str, ...] = ("\n",)) -> None:
        self.file, self.ends = file, ends
        self.length = 0
        self._inside = False  # whether the file position is inside a line that is too long

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
        """Yield each line as a row; None for a line that is too long."""
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
    """A regular file. Only the bytes that it has when it is opened are read, even if it grows.

    Raises:
        OSError: The path is not a regular file.
    """

    read = io.RawIOBase.read  # type: ignore[assignment]  # both methods call `readinto`
    readall = io.RawIOBase.readall

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
        status = os.fstat(self.fileno())
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "is not a regular file")
        self._end = status.st_size

    def readinto(self, buffer: Any) -> int:
        """Read bytes, but none beyond the size that the file had when it was opened."""
        return super().readinto(memoryview(buffer).cast("B")[: max(0, self._end - self.tell())]) or 0


def open_binary(path: Path) -> Any:
    """Open a file for reading bytes; decompress `.gz` files."""
    file = io.BufferedReader(_RegularFile(path))
    if path.suffix.lower() != ".gz":
        return file
    unpacked = gzip.GzipFile(fileobj=file)
    unpacked.myfileobj = file  # type: ignore[assignment]  # closed with `unpacked`
    return unpacked


def open_text(path: Path, encoding: str, newline: str | None) -> TextIO:
    """Open a text file. Undecodable bytes become lone surrogates, so that they can be reported with row and column.

    In UTF-16 and UTF-32, undecodable bytes raise an error, since the rest of the file cannot be decoded.
    """
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return TextIOWrapper(open_binary(path), encoding=encoding, errors=errors, newline=newline)


def choose_encoding(path: Path, data: DataConfig) -> str:
    """Return the encoding of a file: `data.encoding` or, if that is a list, the first encoding that decodes the file.

    Raises:
        UserError: An encoding does not exist, or no encoding in the list decodes the file.
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
    """Raise an error if a file looks like UTF-16: ASCII text in UTF-16 is also valid UTF-8, with NULs."""
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
    """Return the canonical name of an encoding, with `utf-8-sig` for UTF-8."""
    try:
        "".encode(name)  # fails for codecs other than text encodings, such as rot13
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(
            f"data.encoding: there is no encoding {name!r}; allowed: an encoding of text, such as utf-8, cp1252, latin-1, utf-16"
        ) from None
    return "utf-8-sig" if known == "utf-8" else known  # utf-8-sig removes a byte order mark


def undecoded(text: str, encoding: str) -> str | None:
    """Return a description of the first undecodable byte or lone surrogate in a text; None if there is none."""
    surrogate = None if text.isascii() else SURROGATE.search(text)
    if surrogate is None:
        return None
    code = ord(surrogate.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} is not {encoding.removesuffix('-sig')}"
    return f"{surrogate.group()!a} is half of a character"
