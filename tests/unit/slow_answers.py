"""Stands in for a model where real processes are tested: it is made in no time, and takes as long as it is told."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.ordered import in_order
from nlp_transfer.inference.worker_processes import Workers, at_once
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError


class Slow:
    """Answers with its process and what it finds around it. A file named like the process says that it is at work for good."""

    window = 2
    columns = ("text",)
    identity: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: Path, refuse: str = "") -> None:
        self.folder = folder
        if refuse:
            raise UserError(refuse)
        say("loaded, as one of them says")

    def __call__(self, batch: Batch) -> dict[str, Any]:
        if "sleep" in batch.columns["text"]:
            (self.folder / str(os.getpid())).touch()
            time.sleep(600)
        if "fail" in batch.columns["text"]:
            raise ZeroDivisionError(batch.columns["text"])
        names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "RANK")
        around = {name: os.environ.get(name) for name in names}
        return {"process": os.getpid(), "torch": "torch" in sys.modules} | around | {"table": batch.table}


def windows(texts: list[str], size: int) -> list[Batch]:
    """A file's windows."""
    return [
        Batch({"text": texts[start : start + size]}, 1 + start, len(texts[start : start + size]), table="for the writer")
        for start in range(0, len(texts), size)
    ]


def main() -> None:
    """Two processes that have work for ten minutes each."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a script begin without it
    with at_once(), Workers(__spec__.name, "Slow", {"folder": Path(sys.argv[1])}, 2) as workers:
        list(in_order(lambda size, *_: iter(windows(["sleep"] * 12, size)), workers, 2))


if __name__ == "__main__":
    run_command(main)
