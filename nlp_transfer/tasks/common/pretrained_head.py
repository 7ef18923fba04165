"""Reuse the head of a fine-tuned checkpoint if it was trained for the labels of the task; otherwise create a new output layer.

Only the output layer depends on the labels. Other layers of the head are always kept, such as the dense layer of many model
families.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import encoder_config, new_parameters
from nlp_transfer.models.preparation import replaced_parameters
from nlp_transfer.settings import registry
from nlp_transfer.tasks.common.label_schema import label_value
from nlp_transfer.tasks.common.labels import configured_labels, shorten
from nlp_transfer.tasks.common.task import Task
from nlp_transfer.utils.console import say

TaskType = TypeVar("TaskType", bound=Task)


def prefer_head(task: TaskType, head: HeadConfig | None) -> TaskType:
    """Return the task with the head that the strategy prefers, unless its settings name a head or it has no choice of heads."""
    if head is None or "head" not in type(task).model_fields or getattr(task, "head", None) is not None:
        return task
    if type(task).build_model.__module__.partition(".")[0] != __package__.partition(".")[0]:
        name = registry.name_of(type(task))
        say(f"note: task.head: {name} builds its model itself, so the preferred head of the strategy is not used")
        return task
    return task.model_copy(update={"head": head})


def match_head(model: PreTrainedModel, checkpoint: Checkpoint, head: str = "SequenceClassification") -> PreTrainedModel:
    """Make the output layer match the labels of the task and their order.

    The trained output layer of a head of the same kind with the same set of labels is kept, with its outputs reordered. Any other
    trained output layer is reinitialized and added to `new_parameters`. `model.head_note` records for the log which of the two
    happened; it is not set if the checkpoint has no head.

    Args:
        head: The kind of head, as in `Checkpoint.head`.
    """
    layer = output_layer(model)
    new = new_parameters(model)
    if not layer or layer.keys() <= new - replaced_parameters(model):
        return model
    before_text, after_text = _describe(checkpoint.config), _describe(model.config)
    saved_as = checkpoint.head or head
    before, after = (
        [label_value(label) or str(label) for label in configured_labels(config)] for config in (checkpoint.config, model.config)
    )
    same = saved_as == head and _is_regression(checkpoint.config) == _is_regression(model.config)
    if same and sorted(before) == sorted(after) and len(set(after)) == len(after) and not layer.keys() & new:
        position = {label: i for i, label in enumerate(before)}
        order = torch.tensor([position[label] for label in after])
        with torch.no_grad():
            for name, axis in layer.items():
                parameter = model.get_parameter(name)
                parameter.copy_(parameter.index_select(axis, order))
        changed = f"; its outputs were reordered to {after_text}" if before != after else ""
        note = f"head: kept from the checkpoint, which was trained for {before_text}{changed}"
    else:
        _reinitialize(model, layer.keys() - new)
        model.new_parameters = new | layer.keys()  # type: ignore[assignment]
        kind = "" if saved_as == head else f" as {checkpoint.architecture}"
        note = f"head: its output layer is new: the checkpoint was trained{kind} for {before_text}, the task has {after_text}"
    model.head_note = note  # type: ignore[assignment]
    return model


def output_layer(model: PreTrainedModel) -> dict[str, int]:
    """Return the axis of the labels (usually 0) for the name of each parameter that has one entry per label.

    This works for any model family, since the shapes are compared with those of a model that has one more label.
    """
    config: Any = copy.deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        other = type(model)(config)
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    layer = {}
    for name, parameter in model.named_parameters():
        if parameter.shape != shapes[name]:
            layer[name] = next(axis for axis, size in enumerate(parameter.shape) if size != shapes[name][axis])
    return layer


def note_unused_head(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """Record in `model.head_note` that a trained head was replaced because `task.head` or the strategy requires another."""
    if checkpoint.head == "SequenceClassification":
        labels = _describe(checkpoint.config)
        model.head_note = f"head: new, of another kind than that of the checkpoint, trained for {labels}"  # type: ignore[assignment]
    return model


def _reinitialize(model: nn.Module, names: Any) -> None:
    """Initialize weights from a normal distribution with standard deviation `initializer_range`, and biases with zero."""
    deviation = getattr(encoder_config(model.config), "initializer_range", None) or 0.02
    with torch.no_grad():
        for name in sorted(names):
            parameter = model.get_parameter(name)
            parameter.normal_(std=deviation) if parameter.ndim > 1 else parameter.zero_()


def _is_regression(config: Any) -> bool:
    """Return whether the model is a regression, which transformers assumes for a single output without `problem_type`."""
    return bool(config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1))


def _describe(config: Any) -> str:
    labels = shorten(list(map(str, configured_labels(config))))
    return f"the regression of {labels}" if _is_regression(config) else f"the labels {labels}"
