"""What a fixed part of a model makes of each row: computed once in evaluation mode and kept, in memory or on disk.

A cut says where the fixed part ends. `replay` plays back there what is kept here.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.sources.wheels import default_cache
from nlp_transfer.data.tokens import Ragged, TokenTable
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.models.checkpoint import autocast, encoder_config, find_layers
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification, pool
from nlp_transfer.utils.atomic_files import replacing
from nlp_transfer.utils.console import Steps, say
from nlp_transfer.utils.distributed import broadcast_from_main
from nlp_transfer.utils.errors import UserError

Where = Literal["auto", "memory", "disk"]
IN_MEMORY = 2**30  # bytes; what takes more is kept in a file
OF_THE_HEAD = ("id2label", "label2id", "problem_type", "architectures", "_name_or_path")  # fields that features do not depend on
BATCH = 64


def cache_folder() -> Path:
    """Where features are cached on disk: `features` in the toolkit's cache folder."""
    return default_cache() / "features"


@dataclass(frozen=True)
class Cut:
    """The end of the fixed part: below layer `depth` (counted from 0), or with None after the whole encoder."""

    depth: int | None = None

    @property
    def column(self) -> str:
        """The name under which a batch carries what was cached."""
        return "pooled" if self.depth is None else "states"


def cache_tables(
    model: PreTrainedModel,
    tables: dict[str, TokenTable],
    cut: Cut,
    device: torch.device,
    precision: str = "fp32",
    where: Where = "auto",
) -> dict[str, TokenTable]:
    """The tables with what the fixed part makes of their rows, float32: by row (rows, width), or by token.

    Of validation it is computed in fp32, so that its metrics are those of the saved model.

    Several processes share the work. With `where` disk (auto: from a gigabyte on) it is kept in a memory-mapped file named by
    a fingerprint of the weights below the cut, the tokens and the precision, so another run with the same finds it there.
    """
    model.eval().to(device)
    precisions = {name: "fp32" if name == "validation" else precision for name in tables}
    return {name: replace(table, cached={cut.column: _cached(model, table, cut, device, precisions[name], where, name)})
            for name, table in tables.items()}  # fmt: skip


def _cached(
    model: PreTrainedModel, table: TokenTable, cut: Cut, device: torch.device, precision: str, where: Where, name: str
) -> np.ndarray | Ragged:
    shape = _shape(model, table, cut, device)
    size = int(np.prod(shape)) * 4
    tokens = table.ragged["input_ids"]
    if where == "memory" or (where == "auto" and size <= IN_MEMORY):
        values = np.empty(shape, np.float32)
        _fill(values, model, table, cut, device, precision, name)
    else:
        path = cache_folder() / f"{_fingerprint(model, table, cut, precision)}.npy"
        if not broadcast_from_main(path.exists()):
            _write(path, shape, lambda values: _fill(values, model, table, cut, device, precision, name))
        else:
            say(f"{name}: features found in {path}")
        values = np.load(path, mmap_mode="r")
    return values if cut.depth is None else Ragged(values, tokens.offsets)


def _together() -> bool:
    """Whether other processes work beside this one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """A whole file or none."""
    try:
        with replacing(path, shared=True) as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            if hasattr(os, "posix_fallocate"):  # where there is no room, writing to mapped memory would end the process
                os.posix_fallocate(file.fileno(), 0, file.tell() + 4 * math.prod(shape))
            values = np.memmap(file, np.float32, "r+", offset=file.tell(), shape=shape)
            fill(values)
            values.flush()
    except OSError as error:
        raise UserError(f"strategy.cache: {path.parent} cannot be written: {error.strerror}; allowed: memory") from error


def _shape(model: PreTrainedModel, table: TokenTable, cut: Cut, device: torch.device) -> tuple[int, ...]:
    found = _states(model, table, np.arange(min(1, len(table))), cut, device, "fp32", FastFunctions())
    rows = len(table) if cut.depth is None else len(table.ragged["input_ids"].values)
    return (rows, *found.shape[1:])


def _fill(
    values: np.ndarray, model: PreTrainedModel, table: TokenTable, cut: Cut, device: torch.device, precision: str, name: str
) -> None:
    """Every row's states, put where they belong."""
    offsets = table.ragged["input_ids"].offsets
    # The ways of training, since cached is what is computed live; one context, so that weights are cast once.
    compute = partial(_states, model, table, cut=cut, device=device, precision=precision, functions=FastFunctions())
    for rows, states in in_batches(table, compute, f"encoding {name}"):
        if cut.depth is None:
            values[rows] = states
        else:
            values[np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])] = states


def in_batches(table: TokenTable, compute: Callable[[np.ndarray], Any], title: str) -> Iterator[tuple[np.ndarray, Any]]:
    """What `compute` makes of row indices (int64), batch after batch of rows of similar length, until all rows were there.

    Each process computes a share and all get the whole, so the results are pickled on their way.
    """
    distributed = _together()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    batches = inference_batches(table.side_lengths, BATCH)
    with Steps(title, -(-len(batches) // world)) as progress:
        for first in range(0, len(batches), world):
            own = batches[first + rank] if first + rank < len(batches) else None
            parts: list[Any] = [(own, None if own is None else compute(own))]
            if world > 1:
                parts, own_part = [None] * world, parts[0]
                torch.distributed.all_gather_object(parts, own_part)
            yield from ((rows, found) for rows, found in parts if rows is not None)
            progress.advance()


def _states(
    model: Any, table: TokenTable, rows: np.ndarray, cut: Cut, device: torch.device, precision: str, functions: FastFunctions
) -> np.ndarray:
    """float32: a vector (or one for each layer) a row, or the states of all tokens of the rows, one after the other."""
    batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
    inputs = {name: batch[name] for name in (*table.ragged, "attention_mask")}
    with torch.inference_mode(), autocast(device, precision), functions:
        if cut.depth is not None:
            states = _entering(model, cut.depth, inputs)
            return states[inputs["attention_mask"].bool()].float().cpu().numpy()
        if isinstance(model, EncoderHeadForSequenceClassification):
            return model.pooled_states(**inputs).float().cpu().numpy()
        states = base_of(model)(**inputs).last_hidden_state
        how = getattr(model.config, "classifier_pooling", "cls")  # ModernBERT has a choice; all others take the first token
        return pool(states, inputs["attention_mask"], how).float().cpu().numpy()


class _Reached(Exception):  # noqa: N818  no error
    """Ends a forward pass where the states have been seen."""


def _entering(model: nn.Module, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """States (rows, tokens, width) that enter a layer; the layers above are not run."""
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else named["hidden_states"])
        raise _Reached

    handle = layers_of(model)[depth].register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(**inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers, the lowest first."""
    return list(model.get_submodule(find_layers(model).prefix))  # type: ignore[call-overload]


def base_of(model: Any) -> Any:
    """The encoder without its head."""
    return getattr(model, model.base_model_prefix)


def _fingerprint(model: PreTrainedModel, table: TokenTable, cut: Cut, precision: str) -> str:
    """A name for what would be computed: equal weights, tokens and settings have the same, whatever the labels are."""
    layers, config = find_layers(model), model.config
    depth = layers.depth if cut.depth is None else cut.depth
    pooled = [getattr(config, name, None) for name in ("classifier_pooling", "pooling", "layers")]
    encoder = {key: value for key, value in encoder_config(config).to_dict().items() if key not in OF_THE_HEAD}
    digest = hashlib.sha256(repr((cut, precision, torch.__version__, pooled, sorted(encoder.items()))).encode())
    for name, parameter in sorted(model.named_parameters()):
        if layers.depth_of(name) <= depth:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    for name, column in sorted(table.ragged.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(column.values).tobytes())
        digest.update(column.offsets.tobytes())
    return digest.hexdigest()[:32]
