"""BitFit: train only the biases of the encoder, the pooler and the head.

When to use it: if many tasks share one encoder, since the trained biases take only a few hundred kilobytes per task.

Cost: less than 0.1 % of the encoder's parameters are trained, so the optimizer state is tiny. A step is only slightly faster than
in full fine-tuning, and accuracy is usually somewhat lower.

Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", 2106.10199.
"""

import re
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import Layers, encoder_type, find_layers, new_parameters
from nlp_transfer.models.preparation import freeze
from nlp_transfer.strategies import Strategy, StrategyTraits
from nlp_transfer.strategies.common.layer_depth import adapter_rate
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.errors import UserError

FILE = "biases.safetensors"
# Names of the query projection and of the first feed-forward layer in different model families.
QUERY = re.compile(r"\.(query|query_proj|q_lin|q_proj|attn\.q|Wqkv)\.bias$")
INTERMEDIATE = re.compile(r"\.(intermediate\.dense|lin1|fc1|ffn|Wi)\.bias$")
NORMALIZATION = re.compile(r"norm", re.IGNORECASE)


class Bitfit(Strategy):
    """Train biases and the head. The trained biases of the encoder are also saved separately, in `biases.safetensors`."""

    # The rates are high, since few parameters are trained.
    traits = StrategyTraits(
        owns_parameters=True,
        learning_rate=partial(adapter_rate, narrow=3e-3, wide=1e-3),
        search_space={"strategy.normalisation": [False, True]},
    )

    biases: Literal["all", "query_and_intermediate"] = "all"
    """Encoder biases to train. `query_and_intermediate`: only those of the query projections and of the first feed-forward
    layers, about half of all biases."""
    normalisation: bool = False
    """Also train the weights of normalization layers. Required for model families without biases."""

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze all parameters except the chosen biases and new parameters.

        Raises:
            UserError: If the encoder has none of the chosen biases.
        """
        layers = find_layers(model)
        chosen = self._chosen(model, layers)
        if not chosen:
            kind = "biases" if self.biases == "all" else "biases in the query and the first layer after attention"
            raise UserError(
                f"strategy.biases: found {self.biases}; the layers of this {encoder_type(model.config)} model have no {kind}; "
                "allowed: strategy.normalisation: true, which trains the weights of its normalization layers, or another strategy"
            )
        head = {name for name, _ in model.named_parameters() if _is_new_part(name, layers)}
        freeze(model, {name for name, _ in model.named_parameters()} - chosen - head - new_parameters(model))
        return model

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Save the trained parameters of the encoder in `biases.safetensors`, under their names in the encoder.

        `model.load_state_dict(load_file(path), strict=False)` loads them into the pretrained encoder.
        """
        from safetensors.torch import save

        chosen = self._chosen(model, find_layers(model)) - new_parameters(model)
        parameters = dict(model.named_parameters())
        biases = {name: parameters[name].detach().cpu().contiguous() for name in sorted(chosen)}
        write_bytes(folder / FILE, save(biases, {"format": "pt"}))
        return model

    def _chosen(self, model: nn.Module, layers: Layers) -> set[str]:
        """Return the names of the encoder parameters to train."""
        names = set()
        for name, parameter in model.named_parameters():
            if _is_new_part(name, layers) or not parameter.requires_grad:
                continue
            owner, _, kind = name.rpartition(".")
            is_bias = kind == "bias" if self.biases == "all" else bool(QUERY.search(name) or INTERMEDIATE.search(name))
            is_scale = kind == "weight" and parameter.ndim == 1 and bool(NORMALIZATION.search(owner))
            if is_bias or (self.normalisation and is_scale):
                names.add(name)
        return names


def _is_new_part(name: str, layers: Layers) -> bool:
    """Return whether a parameter belongs to the pooler, the head or a decoder that is not pretrained."""
    return layers.decoder is None and layers.depth_of(name) > layers.depth
