"""Learning rates that fall with depth: the lower a layer, the more general what it knows, and the less it should move.

Howard and Ruder 2018, "Universal Language Model Fine-tuning", 1801.06146 (discriminative fine-tuning); for BERT-like models
Clark et al. 2020 (ELECTRA), 2003.10555, and Zhang et al. 2021, 2006.05987.

With ten labelled rows a class (Banking77, TREC; MiniLM) it was a little better than plain full fine-tuning, not measurably so.
"""

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import Layers
from nlp_transfer.strategies import Group, Strategy
from nlp_transfer.strategies.common.layer_depth import inner_layers, plain_name, scale_mixed_head, separate_layers


class LayerwiseLr(Strategy):
    """Each layer learns slower than the one above it. By itself this is full fine-tuning; in a list it changes the rates of
    whatever the others train, [full, layerwise_lr] or [lora, layerwise_lr]."""

    only_trains: ClassVar[bool] = True

    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Factor on the learning rate for each layer further down; the highest layer keeps the whole rate."""

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where layers share one set of weights: a single rate would be full fine-tuning by another name."""
        separate_layers(model, "layerwise_lr", "they cannot learn at rates of their own")
        return model

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """The groups cut by depth; the rate of each is a factor on what it was before."""
        layers = inner_layers(model)
        stack = f"{layers.decoder}." if layers.decoder else ""
        numbers = [
            int(name.removeprefix(stack).split(".")[0]) for name in _plain_names(model) if stack and name.startswith(stack)
        ]
        decoder_depth = max(numbers, default=-1) + 1
        found: list[Group] = []
        for group in scale_mixed_head(model, groups):
            by_factor: dict[int, list[str]] = {}
            for name in group.names:
                by_factor.setdefault(_layers_above(plain_name(name), layers, decoder_depth), []).append(name)
            found += [
                replace(group, names=names, learning_rate_scale=group.learning_rate_scale * self.decay**above)
                for above, names in sorted(by_factor.items())
            ]
        return found


def _plain_names(model: nn.Module) -> list[str]:
    return [plain_name(name) for name, _ in model.named_parameters()]


def _layers_above(name: str, layers: Layers, decoder_depth: int) -> int:
    """How many layers of its stack stand above a parameter; none above a pooler, a head and a new decoder, all above
    embeddings. A decoder that came trained is a stack like the encoder."""
    depth = layers.depth_of(name)
    if depth <= layers.depth:
        return layers.depth - max(depth, 0)
    if layers.decoder and name.startswith(f"{layers.decoder}."):
        return decoder_depth - 1 - int(name.removeprefix(f"{layers.decoder}.").split(".")[0])
    return decoder_depth if layers.decoder and "embed" in name else 0
