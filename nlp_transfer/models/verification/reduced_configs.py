"""Reduce the configurations of an untrusted model to the keys and values that `allowed.py` lists.

A hostile configuration could refer to code, files or other repositories, or contain sizes that exhaust memory.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, GenerationConfig

from nlp_transfer.models.verification.allowed import (
    IGNORED_SILENTLY,
    LABELS,
    NESTED_CONFIGS,
    TOKENIZER_IGNORED_SILENTLY,
    TOKENIZER_NUMBERS,
    TOKENIZER_UNSUPPORTED,
    TOKENIZER_WORDS,
    TOKENS,
    UNDECLARED,
    UNSUPPORTED,
    WORD_KEYS,
)
from nlp_transfer.models.verification.tokenizer_fields import ADDED_TOKEN
from nlp_transfer.models.verification.tokenizer_loading import check_settings, check_tokens
from nlp_transfer.models.verification.untrusted_json import LIBRARY_ERRORS
from nlp_transfer.utils.errors import UserError, shorten

WORD = re.compile(r"[\w.+ #|-]{0,64}")
MAX_LAYERS, MAX_POSITIONS, MAX_LABELS, MAX_NUMBER = 1000, 2**21, 10**5, 2**31
LIMITS = (  # a pattern of keys, and the maximum of their numbers
    (re.compile(r"(layers?|groups?|blocks?|block_sizes|group_num|networks|functions|experts)$"), MAX_LAYERS),
    (re.compile(r"position|n_ctx|seq_len"), MAX_POSITIONS),
    (re.compile(r"^num_labels$"), MAX_LABELS),
)
UNLIMITED = re.compile(r"theta|length")  # numbers that are not sizes
MODEL_TYPE = "model_type"


class _NotDataError(ValueError):
    """A value that is not allowed under its key."""


def reduce_config(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Reduce a `config.json`.

    Returns:
        The allowed keys and values, and the names of ignored keys.

    Raises:
        UserError: the model type is unknown, a declared key has a value that is not allowed, or a size is too large.
    """
    return _reduce_config(document, None, "")


def _reduce_config(document: Mapping[str, Any], family_class: type | None, prefix: str) -> tuple[dict[str, Any], list[str]]:
    family = document.get(MODEL_TYPE)
    if isinstance(family, str) and family in CONFIG_MAPPING:
        family_class = CONFIG_MAPPING[family]
    if family_class is None:
        if document.get("auto_map"):
            raise UserError(
                f"config.json has an auto_map, which refers to code in the model ({shorten(document['auto_map'])}); no code of a "
                "model is run here; allowed: families that transformers knows"
            )
        raise UserError(
            f"config.json has {prefix}{MODEL_TYPE}: {shorten(family)}; allowed: a family that transformers "
            f"{transformers.__version__} knows, such as bert"
        )
    reduced: dict[str, Any] = {}
    ignored: list[str] = []
    declared = _declared(family_class)
    fields, is_external = _fields(family_class), not family_class.__module__.startswith("transformers.")
    sub_configs = getattr(family_class, "sub_configs", {})
    inner = {name: sub_config if hasattr(sub_config, "sub_configs") else None for name, sub_config in sub_configs.items()}
    for key, value in document.items():
        if value is not None and key in UNSUPPORTED:
            raise UserError(f"config.json has {prefix}{key}: {shorten(value)}: {UNSUPPORTED[key]}")
        if isinstance(value, dict) and value and (key in inner or (key in NESTED_CONFIGS and key in fields)):
            reduced[key], names = _reduce_config(value, inner.get(key), f"{prefix}{key}.")
            ignored += names
            continue
        try:
            if key in LABELS:
                reduced[key] = _labels(value)
            elif key in fields:
                reduced[key] = _data(value, key, WORD_KEYS | (fields if is_external else set()))
            elif value not in (None, "", [], {}) and key not in IGNORED_SILENTLY:
                ignored.append(prefix + key)
        except _NotDataError:
            if key in declared and key not in IGNORED_SILENTLY:  # ignoring it would change the model
                raise UserError(
                    f"config.json has {prefix}{key}: {shorten(value)}; allowed: numbers, booleans, null and single words"
                ) from None
            if key not in IGNORED_SILENTLY:
                ignored.append(prefix + key)
    for key, value in reduced.items():
        _check_sizes(prefix + key, value)
    return reduced, ignored


def _declared(family_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(family_class)} if dataclasses.is_dataclass(family_class) else set()


@cache
def _fields(family_class: Any) -> frozenset[str]:
    """Return the keys that a family's configuration may have."""
    names = _declared(family_class)
    renamed: Mapping[str, str] = getattr(family_class, "attribute_map", {})
    with suppress(*LIBRARY_ERRORS):
        names |= set(family_class().to_dict())  # also has fields that are computed when saving
    return frozenset({*names, *renamed, *UNDECLARED, *GenerationConfig().to_dict()})


def reduce_generation(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Reduce a `generation_config.json`. Return the allowed keys and values, and the names of ignored keys."""
    return _reduce(document, dict.fromkeys((*GenerationConfig().to_dict(), "transformers_version"), _data), IGNORED_SILENTLY)


def reduce_tokenizer(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Reduce a `tokenizer_config.json` or a `special_tokens_map.json`.

    Returns:
        The allowed keys and values, and the names of ignored keys.

    Raises:
        UserError: the tokenizer needs code, or a setting or token has a value that is not allowed.
    """
    readers: dict[str, Any] = dict.fromkeys(TOKENS, _tokens)
    readers |= dict.fromkeys((*TOKENIZER_WORDS, *TOKENIZER_NUMBERS), _data)
    for key in TOKENIZER_UNSUPPORTED:
        if document.get(key):
            raise UserError(f"the tokenizer has {key}: {shorten(document[key])}: {TOKENIZER_UNSUPPORTED[key]}")
    reduced, ignored = _reduce(document, readers, TOKENIZER_IGNORED_SILENTLY, TOKENIZER_WORDS)
    check_settings(reduced)
    check_tokens({key: value for key, value in reduced.items() if key in TOKENS})
    return reduced, ignored


def _reduce(
    document: Mapping[str, Any], readers: Mapping[str, Any], silent: Iterable[str], words: frozenset[str] = WORD_KEYS
) -> tuple[dict[str, Any], list[str]]:
    """Reduce a document.

    Args:
        readers: for each allowed key, a function that returns its value, or raises a _NotDataError if it is not allowed.
        silent: keys that are ignored without a message.
        words: keys whose values may be words.

    Returns:
        The allowed keys and values, and the names of ignored keys.
    """
    reduced: dict[str, Any] = {}
    ignored: list[str] = []
    for key, value in document.items():
        try:
            if key in readers:
                reduced[key] = readers[key](value, key, words)
            elif value not in (None, "", [], {}) and key not in silent:
                ignored.append(key)
        except _NotDataError:
            ignored.append(key)
    return reduced, ignored


def _data(value: Any, key: str, words: Iterable[str]) -> Any:
    """Return a value that consists only of numbers, booleans and null; if its key is in `words`, it may also contain words.

    Raises:
        _NotDataError: the value contains anything else.
    """
    if isinstance(value, str):
        if key in words and WORD.fullmatch(value):
            return value
        raise _NotDataError
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotDataError
    if isinstance(value, list):
        return [_data(inner, key, words) for inner in value]
    if isinstance(value, dict):
        if not all(WORD.fullmatch(name) for name in value):
            raise _NotDataError
        # If the key of a mapping is in `words`, all its values may be words; else only values whose names are in `words`.
        return {name: _data(inner, key if key in words else name, words) for name, inner in value.items()}
    return value


def _labels(value: Any) -> Any:
    if value is None or (isinstance(value, dict) and all(isinstance(inner, (str, int, float)) for inner in value.values())):
        return value
    raise _NotDataError


def _tokens(value: Any, key: str, words: Iterable[str]) -> Any:
    """Return a token (text, or text with flags), or a list or mapping of tokens."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return [_tokens(inner, key, words) for inner in value]
    if isinstance(value, dict) and "content" in value:
        flags = {name: _data(inner, "", ()) for name, inner in value.items() if name in ADDED_TOKEN.keys() - {"id", "content"}}
        if not isinstance(value["content"], str):
            raise _NotDataError
        return {"content": value["content"], **flags, **({"__type": "AddedToken"} if "__type" in value else {})}
    if isinstance(value, dict):
        return {name: _tokens(inner, key, words) for name, inner in value.items()}
    raise _NotDataError


def _check_sizes(key: str, value: Any) -> None:
    """Raise a UserError for unrealistic sizes. For example, transformers would create a name for each of 10^9 labels."""
    name = key.rpartition(".")[2]
    if name in LABELS:
        if len(value or ()) > MAX_LABELS:
            raise UserError(f"config.json has {len(value):,} entries in {key}; allowed: up to {MAX_LABELS:,}")
        return
    if isinstance(value, (dict, list)):
        for inner_key, inner in value.items() if isinstance(value, dict) else ((key, inner) for inner in value):
            _check_sizes(inner_key, inner)
        return
    limit = next((limit for names, limit in LIMITS if names.search(name)), MAX_NUMBER)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not UNLIMITED.search(name) and abs(value) > limit:
        raise UserError(f"config.json has {key}: {shorten(value)}; allowed: up to {limit:,}")
