"""Worker of `growth` for datasets and transformers' Trainer: read, `map`, train; or resume from a checkpoint."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars, load_dataset
from protocol import Channel, peak_memory
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.utils import logging
from workers.clock import Stopwatch
from workers.tiny import save_model, write_rows

logging.set_verbosity_error()
disable_progress_bars()
channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
root = Path(settings["folder"])
shutil.rmtree(root, ignore_errors=True)
root.mkdir(parents=True)
few, many = write_rows(root / "few.csv", 1000), write_rows(root / "many.csv", settings["rows"])
place = save_model(root / "model")


class StoppedError(Exception):
    """Ends a run after its last step of interest."""


def train(data: str, last: int, resume: bool = False, save_at: int = 0) -> float:
    """Return the seconds until the end of the first optimizer step; the run ends after step `last` of this call."""

    def after_step(step: int) -> None:
        if step == last:
            raise StoppedError

    began = time.perf_counter()
    watch = Stopwatch(after_step)
    tokenizer = AutoTokenizer.from_pretrained(place)

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        found = tokenizer(rows["text"], truncation=True)
        return {**found, "labels": [int(label.removeprefix("class")) for label in rows["label"]]}

    rows = load_dataset("csv", data_files=data, cache_dir=str(root / "cache"), split="train")
    rows = rows.map(encode, batched=True, remove_columns=["text", "label"])
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=10)
    arguments = TrainingArguments(
        str(root / "run"), max_steps=10**6, per_device_train_batch_size=8, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="steps" if save_at else "no", save_steps=save_at or 500, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer))
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    except StoppedError:
        pass
    finally:
        watch.hook.remove()
    return watch.times[0] - began


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds until the first step of a new run, or of one resumed from step `stop_at`."""
    shutil.rmtree(root / "run", ignore_errors=True)
    at = request.get("stop_at")
    if not at:
        return {"seconds": train(many, 1), "grown_bytes": peak_memory() - before}
    train(many, at + 1, save_at=at)  # a checkpoint is written after the step's hook, so one more step is taken
    return {"seconds": train(many, 1, resume=True)}


train(few, 1)
before = peak_memory()
channel.serve(turn)
