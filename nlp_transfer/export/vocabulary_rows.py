"""Remove rows from the embeddings and output layers of a model, and renumber the token ids in its configuration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.utils.errors import UserError


def encoder_of(model: Any) -> Any:
    """Return the model of transformers with the embeddings: the encoder of a model with our own head."""
    return model.encoder if isinstance(model, EncoderHeadForSequenceClassification) else model


def configured_ids(model: Any) -> set[int]:
    """Return the ids of special tokens in the configuration of a model."""
    return {int(i) for config in _configs(model) for value in _token_ids(config).values() for i in _as_list(value)}


def keep_rows(model: Any, kept: Sequence[int]) -> None:
    """Keep the embeddings and output rows of some tokens, which get the ids 0, 1, 2 ... in this order.

    Args:
        kept: ids to keep, in ascending order.

    Raises:
        UserError: the family has no embeddings that can be resized.
    """
    inner, rows, new = encoder_of(model), torch.tensor(kept), {old: i for i, old in enumerate(kept)}
    special = [(config, _token_ids(config)) for config in _configs(model)]  # of the old vocabulary
    output = inner.get_output_embeddings()
    tables = [inner.get_input_embeddings().weight, getattr(output, "weight", None), getattr(output, "bias", None)]
    with torch.no_grad():
        for table in {id(table): table for table in tables if table is not None}.values():  # tied tables are one
            table[: len(rows)] = table[rows].clone()
    try:
        inner.resize_token_embeddings(len(kept))
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise UserError(
            f"model: the embeddings of {inner.config.model_type} models cannot be resized; allowed: others"
        ) from error
    for config, ids in special:
        for name, value in ids.items():
            # An id without a token has no new id.
            setattr(config, name, [new[i] for i in value if i in new] if isinstance(value, list) else new.get(value))
    embeddings = inner.get_input_embeddings()
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = inner.config.pad_token_id
    if inner is not model:
        model.config.encoder = {name: value for name, value in inner.config.to_dict().items() if name != "_name_or_path"}


def parameter_size(model: Any) -> dict[str, int]:
    """Return the number of `parameters` of a model, and their `bytes`; tied parameters count once."""
    return {"parameters": model.num_parameters(), "bytes": sum(p.numel() * p.element_size() for p in model.parameters())}


def _configs(model: Any) -> Iterator[Any]:
    parts = (model, encoder_of(model))
    configs = (getattr(part, name, None) for part in parts for name in ("config", "generation_config"))
    yield from {id(config): config for config in configs if config is not None}.values()


def _token_ids(config: Any) -> Mapping[str, Any]:
    """Return the fields of a configuration that are ids of its vocabulary, such as `pad_token_id`."""
    values = {name: value for name, value in vars(config).items() if name.endswith(("token_id", "token_ids"))}
    size = getattr(config, "vocab_size", None)
    return {
        name: value
        for name, value in values.items()
        if _as_list(value) and all(isinstance(i, int) and i >= 0 and (size is None or i < size) for i in _as_list(value))
    }


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
