"""transformers' Seq2SeqTrainer in `translation_training`, set up to be fast, paused between turns."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from protocol import Channel
from sides.clock import Turns
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.utils import logging

logging.set_verbosity_error()
channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
tokens = json.loads(Path(settings["rows"]).read_text(encoding="utf-8"))
rows = Dataset.from_dict({
    **tokens,
    "attention_mask": [[1] * len(row) for row in tokens["input_ids"]],
    "length": [len(a) + len(b) for a, b in zip(tokens["input_ids"], tokens["labels"], strict=True)],
})  # fmt: skip
model: Any = AutoModelForSeq2SeqLM.from_pretrained(settings["model"], attn_implementation=settings["attention"])
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
training = settings["training"]
arguments = Seq2SeqTrainingArguments(
    settings["folder"], max_steps=10**6, per_device_train_batch_size=training["batch_size"], bf16=True, use_cpu=True,
    learning_rate=training["learning_rate"], lr_scheduler_type="constant_with_warmup", warmup_steps=training["warmup"],
    label_smoothing_factor=0.1, weight_decay=0.01, train_sampling_strategy="group_by_length", length_column_name="length",
    optim="adamw_torch_fused", logging_steps=settings["steps"], save_strategy="no", report_to=[], disable_tqdm=True,
    dataloader_pin_memory=False,
)  # fmt: skip
collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(settings["model"]), model=model, label_pad_token_id=-100)
Seq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Losses()]).train()
