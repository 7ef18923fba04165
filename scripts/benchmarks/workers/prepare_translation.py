"""Creates an untrained translation model and tokenized rows for workers that cannot create them."""

import json
from pathlib import Path
from typing import Any

from protocol import Channel

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.splits import read_splits
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from

channel = Channel()


def turn(request: dict[str, Any]) -> dict[str, Any]:
    training = TrainingConfig(attention_dropout=0.0)
    task: Any = task_from({"name": "translation", "source": request["columns"][0], "target": request["columns"][1]})
    checkpoint = Checkpoint.open(find_model(request["model"]))
    source = DataConfig(train=request["train"], validation=request["scored"], validation_share=0)
    splits, task = read_splits(source, task, training, 0)
    task = task.prepare(checkpoint, splits.rows["train"])
    folder = Path(request["folder"])
    with quiet():
        task.build_model(checkpoint, training).save_pretrained(folder / "model")
    checkpoint.tokenizer.save_pretrained(folder / "model")

    def write(name: str, split: str) -> dict[str, list[list[int]]]:
        tokens: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for columns in splits.rows[split].batches(1000):
            ragged = task.encode(columns, checkpoint.tokenizer).ragged
            for column, values in tokens.items():
                values.extend([[int(value) for value in row] for row in ragged[column]])
        (folder / f"{name}.json").write_text(json.dumps(tokens), encoding="utf-8")
        return tokens

    tokens = write("rows", "train")
    write("scored", "validation")
    both = [len(a) + len(b) for a, b in zip(tokens["input_ids"], tokens["labels"], strict=True)]
    return {"model": str(folder / "model"), "rows": str(folder / "rows.json"), "scored": str(folder / "scored.json"),
            "pairs": len(both), "mean_tokens": sum(both) / len(both)}  # fmt: skip


channel.serve(turn)
