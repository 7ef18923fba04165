"""Cache the features that the frozen part of a model computes for each example, in memory or on disk.

The features are computed once, in evaluation mode, up to a `CachePoint`. `feature_replay` starts forward passes there.
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
from transformers import PreTrainedModel

from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable, is_target
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.kernels import accelerated
from nlp_transfer.models.backbone import Backbone
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification, pool
from nlp_transfer.models.layers import encoder_config, find_layers
from nlp_transfer.models.preparation import autocast
from nlp_transfer.utils.atomic_files import replacing
from nlp_transfer.utils.console import Steps, say
from nlp_transfer.utils.distributed import broadcast_from_main
from nlp_transfer.utils.environment import default_cache
from nlp_transfer.utils.errors import UserError

Where = Literal["auto", "memory", "disk"]
MAX_IN_MEMORY = 2**30  # bytes; with `auto`, larger features are cached on disk
HEAD_FIELDS = ("id2label", "label2id", "problem_type", "architectures", "_name_or_path")  # features do not depend on these
BATCH = 64
VERSION = 2  # of the cached values; part of the fingerprint


def cache_folder() -> Path:
    """Return the folder of features that are cached on disk: `features` in the toolkit's cache folder."""
    return default_cache() / "features"


@dataclass(frozen=True)
class CachePoint:
    """The point up to which a model is frozen: the output of the lowest `depth` layers, or if `depth` is None, of the encoder."""

    depth: int | None = None

    @property
    def column(self) -> str:
        """The column of a batch that contains the cached features."""
        return "pooled" if self.depth is None else "states"


def cache_tables(
    model: PreTrainedModel,
    tables: dict[str, TokenTable],
    point: CachePoint,
    device: torch.device,
    precision: str = "fp32",
    where: Where = "auto",
) -> dict[str, TokenTable]:
    """Compute the features of all examples, or load them from the file of an earlier run.

    All processes of a run share the work. The features of the split `validation` are computed in fp32, so that its metrics
    equal those of the saved model.

    Args:
        tables: tokens by split.
        point: where the frozen part of the model ends.
        where: `memory`, `disk`, or `auto` (disk for more than 1 GiB). A file on disk is memory-mapped. Its name is a fingerprint
            of the frozen weights, the tokens and the precision, so that later runs can reuse it.

    Returns:
        The tables, with float32 features in `cached`. If the entire encoder is frozen, they have shape (rows, width), or
        (rows, layers + 1, width) with `layers: mix`. Otherwise each token has a vector of shape (width,).
    """
    model.eval().to(device)
    cached = {}
    for split, table in tables.items():
        features = _cached(model, table, point, device, "fp32" if split == "validation" else precision, where, split)
        cached[split] = replace(table, cached={point.column: features})
    return cached


def _cached(
    model: PreTrainedModel, table: TokenTable, point: CachePoint, device: torch.device, precision: str, where: Where, split: str
) -> np.ndarray | Ragged:
    """Return the features of one split, computed now or loaded from a file."""
    backbone = Backbone(model)
    first_row = _features(model, backbone, table, np.arange(min(1, len(table))), point, device, "fp32")
    tokens = table.ragged["input_ids"]
    shape = (len(table) if point.depth is None else len(tokens.values), *first_row.shape[1:])

    def fill(features: np.ndarray) -> None:
        compute = partial(_features, model, backbone, table, point=point, device=device, precision=precision)
        # Training uses the same kernels, so cached features equal live ones. A single context casts the weights only once.
        with accelerated(model, logits_only=False):
            for rows, states in compute_in_batches(table, compute, f"encoding {split}"):
                if point.depth is None:
                    features[rows] = states
                else:
                    features[np.concatenate([np.arange(tokens.offsets[row], tokens.offsets[row + 1]) for row in rows])] = states

    if where == "memory" or (where == "auto" and 4 * math.prod(shape) <= MAX_IN_MEMORY):
        features = np.empty(shape, np.float32)
        fill(features)
    else:
        path = cache_folder() / f"{_fingerprint(model, table, point, precision)}.npy"
        if broadcast_from_main(path.exists()):
            say(f"{split}: loading cached features from {path}")
        else:
            _write_array(path, shape, fill)
        features = np.load(path, mmap_mode="r")
    return features if point.depth is None else Ragged(features, tokens.offsets)


def _write_array(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Write a `.npy` file atomically; `fill` writes the values into a memory map."""
    try:
        with replacing(path, shared=True) as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            if hasattr(os, "posix_fallocate"):  # on a full disk, writing to mapped memory would kill the process
                os.posix_fallocate(file.fileno(), 0, file.tell() + 4 * math.prod(shape))
            values = np.memmap(file, np.float32, "r+", offset=file.tell(), shape=shape)
            fill(values)
            values.flush()
    except OSError as error:
        raise UserError(f"strategy.cache: {path.parent} cannot be written: {error.strerror}; allowed: memory") from error


def compute_in_batches(table: TokenTable, compute: Callable[[np.ndarray], Any], title: str) -> Iterator[tuple[np.ndarray, Any]]:
    """Apply a function to all rows, in batches of rows of similar length. The processes of a run share the batches.

    Args:
        compute: called with row indices, int64 of shape (batch,). Its results are pickled if there are several processes.
        title: title of the progress bar.

    Yields:
        The row indices and the result of each batch. Every process gets all batches.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    batches = inference_batches(table.side_lengths, BATCH)
    with Steps(title, -(-len(batches) // world)) as progress:
        for first in range(0, len(batches), world):
            batch = batches[first + rank] if first + rank < len(batches) else None
            result = (batch, None if batch is None else compute(batch))
            results: list[Any] = [result]
            if world > 1:
                results = [None] * world
                torch.distributed.all_gather_object(results, result)
            yield from ((rows, computed) for rows, computed in results if rows is not None)
            progress.advance()


def _features(
    model: Any, backbone: Backbone, table: TokenTable, rows: np.ndarray, point: CachePoint, device: torch.device, precision: str
) -> np.ndarray:
    """Return float32 features: (rows, width) or (rows, layers + 1, width) if pooled, else (tokens of all rows, width)."""
    batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
    inputs = {name: batch[name] for name in (*table.ragged, "attention_mask") if name in batch and not is_target(name)}
    with torch.inference_mode(), autocast(device, precision):
        if point.depth is not None:
            states = backbone.encode_to(point.depth, **inputs)
            return states[inputs["attention_mask"].bool()].float().cpu().numpy()
        if isinstance(model, EncoderHeadForSequenceClassification):
            return model.pooled_states(**inputs).float().cpu().numpy()
        states = backbone.encoder(**inputs).last_hidden_state
        pooling = getattr(model.config, "classifier_pooling", "cls")  # only ModernBERT has this setting
        return pool(states, inputs["attention_mask"], pooling).float().cpu().numpy()


def _fingerprint(model: PreTrainedModel, table: TokenTable, point: CachePoint, precision: str) -> str:
    """Return a hash of everything that determines the features, including the version of torch."""
    layers, config = find_layers(model), model.config
    depth = layers.depth if point.depth is None else point.depth
    pooling = [getattr(config, name, None) for name in ("classifier_pooling", "pooling", "layers")]
    encoder = {key: value for key, value in encoder_config(config).to_dict().items() if key not in HEAD_FIELDS}
    digest = hashlib.sha256(repr((VERSION, point, precision, torch.__version__, pooling, sorted(encoder.items()))).encode())
    for name, parameter in sorted(model.named_parameters()):
        if layers.depth_of(name) <= depth:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    for name, column in sorted(table.ragged.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(column.values).tobytes())
        digest.update(column.offsets.tobytes())
    return digest.hexdigest()[:32]
