"""Cutting a text that is longer than what a model was trained on into pieces that are not."""

import re
from collections.abc import Callable, Iterator

# After the end of a sentence and what closes quotes; scripts without spaces end sentences with marks of their own.
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？｡])[」』”]*\s*|[\r\n]+\s*")
WORD = re.compile(r"\s*\S+")


def pieces_of(text: str, limit: int, length: Callable[[str], int]) -> list[tuple[str, str]]:
    """`text` in pieces of at most `limit` tokens, each with what stands between it and the next one.

    Pieces are whole sentences where that is possible, else whole words, else runs of characters. Sentences are not joined
    again: a model that learned from single sentences translates one best.

    Args:
        length: tokens of a text, special tokens among them.
    """
    if length(text) <= limit:
        return [(text, "")]
    found: list[tuple[str, str]] = []
    for sentence, gap in _split(text, SENTENCE_END):
        if length(sentence) <= limit:
            found.append((sentence, gap))
            continue
        parts = list(_pack(WORD.findall(sentence), limit, length))
        found += [(part.strip(), " " if part is not parts[-1] else gap) for part in parts]
    return found


def _split(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    start = 0
    for match in pattern.finditer(text):
        marks = match.group().rstrip()  # closing quotes belong to the sentence
        end = match.start() + len(marks)
        if text[start:end].strip():
            yield text[start:end].strip(), match.group()[len(marks) :]
            start = match.end()
    if text[start:].strip():
        yield text[start:].strip(), ""


def _pack(words: list[str], limit: int, length: Callable[[str], int]) -> Iterator[str]:
    """As many words as fit, again and again; a word that does not fit by itself is cut into halves until it does."""
    rest = words[::-1]
    packed = ""
    while rest:
        word = rest.pop()
        if length(packed + word) <= limit:
            packed += word
        elif packed.strip():
            yield packed
            packed = ""
            rest.append(word)
        elif len(word) > 1:
            rest += [word[len(word) // 2 :], word[: len(word) // 2]]
        else:
            packed += word  # one character of more tokens than the limit: the model's own limit cuts it
    if packed.strip():
        yield packed
