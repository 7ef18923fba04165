"""Cutting a text that is longer than what a model was trained on into pieces that are not, and joining their translations."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

Span = tuple[int, int]
Lengths = Callable[[Sequence[str]], list[int]]

# An end mark with what closes quotes, and a space after it; marks of scripts without spaces need none; line ends. Each run is
# matched once and never given back (++), so that a megabyte of dots takes no longer than one of words.
SENTENCE_END = re.compile(
    r"(?<![.!?…؟۔।॥։።])[.!?…؟۔।॥։።]++[\"'”’»)\]]*+(?=\s)|(?<![。！？｡])[。！？｡]++[」』”’）]*+|[\r\n\u2028\u2029]+"
)
INITIAL = re.compile(r"(?<!\w)\w\.$")  # the dot of `J. R. R. Tolkien` ends no sentence
WORD_CHARACTER = re.compile(r"\w")
SPACE = re.compile(r"\s*")
WORD = re.compile(r"[^\s，、；：]*+[，、；：]++|[^\s，、；：]++")
CLAUSE_END = tuple(",;:—–،؛，、；：.!?…")
LINE_END = tuple("\r\n\u2028\u2029")
# Scripts in which words are not separated: Thai, Lao, Burmese, Khmer, kana, Chinese characters, full-width forms.
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff]"
)


def pieces_of(text: str, limit: int, lengths: Lengths) -> list[tuple[str, str]]:
    """`text` in pieces of at most `limit` tokens, each with the white space that stands between it and the next one.

    Pieces are whole sentences where that is possible, else whole words, if possible up to a comma, else runs of characters.
    Sentences are not joined again: a model that learned from single sentences translates one best. A character that is more
    than `limit` by itself stays whole.

    Args:
        lengths: tokens of each of some texts, special tokens among them. It is asked few times, for many texts at once.
    """
    if lengths([text])[0] <= limit:
        return [(text, "")]
    sentences = list(_sentences(text))
    spans: list[Span] = []
    for (start, end), tokens in zip(sentences, lengths([text[start:end] for start, end in sentences]), strict=True):
        spans += [(start, end)] if tokens <= limit else _parts(text, start, end, limit, lengths)
    starts = [start for start, _ in spans[1:]] + [spans[-1][1]] if spans else []
    return [(text[start:end], text[end:after]) for (start, end), after in zip(spans, starts, strict=True)]


def join(pieces: Sequence[tuple[str, str]], answers: Sequence[str]) -> str:
    """The translations of a text's pieces as one text, with the white space of the source between them.

    Scripts differ in that: where a source without spaces becomes a text with spaces one is put in, and the other way round it
    is left out.
    """
    joined = []
    for (piece, gap), answer, following in zip(pieces, answers, [*answers[1:], ""], strict=True):
        source, left, right = (bool(SPACELESS.match(character)) for character in (piece[-1:], answer[-1:], following[:1]))
        added = " " if source and not gap and following and not (left or right) else ""
        left_out = left and right and not source and not any(mark in gap for mark in LINE_END)
        joined += [answer, added or ("" if left_out else gap)]
    return "".join(joined)


def _sentences(text: str) -> Iterator[Span]:
    cased = text != text.lower()
    start = _after_space(text, 0)
    said = _next_word(text, start)
    for match in SENTENCE_END.finditer(text, start):
        end = match.end()
        following = _after_space(text, end)
        if text[end - 1] not in LINE_END and following > end:
            goes_on = cased and text[following : following + 1].islower()  # `e.g. that`, `"Stop!" he said`
            if goes_on or INITIAL.search(text, max(start, end - 2), end):
                continue
        if said < end:  # `. . .` are not three sentences
            yield start, start + len(text[start:end].rstrip())
            start, said = following, _next_word(text, following)
    if stripped := len(text[start:].rstrip()):
        yield start, start + stripped


def _next_word(text: str, start: int) -> int:
    match = WORD_CHARACTER.search(text, start)
    return match.start() if match else len(text)


def _after_space(text: str, start: int) -> int:
    match = SPACE.match(text, start)
    return match.end() if match else start


def _parts(text: str, start: int, end: int, limit: int, lengths: Lengths) -> list[Span]:
    """A sentence that is too long, in parts that are not."""
    special = lengths([""])[0]
    room = max(1, limit - special)
    words = [(match.start(), match.end()) for match in WORD.finditer(text, start, end)]
    atoms = _atoms(text, words, room, special, lengths)
    found: list[Span] = []
    waiting = list(_pack(text, atoms, room))
    while waiting:  # words together may be a few more tokens than each by itself
        tokens = lengths([text[part[0][0] : part[-1][1]] for part in waiting])
        again = []
        for part, count in zip(waiting, tokens, strict=True):
            middle = len(part) // 2
            if count <= limit or not middle:
                found.append((part[0][0], part[-1][1]))
            else:
                again += [part[:middle], part[middle:]]
        waiting = again
    return sorted(found)


Atom = tuple[int, int, int]  # start, end, tokens


def _atoms(text: str, words: list[Span], room: int, special: int, lengths: Lengths) -> list[Atom]:
    """Words with their tokens; those that do not fit are cut, again and again until all parts fit or are one character."""
    found: list[Atom] = []
    waiting = words
    while waiting:
        different = list({text[start:end]: None for start, end in waiting})
        tokens = dict(zip(different, lengths(different), strict=True))
        again: list[Span] = []
        for start, end in waiting:
            count = tokens[text[start:end]] - special
            if count <= room or end - start == 1:
                found.append((start, end, count))
            else:
                points = [start, *_cuts(text, start, end, -(-count // room)), end]
                again += pairwise(points)
        waiting = again
    return sorted(found)


def _cuts(text: str, start: int, end: int, parts: int) -> list[int]:
    """Where to cut a word into so many parts of about the same size: not between a character and what is drawn on it."""
    points: list[int] = []
    parts = min(parts, end - start)
    for i in range(1, parts):
        ideal = start + (end - start) * i // parts
        point = next((point for point in range(ideal, min(ideal + 16, end)) if not _belongs(text, point)), ideal)
        if point > (points[-1] if points else start):
            points.append(point)
    return points


def _belongs(text: str, point: int) -> bool:
    """Whether the character at `point` is an accent, a selector or a skin colour for the one before, or joined to it."""
    character = text[point]
    joined = "\u200d" in (character, text[point - 1]) or "\U0001f3fb" <= character <= "\U0001f3ff"
    return joined or unicodedata.category(character).startswith("M")


def _pack(text: str, atoms: list[Atom], room: int) -> Iterator[list[Atom]]:
    """As many atoms as fit, again and again; where the second half of them has the end of a clause, up to there."""
    packed: list[Atom] = []
    size = 0
    for atom in atoms:
        while packed and size + atom[2] > room:
            clause = [i for i, (_, end, _) in enumerate(packed, start=1) if i > len(packed) // 2 and text[end - 1] in CLAUSE_END]
            cut = clause[-1] if clause else len(packed)
            yield packed[:cut]
            packed = packed[cut:]
            size = sum(tokens for _, _, tokens in packed)
        packed.append(atom)
        size += atom[2]
    if packed:
        yield packed
