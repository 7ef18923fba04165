"""Worker of `overhead`: times forward pass, backward pass, optimizer, and the rest of each cycle."""

import importlib
import time
from collections.abc import Callable
from typing import Any

from protocol import Channel
from workers.clock import Turns
from workers.watched import watch

channel = Channel()
settings = channel.settings
loop: Any = importlib.import_module("nlp_transfer.training.trainer")
spent = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
snapshots: list[dict[str, float]] = []


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began

    return call


def look(trainer: Any) -> None:
    """Time the parts of a trainer."""
    began: list[float] = []
    trainer.model.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
    trainer.model.register_forward_hook(lambda *_: spent.update(forward=spent["forward"] + time.perf_counter() - began.pop()))
    trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
    turns = Turns(channel, lambda: count(turns))


def count(turns: Turns) -> tuple[int, int, int]:
    """Take a snapshot of the times at the beginning and at the end of a turn."""
    snapshots.append(dict(spent))
    if len(snapshots) == 2:
        before, after = snapshots
        turns.more = {name: after[name] - before[name] for name in spent}
        snapshots.clear()
    return 0, 0, 0


# The norm of the gradient and clipping belong to the optimizer's part.
loop.PhaseOptimizer.clip = timed("optimizer", loop.PhaseOptimizer.clip)
loop.PhaseOptimizer.step = timed("optimizer", loop.PhaseOptimizer.step)
watch(look)(
    model=settings["model"], data={"train": settings["train"], "validation_share": 0},
    task={"name": "text_classification", "text": "text", "label": "label", "max_length": settings["max_length"]},
    training={"max_steps": 10**6, "checkpoint_every": 10**9, "schedule": "constant", "warmup": 0, "learning_rate": 1e-5,
              "batch_size": settings["batch_size"]},
    output_dir=settings["folder"],
)  # fmt: skip
