"""Worker of `translation_quality` for transformers' Seq2SeqTrainer; also scores the models of both."""

import gc
import time
from typing import Any

import torch
from protocol import Channel
from torch.nn import functional as F
from transformers import set_seed
from workers.transformers_translation_parts import collator, make_trainer, open_model, read_tokens

channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Train with a `seed` (for a trial, `max_steps`), or return the loss of the model in the folder `score`."""
    gc.collect()
    return score(request["score"]) if "score" in request else train(**request)


def train(seed: int, max_steps: int = -1) -> dict[str, Any]:
    set_seed(seed)
    model = open_model(settings["model"], settings["attention"])
    trainer = make_trainer(settings, model, seed=seed, num_train_epochs=1, max_steps=max_steps, logging_strategy="no")
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.save_model(settings["folder"])
    return {"folder": settings["folder"], "seconds": seconds, "steps": trainer.state.global_step}


@torch.inference_mode()
def score(folder: str) -> dict[str, Any]:
    """Return the mean cross-entropy of a target token in fp32, without label smoothing."""
    model = open_model(folder, "sdpa").eval()
    pad = collator(settings, model)
    tokens = read_tokens(settings["scored"])
    rows = [{"input_ids": a, "labels": b} for a, b in zip(tokens["input_ids"], tokens["labels"], strict=True)]
    total = 0.0
    for start in range(0, len(rows), 64):
        batch = pad(rows[start : start + 64])
        logits = model(**batch).logits.flatten(0, 1)
        total += float(F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100, reduction="sum"))
    return {"loss": total / sum(len(row["labels"]) for row in rows)}


channel.serve(turn)
