"""Save and load models that only their task can build, because no Auto class of transformers knows their class or head.

If such a model were saved with the model type of its family, plain transformers would load it with a random head, without an
error. Therefore it is saved with a model type that plain transformers refuses. The subfolder `built/` contains the checkpoint's
configuration and all weights. To load the model, the task's `build_model` creates it again, and the weights are loaded into it.
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
from nlp_transfer.settings.registry import is_user_defined
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.errors import UserError, first_line

FOLDER, WEIGHTS = "built", "model.safetensors"


class TaskModelConfig(PretrainedConfig):
    """Configuration of a model that its task builds. It has only the labels; the checkpoint's configuration is in `built/`."""

    model_type = "nlp_transfer_task_model"


@dataclass(frozen=True)
class SavedCheckpoint(Checkpoint):
    """The checkpoint that `build_model` gets when a saved model is loaded."""

    saved_model: Checkpoint

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the saved model."""
        return self.saved_model.tokenizer

    def load(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        """Create a model with random weights from the saved configuration; the caller loads the saved weights afterwards."""
        config = load_configuration(self.source)
        for name, value in overrides.items():
            setattr(config, name, value)
        with on_meta_device(f"model: {self.source.name}: {FOLDER}/config.json"):
            check_weights(self.source, auto_class.from_config(copy.deepcopy(config), trust_remote_code=False))
        model: Any = auto_class.from_config(config, trust_remote_code=False, dtype=torch.float32)
        model.new_parameters = frozenset(name for name, _ in model.named_parameters())
        result: PreTrainedModel = model
        return result


def ensure_config(model: Any, checkpoint: Checkpoint) -> Any:
    """Return the model. If it has no `config`, set the attribute to the configuration of the checkpoint.

    Raises:
        UserError: the model is not a `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"task: build_model returned {model!r} ({type(model).__name__}); allowed: a torch.nn.Module whose outputs have "
            "`logits`"
        )
    any_model: Any = model
    if not hasattr(any_model, "config"):
        any_model.config = checkpoint.config
    return any_model


def is_built(model: nn.Module) -> bool:
    """Return whether a model was loaded by `load_built`."""
    return bool(getattr(model, "built_by_task", False))


def is_auto_model(model: Any, task: Task) -> bool:
    """Return whether the task's Auto class creates the same model: modules of the same classes, parameters of the same shapes.

    This is always true for tasks of this package.
    """
    if not is_user_defined(task):
        return True
    try:
        with torch.device("meta"):
            expected = task.traits.load_auto_class().from_config(copy.deepcopy(model.config), trust_remote_code=False)
    except LIBRARY_ERRORS:
        return False
    return _describe(model) == _describe(expected)


def _describe(model: nn.Module) -> tuple[Any, ...]:
    """Return the class of each module, or its library base class if it is from this package, and the shape of each weight."""
    modules = {name: _library_class(type(module)) for name, module in model.named_modules()}
    return modules, {name: value.shape for name, value in model.state_dict().items()}


def _library_class(module_class: type) -> type:
    """Return the first class in the method resolution order that is not from this package."""
    package = __package__.partition(".")[0]
    return next(base for base in module_class.__mro__ if base.__module__.partition(".")[0] != package)


def save_candidates(model: Any, checkpoint: Checkpoint | None, task: Task) -> list[PretrainedConfig | None]:
    """Return the configurations to try when a model is saved, in order of preference.

    With None, `save_pretrained` saves the model; with a configuration, `save_built`. Which of them works is only known when the
    saved model is loaded and compared: a user's class may have hooks, and a strategy may have removed layers.
    """
    if checkpoint is None or not is_user_defined(task):
        return [None]
    candidates: list[PretrainedConfig | None] = [None] if is_auto_model(model, task) else []
    candidates.append(checkpoint.config)
    if type(model.config) is type(checkpoint.config) and model.config is not checkpoint.config:
        candidates.append(model.config)
    return candidates


def save_built(model: Any, config: PretrainedConfig, task: Task, folder: Path) -> None:
    """Save a model that only its task can build: its weights, and the configuration for `build_model`."""
    labels = task.scorer.labels
    fields: dict[str, Any] = {"id2label": dict(enumerate(labels))} if labels else {}
    TaskModelConfig(**fields).save_pretrained(folder)
    config = copy.deepcopy(config)
    config._name_or_path = ""  # a local path
    config.save_pretrained(folder / FOLDER)
    save_weights(model, str(folder / FOLDER / WEIGHTS), {"format": "pt"})


def load_built(checkpoint: Checkpoint, task: Task) -> Any:
    """Load a model that `save_built` wrote.

    Raises:
        UserError: files are missing or not valid, or the task builds a model that does not fit the weights.
    """
    source = checkpoint.source
    config, weights = (find_file(source, f"{FOLDER}/{name}") for name in ("config.json", WEIGHTS))
    if config is None or weights is None:
        raise UserError(f"model: {source.name}: {FOLDER}/ lacks config.json or {WEIGHTS}; copy the complete model again")
    inner = ModelSource(source.name, str(config.parent))
    check_model(inner)
    saved = SavedCheckpoint(inner, load_configuration(inner), checkpoint)
    model = ensure_config(task.build_model(saved, TrainingConfig()), saved)
    try:
        load_weights(model, str(weights))
    except LIBRARY_ERRORS as error:
        raise UserError(
            f"model: {source.name}: the saved weights do not fit the {type(model).__name__} from {task_name(task)}.build_model: "
            f"{first_line(error)}; allowed: a build_model that creates the same modules from the same configuration"
        ) from error
    check_finite(model, f"model: {source.name}", "a new copy of the model, or train it again")
    model.built_by_task, model.new_parameters = True, frozenset()
    return model.eval()


def check_built(model: Any, task: Task, saved: Mapping[str, Any] | None, name: str) -> None:
    """Compare the logits of a model that its task built with those recorded when it was saved. Skip all other models.

    Args:
        saved: the record of the model.
        name: name of the model, for messages.

    Raises:
        UserError: the logits differ.
    """
    probe = saved.get("probe") if saved and is_built(model) else None
    if not isinstance(probe, dict):
        return
    task.connect(model)
    if (difference := probe_difference(model, probe)) is not None:
        raise UserError(
            f"model: {name}: the model that {task_name(task)} builds does not give the logits recorded when it was saved "
            f"({difference}); its class, a library or the weights have changed since; allowed: the versions it was saved with"
        )


AutoConfig.register(TaskModelConfig.model_type, TaskModelConfig, exist_ok=True)
