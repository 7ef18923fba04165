"""One of two processes; a callback of the second one alone stops the run, and the loss of a step is that of both."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from nlp_transfer import Callback, fine_tune
from nlp_transfer.training.callbacks import Step

RANK = os.environ["RANK"]


class StopInSecond(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, trainer: Any, step: Step) -> None:
        self.losses.append(step.loss)
        if RANK == "1" and step.number == 2:
            trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"rank": RANK, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError


def main(model: str, train: str, folder: str) -> None:
    callback = StopInSecond()
    run = fine_tune(
        model=model, data={"train": train}, task={"name": "text_classification"}, output_dir=f"{folder}/run",
        training={"max_steps": 9, "batch_size": 4, "precision": "fp32", "logging_steps": 1}, callbacks=[callback],
        with_report=False,
    )  # fmt: skip
    Path(folder, RANK).write_text(json.dumps([run.result["train"]["steps"], callback.losses]))


if __name__ == "__main__":
    main(*sys.argv[1:])
