"""Remove tokens from the vocabulary of a tokenizer.json (WordPiece, Unigram, BPE)."""

import copy
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.models.verification.model_files import load_tokenizer
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.errors import UserError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token for a byte of a character that has no token
MAX_SPECIAL = 16  # tokens at the start of a vocabulary
KINDS = ("WordPiece", "Unigram", "BPE")


def check_kind(document: Mapping[str, Any], name: str) -> None:
    """Raise a UserError if the vocabulary of this kind of tokenizer cannot be trimmed.

    Args:
        document: the content of a tokenizer.json.
        name: name of the model, for the message.
    """
    kind = document["model"]["type"]
    if kind == "WordLevel":
        raise UserError(
            f"model: {name} has a tokenizer of kind WordLevel, without pieces of words, so all words that are not in the texts "
            f"would become unknown; allowed: {', '.join(KINDS)}"
        )
    if kind not in KINDS:
        raise UserError(f"model: {name} has a tokenizer of kind {kind}; allowed: {', '.join(KINDS)}")


def trimmed(document: Mapping[str, Any], used: Collection[int]) -> tuple[dict[str, Any], list[int]]:
    """Return a tokenizer.json with a part of the vocabulary; texts whose tokens are all in `used` keep their tokens.

    Kept as well are added tokens, the unknown token, single characters and bytes, so that other texts still become pieces; and
    for BPE the tokens and merges that build a kept token. This suffices, because a token that a text does not need never changes
    its other tokens: WordPiece takes the longest match, Unigram the best path, BPE the first possible merge.

    Args:
        document: the content of a tokenizer.json.
        used: ids of tokens to keep.

    Returns:
        The new document, and the old id of each new id, in ascending order.
    """
    result: dict[str, Any] = copy.deepcopy(dict(document))
    model, special = result["model"], _special_tokens(result["post_processor"])
    is_unigram = model["type"] == "Unigram"
    entries: Iterable[tuple[str, int]] = (
        ((piece, i) for i, (piece, _) in enumerate(model["vocab"])) if is_unigram else model["vocab"].items()
    )
    vocabulary = {token_id: token for token, token_id in entries}
    added = {token["content"]: token["id"] for token in result["added_tokens"]}
    kept = {*used, *added.values(), *(ids[i] for ids, i in special)}
    kept |= {token_id for token_id, token in vocabulary.items() if _is_single(token, model)}
    if is_unigram:
        # The score of unknown characters is relative to the lowest score.
        kept.add(min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1]))
        if (unknown := model["unk_id"]) is not None:
            # Classes of transformers expect the unknown token in its place, after the other special tokens.
            kept |= set(range(unknown + 1)) if unknown < MAX_SPECIAL else {unknown}
    elif model["unk_token"] in model["vocab"]:
        kept.add(model["vocab"][model["unk_token"]])
    if model["type"] == "BPE":
        kept |= _close_merges(model, {vocabulary[token_id] for token_id in kept if token_id in vocabulary})
    order = sorted(kept & (vocabulary.keys() | set(added.values())))
    new = {old: i for i, old in enumerate(order)}
    if is_unigram:
        model["vocab"] = [model["vocab"][old] for old in order if old in vocabulary]
        model["unk_id"] = new.get(model["unk_id"])
    else:
        model["vocab"] = {vocabulary[old]: new[old] for old in order if old in vocabulary}
    for token in result["added_tokens"]:
        token["id"] = new[token["id"]]
    for ids, i in special:
        ids[i] = new[ids[i]]
    if result["padding"]:
        result["padding"]["pad_id"] = new.get(result["padding"]["pad_id"], 0)
    return result, order


def _is_single(token: str, model: Mapping[str, Any]) -> bool:
    """Return whether a token is a character or a byte, inside of a word or at its end."""
    if BYTE.fullmatch(token):
        return True
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return len(token.removeprefix(prefix)) <= 1 or len(token.removesuffix(suffix)) <= 1


def _close_merges(model: dict[str, Any], tokens: set[str]) -> set[int]:
    """Remove merges that no token needs; return the ids of the tokens and of all their parts."""
    prefix = len(model.get("continuing_subword_prefix") or "")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    parts = defaultdict(list)
    for left, right in pairs:
        parts[left + right[prefix:]].append((left, right))
    pending = list(tokens)
    while pending:
        new = {part for pair in parts[pending.pop()] for part in pair} - tokens
        tokens |= new
        pending += new
    model["merges"] = [
        merge
        for merge, (left, right) in zip(model["merges"], pairs, strict=True)
        if tokens.issuperset((left, right, left + right[prefix:]))
    ]
    return {model["vocab"][token] for token in tokens if token in model["vocab"]}


def _special_tokens(processor: dict[str, Any] | None) -> list[tuple[list[Any], int]]:
    """Return the places of the ids of special tokens that a post-processor adds: lists, and an index in each."""
    if processor is None:
        return []
    places = [place for inner in processor.get("processors", []) for place in _special_tokens(inner)]
    for token in processor.get("special_tokens", {}).values():
        places += [(token["ids"], i) for i in range(len(token["ids"]))]
    return places + [(processor[name], 1) for name in ("sep", "cls") if name in processor]


def without_limits(document: Mapping[str, Any]) -> Tokenizer:
    """Return a tokenizer that neither truncates nor pads."""
    backend = Tokenizer.from_str(json.dumps(document))
    backend.no_truncation()
    backend.no_padding()
    return backend


def replace_document(tokenizer: Any, document: Mapping[str, Any]) -> Any:
    """Return the tokenizer with another tokenizer.json, loaded as a user loads it.

    Raises:
        UserError: its class changes the vocabulary.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with quiet():
            tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            if path.name not in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
                path.unlink()
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # has the old ids
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / "tokenizer.json", document)
        loaded = load_tokenizer(ModelSource("the trimmed tokenizer", str(folder)))
    found = json.loads(loaded.backend_tokenizer.to_str())["model"]
    if any(found.get(name) != document["model"].get(name) for name in ("vocab", "unk_id", "unk_token")):
        raise UserError(
            f"model: the class {type(tokenizer).__name__} of transformers changes a vocabulary that it loads, so it cannot be "
            "trimmed; nothing was written"
        )
    loaded.name_or_path = tokenizer.name_or_path
    return loaded
