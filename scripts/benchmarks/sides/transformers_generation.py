"""Translations by plain `generate`: batches in the order of the file, each padded to its longest row."""

import time
from pathlib import Path
from typing import Any

import torch
from protocol import Channel
from sides.plain import pairs_of
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
dtype = {"dtype": getattr(torch, settings["dtype"])} if settings.get("dtype") else {}
model = AutoModelForSeq2SeqLM.from_pretrained(settings["model"], **dtype).eval()
tokenizer = AutoTokenizer.from_pretrained(settings["model"])
target = Path(settings["model"]) / "target_tokenizer"
writer = AutoTokenizer.from_pretrained(target) if target.is_dir() else tokenizer
texts, _ = pairs_of(settings["test"], *settings["columns"], settings.get("rows"))


def translate(rows: list[str]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(rows), settings["batch_size"]):
        inputs = tokenizer(rows[start : start + settings["batch_size"]], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, num_beams=settings["beams"])
        found += writer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return found


translate(texts[:8])


def turn(_: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    found = translate(texts)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows_per_second": len(texts) / seconds, "translations": found}


channel.serve(turn)
