"""Worker of `training` for transformers' Trainer, paused between turns."""

from typing import Any

import torch
from protocol import Channel
from workers.clock import Turns
from workers.transformers_parts import classifier, encoded, make_trainer

channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])

counted: list[Any] = [0, 0, 0]
table = encoded(settings["model"], settings["train"], settings["max_length"], settings.get("pad_to_max", False))
model = classifier(settings, table.labels)


def count(_: Any, __: Any, batch: dict[str, torch.Tensor]) -> None:
    mask = batch["attention_mask"]
    counted[0] += len(mask)
    counted[1] = counted[1] + mask.sum()  # a tensor: a number would make a GPU wait
    counted[2] += mask.numel()


model.register_forward_pre_hook(count, with_kwargs=True)
Turns(channel, lambda: (counted[0], int(counted[1]), counted[2]))
trainer = make_trainer(
    settings, model, table,
    max_steps=10**7, learning_rate=1e-5, lr_scheduler_type="constant",
    logging_strategy="steps" if settings.get("stock") else "no", save_strategy="no",
)  # fmt: skip
trainer.train()
