"""Limit the memory for parsing untrusted files."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlp_transfer.utils.environment import resource

LOCK = threading.RLock()  # the limit applies to the process, so only one thread may change it


@contextmanager
def limited_memory(growth: int) -> Iterator[None]:
    """Make allocations in the block fail after the process has grown by `growth` bytes.

    The operating system enforces the limit, so the sizes declared in a file need not be trusted. On systems other than Linux,
    there is no limit.

    Raises:
        MemoryError: An allocation inside the block failed (`pyarrow.ArrowMemoryError` is a subclass).
    """
    with LOCK:
        try:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            [used] = re.findall(r"^VmData:\s*(\d+) kB", status, re.MULTILINE)
        except (OSError, ValueError):  # not Linux
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([1024 * int(used) + growth, *limits]), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
