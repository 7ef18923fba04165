"""Our side of `training`: `fine_tune` as it is called, paused between turns."""

import importlib
from typing import Any

from protocol import Channel
from sides.clock import Turns

channel = Channel()
settings = channel.settings

story: Any = importlib.import_module("nlp_transfer.fine_tune")


class Watched(story.Trainer):
    """The trainer that `fine_tune` makes, with its position in sight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Turns(channel, lambda: (self.position.examples, self.position.tokens, 0), late=True)


story.Trainer = Watched
# No checkpoints on either side; the rate is constant and small, so that the weights stay sound however long this goes on.
story.fine_tune(
    model=settings["model"],
    data={"train": settings["train"], "validation_share": 0},
    task={"name": "text_classification", "text": "text", "label": "label", "max_length": settings["max_length"]},
    training={
        "max_steps": 10**7, "checkpoint_every": 10**9, "schedule": "constant", "warmup": 0, "learning_rate": 1e-5,
        "batch_size": settings["batch_size"], **settings.get("training", {}),
    },
    output_dir=settings["folder"],
)  # fmt: skip
