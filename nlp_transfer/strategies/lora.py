"""LoRA: freeze the pretrained weights, and train low-rank updates of the linear layers.

When to use it: if memory is short, or many tasks share one encoder. An adapter for BERT-base takes about 10 MB.

Cost: gradients and optimizer state for about 2 % of the parameters. A step is not much faster than in full fine-tuning. The
merged model is as fast as the original one.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 2106.09685. By default all linear layers are adapted, which
Dettmers et al. 2023, "QLoRA", 2305.14314, found to matter more than the rank.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import find_layers, width
from nlp_transfer.models.preparation import has_untrained_decoder, merge_adapter
from nlp_transfer.settings.schema import Count, Share
from nlp_transfer.strategies import Strategy
from nlp_transfer.strategies.common.adapter_modules import (
    add_adapter,
    chosen_layers,
    module_pattern,
    modules_to_save,
    save_adapter,
)
from nlp_transfer.strategies.common.layer_depth import DECODER_SCALE


class Lora(Strategy):
    """Train low-rank updates and the head. The updates are merged into the saved model, and also saved separately, as
    `adapter/`."""

    chooses_parameters: ClassVar[bool] = True

    r: Count = 16
    """Rank of the updates."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the updates: they are multiplied by alpha / r. null: twice the rank."""
    dropout: Share = 0.0
    """Dropout on the input of the updates."""
    target_modules: Literal["all", "attention"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Linear layers of the encoder to adapt: all, those of the attention (queries, keys and values), or a list of names."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases to train as well: none, all, or those of the adapted layers (`lora_only`)."""

    def learning_rate(self, model: nn.Module) -> float:
        """Return a high rate, since the updates start at zero. A new decoder, which is trained completely, needs a lower one."""
        if has_untrained_decoder(model):
            return super().learning_rate(model) * DECODER_SCALE
        return 2e-3 if width(model) <= 512 else 5e-4

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Add the updates.

        The pooler and the head are trained completely and saved with the adapter. By itself peft recognizes only heads
        called `classifier` or `score`, and would leave other new weights untrained.
        """
        from peft import LoraConfig

        layers = find_layers(model)
        chosen = chosen_layers(model, layers, self.target_modules, "strategy.target_modules")
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha or 2 * self.r,  # type: ignore[arg-type]  # a fraction works, too
            lora_dropout=self.dropout,
            bias=self.bias,
            target_modules=module_pattern(layers, chosen),
            modules_to_save=modules_to_save(model, layers),
        )
        adapted: PreTrainedModel = add_adapter(model, config)
        return adapted

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Save `adapter/`, and merge it: W + alpha/r * BA in every adapted layer."""
        save_adapter(model, folder / "adapter")
        return merge_adapter(model)
