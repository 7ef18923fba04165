"""Read the files of untrusted models: folders, unpacked wheels, and repositories on a hub. Other modules get them from here.

Libraries do not read the model's folder, but a temporary private folder with the files that `allowed.py` lists: configurations
reduced to data, checked tokenizer files, and links to weights inside the model. That folder contains no code, no paths to other
files and no names of other repositories. Only this module downloads model files from the hub: files with allowed names, from
one commit.
"""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.utils import httpx
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.hub.client import RefusedError, asking
from nlp_transfer.models.verification.allowed import (
    ADAPTER_WEIGHTS,
    CONFIGURATIONS,
    FOLDERS,
    RECORD,
    SHARD,
    TOKENIZER_FILES,
    WEIGHTS,
)
from nlp_transfer.models.verification.reduced_configs import reduce_config, reduce_generation, reduce_tokenizer
from nlp_transfer.models.verification.tokenizer_loading import check_loaded, reduce_tokenizer_file
from nlp_transfer.models.verification.untrusted_json import LIBRARY_ERRORS, read_json
from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import UserError, converted, first_line, prefixed, shorten

ADAPTER_FILES = ("adapter_config.json", *ADAPTER_WEIGHTS)


def pin(source: ModelSource) -> ModelSource:
    """Resolve the revision of a model on a hub to a commit, so that all files come from the same commit.

    Returns:
        The source with the commit. A folder is returned unchanged.

    Raises:
        UserError: the model does not exist, or the hub cannot be reached and the model is not in the cache.
    """
    if source.is_folder:
        return source
    with asking(f"model: {source.name}"):
        try:
            config = hf_hub_download(source.path, "config.json", revision=source.revision)
        except LIBRARY_ERRORS as error:
            folder = Path(source.path).absolute()
            raise UserError(
                f"model: {source.name} cannot be opened: {_hub_message(error)} There is no folder {folder} either."
            ) from error
    return ModelSource(source.name, source.path, Path(config).parent.name)


@cache
def _list_files(repository: str, commit: str) -> frozenset[str]:
    with asking(f"model: {repository}"):
        return frozenset(HfApi().list_repo_files(repository, revision=commit))


def _names_on_hub(repository: str, commit: str) -> frozenset[str] | None:
    """Return the names of a repository's files (of the cached files if the hub is unreachable); None if the hub gives no list."""
    if not constants.is_offline_mode():
        try:
            return _list_files(repository, commit)
        except RefusedError:
            raise
        except LIBRARY_ERRORS as error:
            if not isinstance(error.__cause__, httpx.TransportError):  # the hub responds, so single files can be requested
                return None
            say_once(f"warning: the files of {repository} cannot be listed ({first_line(error)}); using those in the cache")
    try:
        folder = Path(hf_hub_download(repository, "config.json", revision=commit, local_files_only=True)).parent
    except LIBRARY_ERRORS as error:
        raise UserError(
            f"model: the files of {repository} cannot be listed and are not in the cache ({first_line(error)})"
        ) from error
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def find_file(source: ModelSource, name: str) -> Path | None:
    """Return the path of a model's file, downloaded from a hub if necessary; None if it does not exist.

    Args:
        name: an allowed file name, which may be in one of `FOLDERS`.

    Raises:
        UserError: the path is not a regular file inside the model, or the file cannot be downloaded.
    """
    folder, _, base = name.rpartition("/")
    assert folder in FOLDERS, name
    assert base in (*CONFIGURATIONS, RECORD, *WEIGHTS, *TOKENIZER_FILES, *ADAPTER_FILES) or SHARD.fullmatch(base), name
    if source.is_folder:
        path = Path(source.path, name)
        return _checked_path(source, path) if os.path.lexists(path) else None
    assert source.revision is not None, "the source is pinned to a commit"
    names = _names_on_hub(source.path, source.revision)
    if names is not None and name not in names:
        return None
    with asking(f"model: {source.name}"):
        try:
            return Path(hf_hub_download(source.path, name, revision=source.revision))
        except RemoteEntryNotFoundError:
            return None
        except LIBRARY_ERRORS as error:
            raise UserError(f"model: {source.name}: {name} cannot be downloaded: {_hub_message(error)}") from error


def _hub_message(error: BaseException) -> str:
    """Return the complete message of a hub error on one line, with the first line of its cause."""
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:500]
    return f"{message} ({first_line(error.__cause__)})" if error.__cause__ is not None else message


def _checked_path(source: ModelSource, path: Path) -> Path:
    """Return the path. Raise a UserError if it is not a regular file, or is a link to a place outside the model."""
    folder = Path(source.path)
    resolved = folder.resolve()
    roots = [resolved]
    for snapshot in (resolved, resolved.parent):  # the parent matters for a folder inside a model
        if snapshot.parent.name == "snapshots":  # in the hub's cache, files are links to blobs of the same repository
            roots.append(snapshot.parent.parent / "blobs")
    with converted(f"model: {source.name}: {path.relative_to(folder)} cannot be read"):
        target = path.resolve(strict=True)
        mode = target.lstat().st_mode
    if not any(target.is_relative_to(root) for root in roots):
        raise UserError(
            f"model: {source.name}: {path.relative_to(folder)} is a link out of the folder, to {target}; allowed: files; "
            "replace the link with a copy of the file"
        )
    if not stat.S_ISREG(mode):
        raise UserError(f"model: {source.name}: {path.relative_to(folder)} is not a regular file; allowed: files")
    return path


def read_settings(source: ModelSource, name: str) -> dict[str, Any] | None:
    """Read a JSON file of a model; return None if it does not exist.

    Raises:
        UserError: the file cannot be read.
    """
    if (path := find_file(source, name)) is None:
        return None
    with prefixed(f"model: {source.name} cannot be opened"):
        return read_json(path)


@contextmanager
def private_folder(source: ModelSource, weights: bool = False, tokenizer: str | None = None) -> Iterator[Path]:
    """Create a temporary folder with the allowed files of a model.

    Args:
        weights: add links to the weights.
        tokenizer: add the tokenizer files of this folder inside the model; "" is the model's folder, None adds none.

    Raises:
        UserError: the model refers to code or to files outside its folder, or a file is not valid.
    """
    with tempfile.TemporaryDirectory(prefix="nlp_transfer-model-") as directory:
        folder = Path(directory)
        reduce = {"config.json": reduce_config, "generation_config.json": reduce_generation}
        for name in CONFIGURATIONS:
            _write_reduced(source, name, reduce[name], folder)
        if weights:
            _add_weights(source, folder)
        if tokenizer is not None:
            _add_tokenizer(source, tokenizer, folder)
        yield folder


def _write_reduced(source: ModelSource, name: str, reduce: Any, folder: Path) -> None:
    """Write a configuration, reduced by `reduce`, into a private folder, and report ignored keys."""
    if (document := read_settings(source, name)) is None:
        return
    with prefixed(f"model: {source.name}"):
        reduced, ignored = reduce(document)
    if ignored:
        say_once(f"{source.name}: {name}: ignored {', '.join(map(shorten, sorted(ignored)))}: unknown here, or not plain data")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(reduced), encoding="utf-8")


def _add_weights(source: ModelSource, folder: Path) -> None:
    files, index = find_weights(source)
    for name, path in files.items():
        link_file(path, folder / name)
    for name, shards in index.items():
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": shards}), encoding="utf-8")


def find_weights(source: ModelSource) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    """Find the weight files that transformers would load: safetensors if there are any, else pickles.

    Returns:
        The path of each file by its name, and the weight map of the index by the name of the index. Without weights both are
        empty; for a single file the second is empty.

    Raises:
        UserError: an index names files that are missing or outside the model.
    """
    for name in WEIGHTS:
        if (path := find_file(source, name)) is None:
            continue
        if not name.endswith(".json"):
            return {name: path}, {}
        shards, files = _read_index(source, name), dict[str, Path]()
        for shard in sorted(set(shards.values())):
            if (path := find_file(source, shard)) is None:
                raise UserError(f"model: {source.name}: {shard} is missing, but listed in {name}; copy the complete model again")
            files[shard] = path
        return files, {name: shards}
    return {}, {}


def _read_index(source: ModelSource, name: str) -> dict[str, str]:
    """Return the weight map of an index, or raise a UserError if it names files outside the model's folder."""
    index = read_settings(source, name) or {}
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(index.get("metadata", {}), dict):
        raise UserError(f"model: {source.name}: {name} has no weight_map of file names by weight")
    for shard in shards.values():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise UserError(
                f"model: {source.name}: {name} names {shorten(shard)}, which is outside of the model's folder, or not a weight "
                "file; allowed: names of .safetensors or .bin files in the same folder"
            )
    return shards


def _add_tokenizer(source: ModelSource, inner: str, folder: Path) -> None:
    prefix = f"{inner}/" if inner else ""
    for name in TOKENIZER_FILES:
        if name in ("tokenizer_config.json", "special_tokens_map.json"):
            _write_reduced(source, prefix + name, reduce_tokenizer, folder)
        elif path := find_file(source, prefix + name):
            (folder / inner).mkdir(exist_ok=True)
            with prefixed(f"model: {source.name}: {prefix}{name}"):
                reduced = reduce_tokenizer_file(path)
            if reduced is None:
                link_file(path, folder / inner / name)
                continue
            document, ignored = reduced
            if ignored:
                say_once(f"{source.name}: {prefix}{name}: ignored unknown fields: {', '.join(ignored[:9])}")
            (folder / inner / name).write_text(json.dumps(document), encoding="utf-8")


def link_file(path: Path, link: Path) -> None:
    """Link a checked file into a private folder."""
    try:
        link.symlink_to(path.resolve())
    except OSError:  # on Windows, links need a privilege
        shutil.copyfile(path, link)


def check_model(source: ModelSource) -> None:
    """Raise a UserError if a folder or repository contains an adapter."""
    if find_file(source, "adapter_config.json"):
        raise UserError(
            f"model: {source.name} has an adapter_config.json, so it contains an adapter; allowed: a model without adapter "
            "(merge the adapter, or remove the file)"
        )


def load_configuration(source: ModelSource) -> PretrainedConfig:
    """Load the configuration of a model.

    Raises:
        UserError: the configuration is missing or cannot be read, or its model type is unknown.
    """
    with private_folder(source) as folder, converted(f"model: {source.name} cannot be opened"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config._name_or_path = source.path
    return config


def load_tokenizer(source: ModelSource, folder: str = "") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, or the one in a folder inside the model.

    Raises:
        UserError: the tokenizer is missing or cannot be loaded.
    """
    if folder and source.is_folder and not Path(source.path, folder).is_dir():
        raise UserError(f"model: {source.name} has no folder {folder}/, which is part of it; copy the complete model again")
    with private_folder(source, tokenizer=folder) as private:
        inside = f" in {folder}/" if folder else ""
        with converted(f"model: {source.name} has no tokenizer that can be loaded{inside}"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                private, subfolder=folder, trust_remote_code=False, local_files_only=True
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            kind = type(tokenizer).__name__
            raise UserError(f"model: {source.name}: the tokenizer_class {kind} is not a tokenizer; allowed: one of transformers")
        check_loaded(tokenizer, source.name)
        # Some tokenizers store the paths of their files, and copy the files when they are saved.
        for names in (vars(tokenizer), tokenizer.init_kwargs):
            names.update({name: _original(value, private) for name, value in names.items()})
    tokenizer.name_or_path = source.path
    tokenizer.init_kwargs["local_files_only"] = False  # this field is saved with the tokenizer
    return tokenizer


def _original(value: Any, private: Path) -> Any:
    """Replace paths in the private folder, alone or in a list, with the paths of the model's files."""
    if isinstance(value, (list, tuple)):
        return type(value)(_original(inner, private) for inner in value)
    if isinstance(value, (str, Path)) and Path(value).is_relative_to(private):
        return str(Path(value).resolve())
    return value
