"""Entries of a cache on disk, each a folder: a lock while one is made, and limits on their number and size."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nlp_transfer.security.file_locks import remove
from nlp_transfer.utils.console import say

MAX_BYTES, MAX_ENTRIES = 8 * 2**30, 1000  # limits of a cache; the least recently used entries are removed first
LOCK_TIMEOUT = 3600.0  # seconds to wait for another process that makes the same entry
DAY = 86400  # seconds


@contextlib.contextmanager
def locked(folder: Path, waiting: str) -> Iterator[None]:
    """Lock an entry while it is made.

    The lock only avoids duplicate work: on a timeout, or on a file system without locks, the block runs without it.

    Args:
        folder: Folder of the entry.
        waiting: Message that is printed if another process holds the lock.
    """
    path = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(waiting)
            lock.acquire(timeout=LOCK_TIMEOUT)
    except (Timeout, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before release, so that waiting processes do not need the file
        lock.release()


def prune(root: Path, newest: Path) -> None:
    """Remove the least recently used entries beyond `MAX_ENTRIES` or `MAX_BYTES`, and unfinished ones older than a day.

    Args:
        root: Folder of the cache.
        newest: The newest entry, which is not removed.
    """
    entries = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            last_use = path.stat().st_mtime
            if path.name.startswith(".") or path.suffix == ".lock":
                if last_use < time.time() - DAY:
                    remove(path)
            elif path.is_dir():
                entries.append((last_use, sum(file.stat().st_size for file in path.iterdir()), path))
    total, number = sum(size for _, size, _ in entries), len(entries)
    for _, size, path in sorted(entries):
        if (total > MAX_BYTES or number > MAX_ENTRIES) and path != newest:
            remove(path)
            total, number = total - size, number - 1
