"""Check the vocabulary files and the configuration of a tokenizer, and test the loaded tokenizer on short texts.

Hostile files could exhaust memory or time during loading, or make a tokenizer return ids far beyond the model's embeddings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlp_transfer.models.compatibility import preserve_truncation
from nlp_transfer.models.verification.sentencepiece_file import check_sentencepiece
from nlp_transfer.models.verification.tokenizer_fields import (
    ADDED_TOKEN,
    FLAG,
    ID,
    LONGEST_TOKEN,
    MAX_TOKENS,
    TOKEN,
    TYPE,
    Field,
    one_of,
)
from nlp_transfer.models.verification.tokenizer_file import (
    MAX_ADDED,
    check_vocabulary,
    max_token_id,
    reduce_document,
)
from nlp_transfer.models.verification.untrusted_json import parse_limited, read_limited
from nlp_transfer.utils.errors import UserError, converted, shorten

MAX_BYTES = 64 * 2**20  # of a file; the largest published files have 35 MB
TRIALS = ["a", "A text, with 3 numbers: 1,234.5!", "na\u00efve \u4e2d\u6587 \U0001f389", " ", "word " * 200]
MAX_TRIAL_TOKENS = 8  # for each character of a trial text; a character encoded as bytes becomes 4 tokens
SIDE = one_of("left", "right")
AT_LEAST_ONE = Field(  # 1e30 means no limit
    "a number of at least 1",
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= 1e300,
).or_null()
SETTINGS = {
    "model_max_length": AT_LEAST_ONE, "max_len": AT_LEAST_ONE, "padding_side": SIDE.or_null(), "truncation_side": SIDE.or_null(),
    "pad_token_type_id": TYPE.or_null(), "split_special_tokens": FLAG, "clean_up_tokenization_spaces": FLAG.or_null(),
    "model_input_names": Field(
        "a list of up to 16 names", lambda value: isinstance(value, list) and len(value) <= 16 and all(map(TOKEN.fits, value))
    ).or_null(),
}  # fmt: skip


def reduce_tokenizer_file(path: Path) -> tuple[dict[str, Any], list[str]] | None:
    """Check a tokenizer file; its name determines its format.

    Returns:
        None if a library may read the file unchanged; else the reduced document, and the names of the dropped fields.

    Raises:
        UserError: the file is damaged, too large, or could take unlimited time or memory.
    """
    if path.name == "tokenizer.json":
        document = _parse(path)
        reduced, dropped = reduce_document(document)
        return None if reduced == document else (reduced, dropped)
    if path.name == "added_tokens.json":
        if (tokens := len(set(check_vocabulary(_parse(path), "ids")))) > MAX_ADDED:
            raise UserError(f"found {tokens:,} ids; allowed: up to {MAX_ADDED:,}")
    elif path.name in ("vocab.json", "target_vocab.json"):
        ids = set(check_vocabulary(_parse(path), "ids"))
        if max(ids, default=0) > max_token_id(len(ids)):
            raise UserError(f"found the id {max(ids):,}; allowed: up to {max_token_id(len(ids)):,} for {len(ids):,} tokens")
    elif path.suffix in (".model", ".spm"):
        _check_model(path)
    elif path.suffix == ".json":
        _parse(path)
    else:
        _check_lines(path)
    return None


def check_loaded(tokenizer: Any, name: str) -> None:
    """Test a loaded tokenizer on a few short texts.

    Args:
        name: name of the model, for messages.

    Raises:
        UserError: the tokenizer cannot encode the texts, returns too many tokens, or has ids far above its number of tokens.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    for token in tokenizer.added_tokens_decoder.values():
        # The library would never stop searching for an empty token.
        if normalizer is not None and token.normalized and not normalizer.normalize_str(token.content):
            raise UserError(
                f"model: the tokenizer of {name} has an added token {token.content!r} that its normalizer makes empty; "
                "allowed: added tokens that are not normalized, or do not become empty"
            )
    with converted(f"model: the tokenizer of {name} cannot encode a text"), preserve_truncation(tokenizer):
        rows = tokenizer(TRIALS, truncation=False, padding=False, return_attention_mask=False, verbose=False)["input_ids"]
        tokenizer("a", "b", truncation=False, padding=False, verbose=False)
        added = max(tokenizer.added_tokens_encoder.values(), default=0)
        limit = max_token_id(len(tokenizer))
    for text, ids in zip(TRIALS, rows, strict=True):
        if len(ids) > MAX_TRIAL_TOKENS * (len(text) + 64):
            raise UserError(
                f"model: the tokenizer of {name} returns {len(ids):,} tokens for a text of {len(text)} characters; allowed: up "
                f"to {MAX_TRIAL_TOKENS} for each character"
            )
    if (highest := max([added, *(i for ids in rows for i in ids)])) > limit or min(map(min, filter(None, rows)), default=0) < 0:
        raise UserError(
            f"model: the tokenizer of {name} has ids up to {highest:,} for {len(tokenizer):,} tokens; allowed: 0 to {limit:,}"
        )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a UserError if a tokenizer_config.json has a value that is not allowed."""
    for key, allowed in SETTINGS.items():
        if key in settings and not allowed.fits(settings[key]):
            raise UserError(f"the tokenizer has {key}: {shorten(settings[key])}; allowed: {allowed.allowed}")


def check_tokens(tokens: Mapping[str, Any]) -> None:
    """Check the token fields of a tokenizer_config.json, such as `pad_token` and `added_tokens_decoder`.

    Args:
        tokens: the value of each field by its name. A value is a token, or a list or mapping of tokens.

    Raises:
        UserError: a field has too many tokens, a token is too long, or its flags or its id are not allowed.
    """
    for key, value in tokens.items():
        listed = list(value.values()) if isinstance(value, dict) and "content" not in value else value
        listed = listed if isinstance(listed, list) else [listed]
        if len(listed) > MAX_ADDED:
            raise UserError(f"the tokenizer has {len(listed):,} {key}; allowed: up to {MAX_ADDED:,}")
        for token in listed:
            if token is not None and not _is_token(token):
                raise UserError(
                    f"the tokenizer has {key}: {shorten(token)}; allowed: a token of up to {LONGEST_TOKEN:,} characters, or its "
                    "content with flags"
                )
    by_id = tokens.get("added_tokens_decoder") or {}
    if not isinstance(by_id, dict):
        raise UserError(f"the tokenizer has added_tokens_decoder: {shorten(by_id)}; allowed: tokens by id")
    for key in by_id:
        if not (key.isascii() and key.isdigit() and len(key) < 8 and ID.fits(int(key))):
            raise UserError(f"the tokenizer has the id {shorten(key)} in added_tokens_decoder; allowed: {ID.allowed}")


def _is_token(token: Any) -> bool:
    fields = token if isinstance(token, dict) else {"content": token}
    flags = {name: allowed for name, allowed in ADDED_TOKEN.items() if name != "id"} | {"__type": one_of("AddedToken")}
    return "content" in fields and all(name in flags and flags[name].fits(value) for name, value in fields.items())


def _parse(path: Path) -> Any:
    return parse_limited(path, MAX_BYTES, strict=True)


def _check_lines(path: Path) -> None:
    """Check a file with one vocabulary entry or merge on each line."""
    content = read_limited(path, MAX_BYTES)
    with converted("cannot be read"):
        content.decode("utf-8")
    lines = content.split(b"\n")
    if len(lines) > MAX_TOKENS or max(map(len, lines)) > 8 * LONGEST_TOKEN:
        raise UserError(
            f"found {len(lines):,} lines, the longest of {max(map(len, lines)):,} bytes; allowed: up to {MAX_TOKENS:,} "
            f"lines of up to {8 * LONGEST_TOKEN:,} bytes"
        )


def _check_model(path: Path) -> None:
    """Check a SentencePiece model, or a tiktoken file with the same suffix."""
    content = read_limited(path, MAX_BYTES)
    try:
        check_sentencepiece(content)
    except ValueError as error:
        if content[:100].isascii() and b" " in content[:100] and content[:1].isalnum():
            _check_lines(path)
            return
        raise UserError(f"is not a SentencePiece model, or is damaged: {error}") from error
