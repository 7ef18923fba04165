"""Tokenized rows and fast arguments for the workers with transformers' Seq2SeqTrainer."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()


def read_tokens(path: str) -> dict[str, list[list[int]]]:
    """Return `input_ids` and `labels` of prepared rows."""
    tokens: dict[str, list[list[int]]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return tokens


def open_model(folder: str, attention: str) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=attention)


def collator(settings: dict[str, Any], model: Any) -> Any:
    return DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(settings["model"]), model=model, label_pad_token_id=-100)


def make_trainer(settings: dict[str, Any], model: Any, **more: Any) -> Seq2SeqTrainer:
    """Create a Seq2SeqTrainer: bf16, similar lengths in a batch, fused optimizer, label smoothing, constant rate after warmup."""
    tokens, training = read_tokens(settings["rows"]), settings["training"]
    rows = Dataset.from_dict({
        **tokens,
        "attention_mask": [[1] * len(row) for row in tokens["input_ids"]],
        "length": [len(a) + len(b) for a, b in zip(tokens["input_ids"], tokens["labels"], strict=True)],
    })  # fmt: skip
    callbacks = more.pop("callbacks", [])
    arguments = Seq2SeqTrainingArguments(
        settings["folder"], per_device_train_batch_size=training["batch_size"], bf16=True, use_cpu=True,
        learning_rate=training["learning_rate"], lr_scheduler_type="constant_with_warmup", warmup_steps=training["warmup"],
        label_smoothing_factor=0.1, weight_decay=0.01, train_sampling_strategy="group_by_length", length_column_name="length",
        optim="adamw_torch_fused", save_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    return Seq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collator(settings, model), callbacks=callbacks)
