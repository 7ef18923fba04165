"""Worker of `translation_training` for transformers' Seq2SeqTrainer, set up for speed, paused between turns."""

from typing import Any

import torch
from protocol import Channel
from transformers import TrainerCallback
from workers.clock import Turns
from workers.transformers_translation_parts import make_trainer, open_model

channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
model = open_model(settings["model"], settings["attention"])
counted = [0, 0, 0]


def count(_: Any, __: Any, batch: dict[str, torch.Tensor]) -> None:
    sides = [batch["attention_mask"], batch["decoder_input_ids"]]
    # The collator has taken the labels' padding over; a target has as many tokens as it has labels.
    targets = int((batch["labels"] != -100).sum()) if "labels" in batch else int((sides[1] != model.config.pad_token_id).sum())
    counted[0] += len(sides[0])
    counted[1] += int(sides[0].sum()) + targets
    counted[2] += sum(side.numel() for side in sides)


class Losses(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in (logs or {}):
            turns.more["loss"] = float(logs["loss"])


model.register_forward_pre_hook(count, with_kwargs=True)
turns = Turns(channel, lambda: (counted[0], counted[1], counted[2]))
make_trainer(settings, model, max_steps=10**6, logging_steps=settings["steps"], callbacks=[Losses()]).train()
