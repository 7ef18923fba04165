"""Lock files that one process at a time can hold. If a holder is killed, the next one removes its unfinished files.

The library `filelock` is unsuitable: it also locks pipes and files of other programs, and cannot record the names of unfinished
files.
"""

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

SAFE = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)  # do not follow links or wait for pipes
PART, OLD = re.compile(r"\.part-[0-9a-f]{32}"), re.compile(r"\.old-[0-9a-f]{32}")
LOCKED = b"nlp_transfer lock\n"  # first line of a lock file; files with other content are not touched
BEYOND = 2**30  # on Windows, lock a byte beyond the content, so that other processes can read the file
LONGEST_LOCK = 2**20  # bytes
LONGEST_RECORD = 2**30
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def open_record(path: Path, create: bool = True) -> BinaryIO:
    """Open a lock file, journal or other record of this user for reading and writing.

    Raises:
        UserError: the path is not a regular file, is a link, has several hard links, or belongs to another user. It is not
            changed.
    """
    foreign = UserError(f"{path}: is not a file of this program and this user; remove it, or write to another folder")
    try:
        descriptor = os.open(path, os.O_RDWR | SAFE | (os.O_CREAT if create else 0), 0o600)
    except OSError as error:
        raise foreign if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO) else error from None
    status = os.fstat(descriptor)
    is_of_this_user = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not is_of_this_user:
        os.close(descriptor)
        raise foreign
    return os.fdopen(descriptor, "r+b")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without following a link or waiting for a pipe.

    Raises:
        OSError: the file is missing, not regular, or not readable.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | SAFE))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file


def read_record(path: Path, most: int = LONGEST_RECORD) -> bytes:
    """Read a record.

    Raises:
        OSError: the file cannot be opened with `open_regular`, or is larger than `most` bytes.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(f"{path} is larger than {most:,} bytes")
        return file.read(most)


class Lock:
    """A locked file that records the random names of unfinished files in the same folder."""

    def __init__(self, path: Path, file: BinaryIO | None) -> None:
        self.path, self._file = path, file

    def record(self, name: str) -> None:
        """Record an unfinished file. If this process is killed, the next holder of the lock removes it."""
        if self._file is not None:
            self._file.write(f"{name}\n".encode())
            self._file.flush()

    def release(self, remove: bool = True) -> None:
        """Release the lock, and remove its file if `remove` is true."""
        if self._file is None:
            return
        if remove and is_same(self.path, os.fstat(self._file.fileno())):
            with suppress(OSError):  # Windows cannot remove an open file
                self.path.unlink()  # before unlocking, so that no other process locks the removed file
        with suppress(OSError):
            _unlock(self._file.fileno())  # closing is not enough: a forked process may have the file open
        with suppress(OSError):
            self._file.close()
        self._file = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_now(path: Path, busy: str, unlocked: str, create: bool = True) -> Lock:
    """Take a lock without waiting. If its last holder was killed, remove the unfinished files of that process.

    Args:
        path: the lock file.
        busy: error message if another process holds the lock.
        unlocked: the end of the warning if the file system has no locks, such as some network file systems.
        create: whether to create a missing file.

    Raises:
        UserError: another process holds the lock, or the file is not a lock of this program.
    """
    for _ in range(1000):
        file = open_record(path, create)
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
    else:  # the file was replaced each time
        raise UserError(busy)
    content = file.read(LONGEST_LOCK + 1)
    foreign = content and not content.startswith(LOCKED) and not LOCKED.startswith(content)
    if foreign or len(content) > LONGEST_LOCK:
        file.close()
        raise UserError(f"{path}: is not a lock of this program; rename or remove it, or write to another folder")
    for name in content.decode("ascii", "replace").splitlines():
        target, unfinished = path.parent / path.name.removeprefix(".").removesuffix(".lock"), path.parent / name
        if OLD.fullmatch(name) and target.name and not os.path.lexists(target):  # killed before the new folder was renamed
            with suppress(FileNotFoundError):
                os.rename(unfinished, target)
        elif PART.fullmatch(name) or OLD.fullmatch(name):
            remove(unfinished)
    file.seek(0)
    file.truncate()
    file.write(LOCKED)
    file.flush()
    return Lock(path, file)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file. False also if this cannot be known, as on file systems without locks.

    The lock is taken and released at once: a process that tries to take it in this moment is refused.
    """
    try:
        with open_record(path, create=False) as file:
            if not _lock(file.fileno()):
                return True
            _unlock(file.fileno())
    except (OSError, UserError):
        pass
    return False


def lock_target(path: Path) -> Lock:
    """Take the lock `.NAME.lock` of a file or folder before writing it.

    Raises:
        UserError: another process is writing it.
    """
    busy = f"{path}: another process is writing it; wait until that process has ended, or write to another place"
    return lock_now(path.with_name(f".{path.name}.lock"), busy, "a second process could write the same files")


def _lock(descriptor: int) -> bool:
    """Lock a file without waiting; return False if another process holds the lock."""
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
    """Whether a path still refers to the file with this status. Links are not followed."""
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists; ignore errors."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
