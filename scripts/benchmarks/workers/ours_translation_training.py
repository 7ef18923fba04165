"""Worker of `translation_training` for this project: `fine_tune`, paused between turns."""

from typing import Any

from protocol import Channel
from workers.watched import turns_of, watch

channel = Channel()
settings = channel.settings


def look(trainer: Any) -> None:
    """Divide the steps of a trainer into turns and record its losses."""
    turns, write = turns_of(trainer, channel), trainer.log.write

    def note(step: int, **figures: Any) -> None:
        if "loss" in figures:
            turns.more["loss"] = figures["loss"]
        write(step, **figures)

    trainer.log.write = note


watch(look)(
    model=settings["model"],
    data={"train": settings["train"], "validation_share": 0},
    task={"name": "translation", "source": settings["columns"][0], "target": settings["columns"][1]},
    training={"max_steps": 10**6, "checkpoint_every": 10**9, "schedule": "constant", "attention_dropout": 0.0,
              "logging_steps": settings["steps"], **settings["training"]},
    output_dir=settings["folder"],
)  # fmt: skip
