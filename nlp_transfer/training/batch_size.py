"""`training.batch_size: auto`: as many rows at a time as memory holds, and as many optimiser steps as ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.models.preparation import autocast
from nlp_transfer.settings.schema import TrainingConfig

ROWS = 32  # rows of an optimiser step, for a process and each of `gradient_accumulation_steps`
USED = 0.7  # share of the free memory that is planned with; blocks of a size that was freed do not always fit again
BACKWARD = 1.5  # what the backward pass holds for a moment, beside what the forward pass has left
PARAMETER = 18  # bytes for each trained parameter: gradient, two moments, a copy in bf16 and one while a checkpoint is written


def fit_batch(
    model: nn.Module, table: TokenTable, training: TrainingConfig, accelerator: Accelerator, precision: str
) -> tuple[TrainingConfig, str]:
    """Settings in which `batch_size` is a number, and the reason for it.

    A step sees 32 rows times `gradient_accumulation_steps`, whatever fits at once; they are cut into as few micro-batches as
    memory allows. How much that is, is told by what a forward pass of the longest rows leaves behind for the backward pass.
    """
    if training.batch_tokens is not None:
        return training.model_copy(update={"batch_size": ROWS}), "training.batch_tokens beats it"
    total = ROWS * training.gradient_accumulation_steps
    model.to(accelerator.device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    longest = np.argsort(-table.lengths, kind="stable")[:2]
    one, two = (_left_behind(model, table, longest[:rows], accelerator.device, precision) for rows in (1, 2))
    room = USED * free_memory(accelerator.device) - PARAMETER * trained - one
    fitting = max(1, int(room / max(1.0, BACKWARD * (two - one if len(longest) > 1 else one))))
    if accelerator.num_processes > 1:
        fitting = int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())
    size = next(rows for rows in range(min(total, fitting), 0, -1) if total % rows == 0)  # a step stays what it is to the row
    pieces = total // size
    reason = "all rows of a step fit in memory" if size == total else f"what fits in memory of a step's {total} rows"
    return training.model_copy(update={"batch_size": size, "gradient_accumulation_steps": pieces}), reason


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had, on the device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return int(psutil.virtual_memory().available)


def _left_behind(model: nn.Module, table: TokenTable, rows: np.ndarray, device: torch.device, precision: str) -> int:
    """Bytes that a forward pass of some rows keeps for the backward pass; what it keeps of the weights is not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    held: list[Any] = []  # so that no two get the same address one after the other

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
    with _training(model), autocast(device, precision), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(**model_inputs(batch))
    return sum(found.values())


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
