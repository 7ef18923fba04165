"""The other files of a tokenizer, and what is checked of a tokenizer after it was loaded."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nlp_transfer.config import shorten
from nlp_transfer.errors import UserError, converted
from nlp_transfer.models.sentencepiece_file import check_sentencepiece
from nlp_transfer.models.tokenizer_fields import ADDED_TOKEN, FLAG, ID, LONGEST_TOKEN, MOST_TOKENS, TOKEN, TYPE, Field, one_of
from nlp_transfer.models.tokenizer_file import (
    MOST_ADDED,
    MOST_BYTES,
    check_vocabulary,
    most_id,
    read_document,
    reduce_tokenizer,
)

TRIALS = ["a", "A text, with 3 numbers: 1,234.5!", "na\u00efve \u4e2d\u6587 \U0001f389", " ", "word " * 200]
MOST_TRIAL_TOKENS = 8  # for a character of a trial's text: spelt in bytes, one becomes 4
SIDE = one_of("left", "right")
AT_LEAST_ONE = Field(  # files say 1e30 where they do not know
    "a number of at least 1",
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and math.isfinite(value),
).or_null()
SETTINGS = {
    "model_max_length": AT_LEAST_ONE, "max_len": AT_LEAST_ONE, "padding_side": SIDE.or_null(), "truncation_side": SIDE.or_null(),
    "pad_token_type_id": TYPE.or_null(), "split_special_tokens": FLAG, "clean_up_tokenization_spaces": FLAG.or_null(),
    "model_input_names": Field(
        "a list of up to 16 names", lambda value: isinstance(value, list) and len(value) <= 16 and all(map(TOKEN.fits, value))
    ).or_null(),
}  # fmt: skip


def check_tokenizer_file(path: Path) -> list[str]:
    """Check one file of a tokenizer by its name, and return the fields of it that no library needs.

    Raises:
        UserError: it is damaged, larger than any such file, or describes what could take unbounded time or memory.
    """
    checks: dict[str, Callable[[Path], list[str]]] = {
        "tokenizer.json": lambda path: reduce_tokenizer(read_document(path), str(path))[1],
        "tokenizer_config.json": _check_settings, "special_tokens_map.json": _check_special_tokens,
        "added_tokens.json": _check_added_tokens, "vocab.json": _check_vocab_json, "target_vocab.json": _check_vocab_json,
        ".txt": _check_lines, ".codes": _check_lines, ".model": _check_model, ".spm": _check_model,
    }  # fmt: skip
    check = checks.get(path.name) or checks.get(path.suffix)
    return check(path) if check else []


def check_loaded(tokenizer: Any, name: str) -> None:
    """Encode a few short texts as a trial.

    Args:
        tokenizer: just loaded.
        name: the model's.

    Raises:
        UserError: it cannot encode them, makes them far longer, or its ids are far beyond the number of its tokens.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    for token in tokenizer.added_tokens_decoder.values():
        # The library searches for it without end.
        if normalizer is not None and token.normalized and not normalizer.normalize_str(token.content):
            raise UserError(
                f"model: the tokenizer of {name} has an added token {token.content!r} of which its normalizer leaves nothing; "
                "allowed: added tokens that are not normalized, or not empty then"
            )
    with converted(f"model: the tokenizer of {name} cannot encode a text"):
        rows = tokenizer(TRIALS, truncation=False, padding=False, return_attention_mask=False, verbose=False)["input_ids"]
        added = max(tokenizer.added_tokens_encoder.values(), default=0)
        most = most_id(len(tokenizer))
    for text, ids in zip(TRIALS, rows, strict=True):
        if len(ids) > MOST_TRIAL_TOKENS * (len(text) + 64):
            raise UserError(
                f"model: the tokenizer of {name} makes {len(ids):,} tokens of a text of {len(text)} characters; allowed: up to "
                f"{MOST_TRIAL_TOKENS} for each"
            )
    if (highest := max([added, *(i for ids in rows for i in ids)])) > most or min(map(min, filter(None, rows)), default=0) < 0:
        raise UserError(
            f"model: the tokenizer of {name} has an id {highest:,} with {len(tokenizer):,} tokens; allowed: 0 to {most:,}"
        )


def _check_settings(path: Path) -> list[str]:
    settings = read_document(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: found {shorten(settings)}; allowed: settings by name")
    for key, allowed in SETTINGS.items():
        if key in settings and not allowed.fits(settings[key]):
            raise UserError(f"{path}: {key}: found {shorten(settings[key])}; allowed: {allowed.allowed}")
    added = settings.get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or len(added) > MOST_ADDED:
        raise UserError(f"{path}: added_tokens_decoder: found {shorten(added)}; allowed: up to {MOST_ADDED:,} tokens by id")
    for key, token in added.items():
        if not (key.isascii() and key.isdigit() and len(key) < 8 and ID.fits(int(key))):
            raise UserError(f"{path}: added_tokens_decoder: found the id {shorten(key)}; allowed: {ID.allowed}")
        _check_token(token, path, f"added_tokens_decoder.{key}")
    _check_named_tokens({key: value for key, value in settings.items() if key.endswith(("_token", "_tokens"))}, path)
    return []


def _check_special_tokens(path: Path) -> list[str]:
    tokens = read_document(path)
    if not isinstance(tokens, dict):
        raise UserError(f"{path}: found {shorten(tokens)}; allowed: tokens by name")
    _check_named_tokens(tokens, path)
    return []


def _check_named_tokens(tokens: Mapping[str, Any], path: Path) -> None:
    for key, value in tokens.items():
        several = list(value.values()) if isinstance(value, dict) and key == "extra_special_tokens" else value
        several = several if isinstance(several, list) else [several]
        if len(several) > MOST_ADDED:
            raise UserError(f"{path}: {key}: found {len(several):,} tokens; allowed: up to {MOST_ADDED:,}")
        for token in several:
            if token is not None and not isinstance(token, bool):  # add_bos_token, split_special_tokens
                _check_token(token, path, key)


def _check_token(token: Any, path: Path, key: str) -> None:
    """A token's text, or an object; of names that it does not know, the library writes to standard output."""
    fields = token if isinstance(token, dict) else {"content": token}
    flags = {name: allowed for name, allowed in ADDED_TOKEN.items() if name != "id"} | {"__type": one_of("AddedToken")}
    if "content" not in fields or not all(name in flags and flags[name].fits(value) for name, value in fields.items()):
        raise UserError(
            f"{path}: {key}: found {shorten(token)}; allowed: a token of up to {LONGEST_TOKEN:,} characters, or one with "
            f"{', '.join(flags)}"
        )


def _check_added_tokens(path: Path) -> list[str]:
    if len(ids := list(check_vocabulary(read_document(path), str(path)))) > MOST_ADDED:
        raise UserError(f"{path}: found {len(ids):,} tokens; allowed: up to {MOST_ADDED:,}")
    return []


def _check_vocab_json(path: Path) -> list[str]:
    ids = set(check_vocabulary(read_document(path), str(path)))
    if max(ids, default=0) > most_id(len(ids)):
        raise UserError(f"{path}: found the id {max(ids):,}; allowed: up to {most_id(len(ids)):,} for {len(ids):,} tokens")
    return []


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: found {path.stat().st_size:,} bytes; allowed: up to {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _check_lines(path: Path) -> list[str]:
    """A vocabulary or merges, one a line."""
    content = _content(path)
    try:
        content.decode("utf-8")
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    lines = content.split(b"\n")
    if len(lines) > MOST_TOKENS or max(map(len, lines)) > 8 * LONGEST_TOKEN:
        raise UserError(
            f"{path}: found {len(lines):,} lines, the longest of {max(map(len, lines)):,} bytes; allowed: up to {MOST_TOKENS:,} "
            f"lines of up to {8 * LONGEST_TOKEN:,} bytes"
        )
    return []


def _check_model(path: Path) -> list[str]:
    """A SentencePiece model, or ranks of byte sequences (tiktoken), which some call so."""
    content = _content(path)
    try:
        check_sentencepiece(content)
    except ValueError as error:
        if content[:100].isascii() and b" " in content[:100] and content[:1].isalnum():
            return _check_lines(path)
        raise UserError(f"{path}: is not a SentencePiece model, or damaged: {error}") from error
    return []
