"""Creates checkpoints of common sizes with random weights, for measurements of speed."""

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
    """Write a checkpoint with the tokenizer of an existing one; return its folder."""
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
