"""A predictor without a model, for tests of real processes: it loads at once, and sleeps when a row says so."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.worker_processes import PredictorPool
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems
from nlp_transfer.utils.interrupts import raise_interrupts


class Slow:
    """Predicts its process id and environment. On the row `sleep` it writes a file named after its process and then hangs."""

    chunk_rows = 2
    columns = ("text",)
    identity: ClassVar[dict[str, str]] = {}
    readers: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path, refuse: Problems | None = None, load_seconds: float = 0) -> None:
        self.folder = folder
        time.sleep(load_seconds)
        if refuse:
            refuse.raise_if_any()
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


def chunks(texts: list[str], size: int) -> list[Batch]:
    """Return the chunks of a file."""
    return [
        Batch({"text": texts[start : start + size]}, 1 + start, len(texts[start : start + size]), table="for the writer")
        for start in range(0, len(texts), size)
    ]


def main() -> None:
    """Run two processes that hang."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a script ignore it
    with raise_interrupts(), PredictorPool(__spec__.name, "Slow", {"folder": Path(sys.argv[1])}, 2) as pool:
        list(pool.predict(lambda size, *_: iter(chunks(["sleep"] * 12, size))))


if __name__ == "__main__":
    run_command(main)
