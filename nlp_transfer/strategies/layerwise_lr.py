"""Layer-wise learning rate decay: train lower layers, which have more general features, with lower learning rates.

When to use it: instead of full fine-tuning, especially with few labeled rows or large models.

Cost: the same as full fine-tuning. With ten labeled rows per class (Banking77, TREC; MiniLM) it was slightly better than full
fine-tuning, but not significantly.

Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", 1801.06146 (discriminative fine-tuning).
For BERT-like models: Clark et al. 2020, "ELECTRA", 2003.10555; Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning",
2006.05987.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import Layers
from nlp_transfer.strategies import Group, Strategy, StrategyTraits
from nlp_transfer.strategies.common.layer_depth import inner_layers, plain_name, scale_mixed_head, separate_layers


class LayerwiseLr(Strategy):
    """Reduce the learning rate layer by layer, from the top down. Can be combined with others, as in [lora, layerwise_lr]."""

    traits = StrategyTraits(only_trains=True, search_space={"strategy.decay": [0.65, 0.8, 0.9, 0.95]})

    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Learning rate of a layer relative to that of the layer above it. The top layer has the full rate."""

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Check that the layers have separate weights.

        Raises:
            UserError: If they share their weights.
        """
        separate_layers(model, "layerwise_lr", "they cannot have different learning rates")
        return model

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Split the groups by depth, and multiply the learning rates by powers of `decay`."""
        layers = inner_layers(model)
        stack = f"{layers.decoder}." if layers.decoder else ""
        names = [plain_name(name) for name, _ in model.named_parameters()]
        numbers = [int(name.removeprefix(stack).split(".")[0]) for name in names if stack and name.startswith(stack)]
        decoder_depth = max(numbers, default=-1) + 1
        split: list[Group] = []
        for group in scale_mixed_head(model, groups):
            by_factor: dict[int, list[str]] = {}
            for name in group.names:
                by_factor.setdefault(_layers_above(plain_name(name), layers, decoder_depth), []).append(name)
            split += [
                replace(group, names=names, learning_rate_scale=group.learning_rate_scale * self.decay**above)
                for above, names in sorted(by_factor.items())
            ]
        return split


def _layers_above(name: str, layers: Layers, decoder_depth: int) -> int:
    """Return the number of layers above a parameter, in the encoder or a pretrained decoder.

    It is 0 for the pooler, the head and a new decoder.
    """
    depth = layers.depth_of(name)
    if depth <= layers.depth:
        return layers.depth - max(depth, 0)
    if layers.decoder and name.startswith(f"{layers.decoder}."):
        return decoder_depth - 1 - int(name.removeprefix(f"{layers.decoder}.").split(".")[0])
    return decoder_depth if layers.decoder and "embed" in name else 0
