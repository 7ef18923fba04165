"""BitFit: of the pretrained weights only the biases are trained, with the pooler and the head.

Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
2106.10199: under 0.1 % of the weights is enough for most tasks of moderate size, and two kinds of bias for nearly as much.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import Layers, encoder_type, find_layers, freeze, has_new_decoder, new_parameters, width
from nlp_transfer.strategies import Strategy
from nlp_transfer.strategies.common.layer_depth import DECODER_SCALE
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.errors import UserError

FILE = "biases.safetensors"
# The query's projection, and the first of the two layers after attention, as the families call them.
QUERY = re.compile(r"\.(query|query_proj|q_lin|q_proj|attn\.q|Wqkv)\.bias$")
INTERMEDIATE = re.compile(r"\.(intermediate\.dense|lin1|fc1|ffn|Wi)\.bias$")
NORMALISATION = re.compile(r"norm", re.IGNORECASE)


class Bitfit(Strategy):
    """Trains biases and the head. What was trained of the encoder is also saved alone, as `biases.safetensors`."""

    chooses_parameters: ClassVar[bool] = True

    biases: Literal["all", "query_and_intermediate"] = "all"
    """Which biases of the encoder are trained; `query_and_intermediate`: those of the query and of the first layer after
    attention, about half of them."""
    normalisation: bool = False
    """Whether the weights of normalisation layers are trained as well; families without biases need it."""

    def learning_rate(self, model: nn.Module) -> float:
        """So few numbers need, and bear, far larger steps than whole layers; a new decoder, trained whole, does not."""
        if has_new_decoder(model):
            return super().learning_rate(model) * DECODER_SCALE
        return 3e-3 if width(model) <= 512 else 1e-3

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where the encoder has none of the wanted biases."""
        layers = find_layers(model)
        chosen = self._chosen(model, layers)
        wanted = "biases" if self.biases == "all" else "biases in the query and the first layer after attention"
        if not chosen:
            raise UserError(
                f"strategy.biases: found {self.biases}; the layers of this {encoder_type(model.config)} model have no {wanted}; "
                "allowed: strategy.normalisation true, which trains the weights of its normalisation, or another strategy"
            )
        above = {name for name, _ in model.named_parameters() if _is_above(name, layers)}
        freeze(model, {name for name, _ in model.named_parameters()} - chosen - above - new_parameters(model))
        return model

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Saves `biases.safetensors`: all that tells this encoder from the pretrained one, by parameter name (fp32).

        `model.load_state_dict(load_file(path), strict=False)` puts them into the pretrained encoder again.
        """
        from safetensors.torch import save

        chosen = self._chosen(model, find_layers(model)) - new_parameters(model)
        parameters = dict(model.named_parameters())
        biases = {name: parameters[name].detach().cpu().contiguous() for name in sorted(chosen)}
        write_bytes(folder / FILE, save(biases, {"format": "pt"}))
        return model

    def _chosen(self, model: nn.Module, layers: Layers) -> set[str]:
        """Names of the pretrained parameters that are trained, those of the pooler and the head aside."""
        found = set()
        for name, parameter in model.named_parameters():
            if _is_above(name, layers) or not parameter.requires_grad:  # a pooler beside a decoder is of no use
                continue
            owner, _, kind = name.rpartition(".")
            is_bias = kind == "bias" if self.biases == "all" else bool(QUERY.search(name) or INTERMEDIATE.search(name))
            is_scale = kind == "weight" and parameter.ndim == 1 and bool(NORMALISATION.search(owner))
            if is_bias or (self.normalisation and is_scale):
                found.add(name)
        return found


def _is_above(name: str, layers: Layers) -> bool:
    """Whether a parameter belongs to the pooler, the head or a new decoder. One that came trained is like the encoder."""
    return layers.decoder is None and layers.depth_of(name) > layers.depth
