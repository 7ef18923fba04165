"""Worker of `growth` for this project: seconds until the first step of a new or a resumed run."""

import importlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from protocol import Channel, peak_memory
from workers.clock import Stopwatch
from workers.tiny import save_model, write_rows

channel = Channel()
settings = channel.settings
root = Path(settings["folder"])
shutil.rmtree(root, ignore_errors=True)
root.mkdir(parents=True)
os.environ["NLP_TRANSFER_CACHE"] = str(root / "cache")  # nothing that an earlier run has kept
few, many = write_rows(root / "few.csv", 1000), write_rows(root / "many.csv", settings["rows"])
model = save_model(root / "model")
story: Any = importlib.import_module("nlp_transfer.fine_tune")


class StoppedError(BaseException):
    """Ends a run after its first step."""


def train(folder: Path, data: str, after_step: Any, resume: str = "auto") -> float:
    """Return the seconds from the call to the end of the first optimizer step."""
    began = time.perf_counter()
    watch = Stopwatch(after_step)
    try:
        story.fine_tune(
            model=model, data={"train": data, "validation_share": 0},
            task={"name": "text_classification", "text": "text", "label": "label"},
            training={"max_steps": 10**6, "batch_size": 8, "checkpoint_every": 10**9, "schedule": "constant"},
            output_dir=folder, resume=resume,
        )  # fmt: skip
    except (StoppedError, KeyboardInterrupt):
        pass
    finally:
        watch.stop()
    return watch.times[0] - began


def stop(_: int) -> None:
    raise StoppedError


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds until the first step of a new run, or of one resumed from step `stop_at`."""
    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    if not request.get("stop_at"):
        return {"seconds": train(folder, many, stop), "grown_bytes": peak_memory() - before}

    def interrupt(step: int) -> None:
        if step == request["stop_at"]:
            os.kill(os.getpid(), signal.SIGTERM)

    train(folder, many, interrupt)
    return {"seconds": train(folder, many, stop, "must")}


train(root / "warm", few, stop)  # imports, and whatever is done once
before = peak_memory()
channel.serve(turn)
