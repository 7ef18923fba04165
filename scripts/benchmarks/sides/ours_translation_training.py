"""Our side of `translation_training`: `fine_tune` as it is called, paused between turns."""

import importlib
from typing import Any

from protocol import Channel
from sides.clock import Turns

channel = Channel()
settings = channel.settings
story: Any = importlib.import_module("nlp_transfer.fine_tune")


class Watched(story.Trainer):
    """The trainer that `fine_tune` makes, with its position and its losses in sight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        turns = Turns(channel, lambda: (self.position.examples, self.position.tokens, 0), late=True)
        write = self.log.write

        def note(step: int, **figures: Any) -> None:
            if "loss" in figures:
                turns.more["loss"] = figures["loss"]
            write(step, **figures)

        self.log.write = note


story.Trainer = Watched
story.fine_tune(
    model=settings["model"],
    data={"train": settings["train"], "validation_share": 0},
    task={"name": "translation", "source": settings["columns"][0], "target": settings["columns"][1]},
    training={"max_steps": 10**6, "checkpoint_every": 10**9, "schedule": "constant", "attention_dropout": 0.0,
              "logging_steps": settings["steps"], **settings["training"]},
    output_dir=settings["folder"],
)  # fmt: skip
