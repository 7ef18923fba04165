"""Loading what was saved: run folders, model folders, adapters, hub ids."""

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

from nlp_transfer.data.sources import HUB_MODEL, ModelSource, check_recorded_model, find_model
from nlp_transfer.data.sources.portable_paths import mapping
from nlp_transfer.hub.client import asking
from nlp_transfer.models.checkpoint import Checkpoint, forbid_new_parameters, merge_adapter
from nlp_transfer.models.seq2seq.tokenizer_pair import TARGET_FOLDER
from nlp_transfer.models.verification.adapter_settings import load_adapter
from nlp_transfer.models.verification.allowed import ADAPTER_WEIGHTS, RECORD, TOKENIZER_FILES
from nlp_transfer.models.verification.model_files import read_settings
from nlp_transfer.models.verification.untrusted_json import read_json
from nlp_transfer.saved_models.custom_models import TaskModelConfig, ensure_config, load_built
from nlp_transfer.saved_models.probe import check_files, describe_tokenizer, probe_difference
from nlp_transfer.settings.applicability import IDENTITY, refuse_unused, takes
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task, task_from, task_name
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten

MOVED = "if the base has moved, name its new place: base=PLACE in Python, --base PLACE in a command"


def load_model(folder: Path, auto_class: Any = AutoModelForSequenceClassification, task: Task | None = None) -> PreTrainedModel:
    """A saved model, its head included.

    Args:
        task: builds the model where no Auto class knows it.

    Raises:
        UserError: it cannot be loaded, or weights are missing: a head would be drawn at random without a word.
    """
    return load_checkpoint(Checkpoint.open(ModelSource(str(folder), str(folder))), auto_class, task)


def load_checkpoint(checkpoint: Checkpoint, auto_class: Any, task: Task | None = None) -> PreTrainedModel:
    """Raises a UserError where weights are missing."""
    with quiet():
        if task is not None and isinstance(checkpoint.config, TaskModelConfig):
            return load_built(checkpoint, task)
        model = checkpoint.load(auto_class)
    forbid_new_parameters(model, checkpoint.source.name)
    return model


def find_adapter(path: Path) -> Path | None:
    """The folder of an adapter: the path itself, or `model/` in a run whose adapter could not be merged."""
    return next((folder for folder in (path, path / "model") if os.path.isfile(folder / "adapter_config.json")), None)


def hub_adapter(model: str) -> Path | None:
    """The folder into which an adapter on a hub was downloaded; None where the model is something else."""
    match = HUB_MODEL.match(model)
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
        except (OSError, HFValidationError):  # no adapter of this toolkit; or it cannot be read, which is said where it is opened
            return None


def adapter_record(folder: Path) -> dict[str, Any]:
    """The record of an adapter. Raises a UserError where it does not say on what base the adapter belongs."""
    saved = check_record(read_settings(ModelSource(str(folder), str(folder)), RECORD), str(folder))
    if saved is None or "base" not in saved:
        raise UserError(f"{folder}: is an adapter without its {RECORD}, which says on what base it belongs")
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
    """An adapter on the base it was trained on, by default merged into it where its kind can be; that base, and the task.

    Args:
        base: where the base lies now; null: where the adapter's record says.
        verify: compare logits with those in the record, which tell whether it is the same base.
        kind: the class of its task; null: the one that its record names.

    Raises:
        UserError: it has no record of its base and labels, its files are broken or ask for what is no part of it, or the base
            is missing or another model.
    """
    saved = adapter_record(folder)
    checkpoint = _open_base(folder, saved["base"], base)
    source = checkpoint.source
    task = with_changed_settings(task_from(saved["settings"], kind), settings, checkpoint.max_length)
    for setting, model in [(name, model) for name, models in task.models().items() for model in models]:
        check_recorded_model(model, f"{folder / RECORD}: {setting}")
    task = task.restore(checkpoint, ModelSource(str(folder), str(folder)))
    with quiet():
        model = ensure_config(task.build_model(checkpoint, TrainingConfig()), checkpoint)
        join = merge_adapter if merge and saved.get("merges", True) else None
        whole: Any = load_adapter(model, folder, join, f"; it {_bases(saved['base'], source)}; {MOVED}")
    task.connect(whole)
    if verify:
        _check_base(whole, saved, source, folder)
        if saved.get("tokenizer") not in (None, describe_tokenizer(checkpoint.tokenizer)):
            raise UserError(
                f"{folder}: the adapter {_bases(saved['base'], source)}, whose tokenizer is another one than that of training; "
                f"allowed: the base of then with its tokenizer; {MOVED}"
            )
    return whole, checkpoint, task


def _open_base(folder: Path, recorded: Mapping[str, Any], given: str | Path | None) -> Checkpoint:
    """The base of an adapter: at the place that is given, else where it was recorded."""
    try:
        if given is None and os.path.isabs(recorded["model"]) and not os.path.exists(recorded["model"]):
            given = _base_of_run(folder.parent / "config.yaml")
        if given is None:
            check_recorded_model(recorded["model"], f"{RECORD}: base")
        base = find_model(str(given or recorded["model"]))
        same = str(given or recorded["model"]) == recorded["model"]
        revision = base.revision or (recorded["revision"] if same else None)
        return Checkpoint.open(ModelSource(base.name, base.path, revision))
    except UserError as error:
        reason = str(error).removeprefix("model: ")
        message = f"{folder}: the base of this adapter: {reason}; {MOVED}" if given is None else f"base: {reason}"
        raise UserError(message) from error


def _base_of_run(settings: Path) -> str | None:
    """Return the folder of the base by a run's `config.yaml`, which may have been moved together with it.

    A relative path is read from the working directory that the file records, relative to itself.
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
    say(f"the base of the adapter is {model}, by {settings}")
    return model


def _bases(recorded: Mapping[str, Any], source: ModelSource) -> str:
    """What an adapter was trained on and what it is put on, for messages."""
    place = str(Path(source.path).resolve()) if source.is_folder else describe_base(source.path, source.revision)
    return f"was trained on {describe_base(recorded['model'], recorded['revision'])}; the base is {place}"


def describe_base(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision and "@" not in name else name


def _check_base(model: PreTrainedModel, saved: Mapping[str, Any], source: ModelSource, folder: Path) -> None:
    """Raises a UserError where an adapter on its base does not give the logits that were recorded when it was saved."""
    probe = saved.get("probe")
    if not isinstance(probe, dict):
        say(
            f"warning: {folder / RECORD} holds no logits to compare with, so {source.name} may be another base than the adapter's"
        )
        return
    if (difference := probe_difference(model, probe)) is not None:
        check_files(probe, folder)
        raise UserError(
            f"{folder}: the adapter belongs on another base. It {_bases(saved['base'], source)}, where the logits are not those "
            f"recorded when the adapter was saved ({difference}); allowed: the base of then, unchanged; {MOVED}"
        )


def read_record(folder: Path) -> dict[str, Any] | None:
    """The folder's `nlp_transfer.json`, or None where there is none.

    Raises:
        UserError: it cannot be read, or holds no settings of a task.
    """
    if not os.path.lexists(folder / RECORD):
        return None
    return check_record(read_json(folder / RECORD), str(folder))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars, advice and deprecations that transformers prints around loading and saving."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an old name
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def with_changed_settings(before: Task, settings: Mapping[str, Any] | None, most: int | None = None) -> Task:
    """The task with other settings; what the weights were made for stays."""
    asked = dict(settings or {})
    problems = Problems()
    if before.max_length is not None and most is not None and not 1 <= before.max_length <= most:
        raise UserError(f"{RECORD}: found max_length: {before.max_length}; allowed: 1 to {most}, the limits of its model")
    unused = {f"task.{name}": "it was settled when the model was trained" for name in asked}
    unused = {name: reason for name, reason in unused.items() if name not in IDENTITY and not takes("load_predictor", name)}
    learned = ("labels", "architecture", "mean", "scale", "offset")
    made_for = {"name": task_name(before), **{name: getattr(before, name, None) for name in learned}}
    for name, value in made_for.items():
        if asked.get(name, value) != value:
            problems.add(f"--task.{name}: found {asked[name]!r}; allowed: {value!r}, which the model was trained for")
    problems.raise_if_any()
    task = task_from(before.document() | asked, type(before))
    task.changed.update(name for name in asked if getattr(task, name, None) != getattr(before, name, None))
    refuse_unused(unused, (f"task.{name}" for name in task.changed), problems)
    limit = before.max_length or most  # a model from elsewhere does not say with what it was trained
    if task.max_length and limit and task.max_length > limit:
        problems.add(f"--task.max_length: found {task.max_length}; allowed: up to {limit}, which the model was trained with")
    task.check_settings(TrainingConfig(), problems)
    problems.raise_if_any()
    return task


def check_record(saved: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    if saved is not None and not isinstance(saved.get("settings"), dict):
        raise UserError(f"{name}: {RECORD} has no `settings` of a task; is it a file of this toolkit?")
    return saved
