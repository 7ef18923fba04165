"""L2-SP: penalize the distance of weights from their pretrained values; weight decay penalizes their distance from zero.

The penalty is alpha/2 |w - w0|^2 for pretrained weights and beta/2 |w|^2 for new ones. Weight decay is disabled for penalized
parameters.

When to use it: with few labeled rows, if full fine-tuning causes forgetting.

Cost: a copy of the pretrained weights in memory, and a pass over all weights in each step. With ten labeled rows per class
(Banking77, TREC; MiniLM) there was no measurable improvement over full fine-tuning.

Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", 1802.01483.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, PrivateAttr
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import has_decoder, new_parameters
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Group, Losses, Strategy, StrategyTraits
from nlp_transfer.strategies.common.layer_depth import added_by_peft, inner_layers, plain_name, scale_mixed_head
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems, UserError


class L2Sp(Strategy):
    """Add the penalty to the loss of full fine-tuning or, in a list, of the other strategies.

    Only trainable parameters are penalized. With LoRA, these are the pooler and new parameters.
    """

    traits = StrategyTraits(only_trains=True, search_space={"strategy.alpha": {"low": 1e-4, "high": 1.0, "log": True}})

    alpha: Annotated[float, Field(ge=0)] = 0.01
    """Strength of the penalty on the distance of pretrained parameters from their pretrained values."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Strength of the penalty on the size of new weights. New biases and normalization layers are not penalized."""

    _references: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        if self.alpha and self.beta:
            problems.no_effect("training.weight_decay", "the penalty of l2_sp replaces weight decay")
        return task

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Copy the trainable pretrained weights. In a resumed run, this happens before the checkpoint is loaded."""
        new = _new_names(model)
        self._references.clear()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and plain_name(name) not in new and not added_by_peft(name):
                self._references[plain_name(name)] = parameter.detach().clone()
        return model

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Disable weight decay for penalized parameters."""
        penalized = {name for names, _ in self._penalties(model) for name in names}
        split = []
        for group in scale_mixed_head(model, groups):
            rest = [name for name in group.names if name not in penalized]
            split += [replace(group, names=rest)]
            split += [replace(group, names=[name for name in group.names if name in penalized], weight_decay=0.0)]
        return split

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        """Add the term `l2_sp`: the penalty times the number of rows in this batch.

        The training loop divides loss terms by the number of rows in the optimizer step, so the penalty counts once per step.
        """
        parameters = dict(model.named_parameters())
        penalty: torch.Tensor | None = None
        for names, strength in self._penalties(model):
            trained = [parameters[name] for name in names]
            term = HalfSquaredDistance.apply(strength, [self._reference(name, parameters[name]) for name in names], *trained)
            penalty = term if penalty is None else penalty + term
        if penalty is None:
            return losses
        return {**losses, "l2_sp": penalty * len(batch["labels"] if "labels" in batch else next(iter(batch.values())))}

    def _penalties(self, model: nn.Module) -> list[tuple[list[str], float]]:
        """Return two lists of parameters to penalize, the pretrained and the new ones, each with the strength of its penalty."""
        trained = {name: parameter.ndim for name, parameter in model.named_parameters() if parameter.requires_grad}
        old = [name for name in trained if plain_name(name) in self._references]
        new = [name for name, dimensions in trained.items() if dimensions > 1 and plain_name(name) not in self._references]
        return [(names, strength) for names, strength in ((old, self.alpha), (new, self.beta)) if names and strength]

    def _reference(self, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
        """Return the pretrained value of a parameter, on the device of the parameter. None: the parameter is new."""
        reference = self._references.get(plain_name(name))
        if reference is not None and reference.device != parameter.device:
            reference = self._references[plain_name(name)] = reference.to(parameter.device)
        return reference


class HalfSquaredDistance(torch.autograd.Function):
    """Compute strength/2 * sum |w - w0|^2 over many tensors in fp32, with fused operations and no saved intermediate results."""

    @staticmethod
    def forward(context: Any, strength: float, references: list[torch.Tensor | None], *parameters: torch.Tensor) -> torch.Tensor:
        context.strength, context.references = strength, references
        context.save_for_backward(*parameters)
        norms = torch._foreach_norm(_differences(parameters, references))
        return torch.stack(norms).square().sum() * (strength / 2)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        differences = _differences(context.saved_tensors, context.references)
        factor = gradients[0].float() * context.strength
        scaled = torch._foreach_mul(differences, factor)
        cast = [value.to(parameter.dtype) for value, parameter in zip(scaled, context.saved_tensors, strict=True)]
        return None, None, *cast


def _differences(parameters: Any, references: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return parameters minus references in fp32. Either every parameter has a reference, or none has."""
    wide = [parameter.detach().float() for parameter in parameters]
    known = [reference.float() for reference in references if reference is not None]
    return list(torch._foreach_sub(wide, known)) if known else wide


def _new_names(model: nn.Module) -> set[str]:
    """Return the `plain_name` of each parameter that is new or belongs to a decoder built from an encoder."""
    new = set(new_parameters(model))
    try:
        layers = inner_layers(model)
    except UserError:  # an unknown family
        return new
    if layers.decoder is None and has_decoder(model):
        new |= {name for name, _ in model.named_parameters() if layers.depth_of(plain_name(name)) > layers.depth}
    return new
