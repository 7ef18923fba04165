"""The head of a checkpoint that was fine-tuned before: kept where it gives the task's labels, else new.

What depends on labels is the output layer alone. The dense layer below it, which many families have, and the hidden layers of
the toolkit's own head transform features like the encoder does (BERT keeps such a layer in its pooler), so they are always kept.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.layers import encoder_config, new_parameters
from nlp_transfer.models.preparation import replaced_parameters
from nlp_transfer.tasks.common.label_schema import label_value
from nlp_transfer.tasks.common.labels import shorten


def match_head(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model with an output layer whose rows stand in the order of the task's labels.

    A trained output layer is kept if it was saved in a sequence classifier for the same set of labels; its rows are permuted
    to the task's order. Otherwise, also where only some of the labels are the same, it is drawn anew and listed among
    `new_parameters`. `model.head_note` says which of both, for the log; it is not set if the checkpoint has no head.
    """
    layer = output_layer(model)
    new = new_parameters(model)
    if not layer or layer.keys() <= new - replaced_parameters(model):
        return model
    had, wanted = _describe(checkpoint.config), _describe(model.config)
    saved_as = checkpoint.head or "SequenceClassification"
    before, after = ([label_value(label) or label for label in _labels(config)] for config in (checkpoint.config, model.config))
    same = saved_as == "SequenceClassification" and _is_regression(checkpoint.config) == _is_regression(model.config)
    if same and sorted(before) == sorted(after) and len(set(after)) == len(after) and not layer.keys() & new:
        position = {label: i for i, label in enumerate(before)}
        order = torch.tensor([position[label] for label in after])
        with torch.no_grad():
            for name, axis in layer.items():
                parameter = model.get_parameter(name)
                parameter.copy_(parameter.index_select(axis, order))
        changed = f"; its outputs were reordered to {wanted}" if before != after else ""
        note = f"head: kept from the checkpoint, which was trained for {had}{changed}"
    else:
        _draw(model, layer.keys() - new)
        model.new_parameters = new | layer.keys()  # type: ignore[assignment]
        kind = "" if saved_as == "SequenceClassification" else f" as {checkpoint.architecture}"
        note = f"head: its output layer is new: the checkpoint was trained{kind} for {had}, the task has {wanted}"
    model.head_note = note  # type: ignore[assignment]
    return model


def output_layer(model: PreTrainedModel) -> dict[str, int]:
    """Names of the parameters whose shape depends on the number of labels, each with the axis (0 in general) of the labels.

    Found by building the model with one label more, so that it does not matter what a family calls them.
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
    """Notes for the log that a trained head is not used, since `task.head` or the strategy asks for another one."""
    if checkpoint.head == "SequenceClassification":
        had = _describe(checkpoint.config)
        model.head_note = f"head: new, of another kind than the checkpoint's, which was trained for {had}"  # type: ignore[assignment]
    return model


def _draw(model: nn.Module, names: Any) -> None:
    """New weights as most families draw those of linear layers: normal with `initializer_range` as deviation, biases zero."""
    deviation = getattr(encoder_config(model.config), "initializer_range", None) or 0.02
    with torch.no_grad():
        for name in sorted(names):
            parameter = model.get_parameter(name)
            parameter.normal_(std=deviation) if parameter.ndim > 1 else parameter.zero_()


def _labels(config: Any) -> list[str]:
    return [str(config.id2label.get(i)) for i in range(config.num_labels)]


def _is_regression(config: Any) -> bool:
    """Transformers takes a single output for a regression where the configuration does not say."""
    return bool(config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1))


def _describe(config: Any) -> str:
    labels = shorten(_labels(config))
    return f"the regression of {labels}" if _is_regression(config) else f"the labels {labels}"
