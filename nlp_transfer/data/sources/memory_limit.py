"""A limit on the memory that parsing a foreign file may take."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlp_transfer.utils.environment import resource

LOCK = threading.RLock()  # the limit belongs to the process: two threads inside would restore each other's


@contextmanager
def limited_memory(most: int) -> Iterator[None]:
    """Make allocations fail inside the block once the process has grown by `most` bytes of data.

    The operating system enforces the limit, so that no size which a file claims has to be believed. Linux only; elsewhere the
    block is not limited.

    Raises:
        MemoryError: from whatever allocates inside the block (`pyarrow.ArrowMemoryError` is one).
    """
    with LOCK:
        try:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            [used] = re.findall(r"^VmData:\s*(\d+) kB", status, re.MULTILINE)
        except (OSError, ValueError):  # another system than Linux
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        given = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([1024 * int(used) + most, *given]), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
