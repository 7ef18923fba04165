"""Models that only their task can build: with a head, or as a whole, of a class that no Auto class of transformers knows.

Under the model type of its family such a model would be loaded with a head drawn at random. Its folder therefore has a model
type that plain transformers refuses. In `built/` are the configuration of the checkpoint and all weights; `build_model` of the
task's class makes the model again, and gets the weights.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.verification.allocation_limit import on_meta_device
from nlp_transfer.models.verification.model_files import check_model, find_file, load_configuration
from nlp_transfer.models.verification.untrusted_json import LIBRARY_ERRORS
from nlp_transfer.models.verification.weight_files import check_finite, check_weights
from nlp_transfer.saved_models.probe import probe_difference
from nlp_transfer.settings.registry import is_own
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.errors import UserError, first_line

FOLDER, WEIGHTS = "built", "model.safetensors"


class TaskModelConfig(PretrainedConfig):
    """The configuration of a model that its task builds: the labels alone. That of the checkpoint is in `built/`."""

    model_type = "nlp_transfer_task_model"


@dataclass(frozen=True)
class SavedCheckpoint(Checkpoint):
    """What `build_model` gets when a model is read again: the saved configuration, from which `load` makes models whose weights
    are then replaced by the saved ones."""

    whole: Checkpoint

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.whole.tokenizer

    def load(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        config = load_configuration(self.source)
        for name, value in overrides.items():
            setattr(config, name, value)
        with on_meta_device(f"model: {self.source.name}: {FOLDER}/config.json"):
            check_weights(self.source, auto_class.from_config(copy.deepcopy(config), trust_remote_code=False))
        model: Any = auto_class.from_config(config, trust_remote_code=False, dtype=torch.float32)
        model.new_parameters = frozenset(name for name, _ in model.named_parameters())
        found: PreTrainedModel = model
        return found


def ensure_config(model: Any, checkpoint: Checkpoint) -> Any:
    """The model, with the checkpoint's configuration where its class has none.

    Raises:
        UserError: it is no model.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"task: build_model gave {model!r} ({type(model).__name__}); allowed: a torch.nn.Module whose outputs have `logits`"
        )
    built: Any = model
    if not hasattr(built, "config"):
        built.config = checkpoint.config
    return built


def is_built(model: nn.Module) -> bool:
    """Whether a model was read again by means of its task."""
    return bool(getattr(model, "built_by_task", False))


def is_auto_model(model: Any, task: Task) -> bool:
    """Whether the task's Auto class makes the same model from its configuration: modules of the same classes, and parameters of
    the same shapes. The tasks of this package see to that."""
    if not is_own(task):
        return True
    try:
        with torch.device("meta"):
            expected = task.auto_class().from_config(copy.deepcopy(model.config), trust_remote_code=False)
    except LIBRARY_ERRORS:
        return False
    return _describe(model) == _describe(expected)


def _describe(model: nn.Module) -> tuple[Any, ...]:
    """The classes of all modules (of a class of this package that which it derives from), and the shapes of all weights."""
    modules = {name: _foreign(type(module)) for name, module in model.named_modules()}
    return modules, {name: value.shape for name, value in model.state_dict().items()}


def _foreign(kind: type) -> type:
    ours = __package__.partition(".")[0]
    return next(base for base in kind.__mro__ if base.__module__.partition(".")[0] != ours)


def save_candidates(model: Any, checkpoint: Checkpoint | None, task: Task) -> list[PretrainedConfig | None]:
    """The ways in which a model may be saved, the best first: None, as transformers does; else by `save_built` with this
    configuration.

    A model of the user's own class may compute what its modules do not show (hooks), and a strategy may have changed its
    configuration (fewer layers). Which way reproduces the model is known once it was read again.
    """
    if checkpoint is None or not is_own(task):
        return [None]
    ways: list[PretrainedConfig | None] = [None] if is_auto_model(model, task) else []
    ways.append(checkpoint.config)
    if type(model.config) is type(checkpoint.config) and model.config is not checkpoint.config:
        ways.append(model.config)
    return ways


def save_built(model: Any, config: PretrainedConfig, task: Task, folder: Path) -> None:
    """Write the weights of a model that only its task can build, and the configuration it is built from."""
    labels = getattr(task, "labels", None)
    fields: dict[str, Any] = {"id2label": dict(enumerate(labels))} if labels else {}
    TaskModelConfig(**fields).save_pretrained(folder)
    config = copy.deepcopy(config)
    config._name_or_path = ""  # a folder of this machine
    config.save_pretrained(folder / FOLDER)
    save_weights(model, str(folder / FOLDER / WEIGHTS), {"format": "pt"})


def load_built(checkpoint: Checkpoint, task: Task) -> Any:
    """The model in a folder, or on a hub, that `save_built` wrote.

    Raises:
        UserError: the task's class does not build a model that the weights fit.
    """
    source = checkpoint.source
    config, weights = (find_file(source, f"{FOLDER}/{name}") for name in ("config.json", WEIGHTS))
    if config is None or weights is None:
        raise UserError(f"model: {source.name}: {FOLDER}/ lacks config.json or {WEIGHTS}; copy the model whole")
    inner = ModelSource(source.name, str(config.parent))
    check_model(inner)
    saved = SavedCheckpoint(inner, load_configuration(inner), checkpoint)
    model = ensure_config(task.build_model(saved, TrainingConfig()), saved)
    try:
        load_weights(model, str(weights))
    except LIBRARY_ERRORS as error:
        raise UserError(
            f"model: {source.name}: {task_name(task)}.build_model does not give a {type(model).__name__} that the saved weights "
            f"fit: {first_line(error)}; allowed: one that builds the same modules from a checkpoint's configuration each time"
        ) from error
    check_finite(model, f"model: {source.name}", "a new copy of the model, or train it again")
    model.built_by_task, model.new_parameters = True, frozenset()
    return model.eval()


def check_built(model: Any, task: Task, saved: Mapping[str, Any] | None, name: str) -> None:
    """Raise a UserError where a model that its task built again does not give the logits that were recorded when it was saved."""
    probe = saved.get("probe") if saved and is_built(model) else None
    if not isinstance(probe, dict):
        return
    task.connect(model)
    if (difference := probe_difference(model, probe)) is not None:
        raise UserError(
            f"model: {name}: {task_name(task)} builds a model that does not give the logits recorded when it was saved "
            f"({difference}); its class, a library or the saved weights have changed since; allowed: those of then"
        )


AutoConfig.register(TaskModelConfig.model_type, TaskModelConfig, exist_ok=True)
