"""Disks that are full, and that lose power: wait for room rather than lose what was learned, and see that it has arrived."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nlp_transfer.console import say
from nlp_transfer.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT)
IN_TEXT = re.compile(r"os error (28|122)\b|No space left on device|Disk quota exceeded")  # safetensors' error has no number
PAUSE, LONGEST = 5.0, 600.0  # seconds between two tries, and in all


class DiskFullError(RuntimeError):
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
    """`sync` of all that is in a folder, and of the folder. Its files get their usual permissions."""
    usual_permissions(folder)
    for path in (*folder.rglob("*"), folder):
        sync(path)


def usual_permissions(path: Path) -> None:
    """Give a file, or all files below a folder, the permissions that the user's umask gives to new files.

    safetensors writes through temporary files, which nobody but their owner may read.
    """
    umask = os.umask(0o077)  # only by setting it can it be read; a file that is made meanwhile gets no more than it should
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~umask)


def lock_now(path: Path, busy: str, unlocked: str) -> "FileLock | None":
    """Take the lock on a file at once.

    Args:
        busy: the message where another process holds it.
        unlocked: the warning where the file system has no locks, as some network ones have none.

    Returns:
        The lock, for the caller to release; None where there are no locks.

    Raises:
        UserError: another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(busy) from None
    except NotImplementedError:
        say(f"warning: {path.parent} is on a file system without locks; {unlocked}")
        return None
    return lock


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well, and is removed when not; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
