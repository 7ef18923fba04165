"""What is sent to a hub of a saved model: which files, what is cleaned in them, and everything that is checked before."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open

from nlp_transfer.data.sources.portable_paths import without_folders
from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.hub.package_contents import ALLOWED, TOKENIZER, Content, is_allowed
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.saved_models.load import RECORD, find_adapter, quiet, read_record
from nlp_transfer.saved_models.probe import check_probe
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

BINARY = (".safetensors", ".model", ".spm", ".png", ".jpg", ".jpeg")
# Names that this toolkit writes, or that a loader might take in place of the new weights.
REPLACED = (
    "model*.safetensors", "*.safetensors.index.json", "adapter_model.*", "adapter_config.json", "config.json",
    "generation_config.json", RECORD, "pytorch_model*", "tf_model*", "flax_model*", "model.ckpt*", "training/*", "encoder/*",
    "target_tokenizer/*", "vocab.*", "*.spm", "sentencepiece*.model", *TOKENIZER,
)  # fmt: skip
PATH = re.compile(r"^(/|~/|[A-Za-z]:[\\/])")
PLACE = "path/or/id"  # how a card names the model before it has an id


@dataclass(frozen=True)
class Package:
    """The files to send, by their path in the repository."""

    folder: Path
    files: dict[str, Content] = field(default_factory=dict)

    @property
    def card(self) -> str:
        return self.files["README.md"].bytes().decode("utf-8", "replace")

    def differences(self, tree: Mapping[str, RepoFile]) -> list[str]:
        """Which of the files are not in a listing as they are here."""
        return [path for path, content in self.files.items() if not content.is_at(tree.get(path))]

    def outdated(self, tree: Mapping[str, RepoFile]) -> list[str]:
        """Files in a listing that belong to a model that was there before, and would stand in the way of this one."""
        return [path for path in tree if path not in self.files and _is_replaced(path)]


def _is_replaced(path: str) -> bool:
    folder = path.rpartition("/")[0]
    return any(fnmatch(path, name) for name in REPLACED if bool(folder) == ("/" in name))


def make_package(model: str | Path, repo_id: str, adapter: bool = False) -> Package:
    """What is sent of a run folder, a model folder or an adapter folder, once all of it was checked.

    Raises:
        UserError: there is no such folder; a file is missing, damaged, of another kind than a model's, holds a secret, or tells
            where files lie on this machine; the model card cannot be read; the model does not load, or answers otherwise
            than when it was saved. All that can be seen without loading is listed at once.
    """
    folder = find_folder(expand(model), adapter)
    problems = Problems(f"{folder}: cannot be pushed")
    package = Package(folder)
    _take(package, _known_files(folder, problems), folder, problems)
    if "adapter_config.json" in package.files and "tokenizer_config.json" not in package.files:
        beside = folder.parent / "model"
        _take(package, sorted(name for name in TOKENIZER if os.path.lexists(beside / name)), beside, problems)
    for name, content in package.files.items():
        package.files[name] = _cleaned(name, content, repo_id, problems)
    package.files.update(_training(folder, problems))
    _check_complete(package, problems)
    _check_text(package, problems)
    _check_base(package, problems)
    problems.raise_if_any()
    _check_answers(folder)
    return package


def find_folder(path: Path, adapter: bool) -> Path:
    """The folder of the model, or of the adapter. Raises a UserError where there is none, or the run is not finished."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; allowed: a run folder, a model folder or an adapter folder")
    is_run = (path / "config.yaml").is_file() and not (path / RECORD).is_file()
    if is_run and not (path / "result.json").is_file():
        raise UserError(f"{path}: the run is not finished; go on with it, and push then")
    if adapter:
        found = find_adapter(path / "adapter") or find_adapter(path)
        if found is None:
            raise UserError(f"{path}: holds no adapter; allowed: a run whose strategy is lora or peft, or no --adapter")
        return found
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    raise UserError(f"{path}: holds no model; allowed: a run folder, a model folder or an adapter folder")


def _known_files(folder: Path, problems: Problems) -> list[str]:
    """Paths in the folder. Whatever does not belong to a model is a problem."""
    found = []
    try:
        card = Content.of(folder, "README.md").bytes().decode("utf-8", "replace")
    except OSError:
        card = ""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parent = name.rpartition("/")[0]
        if path.is_dir() and not path.is_symlink():
            if name not in ALLOWED and parent in ALLOWED:
                problems.add(f"{name}/: a model has no such folder; allowed: {'/, '.join(filter(None, ALLOWED))}/; remove it")
        elif is_allowed(name, card):
            found.append(name)
        elif parent in ALLOWED:
            allowed = ", ".join(sorted(ALLOWED[parent]))
            images = ", and images that README.md shows" if not parent else ""
            problems.add(f"{name}: is no file of a model; allowed: {allowed}{images}; remove it")
    return found


def _take(package: Package, names: Iterable[str], folder: Path, problems: Problems) -> None:
    """Read the files, or open them: what is checked is then what is sent."""
    for name in names:
        try:
            package.files[name] = Content.of(folder, name)
        except OSError as error:
            problems.add(f"{name}: cannot be read ({error.strerror or error}); allowed: regular files, no links")


def _cleaned(name: str, content: Content, repo_id: str, problems: Problems) -> Content:
    """A file without what holds on this machine alone."""
    base = name.rpartition("/")[2]
    try:
        if base == "README.md":
            return Content(content.bytes().decode("utf-8").replace(f'"{PLACE}"', json.dumps(repo_id)).encode())
        if base in ("config.json", "tokenizer_config.json", "generation_config.json", RECORD):
            document = json.loads(content.bytes().decode("utf-8"))
            cleaned = _without_paths(document)
            if cleaned != document:
                return Content((json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode())
        elif base.endswith(".json"):
            json.loads(content.bytes().decode("utf-8"))
    except ValueError as error:
        problems.add(f"{name}: cannot be read ({error}); save the model again")
    return content


def _without_paths(document: Any) -> Any:
    """Fields that name where something was loaded from: dropped where the name is a path, shortened where it is a setting."""
    if isinstance(document, list):
        return [_without_paths(inner) for inner in document]
    if not isinstance(document, dict):
        return document
    kept = {key: value for key, value in document.items() if not (key in ("_name_or_path", "name_or_path") and is_local(value))}
    for key in ("decoder", "target_tokenizer"):  # settings that made the model; nothing reads them any more
        if is_local(kept.get(key)):
            kept[key] = Path(kept[key]).name
    return {key: _without_paths(value) for key, value in kept.items()}


def is_local(value: Any) -> bool:
    """Whether a text is a path on this machine, not an id."""
    if not isinstance(value, str) or not value or is_wheel(value):
        return False
    return bool(PATH.match(value)) or value.startswith(("./", "../")) or (value.count("/") > 0 and Path(value).is_dir())


def _training(folder: Path, problems: Problems) -> dict[str, Content]:
    """The records of the run that a folder belongs to, with names of files in place of their paths."""
    if not _is_of_run(folder):
        return {}
    try:
        result = json.loads((folder.parent / "result.json").read_text(encoding="utf-8"))
        document = yaml.safe_load((folder.parent / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.add(f"the run's records cannot be read ({' '.join(str(error).split())}); push {folder} copied elsewhere")
        return {}
    settings = _shortened(without_folders(document))
    return {
        "training/result.json": Content((json.dumps(_shortened(result), indent=2, ensure_ascii=False) + "\n").encode()),
        "training/config.yaml": Content(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120).encode()),
    }


def _is_of_run(folder: Path) -> bool:
    return folder.name in ("model", "adapter") and (folder.parent / "result.json").is_file()


def _shortened(value: Any) -> Any:
    """Absolute paths by their last part; labels are words and stay."""
    if isinstance(value, dict):
        return {_shortened(key): inner if key == "labels" else _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return (
        re.split(r"[\\/]", value.rstrip("\\/"))[-1] if isinstance(value, str) and len(value) > 3 and PATH.match(value) else value
    )


def _check_complete(package: Package, problems: Problems) -> None:
    """Every file is there that loading needs, and the weights can be read to their end."""
    files, adapted = package.files, "adapter_config.json" in package.files
    if "README.md" not in files:
        problems.add("README.md: there is no model card; push the model as a run saved it")
    else:
        try:
            ModelCard(package.card)
        except Exception as error:  # YAML's errors, and those of the fields
            problems.add(
                f"README.md: its head cannot be read ({' '.join(str(error).split())}); correct it, or save the model again"
            )
        if not package.card.lstrip().startswith("---"):
            problems.add("README.md: has no head in YAML; push the model card as a run saved it")
    needed = [RECORD, "tokenizer_config.json"] if not adapted or "tokenizer_config.json" in files else [RECORD]
    problems.extend(f"{name}: is missing; push the model as a run saved it" for name in needed if name not in files)
    indexes = [name for name in files if name.endswith(".safetensors.index.json")]
    weights = {name for name in files if name.endswith(".safetensors")}
    if not weights:
        problems.add("there are no weights; allowed: .safetensors")
    for index in indexes:
        try:
            shards = set(json.loads(files[index].bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            continue  # said already, or said by loading
        problems.extend(f"{shard}: is missing, {index} names it; copy the model again" for shard in sorted(shards - weights))
    for name in sorted(weights):
        try:
            with safe_open(files[name].place, framework="numpy") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            problems.add(f"{name}: the weights cannot be read ({error}); copy the file again, or save the model again")


def _check_text(package: Package, problems: Problems) -> None:
    """Nothing that is sent tells a secret, or where this model lies."""
    own = package.folder.absolute()
    home = Path(os.path.expanduser("~"))
    places = {f"{place}/" for place in (home, own.parent if _is_of_run(own) else own) if len(place.parts) > 1}
    for name, content in package.files.items():
        start = content.find_secret()
        binary = name.endswith(BINARY)
        data = b"" if binary else content.bytes()
        if start is not None:
            where = name if binary else f"{name}, line {data.count(bytes([10]), 0, start) + 1}"
            problems.add(f"{where}: holds what looks like a token or a key; remove it, and make it invalid")
        text = data.decode("utf-8", errors="replace")
        if not name.endswith("tokenizer.json") and (place := next((place for place in places if place in text), None)):
            line = text.count("\n", 0, text.find(place)) + 1
            problems.add(f"{name}, line {line}: names a folder of this machine ({place}); remove it")


def _check_base(package: Package, problems: Problems) -> None:
    """An adapter must name a base that others can get."""
    if "adapter_config.json" not in package.files:
        return
    try:
        settings = json.loads(package.files["adapter_config.json"].bytes())
        saved = read_record(package.folder) or {}
    except (OSError, ValueError) as error:
        problems.add(f"the adapter's settings cannot be read: {error}")
        return
    own = saved.get("settings", {})
    named = {
        "adapter_config.json: base_model_name_or_path": settings.get("base_model_name_or_path"),
        f"{RECORD}: base": saved.get("base", {}).get("model"),
        **{f"{RECORD}: settings.{name}": own.get(name) for name in ("decoder", "target_tokenizer")},
    }
    advice = (
        "push the base first and train on it by its id" if saved.get("merges") is False else "push the merged model (without "
        "--adapter), or push the base first and train on it by its id"
    )  # fmt: skip
    for place, value in named.items():
        if is_local(value):
            problems.add(f"{place} is {value}, a folder of this machine that nobody else has; {advice}")


def _check_answers(folder: Path) -> None:
    """Loads the model as anyone would, and compares with what was recorded when it was saved."""
    with quiet():
        predictor = load_predictor(folder)
    probe = (read_record(folder) or {}).get("probe")
    if probe is None:
        say(f"warning: {folder / RECORD} holds no logits to compare with; all that was checked is that the model loads")
        return
    check_probe(predictor.model, probe, folder)
