"""The one writer of files: whole or not at all, durable, through no foreign link; and waiting while the disk is full.

    with replacing(path) as file:         # a file; `write_bytes` writes content that is in memory
        file.write(content)
    with replacing_folder(path) as part:  # a folder, for libraries that write several files
        model.save_pretrained(part)

Content goes to a new file with a random name beside the target, is synchronized with the disk and then renamed. Meanwhile this
process holds the lock `.NAME.lock` beside the target, in which the random name is recorded: after a kill, the next process that
takes the lock removes the unfinished file, and nothing else.
"""

import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from nlp_transfer.security.file_locks import SAFE, Lock, is_same, lock_target, remove
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UnfinishedError, UserError

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IN_TEXT = re.compile(r"os error (27|28|122)\b|No space left on device|Disk quota exceeded")  # safetensors' error has no number
PAUSE, LONGEST = 5.0, 600.0  # seconds between two tries, and in all
NO_LINKS = (
    errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES, errno.EXDEV, errno.EINVAL, errno.EPROTO,
)  # fmt: skip
"""Errors of file systems that have no hard links."""


class DiskFullError(UnfinishedError):
    """Nothing more can be written, and nobody made room in time."""


def is_full(error: BaseException) -> bool:
    """Whether something could not be written for want of room."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return IN_TEXT.search(str(error)) is not None


def patiently(write: Callable[[], T], what: str, where: object, give_up: Callable[[], bool] = bool) -> T:
    """`write()`, again and again while the disk is full; it must begin anew each time.

    Args:
        what: what is written, for messages.
        where: its place.
        give_up: asked while waiting; true: raise at once.

    Raises:
        DiskFullError: there was no room for ten minutes.
    """
    began, told = time.monotonic(), False
    while True:
        try:
            return write()
        except DiskFullError:
            raise
        except Exception as error:
            if not is_full(error):
                raise
            reason = str(error)
        waited = time.monotonic() - began
        if waited > LONGEST or give_up():
            raise DiskFullError(
                f"{where}: the disk is full, so {what} was not written ({reason}). Make room and start the same command again"
            )
        if not told:
            told = True
            say(f"warning: {where}: the disk is full; waiting for room to write {what}, {LONGEST / 60:.0f} minutes at most")
        time.sleep(PAUSE)


@contextmanager
def _locked(path: Path, kind: int, lock: Lock | None, shared: bool) -> Iterator[Lock | None]:
    """Check that a file or folder (`kind`) may take the place of `path`, and hold its lock; in the end its folder is synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if stat.S_IFMT(path.lstat().st_mode) not in (kind, stat.S_IFLNK):  # a link itself is replaced
            wanted = "file" if kind == stat.S_IFREG else "folder"
            raise UserError(f"{path}: a {wanted} cannot replace what is there; allowed: rename or remove it, or another place")
    with nullcontext(lock) if lock or shared else lock_target(path) as held:
        yield held
        sync(path.parent)


@contextmanager
def _part(path: Path, lock: Lock | None, kind: str = "part") -> Iterator[Path]:
    """A random name beside `path`, recorded in its lock; what still has this name in the end is removed."""
    part = path.with_name(f".{kind}-{uuid4().hex}")
    if lock is not None:
        lock.record(part.name)
    try:
        yield part
    finally:
        remove(part)


@contextmanager
def replacing(path: Path, overwrite: bool = True, lock: Lock | None = None, shared: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when all went well, and is removed when not; the folder is made.

    It gets the permissions of the file that it replaces, otherwise those that the user's umask gives. A link at `path` is
    replaced itself: resolve `path` before where the user named the link.

    Args:
        overwrite: whether there may be a file when the new one is complete.
        lock: on the target, where the caller holds it already.
        shared: take no lock, since all writers write the same, or the caller is the only one.

    Raises:
        UserError: another process writes it, or `path` is a folder, a pipe or a device.
        FileExistsError: there is a file, and `overwrite` is false.
    """
    with _locked(path, stat.S_IFREG, lock, shared) as held, _part(path, held) as part:
        file: BinaryIO = open(part, "x+b", opener=lambda name, flags: os.open(name, flags | SAFE, 0o666))  # noqa: SIM115
        made = os.fstat(file.fileno())
        try:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                before = path.lstat()
                if stat.S_ISREG(before.st_mode) and hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), before.st_mode & 0o777)
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):  # what is thrown away need not be complete
                file.close()
            raise
        file.close()
        if not is_same(part, made):
            raise FileNotFoundError(f"{part} was moved or removed by another program")
        _put(part, path, overwrite)


def _put(part: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(part, path)  # unlike renaming, it never replaces a file that has just appeared
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
    os.replace(part, path)


@contextmanager
def replacing_folder(path: Path, shared: bool = False) -> Iterator[Path]:
    """A new folder that takes the place of `path` when all went well, and is removed when not.

    While it is filled only this user can enter it; in the end its files get the permissions that the umask gives.
    """
    with _locked(path, stat.S_IFDIR, None, shared) as held, _part(path, held) as part, _part(path, held, "old") as old:
        part.mkdir(0o700)
        yield part
        sync_all(part)
        with suppress(FileNotFoundError):
            os.replace(path, old)  # a folder cannot be renamed onto another
        try:
            os.replace(part, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.replace(old, path)
            raise


def write_bytes(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Write a whole file or none, and wait for room where the disk is full; otherwise as `replacing`."""

    def write() -> None:
        with replacing(path, overwrite) as file:
            file.write(content)

    patiently(write, path.name, path.parent)


def open_end(path: Path) -> BinaryIO:
    """Open a file, made where there is none, to write to its end, without a buffer.

    Raises:
        OSError: it is a link, or cannot be written.
        UserError: it is no regular file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | SAFE, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a file; allowed: rename or remove it, or another place")
    return os.fdopen(descriptor, "ab", buffering=0)


def append(path: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all, and wait for room where the disk is full."""
    with open_end(path) as file:
        size = os.fstat(file.fileno()).st_size

        def write() -> None:
            rest = line
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                file.truncate(size)
                raise

        patiently(write, path.name, path.parent)


def sync(path: Path) -> None:
    """Return when a file, or the list of a folder's entries, is on the disk itself, where the system can say so."""
    folder, windows = path.is_dir(), os.name == "nt"
    if folder and windows:  # folders cannot be opened there, and files are synchronized only when they may be written
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """`sync` of a folder and of all that is in it, which gets its usual permissions."""
    usual_permissions(folder)
    for path in (*folder.rglob("*"), folder):
        sync(path)


def usual_permissions(path: Path) -> None:
    """Give a file, or a folder and all that is in it, the permissions that the user's umask gives to new ones.

    safetensors writes through temporary files, which nobody but their owner may read.
    """
    umask = os.umask(0o077)  # only by setting it can it be read; a file that is made meanwhile gets no more than it should
    os.umask(umask)
    for entry in (path, *path.rglob("*")):
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)


def to_json(value: Any, **how: Any) -> str:
    """Return JSON text as `json.dumps` does, with null for NaN and the infinities, which are not valid JSON."""
    try:
        return json.dumps(value, allow_nan=False, **how)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, **how)


def finite(value: Any) -> Any:
    """Return the value with None for NaN and the infinities, also inside lists, tuples and objects."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any, overwrite: bool = True) -> None:
    """Write a JSON file atomically, with secrets redacted and null for numbers that are not finite."""
    write_bytes(path, (to_json(clean(value), indent=2, ensure_ascii=False) + "\n").encode(), overwrite)
