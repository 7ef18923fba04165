"""Bound how much longer normalizers and pre-tokenizers can make a text, before any text is processed.

In a hostile file, each of many components could multiply the length of a text, until memory is exhausted.
"""

import base64
import unicodedata
from collections.abc import Sequence
from typing import Any

from nlp_transfer.models.verification.regex_cost import shortest_match
from nlp_transfer.models.verification.sentencepiece_file import replacements
from nlp_transfer.utils.errors import UserError, converted

MAX_GROWTH = 64


def growth(components: Sequence[dict[str, Any]]) -> float:
    """Return an upper bound of the factor by which components lengthen a text.

    The bound is computed from the last component to the first. `weights` maps single characters to the maximum length of
    the text that the components processed so far turn them into. `other` is the maximum for all other characters. Unicode
    normalization is idempotent, so it counts only for characters that another component writes.

    Args:
        components: reduced components (`tokenizer_file`), in the order in which they are applied.

    Raises:
        UserError: a text can become more than `MAX_GROWTH` times as long, or a table is damaged.
    """
    weights: dict[str, float] = {}
    other = 1.0

    def length(written: str) -> float:
        return sum(weights.get(c, other) * max(1, len(unicodedata.normalize("NFKD", c.lower()))) for c in written)

    for component in reversed(components):
        kind = component["type"]
        added = replaced = 0.0  # maximum length of the text added to each character, and of the text replacing one
        if kind == "ByteLevel":  # writes each byte as a character, and may put a space before each piece
            replaced, weights = 4 * max([other, *weights.values()]) + ("add_prefix_space" in component), {}
        elif kind in ("Metaspace", "Prepend"):
            added = length(component.get("prepend", "x"))
        elif kind == "Precompiled":
            replaced, weights = max([0.0, *map(length, _replacements(component)), *weights.values()]), {}
        elif kind == "Replace" and "pattern" in component:
            pattern, value = next(iter(component["pattern"].items()))
            shortest = len(value) if pattern == "String" else shortest_match(value)
            each = length(component.get("content", "")) / max(shortest, 1)
            if shortest == 0:
                added = each
            elif pattern == "String":
                weights |= {c: max(weights.get(c, other), each) for c in value}
            else:
                replaced = each
        weights = {c: max(weight, replaced) + added for c, weight in weights.items()}
        other = max(other, replaced) + added
        if max([other, *weights.values()]) > MAX_GROWTH:
            raise UserError(
                f"normalizer: found components that can make a text more than {MAX_GROWTH} times as long; allowed: up to "
                f"{MAX_GROWTH} times"
            )
    return max([other, *weights.values()])


def _replacements(component: dict[str, Any]) -> set[str]:
    """Return the texts that a Precompiled normalizer can write."""
    with converted("normalizer.precompiled_charsmap: allowed: a table of SentencePiece; it is damaged"):
        return replacements(base64.b64decode(component.get("precompiled_charsmap") or "", validate=True))
