"""LoRA: freeze the pretrained weights, and train low-rank updates of the linear layers.

When to use it: if memory is limited, or many tasks share one encoder. An adapter for BERT-base takes about 10 MB.

Cost: gradients and optimizer state for about 2 % of the parameters. A step is only slightly faster than in full fine-tuning. In
    prediction, the merged model is as fast as the original one.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 2106.09685. By default all linear layers are adapted. This
matters more than the rank, according to Dettmers et al. 2023, "QLoRA", 2305.14314.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from transformers import PreTrainedModel

from nlp_transfer.models.layers import find_layers
from nlp_transfer.models.preparation import merge_adapter
from nlp_transfer.settings.base_settings import Count, Share
from nlp_transfer.strategies import Strategy, StrategyTraits
from nlp_transfer.strategies.common.adapter_modules import (
    add_adapter,
    chosen_layers,
    module_pattern,
    modules_to_save,
    save_adapter,
)
from nlp_transfer.strategies.common.layer_depth import adapter_rate


class Lora(Strategy):
    """Train low-rank updates and the head. The updates are merged into the saved model, and also saved in `adapter/`."""

    traits = StrategyTraits(
        owns_parameters=True, adds_adapter=True, learning_rate=adapter_rate,
        search_space={
            "strategy.r": [4, 8, 16, 32], "strategy.dropout": [0.0, 0.1], "strategy.target_modules": ["all", "attention"],
        },
    )  # fmt: skip

    r: Count = 16
    """Rank of the updates."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the updates: they are multiplied by alpha / r. null: twice the rank."""
    dropout: Share = 0.0
    """Dropout on the input of the updates."""
    target_modules: Literal["all", "attention"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Linear layers of the encoder to adapt: all, attention (queries, keys and values), or a list of names."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases to train: none, all, or those of the adapted layers (`lora_only`)."""

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Add the low-rank updates.

        The pooler and the head are trained completely and saved with the adapter. They must be listed in `modules_to_save`,
        since peft by itself only recognizes heads called `classifier` or `score`.
        """
        from peft import LoraConfig

        layers = find_layers(model)
        chosen = chosen_layers(model, layers, self.target_modules, "strategy.target_modules")
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha or 2 * self.r,  # type: ignore[arg-type]  # peft also accepts a float
            lora_dropout=self.dropout,
            bias=self.bias,
            target_modules=module_pattern(layers, chosen),
            modules_to_save=modules_to_save(model, layers),
        )
        adapted: PreTrainedModel = add_adapter(model, config)
        return adapted

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Save the adapter in `adapter/`, and merge it into the weights: W becomes W + alpha/r * BA in every adapted layer."""
        save_adapter(model, folder / "adapter")
        return merge_adapter(model)
