"""What came with a model is looked at before any library reads it.

No code of others runs, no pickle with objects in it is opened, no file outside the model's folder is read, and no configuration
makes this machine allocate more than its weights call for.
"""

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from nlp_transfer.config import shorten
from nlp_transfer.errors import UserError
from nlp_transfer.models.allowed import WEIGHTS
from nlp_transfer.models.reading import FAULTS as FAULTS
from nlp_transfer.models.reading import first_line as first_line
from nlp_transfer.models.reading import read_json as read_json
from nlp_transfer.models.view import find_file, read_index
from nlp_transfer.sources import ModelSource

SPARE = 10**8  # numbers that a head, or a decoder, may have besides what the weights hold
TIMES = 4  # how many times as many a model may have as its weights hold: a decoder gets attention to the encoder besides
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CODE = "nothing that comes with a model is run here"
# Settings of an adapter that import a module, or read files other than the adapter's own.
ADAPTER_READS = ("megatron_config", "adapters", "shadow_model", "prompt_tuning_init_state_dict_path", "arrow_config")
MOST_IN_ADAPTER = 2**14  # ranks, virtual tokens, widths
NO_SIZE = re.compile(r"seed|key|frequency|revision")  # numbers of an adapter's settings that make nothing large


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (name, value) at any depth; what stands in a list has the list's name."""
    rest: list[tuple[str, Any]] = [("", value)]
    while rest:
        name, inner = rest.pop()
        if isinstance(inner, dict):
            rest += [(str(key), part) for key, part in inner.items()]
        elif isinstance(inner, list):
            rest += [(name, part) for part in inner]
        yield name, inner


def _check_no_code(source: ModelSource, file: str, config: Mapping[str, Any]) -> None:
    for name, value in _fields(config):
        if name == "auto_map" and isinstance(value, dict) and value:
            raise UserError(
                f"model: {source.name}: {file} has an auto_map, which asks for code of its own ({shorten(value)}); {CODE}; "
                "allowed: families that transformers knows"
            )
        if name == "trust_remote_code" and value:
            raise UserError(f"model: {source.name}: {file} has trust_remote_code: {value!r}; {CODE}; allowed: no such field")
        if "_implementation" in name and isinstance(value, str) and "/" in value:
            raise UserError(
                f"model: {source.name}: {file} has {name}: {shorten(value)}, a kernel that would be fetched and run; {CODE}; "
                "allowed: eager, sdpa"
            )


def _check_folder(source: ModelSource) -> None:
    """Raises a UserError where a link leads out of the folder. Code that lies beside a model is left alone, and not run."""
    folder = Path(source.path)
    real = folder.resolve()
    inside = [real]
    for place in (real, real.parent):  # also for a folder inside a model
        if place.parent.name == "snapshots":  # the hub's cache: each file is a link to a blob of the same repository
            inside.append(place.parent.parent / "blobs")
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.is_symlink()]
    for entry in [part for place in (folder, *below) for part in sorted(place.iterdir())]:
        if entry.is_symlink() and not any(entry.resolve().is_relative_to(place) for place in inside):
            raise UserError(
                f"model: {source.name}: {entry.relative_to(folder)} is a link out of the folder, to {os.readlink(entry)}; "
                "allowed: files; copy in what it points to"
            )


def check_weights(source: ModelSource, model: nn.Module) -> None:
    """Raises a UserError where a model as it is configured is far larger than its weights, or these point out of its folder.

    Args:
        model: on the device `meta`, where it takes no memory.
    """
    stored = sum(map(_numbers_in, weight_files(source)))
    described = sum(parameter.numel() for parameter in model.parameters())
    if stored and described > stored * TIMES + SPARE:
        raise UserError(
            f"model: {source.name}: config.json describes a model of {described:,} numbers, and its weights hold {stored:,}; "
            "allowed: the configuration that was saved with the weights"
        )


def weight_files(source: ModelSource) -> list[Path]:
    """The files that transformers will take the weights from; none where there are none. Pickles come last.

    Raises:
        UserError: an index names files that are not the model's.
    """
    for name in WEIGHTS:
        if (path := find_file(source, name)) is None:
            continue
        if not name.endswith(".json"):
            return [path]
        shards = sorted(set(read_index(source, name).values()))
        return [found for shard in shards if (found := find_file(source, shard)) is not None]
    return []


def _numbers_in(path: Path) -> int:
    """How many numbers a file of weights holds; of a pickle, which is not opened here, not more than this."""
    if path.suffix != ".safetensors":
        return path.stat().st_size
    try:
        with safe_open(path, framework="pt") as file:
            return sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0  # broken: loading says so


def check_adapter(folder: Path) -> dict[str, Any]:
    """The settings of an adapter.

    Raises:
        UserError: they import a module or read other files, are of impossible size, or a file is a link out of the folder.
    """
    _check_folder(ModelSource(str(folder), str(folder)))
    settings = read_json(folder / "adapter_config.json")
    _check_no_code(ModelSource(str(folder), str(folder)), "adapter_config.json", settings)
    for name in ADAPTER_READS:
        if settings.get(name):
            raise UserError(
                f"{folder}: adapter_config.json has {name}: {shorten(settings[name])}, which reads what is no part of the "
                "adapter; allowed: null"
            )
    for name, value in _fields(settings):
        if isinstance(value, int) and abs(value) > MOST_IN_ADAPTER and not NO_SIZE.search(name):
            raise UserError(f"{folder}: adapter_config.json has {name}: {shorten(value)}; allowed: up to {MOST_IN_ADAPTER:,}")
    return settings


def why(error: BaseException, files: list[Path]) -> str:
    """What an error in loading weights means to the user; a pickle that was refused is named."""
    pickles = [path.name for path in files if path.suffix == ".bin"]
    if pickles and (isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error).lower().replace(" ", "_")):
        return (
            f"{pickles[0]} is a pickle that holds more than tensors, or is damaged, and was not opened: a pickle can run code; "
            "allowed: model.safetensors, or a pickle of tensors alone"
        )
    return first_line(error)
