"""Error messages of a command that a launcher started in several processes: print the same message only once."""

import os
import signal
import threading
import time
from pathlib import Path

from nlp_transfer.utils.atomic_files import replacing
from nlp_transfer.utils.distributed import rank

SAME_MESSAGE = 5.0  # seconds in which the first process meets an error that all processes meet


def error_prefix(message: str) -> str | None:
    """Return the prefix of an error message of this process, or None if the first process prints the same message.

    Rank 0 prints at once. Every other process waits for the first process of its machine to fail, and prints nothing if that
    process printed the same message. torchrun and `accelerate launch` give the processes sibling folders, in which the messages
    are compared; with any other launcher every process prints.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    first = os.environ.get("LOCAL_RANK", str(rank())) == "0"
    folder = Path(own).parent if own else None
    prefix = "error: " if rank() == 0 else f"error (rank {rank()}): "
    if folder is None:
        return prefix
    note = folder.parent / "0" / "message.txt"
    if first:
        try:
            with replacing(note, shared=True) as file:
                file.write(message.encode())
        except (OSError, ValueError):
            pass
        return prefix
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends the others once the first has ended
    until = time.monotonic() + SAME_MESSAGE
    while time.monotonic() < until:
        try:
            return None if note.read_text(encoding="utf-8") == message else prefix
        except OSError:
            time.sleep(0.1)
    return prefix
