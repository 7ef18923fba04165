"""What a model and its tokenizer must agree on: embedding rows, padding, token types and positions."""

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

# Families whose models read more than text; without the rest they would learn from made-up zeros.
MORE_THAN_TEXT = {
    "layoutlm": "the box of each word on its page", "layoutlmv2": "an image and the box of each word on it",
    "layoutlmv3": "an image and the box of each word on it", "lilt": "the box of each word on its page",
    "tapas": "a table beside each text", "modernvbert": "images", "ultravbert": "images",
}  # fmt: skip
# Families whose models mix tokens with the padding beside them, whatever the mask says.
READS_PADDING = ("canine", "convbert", "fnet", "nystromformer", "yoso")
MAX_ADDED_ROWS = 1024  # for added tokens, besides as many as there are already
POSITIONS = 512  # the limit of models that have none of their own


def check_reads_text(config: Any, name: str) -> None:
    """Raise a UserError for a family whose models read more than text."""
    if more := MORE_THAN_TEXT.get(config.model_type):
        raise UserError(
            f"model: {name} is a {config.model_type} model, which reads {more}; allowed: families that read text alone"
        )


def set_padding_token(tokenizer: Any, config: Any, name: str) -> None:
    """Give a tokenizer without a padding token one: the configuration's, else the end of a text, else the unknown token.

    Raises:
        UserError: it has none of these.
    """
    if tokenizer.pad_token_id is not None:
        return
    recorded = getattr(config, "pad_token_id", None)
    known = isinstance(recorded, int) and 0 <= recorded < len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(recorded) if known else tokenizer.eos_token or tokenizer.unk_token
    if token is None:
        raise UserError(
            f"model: the tokenizer of {name} has no padding token, and no end or unknown token to pad with; allowed: a tokenizer "
            "with one of them (pad_token in tokenizer_config.json)"
        )
    tokenizer.pad_token = token
    say(f"padding: the tokenizer of {name} has no padding token; rows are padded with {token!r} (id {tokenizer.pad_token_id})")


def drop_unknown_token_types(tokenizer: Any, config: Any, name: str) -> None:
    """Stop a tokenizer from returning token types that the model has no embeddings for, as RoBERTa has none for a second text."""
    types, key = getattr(config, "type_vocab_size", None), "token_type_ids"
    if not types or key not in tokenizer.model_input_names:  # with 0 types the model ignores them
        return
    highest = max([tokenizer.pad_token_type_id, *tokenizer("a", "a").get(key, [])])
    if highest >= types:
        tokenizer.model_input_names = [column for column in tokenizer.model_input_names if column != key]
        say(f"token types: the tokenizer of {name} returns types up to {highest}, the model knows {types}; they are left out")


@contextmanager
def preserve_truncation(tokenizer: Any) -> Iterator[None]:
    """Keep how a tokenizer truncates and pads by itself, which each call changes, and which is saved with it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = (backend.truncation, backend.padding) if backend is not None else (None, None)
    yield
    if backend is not None:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


def position_limit(config: Any) -> int:
    """Tokens that a model can read at once, as its table of positions says; 512 where there is no such table.

    RoBERTa and its relatives number positions from `padding_idx + 1` on, so their first rows hold no position of a token.
    """
    try:
        stated = getattr(config, "max_position_embeddings", None)
    except NotImplementedError:
        stated = None
    if not isinstance(stated, int) or stated < 1:  # XLNet says -1
        return POSITIONS
    limit = stated
    for name, module in _outline(config).named_modules():
        padding, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" in name.rpartition(".")[2] and padding is not None and isinstance(weight, torch.Tensor):
            limit = min(limit, len(weight) - padding - 1)
    return limit


def _outline(config: Any) -> nn.Module:
    """The model without memory for its weights; an empty one where it cannot be built from its configuration alone."""
    from nlp_transfer.models.verification.allocation_limit import on_meta_device  # that package imports this module

    try:
        with on_meta_device("config.json"):
            model: nn.Module = AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception:  # families raise what they like; loading the model says what is wrong
        return nn.Module()
    return model


def embedding_rows(model: Any) -> int | None:
    """Ids that a model has embeddings for; None where it takes any, as CANINE, which hashes characters."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        weight = None
    if isinstance(weight, torch.Tensor) and weight.ndim == 2:
        return len(weight)
    return getattr(model.config, "vocab_size", None)


def vocabulary_size(tokenizer: Any) -> int:
    """The embedding rows that a tokenizer's ids need; ids may leave gaps, so that is not always the number of its tokens."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def fit_embeddings(model: Any, tokenizer: Any, name: str) -> None:
    """Add rows to a model's embeddings for tokens that were added to its tokenizer; `model.added_rows` says how many.

    New rows are drawn as transformers does, around the mean of the others; always the same ones, since an adapter's base gets
    them again each time it is loaded.

    Raises:
        UserError: the tokenizer is that of another model.
    """
    rows = embedding_rows(model)
    if rows is None:
        return
    vocabulary = tokenizer.get_vocab()
    needed = max(vocabulary.values(), default=-1) + 1
    # Some put languages behind their vocabulary, for which the model has rows already.
    with preserve_truncation(tokenizer):
        highest = max(tokenizer("a")["input_ids"], default=-1)
    if highest >= max(rows, needed):
        raise UserError(
            f"model: the tokenizer of {name} writes the id {highest}, and the model's embeddings have {rows} rows; allowed: the "
            "tokenizer that the model was trained with"
        )
    if needed <= rows:
        return
    known = set(tokenizer.get_added_vocab())
    own = max((i for token, i in vocabulary.items() if token not in known), default=-1) + 1
    if max(own, tokenizer.vocab_size) > rows or needed > 2 * rows + MAX_ADDED_ROWS:  # vocab_size: without added tokens
        raise UserError(
            f"model: the tokenizer beside {name} has ids up to {needed - 1}, and the model's embeddings have {rows} rows; it is "
            "that of another model; allowed: the tokenizer that the model was trained with"
        )
    inner = model.encoder if model.config.model_type == "encoder-decoder" or hasattr(model.config, "encoder_config") else model
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inner.resize_token_embeddings(needed)
    except (NotImplementedError, AttributeError, TypeError) as error:  # families whose table of words is of their own kind
        raise UserError(
            f"model: the tokenizer of {name} has ids up to {needed - 1}, the model's embeddings have {rows} rows, and "
            f"{model.config.model_type} models cannot be given more; allowed: the tokenizer without added tokens"
        ) from error
    if hasattr(model.config, "encoder_config"):
        model.config.encoder = {**model.config.encoder, "vocab_size": needed}
    model.added_rows = needed - rows
    added = sorted((token for token, i in vocabulary.items() if i >= rows), key=vocabulary.__getitem__)
    say(
        f"tokens: {', '.join(map(shorten, added[:5]))}{' ...' if len(added) > 5 else ''} had no embeddings; {needed - rows} rows "
        f"were added to the {rows} of {name}, drawn around the mean of the others"
    )


def split_by_length(model: Any, batches: list[np.ndarray], lengths: np.ndarray) -> list[np.ndarray]:
    """Batches of row indices without padding in any, for families that read it; the same batches for all others.

    A prediction then does not depend on the rows that are computed with it. Each batch must be sorted by length.
    """
    config = getattr(model, "config", None)
    if config is None or encoder_type(config) not in READS_PADDING:
        return batches
    return [part for batch in batches for part in np.split(batch, np.flatnonzero(np.diff(lengths[batch])) + 1)]


def is_causal(config: Any) -> bool:
    """Whether the family is a decoder by itself, whose tokens see only those before them."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder


def set_pooled_token(model: Any, tokenizer: Any) -> None:
    """Tell a classifier that reads the last token before the padding (GPT-2, Llama ...) what padding is."""
    if is_causal(model.config):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def add_padding_hooks(model: Any) -> None:
    """Move padding to the left inside models that read the last column of a batch, whatever it holds (XLNet), and pad to the
    fewest tokens that a model can read (CANINE, which takes several characters together)."""
    if any(getattr(module, "summary_type", None) == "last" for module in model.modules()):
        model.register_forward_pre_hook(_padding_to_the_left, with_kwargs=True)
    if least := getattr(encoder_config(model.config), "downsampling_rate", None):
        model.register_forward_pre_hook(partial(_at_least, least), with_kwargs=True)


def _at_least(columns: int, _: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = named.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.shape[1] >= columns:
        return arguments, named
    room = (0, columns - mask.shape[1])
    padded = {name: nn.functional.pad(value, room) for name, value in named.items() if _is_like(value, mask)}
    return arguments, named | padded


def _is_like(value: Any, mask: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == mask.shape


def _padding_to_the_left(_: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = named.get("attention_mask")
    if mask is None or mask.ndim != 2 or bool(mask[:, -1].all()):
        return arguments, named
    columns = mask.shape[1]
    places = (torch.arange(columns, device=mask.device) - (columns - mask.sum(1, keepdim=True))) % columns
    moved = {name: value.gather(1, places) for name, value in named.items() if _is_like(value, mask)}
    return arguments, named | moved
