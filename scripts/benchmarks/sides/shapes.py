"""Checkpoints of a usual size with random weights: speed does not depend on what they know."""

from pathlib import Path
from typing import Any

import torch
from protocol import Channel
from transformers import AutoModel, AutoTokenizer, BertConfig, ModernBertConfig

from nlp_transfer.data.sources import find_model
from nlp_transfer.models.checkpoint import Checkpoint

SHAPES: dict[str, Any] = {"bert-base": BertConfig, "modernbert-base": ModernBertConfig}

channel = Channel()


def turn(request: dict[str, Any]) -> dict[str, str]:
    """Writes one, with the tokenizer of a checkpoint at hand, and gives back its folder."""
    path = str(Checkpoint.open(find_model(request["tokenizer"])).source.path)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    special = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "bos": tokenizer.cls_token_id}
    config = SHAPES[request["shape"]](
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id,
        **{f"{name}_token_id": number for name, number in special.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    folder = Path(request["folder"])
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"folder": str(folder)}


channel.serve(turn)
