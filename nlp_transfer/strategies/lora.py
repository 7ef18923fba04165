"""LoRA: pretrained weights stay fixed, and low-rank updates of the linear layers are trained beside them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 2106.09685. All linear layers are adapted by default,
which Dettmers et al. 2023, 2305.14314, found to matter more than the rank.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import find_layers, has_new_decoder, merge_adapter, width
from nlp_transfer.settings.schema import Count, Share
from nlp_transfer.strategies import Strategy
from nlp_transfer.strategies.common.adapter_modules import adapt, chosen_layers, modules_to_save, pattern, save_adapter
from nlp_transfer.strategies.common.layer_depth import DECODER_SCALE


class Lora(Strategy):
    """Trains low-rank updates and the head. The updates are merged into the model that is saved; they are also saved
    alone, as `adapter/`."""

    chooses_parameters: ClassVar[bool] = True

    r: Count = 16
    """Rank of the updates."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the updates, divided by the rank; null: twice the rank."""
    dropout: Share = 0.0
    """Dropout before the updates."""
    target_modules: Literal["all", "attention"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Which linear layers of the encoder are adapted: all, those that make queries, keys and values, or a list of names."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained as well."""

    def learning_rate(self, model: nn.Module) -> float:
        """The updates start at zero and bear far larger steps than pretrained weights; a new decoder, trained whole, does not."""
        if has_new_decoder(model):
            return super().learning_rate(model) * DECODER_SCALE
        return 2e-3 if width(model) <= 512 else 5e-4

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Adds the updates.

        The pooler and the head are trained as a whole and kept with the adapter: peft by itself knows only heads called
        `classifier` or `score`, and would leave other new weights fixed at random.
        """
        from peft import LoraConfig

        layers = find_layers(model)
        chosen = chosen_layers(model, layers, self.target_modules, "strategy.target_modules")
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha or 2 * self.r,  # type: ignore[arg-type]  # a fraction works as well
            lora_dropout=self.dropout,
            bias=self.bias,
            target_modules=pattern(layers, chosen),
            modules_to_save=modules_to_save(model, layers),
        )
        adapted: PreTrainedModel = adapt(model, config)
        return adapted

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Saves `adapter/` and merges: W + alpha/r * BA in every adapted layer."""
        save_adapter(model, folder / "adapter")
        return merge_adapter(model)
