"""Rows, model and arguments of the workers with transformers' Trainer, as an experienced user would choose them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.utils import logging

logging.set_verbosity_error()


@dataclass
class Encoded:
    rows: Dataset
    labels: list[str]
    tokenizer: Any
    padded: bool


def read(path: str) -> tuple[list[str], list[str]]:
    """Return texts and labels of a prepared file."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def encoded(model: str, path: str, max_length: int, pad_to_max: bool = False, labels: list[str] | None = None) -> Encoded:
    """Tokenize a prepared file before training, as `map` on a dataset does."""
    texts, answers = read(path)
    labels = labels or sorted(set(answers))
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = tokenizer(texts, truncation=True, max_length=max_length, padding="max_length" if pad_to_max else False)
    ids = {label: i for i, label in enumerate(labels)}
    columns = {name: found[name] for name in found}
    columns |= {"labels": [ids[label] for label in answers], "length": [len(row) for row in found["input_ids"]]}
    return Encoded(Dataset.from_dict(columns), labels, tokenizer, pad_to_max)


def classifier(settings: dict[str, Any], labels: list[str]) -> Any:
    """Load the checkpoint with a new head; its dropout is kept unless the settings give another."""
    config = AutoConfig.from_pretrained(settings["model"], num_labels=len(labels))
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    if settings.get("attention_dropout") is not None:
        config.attention_probs_dropout_prob = settings["attention_dropout"]
    # Nothing is asked for where the settings do not: then it is what transformers takes by itself.
    asked = {"attn_implementation": settings["attention"]} if settings.get("attention") else {}
    return AutoModelForSequenceClassification.from_pretrained(settings["model"], config=config, **asked)


def make_trainer(settings: dict[str, Any], model: Any, table: Encoded, **more: Any) -> Trainer:
    """Create a Trainer.

    With `stock`, it has the arguments of an unchanged example script. Otherwise it is set up for speed: bf16, batches of similar
    length, fused optimizer, loader processes if they help, no logging.
    """
    arguments: dict[str, Any] = {"per_device_train_batch_size": settings["batch_size"], "report_to": [], "disable_tqdm": True}
    if not settings.get("stock"):
        arguments |= {
            "bf16": settings.get("precision", "bf16") == "bf16",
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "group_by_length",
            "length_column_name": "length",
            "dataloader_num_workers": settings.get("loader_workers", 0),
            "dataloader_persistent_workers": settings.get("loader_workers", 0) > 0,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
    evaluation = {name: more.pop(name) for name in ("eval_dataset", "compute_metrics", "callbacks") if name in more}
    arguments |= {"use_cpu": not torch.cuda.is_available(), **more}
    return Trainer(
        model, TrainingArguments(settings["folder"], **arguments), train_dataset=table.rows,
        data_collator=default_data_collator if table.padded else DataCollatorWithPadding(table.tokenizer), **evaluation,
    )  # fmt: skip
