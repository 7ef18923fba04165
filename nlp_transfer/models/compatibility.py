"""Make a model and its tokenizer compatible: embedding rows, padding, token types and positions."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoModel

from nlp_transfer.models.layers import encoder_config, encoder_type
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, shorten

# Families that require inputs other than text.
OTHER_INPUTS = {
    "layoutlm": "the box of each word on its page", "layoutlmv2": "an image and the box of each word on it",
    "layoutlmv3": "an image and the box of each word on it", "lilt": "the box of each word on its page",
    "tapas": "a table with each text", "modernvbert": "images", "ultravbert": "images",
}  # fmt: skip
# Families whose predictions depend on padding, although it is masked.
PADDING_SENSITIVE = ("canine", "convbert", "fnet", "nystromformer", "yoso")
MAX_ADDED_ROWS = 1024  # a table may grow to twice its rows plus this number, for added tokens
DEFAULT_POSITIONS = 512  # the limit for models without position embeddings


def check_reads_text(config: Any, name: str) -> None:
    """Raise a UserError if models of this family require inputs other than text."""
    if inputs := OTHER_INPUTS.get(config.model_type):
        raise UserError(
            f"model: {name} is a {config.model_type} model, which needs {inputs}; allowed: families that read only text"
        )


def set_padding_token(tokenizer: Any, config: Any, name: str) -> None:
    """If the tokenizer has no padding token, use the configuration's, else the end token, else the unknown token.

    Raises:
        UserError: the tokenizer has none of these tokens.
    """
    if tokenizer.pad_token_id is not None:
        return
    recorded = getattr(config, "pad_token_id", None)
    is_valid = isinstance(recorded, int) and 0 <= recorded < len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(recorded) if is_valid else tokenizer.eos_token or tokenizer.unk_token
    if token is None:
        raise UserError(
            f"model: the tokenizer of {name} has no padding token, and no end or unknown token to use instead; allowed: a "
            "tokenizer with one of them (pad_token in tokenizer_config.json)"
        )
    tokenizer.pad_token = token
    say(f"padding: the tokenizer of {name} has no padding token; using {token!r} (id {tokenizer.pad_token_id})")


def drop_unknown_token_types(tokenizer: Any, config: Any, name: str) -> None:
    """Stop a tokenizer from returning token types that the model cannot embed. For example, RoBERTa has only one type."""
    types, key = getattr(config, "type_vocab_size", None), "token_type_ids"
    if not types or key not in tokenizer.model_input_names:  # a model with 0 types ignores them
        return
    highest = max([tokenizer.pad_token_type_id, *tokenizer("a", "a").get(key, [])])
    if highest >= types:
        tokenizer.model_input_names = [column for column in tokenizer.model_input_names if column != key]
        say(f"token types: the tokenizer of {name} returns types up to {highest}, the model has {types}; they are dropped")


@contextmanager
def preserve_truncation(tokenizer: Any) -> Iterator[None]:
    """Restore the tokenizer's truncation and padding settings on exit.

    Each call of a tokenizer changes these settings, and they are saved with the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = (backend.truncation, backend.padding) if backend is not None else (None, None)
    yield
    if backend is not None:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


def position_limit(config: Any) -> int:
    """Return the maximum number of tokens that the position embeddings allow; 512 for a model without them.

    RoBERTa and related families number positions from `padding_idx + 1`, so they have fewer positions than embedding rows.
    """
    try:
        configured = getattr(config, "max_position_embeddings", None)
    except NotImplementedError:
        configured = None
    if not isinstance(configured, int) or configured < 1:  # XLNet has -1
        return DEFAULT_POSITIONS
    limit = configured
    for name, module in _meta_model(config).named_modules():
        padding, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" in name.rpartition(".")[2] and padding is not None and isinstance(weight, torch.Tensor):
            limit = min(limit, len(weight) - padding - 1)
    return limit


def _meta_model(config: Any) -> nn.Module:
    """Return the model on the device `meta`; an empty module if it cannot be built from its configuration."""
    from nlp_transfer.models.verification.allocation_limit import on_meta_device  # circular at the top of the file

    try:
        with on_meta_device("config.json"):
            model: nn.Module = AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception:  # errors of any type; loading the model will report them
        return nn.Module()
    return model


def embedding_rows(model: Any) -> int | None:
    """Return the number of token ids that a model has embeddings for; None if it accepts any id (CANINE hashes characters)."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        weight = None
    if isinstance(weight, torch.Tensor) and weight.ndim == 2:
        return len(weight)
    return getattr(model.config, "vocab_size", None)


def vocabulary_size(tokenizer: Any) -> int:
    """Return the number of embedding rows that a tokenizer needs; it exceeds the number of tokens if ids have gaps."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def fit_embeddings(model: Any, tokenizer: Any, name: str) -> None:
    """Extend a model's embeddings for tokens that were added to its tokenizer, and set `model.added_rows`.

    transformers samples the new rows around the mean of the existing ones. The seed is fixed, because the base of an adapter must
    get the same rows each time.

    Raises:
        UserError: the tokenizer belongs to another model, or the family's embeddings cannot be extended.
    """
    rows = embedding_rows(model)
    if rows is None:
        return
    vocabulary = tokenizer.get_vocab()
    needed = max(vocabulary.values(), default=-1) + 1
    # Some tokenizers use ids beyond their vocabulary for languages; the model has embeddings for these ids.
    with preserve_truncation(tokenizer):
        highest = max(tokenizer("a")["input_ids"], default=-1)
    is_foreign = highest >= max(rows, needed)
    if needed > rows and not is_foreign:
        added_tokens = set(tokenizer.get_added_vocab())
        base_size = max((i for token, i in vocabulary.items() if token not in added_tokens), default=-1) + 1
        # `vocab_size` does not count added tokens.
        is_foreign = max(base_size, tokenizer.vocab_size) > rows or needed > 2 * rows + MAX_ADDED_ROWS
    if is_foreign:
        raise UserError(
            f"model: the tokenizer of {name} has ids up to {max(needed - 1, highest)}, but the model has {rows} embeddings, so "
            "the tokenizer belongs to another model; allowed: the tokenizer that the model was trained with"
        )
    if needed <= rows:
        return
    extended = model.encoder if model.config.model_type == "encoder-decoder" or hasattr(model.config, "encoder_config") else model
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            extended.resize_token_embeddings(needed)
    except (NotImplementedError, AttributeError, TypeError) as error:  # families with special embeddings
        raise UserError(
            f"model: the tokenizer of {name} has ids up to {needed - 1}, but the model has {rows} embeddings, and those of "
            f"{model.config.model_type} models cannot be extended; allowed: the tokenizer without added tokens"
        ) from error
    if hasattr(model.config, "encoder_config"):
        model.config.encoder = {**model.config.encoder, "vocab_size": needed}
    model.added_rows = needed - rows
    new_tokens = sorted((token for token, i in vocabulary.items() if i >= rows), key=vocabulary.__getitem__)
    say(
        f"tokens: {', '.join(map(shorten, new_tokens[:5]))}{' ...' if len(new_tokens) > 5 else ''} had no embeddings; "
        f"{needed - rows} rows were added to the {rows} of {name}, sampled around the mean of the others"
    )


def split_by_length(model: Any, batches: list[np.ndarray], lengths: np.ndarray) -> list[np.ndarray]:
    """Split batches so that all rows of a batch have the same length, for families whose predictions depend on padding.

    Without this, a prediction would depend on the other rows of its batch. Batches for other families are returned unchanged.

    Args:
        batches: row indices of each batch, int64, sorted by length.
        lengths: number of tokens in each row, int64 of shape (rows,).
    """
    config = getattr(model, "config", None)
    if config is None or encoder_type(config) not in PADDING_SENSITIVE:
        return batches
    return [same_length for batch in batches for same_length in np.split(batch, np.flatnonzero(np.diff(lengths[batch])) + 1)]


def is_causal(config: Any) -> bool:
    """Return whether the family is decoder-only, so that no token attends to later tokens."""
    family = type(config)
    is_decoder_only = family in MODEL_FOR_CAUSAL_LM_MAPPING and family not in MODEL_FOR_MASKED_LM_MAPPING
    return is_decoder_only and not config.is_encoder_decoder


def set_pooled_token(model: Any, tokenizer: Any) -> None:
    """Set the padding id of decoder-only classifiers (GPT-2, Llama ...), which pool the last token before the padding."""
    if is_causal(model.config):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def add_padding_hooks(model: Any) -> None:
    """Add forward hooks that adapt the padding of inputs to the family.

    Models that pool the last column of a batch (XLNet) get padding on the left. If a model has a minimum input length (CANINE,
    which downsamples characters), shorter inputs are padded to this length.
    """
    if any(getattr(module, "summary_type", None) == "last" for module in model.modules()):
        model.register_forward_pre_hook(_pad_left, with_kwargs=True)
    if minimum := getattr(encoder_config(model.config), "downsampling_rate", None):
        model.register_forward_pre_hook(partial(_pad_to_minimum, minimum), with_kwargs=True)


def _pad_to_minimum(columns: int, _: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Pad inputs of shape (rows, tokens) on the right to at least `columns` tokens."""
    mask = named.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.shape[1] >= columns:
        return arguments, named
    missing = (0, columns - mask.shape[1])
    padded = {name: nn.functional.pad(value, missing) for name, value in named.items() if _has_shape_of(value, mask)}
    return arguments, named | padded


def _has_shape_of(value: Any, mask: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == mask.shape


def _pad_left(_: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Move the padding of inputs of shape (rows, tokens) from the right to the left.

    There is no branch for inputs without such padding, because it could not be exported.
    """
    mask = named.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return arguments, named
    columns = mask.shape[1]
    padding = (mask.flip(1).cumsum(1) == 0).sum(1, keepdim=True)
    sources = torch.arange(columns, device=mask.device) - padding
    sources = torch.where(sources < 0, sources + columns, sources)
    moved = {name: value.gather(1, sources) for name, value in named.items() if _has_shape_of(value, mask)}
    return arguments, named | moved
