"""Worker of `prediction` for transformers' `pipeline`."""

import time
from typing import Any

import torch
from protocol import Channel
from transformers import pipeline
from transformers.utils import logging
from workers.plain import texts_of

logging.set_verbosity_error()
channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
asked = {"dtype": getattr(torch, settings["dtype"])} if settings.get("dtype") else {}
classify: Any = pipeline("text-classification", settings["model"], device="cpu", **asked)
texts = texts_of(settings["test"], settings.get("rows"))
options = {"truncation": True, "max_length": settings["max_length"]}
options |= {"batch_size": settings["batch_size"]} if settings.get("batch_size") else {}
classify(texts[:64], **options)


def turn(request: dict[str, Any]) -> dict[str, Any]:
    if request.get("probabilities"):
        answers = classify(texts, top_k=None, **options | {"batch_size": 32})
        found = [{one["label"]: one["score"] for one in row} for row in answers]
        return {"probabilities": [[row[label] for label in request["labels"]] for row in found]}
    began = time.perf_counter()
    answers = classify(texts, **options)
    seconds = time.perf_counter() - began
    assert len(answers) == len(texts)
    return {"seconds": seconds, "rows_per_second": len(texts) / seconds}


channel.serve(turn)
