"""What two processes do when something happens to one of them. Run by the tests, in each of both."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlp_transfer import fine_tune
from nlp_transfer.training import gradient
from nlp_transfer.training.trainer import TrainingError
from nlp_transfer.utils.interrupts import Interrupted

RANK = int(os.environ["RANK"])


def run(checkpoint: str, source: str, output: Path, **training: Any) -> Any:
    settings = {"epochs": 3, "batch_size": 4, "checkpoint_every": 2, "evaluate_every": 3, "logging_steps": 1, **training}
    return fine_tune(
        model=checkpoint, data={"train": source}, task="text_classification", training=settings, output_dir=str(output),
        with_report=False,
    )  # fmt: skip


def at_step(step: int, what: Any, rank: int = 1) -> Any:
    """Does something in one process, in the middle of a step; gives back how to stop doing it."""
    original = gradient.seed_step

    def seed(number: int, at: int, process: int) -> None:
        original(number, at, process)
        if at == step and rank == RANK:
            what()

    gradient.seed_step = seed
    return lambda: setattr(gradient, "seed_step", original)


def both_stop(checkpoint: str, source: str, folder: Path) -> None:
    """A signal that reaches one process alone ends both after the same step, and the run goes on."""
    straight = run(checkpoint, source, folder / "straight")
    for rank, step in ((1, 4), (0, 9)):
        undo = at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM), rank)
        with pytest.raises(Interrupted, match=f"step {step + 1} is saved") as caught:
            run(checkpoint, source, folder / "broken")
        assert caught.value.status == 143, caught.value.status
        undo()
    resumed = run(checkpoint, source, folder / "broken")
    assert resumed.metrics == straight.metrics
    one, two = (load_file(made.output_dir / "model/model.safetensors") for made in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    if RANK == 0:
        lines = [
            [json.loads(line)["step"] for line in (made.output_dir / "log.jsonl").read_text().splitlines()]
            for made in (straight, resumed)
        ]
        assert lines[0] == lines[1]


def one_ends(checkpoint: str, source: str, folder: Path) -> None:
    """A process is killed; the other says so and ends."""
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    told(checkpoint, source, folder)


def one_hangs(checkpoint: str, source: str, folder: Path) -> None:
    """A process does not answer; the other waits no longer than it was told to."""
    at_step(5, lambda: time.sleep(600))
    told(checkpoint, source, folder, process_timeout=6)


def told(checkpoint: str, source: str, folder: Path, **training: Any) -> None:
    try:
        run(checkpoint, source, folder / "broken", **training)
    except TrainingError as error:
        (folder / "message.txt").write_text(str(error))
        raise


if __name__ == "__main__":
    name, checkpoint, source, output = sys.argv[1:]
    globals()[name](checkpoint, source, Path(output))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
