"""Gives access to the trainer inside `fine_tune`."""

import importlib
from collections.abc import Callable
from typing import Any

from protocol import Channel
from workers.clock import Turns

from nlp_transfer import fine_tune

stages: Any = importlib.import_module("nlp_transfer.run.stages")  # which makes the trainer


def watch(look: Callable[[Any], object]) -> Callable[..., Any]:
    """Return `fine_tune`, which calls `look` with each trainer before training."""

    class Watched(stages.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            look(self)

    stages.Trainer = Watched
    return fine_tune


def turns_of(trainer: Any, channel: Channel) -> Turns:
    """Return the turns of a trainer, which counts rows and tokens itself."""
    return Turns(channel, lambda: (trainer.position.examples, trainer.position.tokens, 0), late=True)
