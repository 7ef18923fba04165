"""Files of weights: whether they may be opened, how many numbers they hold, and whether all are finite.

A file is measured before a library opens it: the header of a safetensors file; of a pickle see `pickles`.
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
from nlp_transfer.models.verification.untrusted_json import first_line
from nlp_transfer.utils.errors import UserError, shorten

MAX_HEADER = 16 * 2**20  # bytes; the header of a model of a thousand layers has one or two million
MAX_TENSORS = 100_000
SPARE = 10**8  # numbers that a head, or a decoder, may have besides what the weights hold
TIMES = 4  # how many times as many a model may have as its weights hold: a decoder gets attention to the encoder besides
SHOWN = 4

Shapes = dict[str, tuple[int, ...]]


def check_weights(source: ModelSource, model: nn.Module) -> None:
    """Raise a UserError where a model as it is configured is far larger than its weights, or a file of weights is damaged.

    Args:
        model: on the device `meta`, where it takes no memory.
    """
    stored = sum(map(count_values, find_weights(source)[0].values()))
    described = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if stored and described > stored * TIMES + SPARE:
        raise UserError(
            f"model: {source.name}: config.json describes a model of {described:,} numbers, and its weights hold {stored:,}; "
            "allowed: the configuration that was saved with the weights"
        )


def count_values(path: Path) -> int:
    """Return how many numbers a file of weights holds; of a pickle, which is not opened here, an upper bound.

    Raises:
        UserError: the file is damaged, or was made to exhaust memory.
    """
    with path.open("rb") as file:
        start = file.read(9)
    # A blob in the hub's cache has no suffix. A safetensors file begins with the length of its header, below 2^32, and a bracket.
    if path.suffix == ".safetensors" or start[4:] == bytes(4) + b"{":
        return sum(map(math.prod, stored_shapes(path).values()))
    check_pickle(path)
    return path.stat().st_size


def stored_shapes(path: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file by name, from its header.

    Raises:
        UserError: the header is larger than any model's, or does not fit the file.
    """
    try:
        with path.open("rb") as file:
            return _read_shapes(path, file, os.fstat(file.fileno()).st_size)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as safetensors ({first_line(error)}); copy it again") from error


def _read_shapes(path: Path, file: BinaryIO, size: int) -> Shapes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError(f"its {size:,} bytes are fewer than its header says; it is incomplete, or no such file")
    if length > MAX_HEADER:
        raise UserError(f"{path}: found a header of {length:,} bytes; allowed: up to {MAX_HEADER:,}")
    text = file.read(length)
    if text.count(b"[") > 2 * MAX_TENSORS or text.count(b'"') > 10 * MAX_TENSORS:  # before objects are made of it
        raise UserError(f"{path}: found a header of more than {MAX_TENSORS:,} tensors; allowed: up to that many")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header holds no tensors by name")
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    shapes, used = Shapes(), 0
    for name, tensor in tensors.items():
        match tensor:
            case {"shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(type(n) is int and n >= 0 for n in shape):
                used += end - begin
                shapes[name] = tuple(shape)
            case _:
                raise ValueError(f"its header describes {shorten(name)} as {shorten(tensor)}")
        if not 0 <= begin <= end or math.prod(shape) > 2 * (end - begin):  # the smallest numbers take half a byte
            raise ValueError(f"{shorten(name)} of shape {shape} is in bytes {begin} to {end}")
    if used != size - 8 - length:
        raise ValueError(f"its tensors take {used:,} bytes, and {size - 8 - length:,} are there")
    return shapes


def check_finite(model: nn.Module, place: str, advice: str, new: Collection[str] = ()) -> None:
    """Raise a UserError where a weight is NaN or infinite, since every prediction would be NaN, or silently wrong.

    Buffers may be infinite, as attention masks are. One pass takes about 10 ms for 22 million parameters.

    Args:
        place: the file or model, for the message.
        advice: what to do about it, for the message.
        new: names of parameters that did not come from a file.
    """
    # A sum is finite only where all of its terms are; where it is not it may have overflowed.
    doubtful = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name not in new and parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach().sum()))
    ]
    counts = [(name, parameter.numel() - int(torch.isfinite(parameter).sum()), parameter.numel()) for name, parameter in doubtful]
    if broken := [part for part in counts if part[1]]:
        found = ", ".join(f"{name} ({count:,} of {size:,})" for name, count, size in broken[:SHOWN])
        raise UserError(
            f"{place}: found weights that are NaN or infinite in {len(broken)} parameters: {found}"
            f"{' ...' if len(broken) > SHOWN else ''}; allowed: finite numbers; {advice}"
        )


def explain_load_error(error: BaseException, files: list[Path]) -> str:
    """What an error in loading weights means to the user; a pickle that was refused is named."""
    pickles = [path.name for path in files if path.suffix == ".bin"]
    if pickles and (isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error).lower().replace(" ", "_")):
        return refusal(pickles[0])
    return first_line(error)
