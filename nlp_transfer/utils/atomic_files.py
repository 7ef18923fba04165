"""Atomic, durable writes: fsync before renaming, follow no links, and wait while the disk is full.

    with replacing(path) as file:         # a file; see also `write_bytes`
        file.write(content)
    with replacing_folder(path) as new:  # a folder, for libraries that write several files
        model.save_pretrained(new)

Content is written to a new file with a random name in the same folder, synced to disk and then renamed. Meanwhile, this process
holds the lock `.NAME.lock`, which records the random name: if the process is killed, the next holder of the lock removes the
file.
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
IN_TEXT = re.compile(r"os error (27|28|122)\b|No space left on device|Disk quota exceeded")  # safetensors sets no errno
PAUSE, LONGEST = 5.0, 600.0  # seconds between attempts, and in total
NO_LINKS = (
    errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES, errno.EXDEV, errno.EINVAL, errno.EPROTO,
)  # fmt: skip
"""Errors on file systems without hard links."""


class DiskFullError(UnfinishedError):
    """The disk is full, and no space was freed in time."""


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full or the user's quota is exceeded."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return IN_TEXT.search(str(error)) is not None


def retry_while_full(write: Callable[[], T], name: str, place: object, give_up: Callable[[], bool] = bool) -> T:
    """Call `write`, and repeat it while the disk is full.

    Args:
        write: writes something; can be called again after an error.
        name: name of the content, for messages.
        place: the folder, for messages.
        give_up: called while waiting; if it returns true, the error is raised at once.

    Raises:
        DiskFullError: no space was freed within ten minutes.
    """
    start, warned = time.monotonic(), False
    while True:
        try:
            return write()
        except DiskFullError:
            raise
        except Exception as error:
            if not is_full(error):
                raise
            reason = str(error)
        if time.monotonic() - start > LONGEST or give_up():
            raise DiskFullError(
                f"{place}: the disk is full, so {name} was not written ({reason}). Free some space and run the same command again"
            )
        if not warned:
            warned = True
            say(f"warning: {place}: the disk is full; waiting for free space to write {name}, at most {LONGEST / 60:.0f} minutes")
        time.sleep(PAUSE)


@contextmanager
def _locked(path: Path, kind: int, lock: Lock | None, shared: bool) -> Iterator[Lock | None]:
    """Check that a file or folder (`kind`) may replace `path`, and hold its lock. Sync the parent folder at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if stat.S_IFMT(path.lstat().st_mode) not in (kind, stat.S_IFLNK):  # a link itself is replaced
            new = "file" if kind == stat.S_IFREG else "folder"
            raise UserError(f"{path}: cannot be replaced by a {new}; rename or remove it, or write to another place")
    with nullcontext(lock) if lock or shared else lock_target(path) as held:
        yield held
        sync(path.parent)


@contextmanager
def _temporary(path: Path, lock: Lock | None, kind: str = "part") -> Iterator[Path]:
    """Yield a random path in the folder of `path`, recorded in the lock. At the end, remove what is still at this path."""
    temporary = path.with_name(f".{kind}-{uuid4().hex}")
    if lock is not None:
        lock.record(temporary.name)
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def replacing(path: Path, overwrite: bool = True, lock: Lock | None = None, shared: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` at the end of the block; after an error, nothing changes.

    Missing folders are created. The file gets the permissions of the file that it replaces or, if there is none, those of the
    umask. A link at `path` is replaced, not followed; callers resolve links that the user gave.

    Args:
        overwrite: whether to replace an existing file.
        lock: the lock of the target, if the caller holds it.
        shared: whether to take no lock, since all writers write the same content, or there is only one writer.

    Yields:
        The file, open for writing bytes.

    Raises:
        UserError: another process is writing the file, or `path` is a folder, a pipe or a device.
        FileExistsError: the file exists, and `overwrite` is false.
    """
    with _locked(path, stat.S_IFREG, lock, shared) as held, _temporary(path, held) as temporary:
        file: BinaryIO = open(temporary, "x+b", opener=lambda name, flags: os.open(name, flags | SAFE, 0o666))  # noqa: SIM115
        created = os.fstat(file.fileno())
        try:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                before = path.lstat()
                if stat.S_ISREG(before.st_mode) and hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), before.st_mode & 0o777)
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):  # the file is discarded, so errors do not matter
                file.close()
            raise
        file.close()
        if not is_same(temporary, created):
            raise FileNotFoundError(f"{temporary} was moved or removed by another program")
        _put(temporary, path, overwrite)


def _put(temporary: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, path)  # unlike renaming, never replaces a file that another process created in the meantime
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
    os.replace(temporary, path)


@contextmanager
def replacing_folder(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a new folder that replaces `path` at the end of the block; after an error, nothing changes.

    During the block, only this user can access the folder; at the end, its files get the permissions of the umask. For `shared`,
    see `replacing`.
    """
    with (
        _locked(path, stat.S_IFDIR, None, shared) as held,
        _temporary(path, held) as temporary,
        _temporary(path, held, "old") as old,
    ):
        temporary.mkdir(0o700)
        yield temporary
        sync_all(temporary)
        with suppress(FileNotFoundError):
            os.replace(path, old)  # a folder cannot be renamed to an existing one
        try:
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.replace(old, path)
            raise


def write_bytes(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Write a file atomically (see `replacing`), and wait while the disk is full."""

    def write() -> None:
        with replacing(path, overwrite) as file:
            file.write(content)

    retry_while_full(write, path.name, path.parent)


def open_for_append(path: Path) -> BinaryIO:
    """Open a file for appending, without a buffer; create it if missing.

    Raises:
        OSError: the path is a link, or not writable.
        UserError: the path is not a regular file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | SAFE, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a regular file; rename or remove it, or write to another place")
    return os.fdopen(descriptor, "ab", buffering=0)


def append(path: Path, line: bytes) -> None:
    """Append a line to a file completely, or leave the file unchanged; wait while the disk is full."""
    with open_for_append(path) as file:
        size = os.fstat(file.fileno()).st_size

        def write() -> None:
            remaining = line
            try:
                while remaining:
                    remaining = remaining[file.write(remaining) :]
            except BaseException:
                file.truncate(size)
                raise

        retry_while_full(write, path.name, path.parent)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk, if the system supports it."""
    is_folder, is_windows = path.is_dir(), os.name == "nt"
    if is_folder and is_windows:  # folders cannot be opened on Windows
        return
    descriptor = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)  # Windows only syncs writable files
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Apply the umask to a folder and all its contents, and sync them to disk."""
    apply_umask(folder)
    for path in (*folder.rglob("*"), folder):
        sync(path)


def apply_umask(path: Path) -> None:
    """Give a file, or a folder with all its contents, the default permissions of new files.

    safetensors creates files that only their owner can read.
    """
    umask = os.umask(0o077)  # setting it is the only way to read it
    os.umask(umask)
    for entry in (path, *path.rglob("*")):
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)


def to_json(value: Any, **options: Any) -> str:
    """Serialize a value with `json.dumps`; NaN and infinities, which are not valid JSON, become null."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """Replace NaN and infinities with None, also inside lists, tuples and mappings."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any, overwrite: bool = True) -> None:
    """Write a JSON file atomically. Secrets are redacted; NaN and infinities become null."""
    write_bytes(path, (to_json(clean(value), indent=2, ensure_ascii=False) + "\n").encode(), overwrite)
