"""Reduce tokenizer.json to known components with bounded cost, before the tokenizers library reads it.

A hostile file could double the length of a text in each of 30 normalizers, backtrack forever, or abort the process. Unknown
components are refused; unknown fields are dropped and reported. An accepted file makes a text at most 64 times as long, in linear
time.
"""

import math
from collections.abc import Iterable
from typing import Any

from nlp_transfer.models.verification.regex_cost import PatternError, linear_pattern
from nlp_transfer.models.verification.tokenizer_fields import (
    ADDED_TOKEN,
    ANY,
    COMPONENTS,
    ID,
    LISTS,
    LONGEST_TOKEN,
    MAX_TOKENS,
    MODELS,
    PADDING,
    TOKEN,
    TRUNCATION,
    TYPE,
    Field,
)
from nlp_transfer.models.verification.tokenizer_growth import growth
from nlp_transfer.utils.errors import UserError, shorten

MAX_ADDED = 2**16  # added tokens; the library takes 45 microseconds for each
MAX_ADDED_CHARACTERS = 2**20  # of all added tokens together
MAX_NORMALIZED_CHARACTERS = 2**22  # of all added tokens together, after normalization
MAX_COMPONENTS = 64  # in all sequences of a section
MAX_SPECIAL = 64  # entries in each list of a post-processor, such as the tokens that it adds to a text

SECTIONS = ("version", "truncation", "padding", "added_tokens", *LISTS, "model")


def reduce_document(document: Any) -> tuple[dict[str, Any], list[str]]:
    """Reduce a parsed tokenizer.json.

    Returns:
        The document with known components and fields only, and the names of the dropped fields.

    Raises:
        UserError: a component is unknown, or a value is not allowed.
    """
    return _Reduction().reduce(document)


class _Reduction:
    """Reduces one document, and collects the names of dropped fields."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def refuse(self, key: str, value: object, allowed: str) -> UserError:
        return UserError(f"{key}: found {shorten(value)}; allowed: {allowed}")

    def reduce(self, document: Any) -> tuple[dict[str, Any], list[str]]:
        if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
            raise self.refuse("model", document, "a tokenizer.json with a model")
        reduced = self.fields("", document, dict.fromkeys(SECTIONS, ANY))
        model, ids = self.model(document["model"])
        reduced["model"] = model
        components = {section: self.section(section, document.get(section)) for section in LISTS}
        for section in set(LISTS) & set(reduced):
            reduced[section] = components[section][0]
        for section, fields in (("truncation", TRUNCATION), ("padding", PADDING)):
            if reduced.get(section) is not None:
                reduced[section] = self.fields(section, reduced[section], fields)
        truncation = reduced.get("truncation") or {}
        if truncation.get("stride", 0) >= max(truncation.get("max_length", math.inf), 1):
            raise self.refuse("truncation.stride", truncation["stride"], "less than max_length")
        lengthening = growth(components["normalizer"][1] + components["pre_tokenizer"][1])
        if "added_tokens" in reduced:
            reduced["added_tokens"] = self.added_tokens(reduced["added_tokens"], lengthening)
            ids = [*ids, *(token["id"] for token in reduced["added_tokens"])]
        self.ids(ids, components["post_processor"][1])
        return reduced, self.dropped

    def fields(self, key: str, value: Any, fields: dict[str, Field]) -> dict[str, Any]:
        """Return the known fields of an object, or raise a UserError if one has a value that is not allowed."""
        if not isinstance(value, dict):
            raise self.refuse(key, value, f"an object with {', '.join(fields) or 'a type'}")
        known = {}
        for name, inner in value.items():
            path = f"{key}.{name}".lstrip(".")
            if name not in fields:
                self.dropped.append(shorten(path))
            elif not fields[name].fits(inner):
                raise self.refuse(path, inner, fields[name].allowed)
            else:
                known[name] = inner
        return known

    def section(self, section: str, value: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Return the reduced components of a section twice: nested as in the file, and as a flat list."""
        flat: list[dict[str, Any]] = []

        def component(key: str, value: Any, depth: int) -> dict[str, Any]:
            kind = value.get("type") if isinstance(value, dict) else value
            known = COMPONENTS[section]
            if kind == "Sequence" and depth < 5:
                name = LISTS[section]
                reduced = self.fields(key, value, {"type": ANY, name: ANY})
                inner = reduced.get(name)
                if not isinstance(inner, list) or len(inner) > MAX_COMPONENTS:
                    raise self.refuse(f"{key}.{name}", inner, f"a list of up to {MAX_COMPONENTS} components")
                return reduced | {name: [component(f"{key}.{name}[{i}]", child, depth + 1) for i, child in enumerate(inner)]}
            if not isinstance(kind, str) or kind not in known:
                raise self.refuse(f"{key}.type", kind, f"{', '.join(known)}, or a Sequence of them, nested up to 5 times")
            reduced = self.fields(key, value, {"type": ANY} | known[kind])
            if "pattern" in reduced:
                reduced["pattern"] = self.pattern(f"{key}.pattern", reduced["pattern"])
            if kind == "TemplateProcessing":
                self.template(key, reduced)
            flat.append(reduced)
            if len(flat) > MAX_COMPONENTS:
                raise self.refuse(section, f"more than {MAX_COMPONENTS} components", f"up to {MAX_COMPONENTS}")
            return reduced

        return (None if value is None else component(section, value, 0)), flat

    def pattern(self, key: str, pattern: dict[str, Any]) -> dict[str, Any]:
        """Return a pattern that matches in linear time."""
        kind, value = next(iter(pattern.items()))
        if kind not in ("String", "Regex") or not isinstance(value, str) or len(value) > 4000:
            raise self.refuse(key, pattern, "a String or a Regex of up to 4,000 characters")
        try:
            return {kind: linear_pattern(value)} if kind == "Regex" else pattern
        except PatternError as error:
            raise UserError(
                f"{key}: found {shorten(value)}, a regular expression with {error}; matching it could take unlimited time; use a "
                "tokenizer without it"
            ) from error

    def template(self, key: str, value: dict[str, Any]) -> None:
        """Check the fields of a TemplateProcessing."""
        special = value.get("special_tokens", {})
        if not isinstance(special, dict) or len(special) > MAX_SPECIAL:
            raise self.refuse(f"{key}.special_tokens", special, f"up to {MAX_SPECIAL} tokens by name")
        for name, token in special.items():
            ids, tokens = (token.get(field) if isinstance(token, dict) else None for field in ("ids", "tokens"))
            if not (
                isinstance(ids, list) and isinstance(tokens, list) and len(ids) == len(tokens) <= MAX_SPECIAL
                and all(map(ID.fits, ids)) and all(map(TOKEN.fits, tokens)) and token.get("id") == name
            ):  # fmt: skip
                raise self.refuse(f"{key}.special_tokens.{name}", token, f"its id, and up to {MAX_SPECIAL} ids with tokens")
        for name, texts in (("single", ["A"]), ("pair", ["A", "B"])):
            pieces = value.get(name, [])
            if not isinstance(pieces, list) or len(pieces) > MAX_SPECIAL or not all(map(self.is_piece, pieces)):
                raise self.refuse(
                    f"{key}.{name}", pieces, f"up to {MAX_SPECIAL} pieces: SpecialToken or Sequence, with id and type_id"
                )
            sequences = [piece["Sequence"]["id"] for piece in pieces if "Sequence" in piece]
            special_names = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
            if pieces and (sorted(sequences) != texts or not special_names <= set(special)):
                raise self.refuse(f"{key}.{name}", pieces, f"{' and '.join(texts)} once, and tokens listed in special_tokens")

    @staticmethod
    def is_piece(piece: Any) -> bool:
        """Return whether a value is a piece of a TemplateProcessing: a text or a special token."""
        if not isinstance(piece, dict) or len(piece) != 1:
            return False
        kind, value = next(iter(piece.items()))
        return (
            kind in ("Sequence", "SpecialToken") and isinstance(value, dict) and set(value) == {"id", "type_id"}
            and TOKEN.fits(value["id"]) and TYPE.fits(value["type_id"])
        )  # fmt: skip

    def model(self, model: dict[str, Any]) -> tuple[dict[str, Any], Iterable[int]]:
        """Return the reduced model, and the ids of its vocabulary."""
        kind = model.get("type", self._default_type(model))  # old files have no type
        if not isinstance(kind, str) or kind not in MODELS:
            raise self.refuse("model.type", kind, ", ".join(MODELS))
        reduced = self.fields("model", model, {"type": ANY} | MODELS[kind])
        vocabulary = reduced.get("vocab")
        if kind == "Unigram":
            return reduced, self.pieces(vocabulary, reduced)
        ids = check_vocabulary(vocabulary, "model.vocab")
        if kind == "BPE":
            self.merges(reduced.get("merges"))
        return reduced, ids

    @staticmethod
    def _default_type(model: dict[str, Any]) -> str:
        """Infer the type of a model that has no field `type` from its other fields."""
        if "merges" in model:
            return "BPE"
        if isinstance(model.get("vocab"), list):
            return "Unigram"
        return "WordPiece" if {"continuing_subword_prefix", "max_input_chars_per_word"} & set(model) else "WordLevel"

    def pieces(self, vocabulary: Any, model: dict[str, Any]) -> Iterable[int]:
        """Check the vocabulary of a Unigram model, and return its ids."""
        if not isinstance(vocabulary, list) or not 0 < len(vocabulary) <= MAX_TOKENS:
            raise self.refuse("model.vocab", vocabulary, f"a list of 1 to {MAX_TOKENS:,} pieces with scores")
        for piece in vocabulary:
            if not (isinstance(piece, list) and len(piece) == 2 and TOKEN.fits(piece[0]) and type(piece[1]) in (int, float)):
                raise self.refuse("model.vocab", piece, f"a piece of up to {LONGEST_TOKEN} characters, and its score")
        if (model.get("unk_id") or 0) >= len(vocabulary):
            raise self.refuse("model.unk_id", model["unk_id"], f"less than {len(vocabulary):,}")
        return range(len(vocabulary))

    def merges(self, merges: Any) -> None:
        """Check the merges of a BPE model."""
        if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
            raise self.refuse("model.merges", merges, f"a list of up to {MAX_TOKENS:,} pairs")
        for merge in merges:
            tokens = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(tokens, list) or len(tokens) != 2 or not all(isinstance(token, str) for token in tokens):
                raise self.refuse("model.merges", merge, "two tokens")

    def added_tokens(self, tokens: Any, lengthening: float) -> list[dict[str, Any]]:
        """Return the reduced added tokens. Normalization makes each token at most `lengthening` times as long."""
        if not isinstance(tokens, list) or len(tokens) > MAX_ADDED:
            raise self.refuse("added_tokens", tokens, f"a list of up to {MAX_ADDED:,} tokens")
        reduced = [self.fields(f"added_tokens[{i}]", token, ADDED_TOKEN) for i, token in enumerate(tokens)]
        for i, token in enumerate(reduced):
            if missing := {"id", "content"} - set(token):
                raise self.refuse(f"added_tokens[{i}]", token, f"one with {' and '.join(sorted(missing))}")
        characters = sum(len(token["content"]) for token in reduced)
        if characters > MAX_ADDED_CHARACTERS or characters * lengthening > MAX_NORMALIZED_CHARACTERS:
            raise self.refuse("added_tokens", f"{characters:,} characters in all tokens", f"up to {MAX_ADDED_CHARACTERS:,}")
        return reduced

    def ids(self, ids: Iterable[int], processors: list[dict[str, Any]]) -> None:
        """Check that the ids have few gaps, so that a table with a row for each id is not much larger than the vocabulary."""
        used = set(ids)
        limit = max_token_id(len(used))
        added = [(f"post_processor.{name}", each[name][1]) for each in processors for name in ("sep", "cls") if name in each]
        for processor in processors:
            for name, token in processor.get("special_tokens", {}).items():
                added += [(f"post_processor.special_tokens.{name}", i) for i in token["ids"]]
        for key, token_id in [("the ids of its tokens", max(used, default=0)), *added]:
            if token_id > limit:
                raise self.refuse(key, token_id, f"ids up to {limit:,} for {len(used):,} tokens")
        for key, token_id in added:
            if token_id not in used:
                raise self.refuse(key, token_id, "the id of a token")


def max_token_id(tokens: int) -> int:
    """Return the highest id allowed in a tokenizer with this number of tokens."""
    return 2 * tokens + 1024


def check_vocabulary(vocabulary: Any, where: str) -> Iterable[int]:
    """Check a vocabulary and return its ids.

    Raises:
        UserError: the vocabulary is not a mapping of tokens to ids, or is too large.
    """
    if not isinstance(vocabulary, dict) or len(vocabulary) > MAX_TOKENS:
        raise UserError(f"{where}: found {shorten(vocabulary)}; allowed: ids by token, up to {MAX_TOKENS:,}")
    if not set(map(type, vocabulary.values())) <= {int} or min(vocabulary.values(), default=0) < 0:
        wrong = next(item for item in vocabulary.items() if not ID.fits(item[1]))
        raise UserError(f"{where}: found {shorten(dict([wrong]))}; allowed: {ID.allowed}")
    if max(map(len, vocabulary), default=0) > LONGEST_TOKEN:
        raise UserError(f"{where}: found {shorten(max(vocabulary, key=len))}; allowed: up to {LONGEST_TOKEN} characters")
    if max(vocabulary.values(), default=0) > MAX_TOKENS:
        raise UserError(f"{where}: found the id {max(vocabulary.values()):,}; allowed: {ID.allowed}")
    return vocabulary.values()
