"""Checkpoints: load one with a head, know its layers in order, and which of its parameters are new."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.errors import UserError
from nlp_transfer.sources import ModelSource
from nlp_transfer.trust import FAULTS, check_model, check_weights, load_configuration, load_tokenizer, weight_files, why

# The names under which the families keep their dropout rates.
HIDDEN_DROPOUT = (
    "hidden_dropout_prob", "dropout", "dropout_rate", "pooler_dropout", "classifier_dropout", "seq_classif_dropout",
    "embedding_dropout", "mlp_dropout", "classifier_dropout_prob", "head_dropout",
)  # fmt: skip
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


@dataclass(frozen=True)
class Checkpoint:
    """A model before it is loaded: its configuration is known, its weights are not read yet."""

    source: ModelSource
    config: PretrainedConfig

    @classmethod
    def open(cls, source: ModelSource) -> "Checkpoint":
        """Reads the configuration.

        Raises:
            UserError: it cannot be found or read, its model type is unknown, or it brings code or points out of its folder.
        """
        check_model(source)
        return cls(source, load_configuration(source))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer.

        Raises:
            UserError: there is none beside the model.
        """
        tokenizer = load_tokenizer(self.source)
        # For some families transformers makes a tokenizer without any words where the files are missing.
        config = encoder_config(self.config)
        if len(tokenizer) < getattr(config, "vocab_size", 0) / 2:
            raise UserError(
                f"model: {self.source.name} has no tokenizer that fits: it knows {len(tokenizer)} tokens, the model "
                f"{config.vocab_size}; allowed: a model with its tokenizer's files beside it"
            )
        if tokenizer.pad_token_id is None:
            raise UserError(f"model: the tokenizer of {self.source.name} has no padding token; allowed: a BERT-family model")
        return tokenizer

    @property
    def revision(self) -> str | None:
        """The commit that was really loaded, for a hub id: the cache keeps each file below its commit's name."""
        if self.source.is_folder:
            return None
        cached = try_to_load_from_cache(self.source.path, "config.json", revision=self.source.revision)
        return Path(cached).parent.name if isinstance(cached, str) else self.source.revision

    @property
    def max_length(self) -> int:
        """Longest input in tokens: the smaller of what the tokenizer says and the position table holds."""
        return int(min(self.tokenizer.model_max_length, self.positions))

    @property
    def positions(self) -> int:
        """Tokens that the position table holds; 512 where there is none."""
        config = encoder_config(self.config)
        positions = getattr(config, "max_position_embeddings", None) or 512
        # RoBERTa's kind numbers positions from padding_idx + 1 on, and so keeps two for nothing.
        if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            positions -= 2
        return int(positions)

    def load(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        """The model with `overrides` put into its configuration, in fp32; what the checkpoint lacks is new.

        Raises:
            UserError: the family has no such head, or the weights cannot be read.
        """
        config = load_configuration(self.source)
        for name, value in overrides.items():
            setattr(config, name, value)
        files = weight_files(self.source)
        try:
            with torch.device("meta"):
                check_weights(self.source, auto_class.from_config(config, trust_remote_code=False))
            model, report = auto_class.from_pretrained(
                self.source.path,
                config=config,
                revision=self.source.revision,
                trust_remote_code=False,
                weights_only=True,  # of a pickle; safetensors are taken where there are such
                dtype=torch.float32,  # by default the dtype on disk is taken, and a checkpoint kept in fp16 trains badly
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except UserError:
            raise
        except FAULTS as error:
            raise UserError(f"model: {self.source.name} cannot be loaded: {why(error, files)}") from error
        if set(report["missing_keys"]) >= {name for name, _ in model.named_parameters()}:
            raise UserError(
                f"model: no weight in {self.source.name} belongs to a {config.model_type} model; is it another family?"
            )
        mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
        model.new_parameters = frozenset(set(report["missing_keys"]) | mismatched)
        return model


def dropout_overrides(config: PretrainedConfig, hidden: float | None, attention: float | None) -> dict[str, Any]:
    """Configuration fields of this family that set its dropout rates, for those that are not None.

    A model with the toolkit's own head keeps the encoder's fields as a dict in its configuration.
    """
    chosen = {name: rate for names, rate in ((HIDDEN_DROPOUT, hidden), (ATTENTION_DROPOUT, attention)) for name in names}
    found: dict[str, Any] = {name: rate for name, rate in chosen.items() if rate is not None and hasattr(config, name)}
    if hasattr(config, "encoder_config"):
        inner = dropout_overrides(config.encoder_config(), hidden, attention)
        found["encoder"] = {**config.encoder, **inner}
    return found


def new_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that the checkpoint did not have and that were therefore drawn at random."""
    return getattr(model, "new_parameters", frozenset())


@dataclass(frozen=True)
class Layers:
    """A model's layers in order. `encoder` is the module path of the encoder, `prefix` that of its stack of layers, `depth` the
    number of separate layers in it.

    `outside` are names of parameters that the encoder uses and that are called otherwise: embeddings shared with a decoder.
    `decoder` is the module path of a decoder's stack of layers, where the checkpoint brought one.
    """

    encoder: str
    prefix: str
    depth: int
    shared: bool
    outside: frozenset[str] = frozenset()
    decoder: str | None = None

    def depth_of(self, parameter: str) -> int:
        """0: embeddings and what belongs to all layers; 1 to `depth`: a layer; `depth` + 1: pooler, head and decoder."""
        if parameter in self.outside:
            return 0
        if not parameter.startswith(self.encoder + ".") or "pooler" in parameter.removeprefix(self.encoder):
            return self.depth + 1
        if parameter.startswith(self.prefix + "."):
            return int(parameter.removeprefix(self.prefix + ".").split(".")[0]) + 1
        return self.depth if parameter.removeprefix(self.encoder + ".").startswith("final_") else 0


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


def has_decoder(model: nn.Module) -> bool:
    """Whether the model writes text: an encoder with a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def has_new_decoder(model: nn.Module) -> bool:
    """Whether the model writes text by a decoder that no checkpoint brought whole."""
    return has_decoder(model) and bool(new_parameters(model))


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
    encoder = _path(model, whole.get_encoder()) if has_decoder(model) else getattr(model, "base_model_prefix", "")
    prefix = _stack(model, encoder, wanted)
    if prefix is None:
        raise UserError(
            f"model: the layers of a {getattr(config, 'model_type', 'model')} cannot be told apart; allowed: BERT-family encoders"
        )
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
    """Module paths of the linear projections inside the stacks, relative to their layer, each once."""
    seen: set[str] = set()
    for name, module in model.named_modules():
        stack = next((stack for stack in (layers.prefix, layers.decoder) if stack and name.startswith(stack + ".")), None)
        if isinstance(module, nn.Linear) and stack:
            inner = name.removeprefix(stack + ".").partition(".")[2]
            if inner not in seen:
                seen.add(inner)
                yield inner


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters, shared ones counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def freeze(model: nn.Module, names: set[str]) -> None:
    """Fixes the parameters called so; no gradient is computed for them."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recomputes activations in the backward pass. Raises a UserError where the family cannot."""
    base: Any = model
    if not getattr(base, "supports_gradient_checkpointing", False):
        family = base.config.model_type
        raise UserError(f"training.gradient_checkpointing: found true; {family} models cannot recompute; allowed: false")
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable  # its older name
    enable({"use_reentrant": False})  # the reentrant kind loses gradients behind frozen layers


def train_mode(model: nn.Module) -> None:
    """Training mode where something is trained; modules whose parameters are all fixed stay in evaluation mode.

    Dropout in a fixed layer would only blur the features that the trained part sees.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def forbid_new_parameters(model: nn.Module, source: str) -> None:
    """Raises a UserError when a model that should be complete had weights drawn at random."""
    if missing := sorted(new_parameters(model)):
        raise UserError(
            f"model: {source} has no weights for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}; it is no "
            "fine-tuned model. Fine-tune it first: nlp-transfer train"
        )


def merge_adapter(model: Any) -> PreTrainedModel:
    """A model with its adapter's updates in its own weights, and no trace of peft.

    What was trained as a whole loses its wrapper first: some methods would leave it there, or take it for a layer.
    """
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapter])
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a model of fp32 weights computes in `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
