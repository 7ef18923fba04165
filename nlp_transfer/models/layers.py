"""What a model is made of: an encoder, perhaps a decoder, their layers in order, and which of its parameters are new."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nlp_transfer.utils.errors import UserError


def new_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that the checkpoint did not have and that were therefore drawn at random."""
    return getattr(model, "new_parameters", frozenset())


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model has an encoder and a decoder, whatever it does with them: translate or classify."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def has_decoder(model: nn.Module) -> bool:
    """Whether the model writes text with a decoder. BART's classifier does not: a head reads its decoder's last token."""
    whole: Any = model
    return is_encoder_decoder(model) and bool(whole.can_generate())


def place_end_tokens(model: nn.Module, ids: torch.Tensor, place: int = -1) -> torch.Tensor:
    """Made-up token ids (rows, tokens) for any model: where a classifier reads the end token of a row (BART, T5), each row gets
    one at `place`, and no other."""
    if not is_encoder_decoder(model) or has_decoder(model):
        return ids
    end = int(model.config.eos_token_id)  # type: ignore[union-attr, arg-type]
    ids = torch.where(ids == end, end + 1, ids)
    ids[:, place] = end
    return ids


@dataclass(frozen=True)
class Layers:
    """A model's layers in order. `encoder` is the module path of the encoder, `prefix` that of its stack of layers, `depth` the
    number of separate layers in it.

    `outside` are names of parameters that the encoder uses and that are called otherwise: embeddings shared with a decoder.
    `decoder` is the module path of a decoder's stack of layers, where the checkpoint brought one and the model writes text.
    `upper` is the path of the decoder's stack in a classifier such as BART's, whose head reads the decoder's last layer:
    `depth` then counts the layers of both stacks, of which the first `lower` are the encoder's.
    """

    encoder: str
    prefix: str
    depth: int
    shared: bool
    outside: frozenset[str] = frozenset()
    decoder: str | None = None
    upper: str | None = None
    lower: int = 0

    @property
    def stacks(self) -> tuple[str, ...]:
        """The module paths of all stacks of layers."""
        return tuple(stack for stack in (self.prefix, self.decoder, self.upper) if stack)

    def depth_of(self, parameter: str) -> int:
        """0: embeddings and what belongs to all layers; 1 to `depth`: a layer; `depth` + 1: pooler, head and decoder."""
        if parameter in self.outside:
            return 0
        if not parameter.startswith(self.encoder + ".") or "pooler" in parameter.removeprefix(self.encoder):
            return self.depth + 1
        for stack, below in ((self.prefix, 0), (self.upper, self.lower)):
            if stack and parameter.startswith(stack + "."):
                return int(parameter.removeprefix(stack + ".").split(".")[0]) + 1 + below
        inner = parameter.removeprefix(self.encoder + ".")
        if self.upper:
            side, _, inner = inner.partition(".")
            return (self.lower if side == "encoder" else self.depth) if inner.startswith("final_") else 0
        return self.depth if inner.startswith("final_") else 0


def encoder_config(config: Any) -> Any:
    """The family's configuration: the model's own, or that of the encoder below the toolkit's own head or beside a decoder."""
    if hasattr(config, "encoder_config"):
        return config.encoder_config()
    inner = getattr(config, "encoder", None)
    return inner if isinstance(inner, PretrainedConfig) else config


def encoder_type(config: Any) -> str:
    """The family's name, also where the configuration is that of the toolkit's own head or of an encoder-decoder."""
    return str(encoder_config(config).model_type)


def width(model: nn.Module) -> int:
    """Size of a token's vector."""
    return getattr(encoder_config(model.config), "hidden_size", None) or 768


def find_layers(model: nn.Module) -> Layers:
    """The stack of layers of an encoder with a head, or with a decoder.

    Raises:
        UserError: the model has no stack that can be recognised.
    """
    whole: Any = model
    config = encoder_config(model.config)
    count = getattr(config, "num_hidden_layers", 0)
    shared = hasattr(config, "num_hidden_groups")  # ALBERT: few groups of weights serve all layers
    wanted = config.num_hidden_groups if shared else count
    classifies = is_encoder_decoder(model) and not has_decoder(model)  # by a head on the decoder
    encoder = _path(model, whole.get_encoder()) if has_decoder(model) else getattr(model, "base_model_prefix", "")
    prefix = _stack(model, f"{encoder}.encoder" if classifies else encoder, wanted)
    if prefix is None and not isinstance(model, PreTrainedModel):
        raise UserError(
            f"model: a {type(model).__name__} of the task's own class does not show which of its modules are an encoder; "
            "allowed: strategies that need not know it, such as full, or a task that puts its head into a model of transformers"
        )
    if prefix is None:
        raise UserError(
            f"model: the layers of a {getattr(config, 'model_type', 'model')} cannot be told apart; allowed: BERT-family encoders"
        )
    if classifies:
        upper = _stack(model, f"{encoder}.decoder")
        stack: Any = model.get_submodule(upper) if upper else ()
        depth = wanted + len(stack)
        return Layers(encoder, prefix, depth, False, upper=upper, lower=wanted)
    if not has_decoder(model):
        return Layers(encoder, prefix, wanted, shared and wanted < count)
    inner = {id(parameter) for parameter in whole.get_encoder().parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in inner}
    decoder = _path(model, whole.get_decoder())
    drawn = any(name.startswith(f"{decoder}.") for name in new_parameters(model))
    outside = frozenset(name for name in names if not name.startswith(f"{encoder}."))
    return Layers(encoder, prefix, wanted, shared and wanted < count, outside, None if drawn else _stack(model, decoder))


def _path(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def _stack(model: nn.Module, below: str, length: int | None = None) -> str | None:
    """The path of the first list of modules below a path, of that length where one is given."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.startswith(f"{below}.") and length in (None, len(module)):
            return name
    return None


def linear_layers(model: nn.Module, layers: Layers) -> Iterator[str]:
    """Module paths of the linear projections inside the stacks, relative to their layer, each once.

    In families that compute them by convolutions of width 1 (SqueezeBERT) or by transformers' `Conv1D` (GPT-2) they are those.
    """
    inside: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if stack := next((stack for stack in layers.stacks if name.startswith(stack + ".")), None):
            inside.append((name.removeprefix(stack + ".").partition(".")[2], module))
    found = [name for name, module in inside if isinstance(module, nn.Linear)]
    found = found or [name for name, module in inside if isinstance(module, Conv1D) or _is_pointwise(module)]
    yield from dict.fromkeys(found)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d) and module.kernel_size == (1,)
