"""L2-SP: weights are pulled towards where the checkpoint had them, and not towards zero.

Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", 1802.01483. The penalty is
alpha/2 |w - w0|^2 over pretrained weights and beta/2 |w|^2 over those that are new. It takes the place of weight decay, which
would pull pretrained weights towards zero at the same time and is therefore off for all that is penalised.

With ten labelled rows a class (Banking77, TREC; MiniLM) it was not measurably better than plain full fine-tuning.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import has_decoder, new_parameters
from nlp_transfer.strategies import Group, Losses, Strategy
from nlp_transfer.strategies.common.layer_depth import added_by_peft, inner_layers, plain_name, scale_mixed_head
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import UserError


class L2Sp(Strategy):
    """Adds a pull towards the pretrained weights to the loss of whatever the others of a list train; by itself this is full
    fine-tuning. Beside LoRA pretrained layers do not move at all, so that only the pooler and what is new are pulled."""

    only_trains: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0)] = 0.01
    """Strength of the pull of pretrained parameters towards where they were."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Strength of the pull of new weights towards zero; their biases and normalisation are left alone."""

    _references: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    def unused(self, task: Task) -> dict[str, str]:
        reason = "the pull of l2_sp takes the place of weight decay"
        return {"training.weight_decay": reason} if self.alpha and self.beta else {}

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Keeps a copy of all pretrained weights that can move; a run that goes on does so before its own are put back."""
        new = _new(model)
        self._references.clear()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and plain_name(name) not in new and not added_by_peft(name):
                self._references[plain_name(name)] = parameter.detach().clone()
        return model

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Without weight decay for what is penalised."""
        pulled = {name for names, _ in self._pulls(model) for name in names}
        found = []
        for group in scale_mixed_head(model, groups):
            rest = [name for name in group.names if name not in pulled]
            found += [replace(group, names=rest)]
            found += [replace(group, names=[name for name in group.names if name in pulled], weight_decay=0.0)]
        return found

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        """One more term, `l2_sp`: the penalty times the rows of this batch, since the loop divides it by all rows of the
        optimiser step. So it counts once a step, however that is cut."""
        parameters = dict(model.named_parameters())
        penalty: torch.Tensor | None = None
        for names, strength in self._pulls(model):
            moving = [parameters[name] for name in names]
            part = HalfSquaredDistance.apply(strength, [self._reference(name, parameters[name]) for name in names], *moving)
            penalty = part if penalty is None else penalty + part
        if penalty is None:
            return losses
        return {**losses, "l2_sp": penalty * len(batch["labels"] if "labels" in batch else next(iter(batch.values())))}

    def _pulls(self, model: nn.Module) -> list[tuple[list[str], float]]:
        """Names of what is trained and penalised, with the strength: the pretrained, and the new."""
        trained = {name: parameter.ndim for name, parameter in model.named_parameters() if parameter.requires_grad}
        old = [name for name in trained if plain_name(name) in self._references]
        new = [name for name, dimensions in trained.items() if dimensions > 1 and plain_name(name) not in self._references]
        return [(names, strength) for names, strength in ((old, self.alpha), (new, self.beta)) if names and strength]

    def _reference(self, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
        """Where a parameter is pulled, on its device; None: to zero."""
        found = self._references.get(plain_name(name))
        if found is not None and found.device != parameter.device:
            found = self._references[plain_name(name)] = found.to(parameter.device)
        return found


class HalfSquaredDistance(torch.autograd.Function):
    """strength/2 sum |w - w0|^2 over many tensors, in fp32, with a gradient in one pass and nothing kept but the tensors."""

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
    """Both lists are of one kind: all with a reference, or all without."""
    wide = [parameter.detach().float() for parameter in parameters]
    given = [reference.float() for reference in references if reference is not None]
    return list(torch._foreach_sub(wide, given)) if given else wide


def _new(model: nn.Module) -> set[str]:
    """Plain names of what no checkpoint brought as it is: drawn at random, or all of a decoder that was put together."""
    drawn = set(new_parameters(model))
    try:
        layers = inner_layers(model)
    except UserError:  # an unknown family
        return drawn
    if layers.decoder is None and has_decoder(model):
        drawn |= {name for name, _ in model.named_parameters() if layers.depth_of(plain_name(name)) > layers.depth}
    return drawn
