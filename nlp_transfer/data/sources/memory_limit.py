"""Limit the memory that parsing an untrusted file may take."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlp_transfer.utils.environment import resource

LOCK = threading.RLock()  # the limit is per process: two threads would restore each other's value


@contextmanager
def limited_memory(most: int) -> Iterator[None]:
    """Make allocations fail inside the block once the process has grown by `most` bytes of data.

    The operating system enforces the limit, so sizes that a file declares need not be trusted. Linux only; on other systems
    there is no limit.

    Raises:
        MemoryError: An allocation inside the block failed (`pyarrow.ArrowMemoryError` is a subclass).
    """
    with LOCK:
        try:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            [used] = re.findall(r"^VmData:\s*(\d+) kB", status, re.MULTILINE)
        except (OSError, ValueError):  # another system than Linux
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([1024 * int(used) + most, *limits]), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
