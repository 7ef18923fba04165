"""Worker of `training` for this project: `fine_tune`, paused between turns."""

from protocol import Channel
from workers.watched import turns_of, watch

channel = Channel()
settings = channel.settings
fine_tune = watch(lambda trainer: turns_of(trainer, channel))
# No checkpoints in any worker. A small constant learning rate keeps the weights stable for any number of steps.
fine_tune(
    model=settings["model"],
    data={"train": settings["train"], "validation_share": 0},
    task={"name": "text_classification", "text": "text", "label": "label", "max_length": settings["max_length"]},
    training={
        "max_steps": 10**7, "checkpoint_every": 10**9, "schedule": "constant", "warmup": 0, "learning_rate": 1e-5,
        "batch_size": settings["batch_size"], **settings.get("training", {}),
    },
    output_dir=settings["folder"],
)  # fmt: skip
