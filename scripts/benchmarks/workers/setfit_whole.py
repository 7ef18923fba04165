"""Worker for the setfit package with a complete training in each turn. Runs in setfit's environment, without this project."""

import shutil
import time
from typing import Any

import torch
from datasets import Dataset
from protocol import Channel
from setfit import SetFitModel, Trainer, TrainingArguments
from workers.plain import texts_of

channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return test accuracy and training seconds with default settings and `num_iterations` as in the paper (2209.11055)."""
    shutil.rmtree(settings["folder"], ignore_errors=True)
    texts, labels = (texts_of(request["train"], column=column) for column in ("text", "label"))
    tests, right = (texts_of(request["test"], request.get("rows"), column) for column in ("text", "label"))
    model = SetFitModel.from_pretrained(settings["model"], labels=sorted(set(labels)))
    arguments = TrainingArguments(
        output_dir=settings["folder"], num_iterations=settings["iterations"], seed=request["seed"], save_strategy="no",
        report_to="none", max_steps=request.get("max_steps", -1), show_progress_bar=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels}))
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    found = [str(label) for label in model.predict(tests, show_progress_bar=False)]
    return {"accuracy": sum(a == b for a, b in zip(found, right, strict=True)) / len(right), "seconds": seconds}


channel.serve(turn)
