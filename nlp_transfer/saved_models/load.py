"""Load saved models: run folders, model folders, adapters, hub ids."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from nlp_transfer.data.sources import ModelSource, check_recorded_model, find_model, hub_model
from nlp_transfer.data.sources.portable_paths import mapping
from nlp_transfer.hub.client import asking
from nlp_transfer.models.checkpoint import Checkpoint, forbid_new_parameters
from nlp_transfer.models.preparation import merge_adapter
from nlp_transfer.models.seq2seq.tokenizer_pair import TARGET_FOLDER
from nlp_transfer.models.verification.adapter_settings import load_adapter
from nlp_transfer.models.verification.allowed import ADAPTER_WEIGHTS, RECORD, TOKENIZER_FILES
from nlp_transfer.models.verification.model_files import read_settings
from nlp_transfer.models.verification.untrusted_json import read_json
from nlp_transfer.saved_models.custom_models import TaskModelConfig, ensure_config, load_built
from nlp_transfer.saved_models.probe import check_files, describe_tokenizer, probe_difference
from nlp_transfer.settings.annotations import named_models
from nlp_transfer.settings.applicability import IDENTITY, refuse_unused, usage
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task, task_from, task_name
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten

MOVED = "if the base has moved, pass its new location: base=PLACE in Python, --base PLACE on the command line"


def load_model(folder: Path, auto_class: Any = AutoModelForSequenceClassification, task: Task | None = None) -> PreTrainedModel:
    """Load a saved model with its head.

    Args:
        task: builds the model if no Auto class knows it.

    Raises:
        UserError: the model cannot be loaded, or has missing weights, which would be random.
    """
    return load_checkpoint(Checkpoint.open(ModelSource(str(folder), str(folder))), auto_class, task)


def load_checkpoint(checkpoint: Checkpoint, auto_class: Any, task: Task | None = None) -> PreTrainedModel:
    """Load a saved model with its head from an opened checkpoint.

    Raises:
        UserError: the model cannot be loaded, or has missing weights, which would be random.
    """
    with quiet():
        if task is not None and isinstance(checkpoint.config, TaskModelConfig):
            return load_built(checkpoint, task)
        model = checkpoint.load(auto_class)
    forbid_new_parameters(model, checkpoint.source.name)
    return model


def find_adapter(path: Path) -> Path | None:
    """Return the folder of an adapter, or None. It is `path`, or `model/` in a run folder if the adapter cannot be merged."""
    return next((folder for folder in (path, path / "model") if os.path.isfile(folder / "adapter_config.json")), None)


def hub_adapter(model: str) -> Path | None:
    """Download an adapter of this toolkit from a hub and return its folder; None if `model` is not such an adapter."""
    match = hub_model(model)
    if match is None or "/" not in model or os.path.exists(expand(model)):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError

    names = ["adapter_config.json", RECORD, *ADAPTER_WEIGHTS, *(f"{TARGET_FOLDER}/{name}" for name in TOKENIZER_FILES)]
    with asking(f"model: {model}"):
        try:
            hf_hub_download(match["id"], "adapter_config.json", revision=match["revision"])
            hf_hub_download(match["id"], RECORD, revision=match["revision"])
            return Path(snapshot_download(match["id"], revision=match["revision"], allow_patterns=names))
        except (OSError, HFValidationError):  # not an adapter of this toolkit, or not readable (reported later)
            return None


def adapter_record(folder: Path) -> dict[str, Any]:
    """Read the record of an adapter.

    Raises:
        UserError: the record is missing, or does not name the base model.
    """
    saved = check_record(read_settings(ModelSource(str(folder), str(folder)), RECORD), str(folder))
    if saved is None or "base" not in saved:
        raise UserError(f"{folder}: is an adapter without its {RECORD}, which names its base model")
    base = saved["base"]
    model, revision = (base.get("model"), base.get("revision")) if isinstance(base, dict) else (None, None)
    if not isinstance(model, str) or not isinstance(revision, (str, NoneType)):
        raise UserError(f"{folder / RECORD}: found base: {shorten(base)}; allowed: the name of a model, and its revision or null")
    return saved


def open_adapter(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    merge: bool = True,
    base: str | Path | None = None,
    verify: bool = True,
    kind: type[Task] | None = None,
) -> tuple[PreTrainedModel, Checkpoint, Task]:
    """Load an adapter on its base model.

    Args:
        settings: task settings that override the recorded ones.
        merge: whether to merge the adapter into the base, if this kind of adapter supports it.
        base: name or path of the base model. None means the recorded one.
        verify: whether to check, using the recorded logits, that the base is the one used in training.
        kind: class of the task. None means the recorded one.

    Returns:
        The model, the checkpoint of the base, and the task.

    Raises:
        UserError: a file is missing or not valid, or the base is missing or a different model.
    """
    saved = adapter_record(folder)
    checkpoint = _open_base(folder, saved["base"], base)
    source = checkpoint.source
    task = with_changed_settings(task_from(saved["settings"], kind), settings, checkpoint.max_length)
    for setting, model in [(name, model) for name, models in named_models(task).items() for model in models]:
        check_recorded_model(model, f"{folder / RECORD}: {setting}")
    task = task.prepare(checkpoint, parts=ModelSource(str(folder), str(folder)))
    with quiet():
        model = ensure_config(task.build_model(checkpoint, TrainingConfig()), checkpoint)
        merge_function = merge_adapter if merge and saved.get("merges", True) else None
        adapted: Any = load_adapter(model, folder, merge_function, f"; it {_describe_bases(saved['base'], source)}; {MOVED}")
    task.connect(adapted)
    if verify:
        _check_base(adapted, saved, source, folder)
        if saved.get("tokenizer") not in (None, describe_tokenizer(checkpoint.tokenizer)):
            raise UserError(
                f"{folder}: the adapter {_describe_bases(saved['base'], source)}, whose tokenizer is not the one used in "
                f"training; allowed: the same base with its tokenizer; {MOVED}"
            )
    return adapted, checkpoint, task


def _open_base(folder: Path, recorded: Mapping[str, Any], override: str | Path | None) -> Checkpoint:
    """Open the base of an adapter, which is `override` if given, otherwise the recorded base."""
    try:
        if override is None and os.path.isabs(recorded["model"]) and not os.path.exists(recorded["model"]):
            override = _base_of_run(folder.parent / "config.yaml")
        if override is None:
            check_recorded_model(recorded["model"], f"{RECORD}: base")
        base = find_model(str(override or recorded["model"]))
        same = str(override or recorded["model"]) == recorded["model"]
        revision = base.revision or (recorded["revision"] if same else None)
        return Checkpoint.open(ModelSource(base.name, base.path, revision))
    except UserError as error:
        reason = str(error).removeprefix("model: ")
        message = f"{folder}: the base of this adapter: {reason}; {MOVED}" if override is None else f"base: {reason}"
        raise UserError(message) from error


def _base_of_run(settings: Path) -> str | None:
    """Return the folder of the base that `config.yaml` of a run names, or None if there is no such folder.

    The recorded path is relative to the recorded working directory, which is relative to `config.yaml`. Therefore the run and its
    base can be moved together.
    """
    try:
        document = mapping(yaml.safe_load(settings.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    directory, model = mapping(document.get("provenance")).get("directory"), document.get("model")
    if not isinstance(directory, str) or not isinstance(model, str):
        return None
    model = os.path.normpath(os.path.join(settings.parent.absolute(), directory, model))
    if not os.path.isdir(model):
        return None
    say(f"the base of the adapter is {model}, according to {settings}")
    return model


def _describe_bases(recorded: Mapping[str, Any], source: ModelSource) -> str:
    """Return a message with the recorded and the actual base of an adapter."""
    place = str(Path(source.path).resolve()) if source.is_folder else describe_base(source.path, source.revision)
    return f"was trained on {describe_base(recorded['model'], recorded['revision'])}; the base is {place}"


def describe_base(name: str, revision: str | None) -> str:
    """Return the name of a base model with its revision."""
    return f"{name}@{revision}" if revision and "@" not in name else name


def _check_base(model: PreTrainedModel, saved: Mapping[str, Any], source: ModelSource, folder: Path) -> None:
    """Raise a UserError if the logits of an adapter on its base differ from those recorded when it was saved."""
    probe = saved.get("probe")
    if not isinstance(probe, dict):
        say(f"warning: {folder / RECORD} has no logits to compare with, so {source.name} may not be the base of the adapter")
        return
    if (difference := probe_difference(model, probe)) is not None:
        check_files(probe, folder)
        raise UserError(
            f"{folder}: the adapter belongs to another base. It {_describe_bases(saved['base'], source)}, where the logits are "
            f"not those recorded when the adapter was saved ({difference}); allowed: the same base, unchanged; {MOVED}"
        )


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the `nlp_transfer.json` of a folder; return None if it does not exist.

    Raises:
        UserError: the file cannot be read, or has no settings of a task.
    """
    if not os.path.lexists(folder / RECORD):
        return None
    return check_record(read_json(folder / RECORD), str(folder))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars, advice and deprecation warnings of transformers while models are loaded and saved."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def with_changed_settings(before: Task, settings: Mapping[str, Any] | None, limit: int | None = None) -> Task:
    """Return the task of a saved model with changed settings.

    Args:
        before: the task as recorded.
        settings: the changed settings.
        limit: maximum input length of the model in tokens.

    Raises:
        UserError: a setting has no effect on a trained model, or the weights do not support its value.
    """
    requested = dict(settings or {})
    problems = Problems()
    if before.max_length is not None and limit is not None and not 1 <= before.max_length <= limit:
        raise UserError(f"{RECORD}: found max_length: {before.max_length}; allowed: 1 to {limit}, the limits of its model")
    fixed = [name for name in requested if f"task.{name}" not in IDENTITY and usage(type(before), name) is None]
    unused = {f"task.{name}": "it was fixed when the model was trained" for name in fixed}
    trained = {"name": task_name(before), **{name: getattr(before, name) for name in before.traits.fixed}}
    for name, value in trained.items():
        if requested.get(name, value) != value:
            problems.add(f"--task.{name}: found {requested[name]!r}; allowed: {value!r}, which the model was trained for")
    problems.raise_if_any()
    task = task_from(before.document() | requested, type(before))
    task._changed.update(name for name in requested if getattr(task, name, None) != getattr(before, name, None))
    refuse_unused(unused, (f"task.{name}" for name in task._changed), problems)
    limit = before.max_length or limit  # models that other programs saved do not record it
    if task.max_length and limit and task.max_length > limit:
        problems.add(f"--task.max_length: found {task.max_length}; allowed: up to {limit}, which the model was trained with")
    task.fit(None, problems)
    problems.raise_if_any()
    return task


def check_record(saved: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return the record, or raise a UserError if it has no settings of a task."""
    if saved is not None and not isinstance(saved.get("settings"), dict):
        raise UserError(f"{name}: {RECORD} has no `settings` of a task; is it a file of this toolkit?")
    return saved
