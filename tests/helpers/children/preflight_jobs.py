"""One of two processes; bf16 fails only in the second."""

import os
import sys
from pathlib import Path

import torch
from transformers.models.bert.modeling_bert import BertForSequenceClassification

from nlp_transfer import fine_tune
from nlp_transfer.training.trainer import Trainer


def main(model: str, train: str, folder: str) -> None:
    rank, forward, trained = os.environ["RANK"], BertForSequenceClassification.forward, Trainer.train

    def failing(self, **inputs):  # type: ignore[no-untyped-def]
        if rank == "1" and torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not here")
        return forward(self, **inputs)

    def watched(self):  # type: ignore[no-untyped-def]
        Path(folder, rank).write_text(f"{self.precision}")
        return trained(self)

    BertForSequenceClassification.forward, Trainer.train = failing, watched
    fine_tune(
        model=model, data={"train": train}, task={"name": "text_classification"}, output_dir=f"{folder}/run",
        training={"max_steps": 2, "batch_size": 4, "precision": "bf16"}, with_report=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
