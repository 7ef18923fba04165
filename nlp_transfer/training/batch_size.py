"""Resolve `training.batch_size: auto` to the largest micro-batch that fits in memory.

The memory is estimated in advance. `accelerate.find_executable_batch_size` waits for an out-of-memory exception instead. On
CPUs that does not work, since Linux overcommits memory and then kills the process.
"""

from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from torch import nn

from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.models.preparation import autocast
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.training.preflight import unchanged

ROWS = 32  # number of rows in an optimizer step, per process and accumulation step
USABLE = 0.7  # fraction of the free memory to use; the rest allows for fragmentation
BACKWARD = 1.5  # peak memory of the backward pass, relative to the saved activations
BYTES_PER_PARAMETER = 18  # trainable ones: gradient, two moments, bf16 copy, and a copy while saving a checkpoint


def fit_batch(
    model: nn.Module, table: TokenTable, training: TrainingConfig, accelerator: Accelerator, precision: str
) -> tuple[TrainingConfig, str]:
    """Return settings with a numeric `batch_size`, and the reason for its value.

    In each process, an optimizer step has 32 * `gradient_accumulation_steps` rows, divided into as few equal micro-batches as
    memory allows. The memory that a row needs is measured in forward passes of the longest rows.
    """
    if training.batch_tokens is not None:
        return training.model_copy(update={"batch_size": ROWS}), "training.batch_tokens overrides it"
    total = ROWS * training.gradient_accumulation_steps
    model.to(accelerator.device)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    longest = np.argsort(-table.lengths, kind="stable")[:2]
    one, two = (_activation_bytes(model, table, longest[:rows], accelerator.device, precision) for rows in (1, 2))
    room = USABLE * free_memory(accelerator.device) - BYTES_PER_PARAMETER * trainable - one
    fitting = max(1, int(room / max(1.0, BACKWARD * (two - one if len(longest) > 1 else one))))
    if accelerator.num_processes > 1:
        fitting = int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())
    size = next(rows for rows in range(min(total, fitting), 0, -1) if total % rows == 0)  # a divisor of the step's `total` rows
    reason = (
        "all rows of a step fit in memory" if size == total else f"the largest share of a step's {total} rows that fits in memory"
    )
    return training.model_copy(update={"batch_size": size, "gradient_accumulation_steps": total // size}), reason


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are available on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return int(psutil.virtual_memory().available)


def _activation_bytes(model: nn.Module, table: TokenTable, rows: np.ndarray, device: torch.device, precision: str) -> int:
    """Return the bytes that a forward pass saves for the backward pass, excluding weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    held: list[Any] = []  # keeps storages alive, so addresses stay unique

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with unchanged(model), autocast(device, precision), hooks:
        model.train()
        model(**model_inputs(batch))
    return sum(saved.values())
