"""Locks on files and folders: one process at a time, and what a killed one left is removed by the next."""

import errno
import os
import re
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import UserError

if sys.platform == "win32":
    import msvcrt
try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # no links, no waiting for a pipe
PART, OLD = re.compile(r"\.part-[0-9a-f]{32}"), re.compile(r"\.old-[0-9a-f]{32}")
LOCKED = b"nlp_transfer lock\n"  # the first line of a lock file; one with other content is not ours
BEYOND = 2**30  # on Windows the byte here is locked, so that others may read the content
LONGEST_LOCK = 2**20  # bytes
LONGEST_RECORD = 2**30
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def open_own(path: Path, create: bool = True) -> BinaryIO:
    """Open a file in which this user's commands keep records, such as a lock or a journal, for reading and writing.

    Raises:
        UserError: the name is taken by a link, a pipe, another user's file or the like; nothing was changed.
    """
    foreign = UserError(f"{path} is not a file of this program and this user; allowed: remove it, or write to another place")
    try:
        descriptor = os.open(path, os.O_RDWR | SAFE | (os.O_CREAT if create else 0), 0o600)
    except OSError as error:
        raise foreign if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO) else error from None
    status = os.fstat(descriptor)
    ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not ours:
        os.close(descriptor)
        raise foreign
    return os.fdopen(descriptor, "r+b")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without following a link or waiting for a pipe.

    Raises:
        OSError: it is missing, not a regular file or not readable.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | SAFE))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file


def read_own(path: Path, most: int = LONGEST_RECORD) -> bytes:
    """Read a file that a command recorded something in, as `open_regular`.

    Raises:
        OSError: it cannot be opened, or is larger than `most` bytes.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(f"{path} is larger than {most:,} bytes")
        return file.read(most)


class Lock:
    """A lock file that this process holds. It also records the random names of unfinished files beside it."""

    def __init__(self, path: Path, file: BinaryIO | None) -> None:
        self.path, self._file = path, file

    def record(self, name: str) -> None:
        """Add a name that the next holder of the lock removes, unless `release` was called before."""
        if self._file is not None:
            self._file.write(f"{name}\n".encode())
            self._file.flush()

    def release(self, remove: bool = True) -> None:
        """Release the lock; `remove`: nothing is left to be resumed, so that the file is not needed any more."""
        if self._file is None:
            return
        if remove and is_same(self.path, os.fstat(self._file.fileno())):
            with suppress(OSError):  # Windows keeps a file that is open
                self.path.unlink()  # still locked, so that another process cannot take the lock on a file that is then removed
        with suppress(OSError):
            _unlock(self._file.fileno())  # a forked process may have the file open as well
        with suppress(OSError):
            self._file.close()
        self._file = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_now(path: Path, busy: str, unlocked: str, create: bool = True) -> Lock:
    """Take the lock on a file at once, and remove what its last holder left if that was killed.

    Args:
        busy: the message where another process holds it.
        unlocked: the warning where the file system has no locks, as some network ones have none.
        create: whether the file is made where there is none.

    Raises:
        UserError: another process holds it, or the file is not a lock of this program.
    """
    for _ in range(1000):
        file = open_own(path, create)
        try:
            held = _lock(file.fileno())
        except OSError as error:
            file.close()
            if error.errno not in NO_LOCKS:
                raise
            say_once(f"warning: {path.parent} is on a file system without locks; {unlocked}")
            return Lock(path, None)
        if held and is_same(path, os.fstat(file.fileno())):
            break
        file.close()
        if not held:
            raise UserError(busy)
    else:  # another file has taken its place each time
        raise UserError(busy)
    content = file.read(LONGEST_LOCK + 1)
    foreign = content and not content.startswith(LOCKED) and not LOCKED.startswith(content)
    if foreign or len(content) > LONGEST_LOCK:
        file.close()
        raise UserError(f"{path} is not a lock of this program; allowed: rename or remove it, or write to another place")
    for name in content.decode("ascii", "replace").splitlines():
        target, left = path.parent / path.name.removeprefix(".").removesuffix(".lock"), path.parent / name
        if OLD.fullmatch(name) and target.name and not os.path.lexists(target):  # killed before the new folder took its place
            with suppress(FileNotFoundError):
                os.rename(left, target)
        elif PART.fullmatch(name) or OLD.fullmatch(name):
            remove(left)
    file.seek(0)
    file.truncate()
    file.write(LOCKED)
    file.flush()
    return Lock(path, file)


def lock_target(path: Path) -> Lock:
    """Take the lock on a file or folder that is about to be written.

    Raises:
        UserError: another process is writing it.
    """
    busy = f"{path}: another process is writing it; allowed: wait until it has ended, or another place"
    return lock_now(path.with_name(f".{path.name}.lock"), busy, "nothing keeps a second process from writing the same files")


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, BEYOND, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        elif fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, BEYOND, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    elif fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_same(path: Path, status: os.stat_result) -> bool:
    """Whether a path, if it is a link the link itself, still is the file with this status."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def remove(path: Path) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
