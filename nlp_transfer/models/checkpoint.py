"""Checkpoints: load one with a head, and what is done with a loaded model; `layers.py` says what it is made of."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.kernels.sdpa import attention_for_any_shape
from nlp_transfer.models.compatibility import (
    add_padding_hooks,
    check_reads_text,
    drop_unknown_token_types,
    fit_embeddings,
    position_limit,
    set_padding_token,
    set_pooled_token,
)
from nlp_transfer.models.layers import Layers as Layers
from nlp_transfer.models.layers import encoder_config as encoder_config
from nlp_transfer.models.layers import encoder_type as encoder_type
from nlp_transfer.models.layers import find_layers as find_layers
from nlp_transfer.models.layers import has_decoder as has_decoder
from nlp_transfer.models.layers import is_encoder_decoder as is_encoder_decoder
from nlp_transfer.models.layers import linear_layers as linear_layers
from nlp_transfer.models.layers import new_parameters as new_parameters
from nlp_transfer.models.layers import place_end_tokens as place_end_tokens
from nlp_transfer.models.layers import width as width
from nlp_transfer.models.verification.allocation_limit import on_meta_device
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.models.verification.model_files import (
    check_model,
    find_weights,
    load_configuration,
    load_tokenizer,
    pin,
    private_folder,
    read_settings,
)
from nlp_transfer.models.verification.untrusted_json import FAULTS
from nlp_transfer.models.verification.weight_files import check_finite, check_weights, explain_load_error
from nlp_transfer.utils.errors import UserError

# The names under which the families keep their dropout rates.
HIDDEN_DROPOUT = (
    "hidden_dropout_prob", "dropout", "dropout_rate", "pooler_dropout", "classifier_dropout", "seq_classif_dropout",
    "embedding_dropout", "mlp_dropout", "classifier_dropout_prob", "head_dropout",
)  # fmt: skip
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
HEAD = re.compile(r"For([A-Z]\w+)$")  # at the end of a class's name; RoFormerModel has none
LAYER_DROPOUT = ("encoder_layerdrop", "decoder_layerdrop")


@dataclass(frozen=True)
class Checkpoint:
    """A model before it is loaded: its configuration is known, its weights are not read yet."""

    source: ModelSource
    config: PretrainedConfig

    @classmethod
    def open(cls, source: ModelSource) -> "Checkpoint":
        """Read the configuration.

        Raises:
            UserError: it cannot be found or read, its model type is unknown or reads more than text, or it brings code or points
                out of its folder.
        """
        source = pin(source)
        check_model(source)
        config = load_configuration(source)
        check_reads_text(config, source.name)
        return cls(source, config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer, with a padding token, and without token types that the model does not know.

        Raises:
            UserError: there is none beside the model, or none that fits.
        """
        tokenizer = load_tokenizer(self.source)
        # For some families transformers makes a tokenizer without any words where the files are missing.
        config = encoder_config(self.config)
        if len(tokenizer) < getattr(config, "vocab_size", 0) / 2:
            raise UserError(
                f"model: {self.source.name} has no tokenizer that fits: it knows {len(tokenizer)} tokens, the model "
                f"{config.vocab_size}; allowed: a model with its tokenizer's files beside it"
            )
        set_padding_token(tokenizer, config, self.source.name)
        drop_unknown_token_types(tokenizer, config, self.source.name)
        return tokenizer

    @property
    def revision(self) -> str | None:
        """The commit that is loaded, for a hub id."""
        return None if self.source.is_folder else self.source.revision

    @property
    def max_length(self) -> int:
        """Longest input in tokens: the smaller of what the tokenizer says and the position table holds."""
        return int(min(self.tokenizer.model_max_length, self.positions))

    @cached_property
    def positions(self) -> int:
        """Tokens that the position table holds; 512 where there is none."""
        return position_limit(encoder_config(self.config))

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `nlp_transfer.json` beside the model says of it; empty where there is none.

        Raises:
            UserError: the file cannot be read.
        """
        return read_settings(self.source, RECORD) or {}

    @property
    def architecture(self) -> str:
        """The class that the checkpoint was saved from, such as `BertForSequenceClassification`; empty if it does not say."""
        return str((self.config.architectures or [""])[0])

    @property
    def head(self) -> str | None:
        """The kind of head that the checkpoint was saved with, as class names end: `SequenceClassification`,
        `TokenClassification`, `ConditionalGeneration` ...; None: no head, or not recorded."""
        match = HEAD.search(self.architecture)
        return match[1] if match else None

    def load(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        """The model with `overrides` put into its configuration, in fp32; what the checkpoint lacks is new.

        Its embeddings get rows for tokens that were added to the tokenizer (unless another `vocab_size` is asked for), and a
        classifier knows what the tokenizer pads with.

        Raises:
            UserError: the family has no such head, the weights cannot be read, or the tokenizer is that of another model.
        """
        config = load_configuration(self.source)
        if type(config) not in auto_class._model_mapping:
            head = auto_class.__name__.removeprefix("Auto")
            raise UserError(
                f"model: {self.source.name} cannot be loaded as a {head}: transformers has none for {config.model_type} models; "
                "allowed: a checkpoint of another family"
            )
        for name, value in overrides.items():
            setattr(config, name, value)
        files = list(find_weights(self.source)[0].values())
        try:
            with on_meta_device(f"model: {self.source.name}: config.json"):
                check_weights(self.source, auto_class.from_config(config, trust_remote_code=False))
            with private_folder(self.source, weights=True) as folder:
                model, report = auto_class.from_pretrained(
                    folder,
                    config=config,
                    trust_remote_code=False,
                    local_files_only=True,
                    weights_only=True,  # of a pickle; safetensors are taken where there are such
                    dtype=torch.float32,  # by default the dtype on disk is taken, and a checkpoint kept in fp16 trains badly
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
            model.name_or_path = model.config._name_or_path = self.source.path
        except UserError:
            raise
        except FAULTS as error:
            raise UserError(f"model: {self.source.name} cannot be loaded: {explain_load_error(error, files)}") from error
        if set(report["missing_keys"]) >= {name for name, _ in model.named_parameters()}:
            raise UserError(
                f"model: no weight in {self.source.name} belongs to a {config.model_type} model; is it another family?"
            )
        mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
        model.new_parameters = frozenset(set(report["missing_keys"]) | mismatched)
        model.replaced_parameters = frozenset(mismatched)
        check_finite(model, f"model: {self.source.name}", "another checkpoint, or a new copy of this one", model.new_parameters)
        if "vocab_size" not in overrides:
            self._fit_tokenizer(model, auto_class is AutoModelForSequenceClassification)
        return model

    def _fit_tokenizer(self, model: PreTrainedModel, classifies: bool) -> None:
        try:
            tokenizer = self.tokenizer
        except UserError:  # who needs the tokenizer is told
            return
        fit_embeddings(model, tokenizer, self.source.name)
        if classifies:
            set_pooled_token(model, tokenizer)
            add_padding_hooks(model)


def dropout_overrides(config: PretrainedConfig, hidden: float | None, attention: float | None) -> dict[str, Any]:
    """Configuration fields of this family that set its dropout rates, for those that are not None.

    Whole layers are never dropped: those skipped at random leave parameters without gradient, and several processes would wait
    for those forever. A model with the head of this toolkit keeps the fields of the encoder as a dict in its configuration.
    """
    chosen = {name: rate for names, rate in ((HIDDEN_DROPOUT, hidden), (ATTENTION_DROPOUT, attention)) for name in names}
    chosen |= dict.fromkeys(LAYER_DROPOUT, 0.0)
    fields: dict[str, Any] = {name: rate for name, rate in chosen.items() if rate is not None and hasattr(config, name)}
    if hasattr(config, "encoder_config"):
        inner = dropout_overrides(config.encoder_config(), hidden, attention)
        fields["encoder"] = {**config.encoder, **inner}
    return fields


def replaced_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the new parameters for which the checkpoint had weights of another shape, such as those for other labels."""
    return getattr(model, "replaced_parameters", frozenset())


def has_untrained_decoder(model: nn.Module) -> bool:
    """Whether the model writes text by a decoder that no checkpoint brought whole."""
    return has_decoder(model) and bool(new_parameters(model))


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


def describe_head(model: nn.Module) -> list[str]:
    """What became of the head that the checkpoint had been trained with, for the log; empty if it had none."""
    note: str | None = getattr(model, "head_note", None)
    return [note] if note else []


def check_head(checkpoint: Checkpoint, wanted: str = "SequenceClassification") -> None:
    """Raises a UserError where a checkpoint that is to be used as it is was saved with another kind of head.

    In some families such weights have the same names, and would be taken for a classifier's.
    """
    if checkpoint.head not in (None, wanted):
        raise UserError(
            f"model: {checkpoint.source.name} was saved as a {checkpoint.architecture}; allowed: a model that ends in "
            f"For{wanted}. Fine-tune it first: nlp-transfer train"
        )


def forbid_new_parameters(model: nn.Module, source: str) -> None:
    """Raise a UserError when a model that should be complete had weights drawn at random, or too few embeddings."""
    if added := getattr(model, "added_rows", 0):
        raise UserError(
            f"model: the tokenizer of {source} has {added} more ids than the model has embedding rows; it was changed after "
            "training; allowed: the tokenizer that was saved with the model"
        )
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


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """The context in which a model of fp32 weights computes in `precision`."""
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    with attention_for_any_shape(), nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=half):
        yield
