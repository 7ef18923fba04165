"""What came with a model is looked at before any library reads it.

No code of others runs, no pickle with objects in it is opened, no file outside the model's folder is read, and no configuration
makes this machine allocate more than its weights call for.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from nlp_transfer.config import shorten
from nlp_transfer.errors import UserError
from nlp_transfer.sources import ModelSource

# For a hub model without safetensors transformers would ask a service elsewhere to convert it, by a pull request to its owner.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# What libraries raise over files that are broken, or were made to break them.
FAULTS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError, ArithmeticError, RuntimeError,
    MemoryError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, StrictDataclassError,
)  # fmt: skip
MOST_JSON = 256 * 2**20  # bytes of a configuration: that of a million labels takes a quarter
DEEPEST = 50  # levels of a configuration
MOST_LAYERS, MOST_LABELS, MOST_NUMBER = 1000, 10**5, 2**31
COUNTS_LAYERS = re.compile(r"(layers|groups|blocks)$")
SPARE = 10**8  # numbers that a head, or a decoder, may have besides what the weights hold
TIMES = 4  # how many times as many a model may have as its weights hold: a decoder gets attention to the encoder besides
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CODE = "nothing that comes with a model is run here"
# Settings of an adapter that import a module, or read files other than the adapter's own.
ADAPTER_READS = ("megatron_config", "adapters", "shadow_model", "prompt_tuning_init_state_dict_path", "arrow_config")
NO_TABLE = re.compile(r"theta|length")  # numbers of a configuration that make nothing large
MOST_IN_ADAPTER = 2**14  # ranks, virtual tokens, widths
NO_SIZE = re.compile(r"seed|key|frequency|revision")  # numbers of an adapter's settings that make nothing large


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of settings by name.

    Raises:
        UserError: it cannot be read, is none, or is larger or nested deeper than any such file is.
    """
    try:
        if path.stat().st_size > MOST_JSON:
            raise UserError(f"{path}: found {path.stat().st_size:,} bytes; allowed: up to {MOST_JSON:,}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; allowed: {DEEPEST} levels") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: found {shorten(found)}; allowed: settings by name")
    if _depth(found) > DEEPEST:
        raise UserError(f"{path}: is nested too deeply; allowed: {DEEPEST} levels")
    return found


def _depth(value: Any) -> int:
    deepest, rest = 0, [(value, 1)]
    while rest:
        inner, depth = rest.pop()
        deepest = max(deepest, depth)
        if isinstance(inner, (dict, list)) and depth <= DEEPEST:
            rest += [(part, depth + 1) for part in (inner.values() if isinstance(inner, dict) else inner)]
    return deepest


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


def file_of(source: ModelSource, name: str) -> Path | None:
    """A file of a model, fetched where it is on the hub; None where there is none, or where the hub cannot be asked."""
    if source.is_folder:
        path = Path(source.path, name)
        return path if path.is_file() else None
    try:
        found = cached_file(
            source.path, name, revision=source.revision, _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    except FAULTS:  # no such repository, say: loading tells it in better words
        return None
    return Path(found) if found else None


def check_model(source: ModelSource) -> None:
    """Raises a UserError where a model brings code, points outside its folder, or describes something that no model is."""
    if source.is_folder:
        _check_folder(source)
    if adapter := file_of(source, "adapter_config.json"):
        raise UserError(
            f"model: {source.name} has an {adapter.name}, so it would be loaded with an adapter, or as one on another model; "
            "allowed: a model by itself (merge the adapter, or remove the file)"
        )
    if path := file_of(source, "config.json"):
        config = _opened(source, path)
        # A family that transformers knows by now may still say where its code once was: that is not asked for.
        own = str(config.get("model_type")) in CONFIG_MAPPING
        _check_no_code(source, "config.json", {name: value for name, value in config.items() if name != "auto_map" or not own})
        _check_sizes(source, config)


def check_tokenizer(source: ModelSource, folder: str = "") -> None:
    """Raises a UserError where a tokenizer brings code, or reads files of its choice."""
    if path := file_of(source, f"{folder}/tokenizer_config.json" if folder else "tokenizer_config.json"):
        config = _opened(source, path)
        _check_no_code(source, "tokenizer_config.json", config)
        if config.get("init_inputs"):
            raise UserError(
                f"model: {source.name}: tokenizer_config.json has init_inputs: {shorten(config['init_inputs'])}, which may name "
                "any file; allowed: an empty list"
            )


def load_tokenizer(source: ModelSource, folder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or that in a folder inside it.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    if folder and source.is_folder and not Path(source.path, folder).is_dir():
        raise UserError(f"model: {source.name} has no folder {folder}/, which was saved with it; copy the model whole")
    check_tokenizer(source, folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, subfolder=folder, trust_remote_code=False
        )
    except FAULTS as error:
        inside = f" in {folder}/" if folder else ""
        raise UserError(f"model: {source.name} has no tokenizer that can be loaded{inside}: {first_line(error)}") from error
    return tokenizer


def load_configuration(source: ModelSource) -> PretrainedConfig:
    """The configuration of a model. Raises a UserError where it cannot be found or read, or its model type is unknown."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    except FAULTS as error:
        missing = "" if source.is_folder else f" There is no folder {Path(source.path).absolute()} either."
        raise UserError(f"model: {source.name} cannot be opened: {first_line(error)}{missing}") from error
    return config


def _opened(source: ModelSource, path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"model: {source.name} cannot be opened: {error}") from error


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


def _check_sizes(source: ModelSource, config: Mapping[str, Any]) -> None:
    """Before transformers sees them: it makes a name for each label."""
    for name, value in _fields(config):
        most = MOST_LAYERS if COUNTS_LAYERS.search(name) else MOST_LABELS if name == "num_labels" else MOST_NUMBER
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not NO_TABLE.search(name) and abs(value) > most:
            raise UserError(f"model: {source.name}: config.json has {name}: {shorten(value)}; allowed: up to {most:,}")


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
        if (path := file_of(source, name)) is None:
            continue
        if not name.endswith(".json"):
            return [path]
        shards = _shards(source, name, _opened(source, path))
        return [found for shard in shards if (found := file_of(source, shard)) is not None]
    return []


def _shards(source: ModelSource, name: str, index: Mapping[str, Any]) -> list[str]:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not isinstance(index.get("metadata", {}), dict):
        raise UserError(f"model: {source.name}: {name} has no weight_map that says in which file each weight is")
    for shard in shards.values():
        if not isinstance(shard, str) or not shard or Path(shard).is_absolute() or ".." in Path(shard).parts or "\\" in shard:
            raise UserError(
                f"model: {source.name}: {name} names {shorten(shard)}, which is outside of the model's folder; allowed: names of "
                "files in it"
            )
    return sorted(set(shards.values()))


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
