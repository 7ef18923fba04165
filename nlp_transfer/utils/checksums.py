"""Checksums of files."""

import hashlib
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

BLOCK = 2**20  # bytes


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_of(path: Path) -> int:
    """Return the CRC-32 of a file. Reads blocks, since mapped pages would count as memory of this process."""
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def cached_checksum(compute: Callable[[Path], Any], path: Path) -> Any:
    """Return `compute(path)`, computed once per process and version of the file."""
    status = path.stat()
    return _cached(compute, path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _cached(compute: Callable[[Path], Any], path: Path, *_: int) -> Any:
    return compute(path)
