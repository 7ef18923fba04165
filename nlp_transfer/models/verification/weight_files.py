"""Check the size of weight files before a library opens them, and check that the loaded weights are finite.

A hostile header or configuration could make a library allocate far more memory than the size of the file. NaN weights make
predictions wrong.
"""

import json
import math
import os
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.models.verification.model_files import find_weights
from nlp_transfer.models.verification.pickles import check_pickle, refusal
from nlp_transfer.utils.errors import UserError, converted, first_line, shorten

MAX_HEADER = 16 * 2**20  # bytes; a model with 1,000 layers needs 1 to 2 MB
MAX_TENSORS = 100_000
EXTRA_VALUES = 10**8  # a model may have this many more values than MAX_RATIO allows, for a new head or decoder
MAX_RATIO = 4  # maximum of model values / file values; above 1 because a decoder gets additional cross-attention
SHOWN = 4  # parameters named in a message

Shapes = dict[str, tuple[int, ...]]


def check_weights(source: ModelSource, model: nn.Module) -> None:
    """Compare the size of a configured model with its weight files.

    Args:
        model: a model on the device `meta`, where it takes no memory.

    Raises:
        UserError: the model is far larger than its files, or a file is damaged.
    """
    stored = sum(map(count_values, find_weights(source)[0].values()))
    described = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if stored and described > stored * MAX_RATIO + EXTRA_VALUES:
        raise UserError(
            f"model: {source.name}: config.json describes a model of {described:,} numbers, but its weights have {stored:,}; "
            "allowed: the configuration that was saved with the weights"
        )


def count_values(path: Path) -> int:
    """Return the number of values in a weight file, or an upper bound for a pickle.

    Raises:
        UserError: the file is damaged, or would exhaust memory.
    """
    with path.open("rb") as file:
        start = file.read(9)
    # Blobs in the hub's cache have no suffix. A safetensors file starts with 8 bytes for the length of its header, and a brace.
    if path.suffix == ".safetensors" or start[4:] == bytes(4) + b"{":
        return sum(map(math.prod, stored_shapes(path).values()))
    check_pickle(path)
    return path.stat().st_size


def stored_shapes(path: Path) -> Shapes:
    """Read the shapes of all tensors, by name, from the header of a safetensors file.

    `safetensors.safe_open` does not limit the header: a hostile one of 56 MiB takes 40 s and 800 MiB.

    Raises:
        UserError: the header is too large, or does not match the file.
    """
    with converted(f"{path}: cannot be read as safetensors, so copy it again"), path.open("rb") as file:
        return _read_shapes(path, file, os.fstat(file.fileno()).st_size)


def _read_shapes(path: Path, file: BinaryIO, size: int) -> Shapes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError(f"its {size:,} bytes are fewer than its header describes; it is incomplete, or not a safetensors file")
    if length > MAX_HEADER:
        raise UserError(f"{path}: found a header of {length:,} bytes; allowed: up to {MAX_HEADER:,}")
    text = file.read(length)
    if text.count(b"[") > 2 * MAX_TENSORS or text.count(b'"') > 10 * MAX_TENSORS:  # before parsing
        raise UserError(f"{path}: found a header of more than {MAX_TENSORS:,} tensors; allowed: up to {MAX_TENSORS:,}")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping of tensors by name")
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    shapes, used = Shapes(), 0
    for name, tensor in tensors.items():
        match tensor:
            case {"shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(type(n) is int and n >= 0 for n in shape):
                used += end - begin
                shapes[name] = tuple(shape)
            case _:
                raise ValueError(f"its header describes {shorten(name)} as {shorten(tensor)}")
        if not 0 <= begin <= end or math.prod(shape) > 2 * (end - begin):  # the smallest dtypes have 4 bits
            raise ValueError(f"{shorten(name)} of shape {shape} is in bytes {begin} to {end}")
    if used != size - 8 - length:
        raise ValueError(f"its tensors need {used:,} bytes, but it has {size - 8 - length:,}")
    return shapes


def check_finite(model: nn.Module, origin: str, advice: str, new: Collection[str] = ()) -> None:
    """Check that all loaded parameters are finite, because other values would make predictions NaN or silently wrong.

    This takes about 10 ms for 22 million parameters. Buffers are not checked: attention masks may be infinite.

    Args:
        origin: the file or model, for the message.
        advice: what the user can do, for the message.
        new: names of parameters that were not loaded. They are not checked.

    Raises:
        UserError: a parameter is NaN or infinite.
    """
    # A fast test first: a sum is finite only if all terms are. Finite terms may also overflow, so suspects are counted exactly.
    suspects = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name not in new and parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach().sum()))
    ]
    counts = [(name, parameter.numel() - int(torch.isfinite(parameter).sum()), parameter.numel()) for name, parameter in suspects]
    if broken := [entry for entry in counts if entry[1]]:
        listed = ", ".join(f"{name} ({count:,} of {size:,})" for name, count, size in broken[:SHOWN])
        raise UserError(
            f"{origin}: found weights that are NaN or infinite in {len(broken)} parameters: {listed}"
            f"{' ...' if len(broken) > SHOWN else ''}; allowed: finite numbers; {advice}"
        )


def explain_load_error(error: BaseException, files: list[Path]) -> str:
    """Return a short message for an error in loading weights. If torch refused a pickle, the message names it."""
    pickles = [path.name for path in files if path.suffix == ".bin"]
    if pickles and (isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error).lower().replace(" ", "_")):
        return refusal(pickles[0])
    return first_line(error)
