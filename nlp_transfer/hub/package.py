"""Copy the files of a saved model for a push, clean the copy, and check it."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open

from nlp_transfer.data.sources.portable_paths import without_folders
from nlp_transfer.hub.local_paths import is_local, shorten_paths, without_paths
from nlp_transfer.hub.package_contents import ALLOWED, TOKENIZER, copy_file, find_secret, is_allowed, is_stored
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.saved_models.load import RECORD, find_adapter, quiet, read_record
from nlp_transfer.saved_models.probe import check_probe
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

BINARY = (".safetensors", ".model", ".spm", ".png", ".jpg", ".jpeg")
# Files of an earlier model that a push deletes: those of this toolkit, and those that a library might load by mistake.
REPLACED = (
    "model*.safetensors", "*.safetensors.index.json", "adapter_model.*", "adapter_config.json", "config.json",
    "generation_config.json", RECORD, "pytorch_model*", "tf_model*", "flax_model*", "model.ckpt*", "training/*", "encoder/*",
    "target_tokenizer/*", "vocab.*", "*.spm", "sentencepiece*.model", *TOKENIZER,
)  # fmt: skip
NEWLINE = b"\n"
PLACEHOLDER = "path/or/id"  # placeholder for the model id in a model card


@dataclass(frozen=True)
class Package:
    """The files to send.

    Attributes:
        folder: folder of the model, for messages.
        copy: private temporary folder with a copy of the files.
        files: a mapping from paths in the repository to paths of the copies.
    """

    folder: Path
    copy: Path
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def card(self) -> str:
        """The text of the model card."""
        return self.files["README.md"].read_text(encoding="utf-8", errors="replace")

    def write(self, name: str, content: bytes) -> None:
        """Add or replace a file."""
        self.files[name] = self.copy / name
        self.files[name].parent.mkdir(parents=True, exist_ok=True)
        self.files[name].write_bytes(content)

    def differences(self, tree: Mapping[str, RepoFile]) -> list[str]:
        """Return the names of the files that are missing in the repository or have other content there.

        Args:
            tree: the files of the repository.
        """
        return [name for name, path in self.files.items() if not is_stored(path, tree.get(name))]

    def outdated(self, tree: Mapping[str, RepoFile]) -> list[str]:
        """Return the names of the files in the repository that belong to an earlier model and are not part of this one."""
        return [name for name in tree if name not in self.files and _is_replaced(name)]


def _is_replaced(name: str) -> bool:
    folder = name.rpartition("/")[0]
    return any(fnmatch(name, pattern) for pattern in REPLACED if bool(folder) == ("/" in pattern))


@contextmanager
def make_package(model: str | Path, repo_id: str, adapter: bool = False) -> Iterator[Package]:
    """Copy a saved model to a private temporary folder, clean and check the copy, and delete it at the end of the context.

    Args:
        model: a run folder, a model folder or an adapter folder.
        repo_id: the repository that the model card names.
        adapter: package the adapter of a run instead of the merged model.

    Raises:
        UserError: the folder does not exist; a file is missing, damaged, not part of a model, or contains a secret or a local
            path; the model card is invalid; or the copy does not load, or does not reproduce the recorded logits. The message
            lists all problems that are found without loading the model.
    """
    folder = find_folder(expand(model), adapter)
    problems = Problems(f"{folder}: cannot be pushed")
    with TemporaryDirectory(prefix="nlp_transfer-push-") as temporary:
        package = Package(folder, Path(temporary))
        _copy(package, _model_files(folder, problems), folder, problems)
        if "adapter_config.json" in package.files and "tokenizer_config.json" not in package.files:
            merged = folder.parent / "model"
            _copy(package, sorted(name for name in TOKENIZER if os.path.lexists(merged / name)), merged, problems)
        for name in list(package.files):
            _clean(package, name, repo_id, problems)
        _add_training_records(package, problems)
        _check_card(package, problems)
        _check_complete(package, problems)
        _check_text(package, problems)
        _check_base(package, problems)
        problems.raise_if_any()
        _check_predictions(package)
        yield package


def find_folder(path: Path, adapter: bool) -> Path:
    """Return the folder of the model or of the adapter.

    Raises:
        UserError: there is no such folder, or the run is not finished.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; allowed: a run folder, a model folder or an adapter folder")
    is_run = (path / "config.yaml").is_file() and not (path / RECORD).is_file()
    if is_run and not (path / "result.json").is_file():
        raise UserError(f"{path}: the run is not finished; resume it first, then push it")
    if adapter:
        adapter_folder = find_adapter(path / "adapter") or find_adapter(path)
        if adapter_folder is None:
            raise UserError(f"{path} holds no adapter; allowed: a run with strategy lora or peft, or no --adapter")
        return adapter_folder
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    raise UserError(f"{path} holds no model; allowed: a run folder, a model folder or an adapter folder")


def _model_files(folder: Path, problems: Problems) -> list[str]:
    """Return the names of the model files in a folder. All other files and folders are reported as problems."""
    names = []
    card_file = folder / "README.md"
    card = card_file.read_text(encoding="utf-8", errors="replace") if card_file.is_file() else ""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parent = name.rpartition("/")[0]
        if path.is_dir() and not path.is_symlink():
            if name not in ALLOWED and parent in ALLOWED:
                allowed = ", ".join(f"{name}/" for name in ALLOWED if name)
                problems.add(f"{name}/: a model has no folder of this name; allowed: {allowed}; remove it")
        elif is_allowed(name, card):
            names.append(name)
        elif parent in ALLOWED:
            images = ", and images that README.md shows" if not parent else ""
            problems.add(
                f"{name}: a model has no file of this name; allowed: {', '.join(sorted(ALLOWED[parent]))}{images}; remove it"
            )
    return names


def _copy(package: Package, names: Iterable[str], folder: Path, problems: Problems) -> None:
    for name in names:
        try:
            copy_file(folder, name, package.copy)
            package.files[name] = package.copy / name
        except OSError as error:
            problems.add(
                f"{name}: cannot be copied to {package.copy.parent} ({error.strerror or error}); allowed: regular files, no "
                "links, and enough free space for the copy (TMPDIR sets another folder)"
            )


def _clean(package: Package, name: str, repo_id: str, problems: Problems) -> None:
    """Remove local paths from a file, and insert the repository into the model card."""
    base = name.rpartition("/")[2]
    try:
        if base == "README.md":
            card = package.files[name].read_bytes().decode("utf-8")
            package.write(name, card.replace(f'"{PLACEHOLDER}"', json.dumps(repo_id)).encode())
        elif base.endswith(".json"):
            document = json.loads(package.files[name].read_bytes().decode("utf-8"))
            if base in ("config.json", "tokenizer_config.json", "generation_config.json", RECORD):
                cleaned = without_paths(document)
                if cleaned != document:
                    package.write(name, _to_json(cleaned))
    except ValueError as error:
        problems.add(f"{name}: cannot be read ({error}); save the model again")


def _to_json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _add_training_records(package: Package, problems: Problems) -> None:
    """Add `result.json` and `config.yaml` of the run that the model belongs to, with absolute paths shortened."""
    if not _belongs_to_run(package.folder):
        return
    run = package.folder.parent
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.add(
            f"the records of the run cannot be read ({' '.join(str(error).split())}); copy {package.folder} to another folder, "
            "and push the copy"
        )
        return
    settings = shorten_paths(without_folders(settings))
    package.write("training/result.json", _to_json(shorten_paths(result)))
    package.write("training/config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120).encode())


def _belongs_to_run(folder: Path) -> bool:
    return folder.name in ("model", "adapter") and (folder.parent / "result.json").is_file()


def _check_card(package: Package, problems: Problems) -> None:
    if "README.md" not in package.files:
        problems.add("README.md: the model card is missing; push the model as a run saved it")
        return
    try:
        ModelCard(package.card)
    except Exception as error:  # raised by the YAML parser, or by checks of the fields
        reason = " ".join(str(error).split())
        problems.add(f"README.md: the metadata cannot be read ({reason}); correct it, or save the model again")
    if not package.card.lstrip().startswith("---"):
        problems.add("README.md: the YAML metadata is missing; push the model card as a run saved it")


def _check_complete(package: Package, problems: Problems) -> None:
    """Check that all files needed for loading exist, and that the weights are not truncated."""
    files, is_adapter = package.files, "adapter_config.json" in package.files
    needed = [RECORD, "tokenizer_config.json"] if not is_adapter or "tokenizer_config.json" in files else [RECORD]
    problems.extend(f"{name}: is missing; push the model as a run saved it" for name in needed if name not in files)
    weights = {name for name in files if name.endswith(".safetensors")}
    if not weights:
        problems.add("there are no weights; allowed: .safetensors")
    for index in (name for name in files if name.endswith(".safetensors.index.json")):
        try:
            shards = set(json.loads(files[index].read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            continue  # reported by `_clean` or by loading
        problems.extend(f"{shard}: is missing, but {index} names it; copy the model again" for shard in sorted(shards - weights))
    for name in sorted(weights):
        try:
            with safe_open(files[name], framework="numpy") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            problems.add(f"{name}: the weights cannot be read ({error}); copy the file again, or save the model again")


def _check_text(package: Package, problems: Problems) -> None:
    """Check that no file contains a secret, or the path of the home folder or of the run's folder."""
    folder = package.folder.absolute()
    home = Path(os.path.expanduser("~"))
    folders = {f"{place}/" for place in (home, folder.parent if _belongs_to_run(folder) else folder) if len(place.parts) > 1}
    for name, path in package.files.items():
        start = find_secret(path)
        is_binary = name.endswith(BINARY)
        content = b"" if is_binary else path.read_bytes()
        if start is not None:
            place = name if is_binary else f"{name}, line {content[:start].count(NEWLINE) + 1}"
            problems.add(f"{place}: contains what looks like a token or a key; remove it, and revoke it")
        text = content.decode("utf-8", errors="replace")
        if not name.endswith("tokenizer.json") and (local := next((local for local in folders if local in text), None)):
            line = text.count("\n", 0, text.find(local)) + 1
            problems.add(f"{name}, line {line}: contains a local path ({local}); remove it")


def _check_base(package: Package, problems: Problems) -> None:
    """Check that the base model of an adapter is not a local folder."""
    if "adapter_config.json" not in package.files:
        return
    try:
        adapter_config = json.loads(package.files["adapter_config.json"].read_bytes())
        record = read_record(package.folder) or {}  # not from the copy, in which paths are already shortened
    except (OSError, ValueError) as error:
        problems.add(f"the settings of the adapter cannot be read: {error}")
        return
    settings = record.get("settings", {})
    named = {
        "adapter_config.json: base_model_name_or_path": adapter_config.get("base_model_name_or_path"),
        f"{RECORD}: base": record.get("base", {}).get("model"),
        **{f"{RECORD}: settings.{name}": settings.get(name) for name in ("decoder", "target_tokenizer")},
    }
    advice = "push the base first and train on it by its id"
    if record.get("merges") is not False:
        advice = f"push the merged model (without --adapter), or {advice}"
    for place, value in named.items():
        if is_local(value):
            problems.add(f"{place} is {value}, a local folder, not available to others; {advice}")


def _check_predictions(package: Package) -> None:
    """Load the copy, and compare its logits with those recorded when the model was saved."""
    try:
        with quiet():
            predictor = load_predictor(package.copy)
        probe = (read_record(package.copy) or {}).get("probe")
        if probe is None:
            say(f"warning: {package.folder / RECORD} records no logits, so the predictions were not compared")
        else:
            check_probe(predictor.model, probe, package.copy)
    except UserError as error:
        raise UserError(str(error).replace(str(package.copy), str(package.folder))) from error
