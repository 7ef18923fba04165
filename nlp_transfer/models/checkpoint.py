"""Open a checkpoint, load its model with a head, and check that a model is complete."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.models.compatibility import (
    add_padding_hooks,
    check_reads_text,
    drop_unknown_token_types,
    fit_embeddings,
    position_limit,
    set_padding_token,
    set_pooled_token,
)
from nlp_transfer.models.layers import encoder_config, new_parameters
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
from nlp_transfer.models.verification.untrusted_json import LIBRARY_ERRORS
from nlp_transfer.models.verification.weight_files import check_finite, check_weights, explain_load_error
from nlp_transfer.utils.errors import UserError

HEAD = re.compile(r"For([A-Z]\w+?)(?:Simple)?$")  # at the end of a class name; matches in BertForMaskedLM, not in RoFormerModel


@dataclass(frozen=True)
class Checkpoint:
    """A model with a checked configuration; tokenizer and weights are loaded on request."""

    source: ModelSource
    config: PretrainedConfig

    @classmethod
    def open(cls, source: ModelSource) -> "Checkpoint":
        """Load and check the configuration.

        Raises:
            UserError: the model cannot be found or read, its type is unknown or needs inputs other than text, it contains code,
                or it refers to files outside its folder.
        """
        source = pin(source)
        check_model(source)
        config = load_configuration(source)
        check_reads_text(config, source.name)
        return cls(source, config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer. It always has a padding token, and never returns token types that the model cannot embed.

        Raises:
            UserError: the checkpoint has no tokenizer, or one that does not fit the model.
        """
        tokenizer = load_tokenizer(self.source)
        # For some families transformers creates a tokenizer with an empty vocabulary if the files are missing.
        config = encoder_config(self.config)
        if len(tokenizer) < getattr(config, "vocab_size", 0) / 2:
            raise UserError(
                f"model: {self.source.name} has no tokenizer that fits: it has {len(tokenizer)} tokens, the model has "
                f"{config.vocab_size}; allowed: a model with its tokenizer files in the same folder"
            )
        set_padding_token(tokenizer, config, self.source.name)
        drop_unknown_token_types(tokenizer, config, self.source.name)
        return tokenizer

    @property
    def revision(self) -> str | None:
        """The commit of a model on the hub; None for a folder."""
        return None if self.source.is_folder else self.source.revision

    @property
    def max_length(self) -> int:
        """Maximum input length in tokens: the smaller of the tokenizer's `model_max_length` and `positions`."""
        return int(min(self.tokenizer.model_max_length, self.positions))

    @cached_property
    def positions(self) -> int:
        """Maximum input length that the position embeddings allow; 512 for a model without them."""
        return position_limit(encoder_config(self.config))

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of the model's `nlp_transfer.json`; empty if there is none.

        Raises:
            UserError: the file cannot be read.
        """
        return read_settings(self.source, RECORD) or {}

    @property
    def architecture(self) -> str:
        """The class of the saved model, such as `BertForSequenceClassification`; empty if it is not recorded."""
        return str((self.config.architectures or [""])[0])

    @property
    def head(self) -> str | None:
        """The head that the checkpoint was saved with, named by the end of its class: `SequenceClassification`,
        `ConditionalGeneration` ... None if it has no head or its class is not recorded."""
        match = HEAD.search(self.architecture)
        return match[1] if match else None

    def load(self, auto_class: Any, **overrides: Any) -> PreTrainedModel:
        """Load the model in fp32.

        Parameters that the checkpoint does not have are initialized at random; `new_parameters` names them. The embeddings are
        extended for tokens that were added to the tokenizer, unless `vocab_size` is among the overrides.

        Args:
            auto_class: an Auto class of transformers, such as `AutoModelForSequenceClassification`.
            overrides: new values for fields of the configuration.

        Raises:
            UserError: the family has no such head, the weights cannot be read or are not finite, or the tokenizer does not fit.
        """
        config = load_configuration(self.source)
        if type(config) not in auto_class._model_mapping:
            head = auto_class.__name__.removeprefix("Auto")
            raise UserError(
                f"model: {self.source.name} cannot be loaded: transformers has no {head} for {config.model_type} models; "
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
                    weights_only=True,  # for pickles
                    dtype=torch.float32,  # the default is the dtype on disk, and fp16 weights train badly
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
            model.name_or_path = model.config._name_or_path = self.source.path
        except UserError:
            raise
        except LIBRARY_ERRORS as error:
            raise UserError(f"model: {self.source.name} cannot be loaded: {explain_load_error(error, files)}") from error
        if set(report["missing_keys"]) >= {name for name, _ in model.named_parameters()}:
            raise UserError(
                f"model: no weight in {self.source.name} belongs to a {config.model_type} model; is the model_type wrong?"
            )
        mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
        model.new_parameters = frozenset(set(report["missing_keys"]) | mismatched)
        model.replaced_parameters = frozenset(mismatched)
        check_finite(model, f"model: {self.source.name}", "another checkpoint, or a new copy of this one", model.new_parameters)
        try:
            tokenizer = None if "vocab_size" in overrides else self.tokenizer
        except UserError:  # `tokenizer` raises it again for callers that need the tokenizer
            tokenizer = None
        if tokenizer is not None:
            fit_embeddings(model, tokenizer, self.source.name)
            if auto_class is AutoModelForSequenceClassification:
                set_pooled_token(model, tokenizer)
                add_padding_hooks(model)
        return model


def check_head(checkpoint: Checkpoint, expected: str = "SequenceClassification") -> None:
    """Check the head of a checkpoint that is used without training.

    In some families the weights of different heads have the same names, so another head would load as a classifier.

    Args:
        expected: the required head, as in `Checkpoint.head`.

    Raises:
        UserError: the checkpoint was saved with another head.
    """
    if checkpoint.head not in (None, expected):
        raise UserError(
            f"model: {checkpoint.source.name} was saved as {checkpoint.architecture}; allowed: a model whose class ends in "
            f"For{expected}. Fine-tune it first: nlp-transfer train"
        )


def forbid_new_parameters(model: nn.Module, source: str) -> None:
    """Check that all weights of a model that is used without training were loaded.

    Args:
        source: the model's name, for messages.

    Raises:
        UserError: the model has randomly initialized parameters, or its embeddings were extended.
    """
    if added := getattr(model, "added_rows", 0):
        raise UserError(
            f"model: the tokenizer of {source} has {added} more ids than the model has embeddings, so it was changed after "
            "training; allowed: the tokenizer that was saved with the model"
        )
    if missing := sorted(new_parameters(model)):
        raise UserError(
            f"model: {source} has no weights for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}; it is not a "
            "fine-tuned model. Fine-tune it first: nlp-transfer train"
        )
