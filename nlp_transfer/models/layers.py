"""The structure of a model: encoder, decoder, their layers in order, and which parameters are new."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nlp_transfer.utils.errors import UserError

MASKED = 1e4  # logits of at least this size mean that a token is masked


def new_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of parameters that the checkpoint did not have; they were initialized at random."""
    return getattr(model, "new_parameters", frozenset())


def set_new_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Record the names of the parameters that the checkpoint did not have, for example after renaming them."""
    any_model: Any = model
    any_model.new_parameters = frozenset(names)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Return whether the model has an encoder and a decoder. Such a model may generate text or classify it."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def has_decoder(model: nn.Module) -> bool:
    """Return whether the model is an encoder-decoder that generates text. BART's classifier has a decoder, but does not."""
    any_model: Any = model
    return is_encoder_decoder(model) and bool(any_model.can_generate())


def output_logits(outputs: Any) -> torch.Tensor:
    """Return all logits that a model has computed.

    Returns:
        `logits`; or, of a model that scores the start and the end of a span, both, of shape (rows, tokens, 2).
    """
    if hasattr(outputs, "start_logits"):
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    logits: torch.Tensor = outputs.logits
    return logits


def logit_difference(expected: np.ndarray, found: np.ndarray, smallest: float = 1.0) -> float:
    """Return the largest difference of logits, relative to the largest logit; infinite if there are more or fewer of them.

    Logits that mask tokens, such as -1e6 in BigBird's answers, do not count as the largest. They are compared with themselves.

    Args:
        smallest: differences are relative to this number if all logits are smaller.
    """
    if expected.shape != found.shape:
        return float("inf")
    size = np.abs(expected)
    largest = size[size < MASKED].max(initial=smallest)
    with np.errstate(invalid="ignore"):  # infinite logits
        differences = np.where(expected == found, 0.0, np.abs(expected - found) / np.where(size < MASKED, largest, size))
    return float(differences.max(initial=0.0))


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 digest of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def place_end_tokens(model: nn.Module, ids: torch.Tensor, position: int = -1) -> torch.Tensor:
    """Put exactly one end token into each row of made-up token ids.

    Classifiers with a decoder (BART, T5) pool the state of the end token.

    Args:
        ids: int64 of shape (rows, tokens).
        position: index of the end token in each row.

    Returns:
        The ids; unchanged if the model is not a classifier with a decoder.
    """
    if not is_encoder_decoder(model) or has_decoder(model):
        return ids
    end = int(model.config.eos_token_id)  # type: ignore[union-attr, arg-type]
    ids = torch.where(ids == end, end + 1, ids)
    ids[:, position] = end
    return ids


@dataclass(frozen=True)
class Layers:
    """The layers of a model, in order of computation.

    Attributes:
        encoder: module path of the encoder.
        prefix: module path of the encoder's stack of layers.
        depth: number of layers with separate weights.
        shared: whether several layers share weights (ALBERT).
        outside: names of encoder parameters outside of the module `encoder`, such as embeddings shared with a decoder.
        decoder: module path of the layer stack in a pretrained decoder that generates text; None without such a decoder.
        upper: module path of the decoder's stack in an encoder-decoder classifier (BART), else None. If it is set, `depth` is the
            total number of layers in the two stacks.
        lower: number of encoder layers in an encoder-decoder classifier, else 0.
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
        """Return the depth of a parameter by its name.

        Embeddings and parameters shared by all layers have depth 0. The layers have depths 1 to `depth`. The pooler, the head and
        a generating decoder have depth `depth` + 1.
        """
        if parameter in self.outside:
            return 0
        if not parameter.startswith(self.encoder + ".") or "pooler" in parameter.removeprefix(self.encoder):
            return self.depth + 1
        for stack, below in ((self.prefix, 0), (self.upper, self.lower)):
            if stack and parameter.startswith(stack + "."):
                return int(parameter.removeprefix(stack + ".").split(".")[0]) + 1 + below
        inner = parameter.removeprefix(self.encoder + ".")
        if self.upper:
            stack_name, _, inner = inner.partition(".")
            return (self.lower if stack_name == "encoder" else self.depth) if inner.startswith("final_") else 0
        return self.depth if inner.startswith("final_") else 0


def encoder_config(config: Any) -> Any:
    """Return the encoder's configuration.

    With the toolkit's head and in the family `encoder-decoder`, it is nested in the configuration of the model.
    """
    if hasattr(config, "encoder_config"):
        return config.encoder_config()
    inner = getattr(config, "encoder", None)
    return inner if isinstance(inner, PretrainedConfig) else config


def change_encoder_config(model: Any, change: Callable[[Any], None]) -> None:
    """Apply `change` to each configuration that describes the encoder, after the encoder has been changed.

    They are the configurations of the model and of its encoder, which may be the same object. With the toolkit's head, the
    configuration of the model contains that of the encoder as a dict, which is replaced.
    """
    encoder = getattr(model, model.base_model_prefix)
    is_nested = isinstance(getattr(model.config, "encoder", None), dict)
    for config in {id(config): config for config in (model.config, encoder.config)}.values():
        if not (is_nested and config is model.config):
            change(config)
    if is_nested:
        model.config.encoder = {key: value for key, value in encoder.config.to_dict().items() if key != "_name_or_path"}


def encoder_type(config: Any) -> str:
    """Return the model family of the encoder, such as `bert`."""
    return str(encoder_config(config).model_type)


def width(model: nn.Module) -> int:
    """Return the encoder's hidden size; 768 if the configuration has none."""
    return getattr(encoder_config(model.config), "hidden_size", None) or 768


def find_layers(model: nn.Module) -> Layers:
    """Find the layer stacks of a model that consists of an encoder and either a head or a decoder.

    Raises:
        UserError: the model has no recognizable stack of layers.
    """
    any_model: Any = model
    config = encoder_config(model.config)
    count = getattr(config, "num_hidden_layers", 0)
    shared = hasattr(config, "num_hidden_groups")  # ALBERT: layers share a few groups of weights
    depth = config.num_hidden_groups if shared else count
    classifies = is_encoder_decoder(model) and not has_decoder(model)  # such as BART: the head is on the decoder
    encoder = _path(model, any_model.get_encoder()) if has_decoder(model) else getattr(model, "base_model_prefix", "")
    prefix = _stack(model, f"{encoder}.encoder" if classifies else encoder, depth)
    if prefix is None and not isinstance(model, PreTrainedModel):
        raise UserError(
            f"model: the encoder of the task's {type(model).__name__} cannot be identified; allowed: a strategy that does not "
            "need to know the layers (such as full), or a task that puts its head on a transformers model"
        )
    if prefix is None:
        raise UserError(
            f"model: the layers of {getattr(config, 'model_type', 'this')} models cannot be identified; allowed: BERT-family "
            "encoders"
        )
    if classifies:
        upper = _stack(model, f"{encoder}.decoder")
        stack: Any = model.get_submodule(upper) if upper else ()
        return Layers(encoder, prefix, depth + len(stack), False, upper=upper, lower=depth)
    if not has_decoder(model):
        return Layers(encoder, prefix, depth, shared and depth < count)
    encoder_ids = {id(parameter) for parameter in any_model.get_encoder().parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in encoder_ids}
    decoder = _path(model, any_model.get_decoder())
    is_new = any(name.startswith(f"{decoder}.") for name in new_parameters(model))
    outside = frozenset(name for name in names if not name.startswith(f"{encoder}."))
    return Layers(encoder, prefix, depth, shared and depth < count, outside, None if is_new else _stack(model, decoder))


def _path(model: nn.Module, submodule: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is submodule)


def _stack(model: nn.Module, below: str, length: int | None = None) -> str | None:
    """Return the path of the first `ModuleList` inside a module. If `length` is set, lists of other lengths are skipped."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.startswith(f"{below}.") and length in (None, len(module)):
            return name
    return None


def linear_layers(model: nn.Module, layers: Layers) -> Iterator[str]:
    """Yield the module paths of the linear projections, relative to their layer. Each path occurs once.

    Some families use convolutions of width 1 (SqueezeBERT) or transformers' `Conv1D` (GPT-2) instead of linear layers.
    """
    inside: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if stack := next((stack for stack in layers.stacks if name.startswith(stack + ".")), None):
            inside.append((name.removeprefix(stack + ".").partition(".")[2], module))
    linear = [name for name, module in inside if isinstance(module, nn.Linear)]
    pointwise = [
        name for name, module in inside
        if isinstance(module, Conv1D) or (isinstance(module, nn.Conv1d) and module.kernel_size == (1,))
    ]  # fmt: skip
    yield from dict.fromkeys(linear or pointwise)
