"""What all readers share: regular files alone, text in the encoding asked for, rows of bounded length."""

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
)  # endings of formats that are not read here: such a file is never taken for lines of text
MAX_ROW = 2**24  # characters of one row, or of one file of a class folder
SURROGATE = re.compile("[\ud800-\udfff]")
ENCODING = "set data.encoding (cp1252 is common for files from Windows)"
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
LOOKED_AT = 1000  # neighbours among which a mistyped name is looked for
UNDECODED, TOO_LONG = "with bytes that are not in the encoding", "over the size limit"  # kinds of bad rows


def no_bad_rows(data: DataConfig) -> dict[int, BadRow] | None:
    """Where a reader collects the rows that it skips, by position; None where bad rows are refused."""
    return {} if data.on_bad_rows == "skip" else None


def format_of(path: str | Path) -> str | None:
    """The ending that says how a file is read, in lower case and without `.gz` (.csv for A.CSV.gz); None: it says nothing."""
    name = Path(path).name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    return ending if ending in ENDINGS and (ending != ".parquet" or not name.endswith(".gz")) else None


def names_no_format(path: str | Path) -> bool:
    """Whether the ending says nothing about the format, such as .en or none at all, so that a file may hold lines of text."""
    ending = Path(Path(path).name.lower().removesuffix(".gz")).suffix
    return format_of(path) is None and ending not in OTHERS and ending != ".parquet"


def has_lines(path: str | Path) -> bool:
    """Whether a file holds one text a line: .txt, or a file whose ending says nothing and that is there."""
    return format_of(path) == ".txt" or (names_no_format(path) and os.path.isfile(path))


def at_home(text: str) -> Path:
    """The path with `~` resolved; `~` and a name that no user has stay as they are."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def kind_of(path: Path) -> str | None:
    """What stands at `path` in place of a regular file, such as `a pipe`; None where it is one, or a link to one.

    Raises:
        OSError: there is nothing, or it cannot be looked at.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except ValueError:  # a NUL, say: nothing can have such a name
        raise FileNotFoundError(path) from None
    return None if kind == stat.S_IFREG else KINDS.get(kind, "a device")


def check_regular(path: Path) -> None:
    """Raises a UserError where `path` is no regular file: a pipe or a device may never end.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        kind = kind_of(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, which is not there; allowed: a file that exists"
            ) from None
        near = did_you_mean(path.name, _siblings(path))
        raise UserError(f"{path}: there is no such file{near}; allowed: a file that exists") from None
    if kind:
        raise UserError(f"{path}: is {kind}; allowed: a file")


def _siblings(path: Path) -> list[str]:
    return [entry.name for entry in islice(path.parent.iterdir(), LOOKED_AT)] if path.parent.is_dir() else []


def state_of(path: Path) -> tuple[int, ...]:
    """What tells whether a file was changed between two looks at it; empty where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, ...]) -> None:
    """Raises an UnfinishedError where the file is no longer the one that it was: its rows and its hash would not belong
    together."""
    if state_of(path) != before:
        raise UnfinishedError(f"{path}: was changed while it was read; allowed: a file that stays as it is. Try again")


def read_start(path: Path, most: int) -> bytes:
    """At most `most` bytes of a file. Of one without any, nothing is read: what the system makes up while it is read, such as
    /proc/kmsg, has no size, and may have no end."""
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return file.read(most)


class WrongEncodingError(UserError):
    """A file is not in the encoding that it is read with; `reason` says so without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class RowTooLongError(Exception):
    """More than `MAX_ROW` characters, and the row has not ended."""

    def __str__(self) -> str:
        return f"is longer than {MAX_ROW:,} characters; allowed: at most that many in a row"


class Lines:
    """The lines of a text file, which end in one of `ends`. `length` counts the characters handed out; whoever knows where a row
    ends sets it back to 0.

    Raises:
        RowTooLongError: a row has no end, so that it would fill the memory.
    """

    def __init__(self, file: TextIO, ends: tuple[str, ...] = ("\n",)) -> None:
        self.file, self.ends = file, ends
        self.length = 0
        self._inside = False  # a line that was too long has not ended yet

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
        """Yield every line as a row by itself, and None in place of one that is too long, of which the rest is skipped."""
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
    """A regular file up to the size that it had when it was opened: one that grows is not read any further.

    Raises:
        OSError: it is a pipe or a device, which may never end.
    """

    read = io.RawIOBase.read  # type: ignore[assignment]  # calls `readinto`, as the next one does
    readall = io.RawIOBase.readall

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
        status = os.fstat(self.fileno())
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "is no regular file")
        self._end = status.st_size

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer).cast("B")[: max(0, self._end - self.tell())]) or 0


def open_binary(path: Path) -> Any:
    """A file as bytes; of one that ends in `.gz` what was compressed, decompressed piece by piece as it is read."""
    file = io.BufferedReader(_RegularFile(path))
    if path.suffix.lower() != ".gz":
        return file
    unpacked = gzip.GzipFile(fileobj=file)
    unpacked.myfileobj = file  # type: ignore[assignment]  # closed with it
    return unpacked


def open_text(path: Path, encoding: str, newline: str | None) -> TextIO:
    """A text file whose undecodable bytes are carried along as lone surrogates, so that each can be reported with its row and
    column. In encodings of two bytes and more there is no going on after a broken one."""
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return TextIOWrapper(open_binary(path), encoding=encoding, errors=errors, newline=newline)


def choose_encoding(path: Path, data: DataConfig) -> str:
    """The encoding to read `path` with: the only one given, or the first of the list that decodes the whole file.

    Raises:
        UserError: an encoding has no such name, or no encoding of a list decodes the file.
        OSError: the file cannot be read.
    """
    given = [data.encoding] if isinstance(data.encoding, str) else data.encoding
    names = [_normalised(name) for name in given]
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
    raise WrongEncodingError(path, f"is in none of the encodings given in data.encoding: {', '.join(given)}")


def _check_no_utf16(path: Path) -> None:
    """UTF-16 of plain English is valid UTF-8 as well, with a NUL beside each letter."""
    with open_binary(path) as file:
        start = file.read(64)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise WrongEncodingError(path, "starts with the mark of UTF-16, read as utf-8; set data.encoding: utf-16")
    even, odd = set(start[::2]), set(start[1::2])
    for name, zeros, letters in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if len(start) >= 8 and zeros == {0} and 0 not in letters:
            raise WrongEncodingError(path, f"looks like UTF-16 without a mark, read as utf-8; set data.encoding: {name}")


def _normalised(name: str) -> str:
    try:
        "".encode(name)  # a name such as rot13 is known, but encodes no text
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(
            f"data.encoding: there is no encoding {name!r}; allowed: an encoding of text, such as utf-8, cp1252, latin-1, utf-16"
        ) from None
    return "utf-8-sig" if known == "utf-8" else known  # a byte order mark is no part of the first column's name


def undecoded(text: str, encoding: str) -> str | None:
    """What `text` holds that is no character, as a message says it, or None: a byte that is not in the encoding, or half of a
    character, which a few encodings can spell."""
    found = None if text.isascii() else SURROGATE.search(text)
    if found is None:
        return None
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} is not {encoding.removesuffix('-sig')}"
    return f"{found.group()!a} is half of a character"
