"""Whole adapters with wrong settings or tensors, put on a tiny model."""

import copy
import json
import random
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from safetensors.torch import save_file

from nlp_transfer.models.verification.adapter_settings import SETTINGS, SUPPORTED_METHODS, load_adapter
from nlp_transfer.saved_models.load import quiet
from tests.helpers.fuzz.adapters import WEIGHTS, base_model, changed, saved_adapter
from tests.helpers.fuzz.cases import Case, ViolationError, odd_text


def make(rng: random.Random, folder: Path) -> Case:
    """A whole adapter, put on a model."""
    settings, tensors = saved_adapter(rng.choice(sorted(SUPPORTED_METHODS)))
    document, tensors = changed(rng, settings), dict(tensors)
    name = rng.choice(sorted(tensors))
    kind = rng.randrange(8)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[odd_text(rng) or "x"] = torch.ones(2)
    elif kind == 2:
        tensors[name] = torch.ones(rng.choice([(), (0,), (1,), (3, 3), (1, 1, 1), (100, 100)]))
    elif kind == 3:
        tensors[name] = tensors[name].to(rng.choice([torch.int64, torch.float16, torch.bool]))
    elif kind == 4:
        tensors[name] = torch.full_like(tensors[name].float(), rng.choice([float("nan"), float("inf"), 0, 1e9]))
    (folder / SETTINGS).write_text(json.dumps(document), encoding="utf-8", errors="replace")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)

    def run() -> None:
        with quiet(), redirect_stderr(StringIO()):
            adapted = load_adapter(copy.deepcopy(base_model()), folder)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in adapted.parameters()):
            raise ViolationError("weights that are not finite were loaded")

    return Case(f"load {kind}", run, (str(folder),))
