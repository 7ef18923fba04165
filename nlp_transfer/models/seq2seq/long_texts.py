"""Split a text that is longer than what a model was trained on into pieces, and join the translations of the pieces."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import regex

Span = tuple[int, int]
Lengths = Callable[[Sequence[str]], list[int]]

# Scripts without spaces between words. East Asian ones have none between sentences either; Southeast Asian ones have them there.
EAST = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\u3001-\u303f\u30fb\u30fc"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uff9e\uff9f"
)
SOUTHEAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
SPACELESS = EAST + SOUTHEAST
# Scripts with spaces, for words that nothing but the change of script separates.
SPACED = (
    "Latin Greek Cyrillic Armenian Georgian Hebrew Arabic Syriac Thaana Nko Devanagari Bengali Gurmukhi Gujarati Oriya Tamil "
    "Telugu Kannada Malayalam Sinhala Hangul Ethiopic Cherokee Mongolian Tifinagh Katakana"
).split()
WHITE = r"\s\x1c-\x1f"  # what Python's `strip` takes for white space
GLUE = r"\u00a0\u2007\u202f"  # spaces at which no line is broken: `2 000`, `M. Dupont`
LINE_END = "\r\n\u2028\u2029"

# An end mark with what closes quotes, and a space after it; marks of scripts without spaces need none; line ends. Each run is
# matched once and never given back (++), so that a megabyte of dots takes no longer than one of words.
SENTENCE_END = regex.compile(
    rf"(?<![.!?…؟۔।॥።၊။។])[.!?…؟۔।॥።။។]++[\"'”’»)\]]*+(?=(?![{GLUE}])[{WHITE}])"
    rf"|(?<![。！？｡])[。！？｡]++[\p{{Pe}}\p{{Pf}}]*+(?![，、；：])"
    rf"|(?<=[{EAST}])[.!?]++[”’)]*+(?=[{EAST}])"
    rf"|[{LINE_END}]+"
)
ENDED = regex.compile(r"[.!?…؟۔।॥።။។。！？｡][\p{Pe}\p{Pf}\"']*$")
# The dots of `J. R. R. Tolkien`, `13. Mai` and common abbreviations end no sentence.
_ABBREVIATIONS = (
    "Mr Mrs Ms Dr Prof St Jr Sr Sra Mme Mlle Hr Fr No Nr Fig Art Abs Vol pp vs approx ca bzw e.g i.e z.B d.h u.a Inc Ltd Corp"
)
ABBREVIATED = regex.compile(rf"(?<![\w.])(?:\w|\d{{1,2}}|{'|'.join(map(regex.escape, _ABBREVIATIONS.split()))})\.$")
WORD_CHARACTER = regex.compile(r"\w")
SPACE = regex.compile(rf"[{WHITE}]*")
GLUED = regex.compile(rf"[{GLUE}]+")
CLAUSE_END = tuple(",;:—–،؛，、；：.!?…")
# Where a sentence may be split first: at spaces, and after commas where none follow. A comma between digits is part of a number.
CLAUSE = regex.compile(
    rf"(?P<gap>[{WHITE}]++)|(?!(?<=\p{{Nd}})[，：](?=\p{{Nd}}))[，、；：]++[\p{{Pe}}\p{{Pf}}。！？｡]*+|(?<=[{EAST}])[,;:]++(?=[{EAST}])"
)

# What a stretch without spaces is split into, one level after the other: characters of scripts without spaces, with the marks
# that may begin or end no line, and runs of anything else (`iPhone`, `3.14`, a URL); words of one script, and numbers;
# characters with their accents, joined emoji and flags; code points.
_OPEN = r"[\p{Ps}\p{Pi}\"'¿¡#＃$€£¥＄￥]"
_CLOSE = r"[\p{Pe}\p{Pf}。、，．：；！？｡…‥・.,:;!?%％‰℃°～〜ー々〻ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶฯๆໆ។-៖၊။]"
_RUN = rf"(?:(?!{_OPEN}{{1,4}}+[{SPACELESS}])(?![{SPACELESS}])(?:[^{WHITE}]|[{GLUE}])|(?<=\p{{Nd}})[，．：／](?=\p{{Nd}}))++"
_CORE = rf"(?:[\p{{Katakana}}ー・ｰﾞﾟ]++|[\u0e40-\u0e44\u0ec0-\u0ec4]?+(?=[{SPACELESS}])\X|{_RUN}|.)"
_UNIT = rf"{_OPEN}*+{_CORE}{_CLOSE}*+"
_LETTERS = "|".join(rf"\p{{{script}}}(?:['’]?[\p{{{script}}}\p{{M}}ー])*+" for script in SPACED)
LEVELS = [
    regex.compile(rf"{_UNIT}(?:[\"']++(?:{_UNIT})?+)*+|.", regex.DOTALL),
    regex.compile(rf"\p{{Nd}}++(?:[.,'’٫٬，．：:]\p{{Nd}}++)*+|{_LETTERS}|\X"),
    regex.compile(r"\X"),
    regex.compile(r".", regex.DOTALL),
]

# The script by which a text is joined to what stands before or after it: that of its first, or its last, character of any.
_SCRIPT = rf"(?P<east>[{EAST}])|(?P<southeast>[{SOUTHEAST}])|(?P<spaced>[\p{{L}}\p{{N}}])"
FIRST, LAST = regex.compile(_SCRIPT), regex.compile(rf"(?r){_SCRIPT}")
WORDS = {  # with what a word of each kind of script takes on average
    "east": (regex.compile(rf"[{EAST}]"), 2),
    "southeast": (regex.compile(rf"[{SOUTHEAST}]"), 4),
    "spaced": (regex.compile(rf"(?:(?![{SPACELESS}])[\p{{L}}\p{{M}}])++"), 1),
}


def split_text(text: str, limit: int, lengths: Lengths) -> list[tuple[str, str]]:
    """Split `text` into pieces of at most `limit` tokens, each with the white space that stands between it and the next one.

    Pieces are whole sentences where that is possible, else whole words, if possible up to a comma. In scripts without spaces
    they are runs of characters in which words of other scripts and numbers stay whole. Only a word that is longer than `limit`
    by itself is split, between characters; a code point that is more than `limit` by itself stays whole. Sentences are not
    put together again: a model that learned from single sentences translates one best.

    Args:
        lengths: tokens of each of some texts, special tokens among them. It is called few times, for many texts at once.
    """
    if lengths([text])[0] <= limit:
        return [(text, "")]
    sentences = list(_sentences(text))
    spans: list[Span] = []
    for (start, end), tokens in zip(sentences, lengths([text[start:end] for start, end in sentences]), strict=True):
        spans += [(start, end)] if tokens <= limit else _parts(text, start, end, limit, lengths)
    spans = [(start, end) for start, end in (_stripped(text, *span) for span in spans) if start < end]
    starts = [start for start, _ in spans[1:]] + [spans[-1][1]] if spans else []
    return [(text[start:end], text[end:after]) for (start, end), after in zip(spans, starts, strict=True)]


def join_pieces(pieces: Sequence[tuple[str, str]], answers: Sequence[str]) -> str:
    """Join the translations of a text's pieces with the spacing of the language that they are in.

    Line ends of the source stay. Else there is nothing between Chinese or Japanese, in Thai, Lao, Khmer and Burmese a space
    between sentences, and in other languages a space, or the source's own white space where it has such. Parts of one long
    word, such as a URL, are joined as they were split.
    """
    text, previous = [answers[0]], answers[0]
    style = _main_script(answers)
    for (piece, gap), (after, _), answer in zip(pieces, pieces[1:], answers[1:], strict=False):
        if any(mark in gap for mark in LINE_END):
            text.append(gap)
        elif previous and answer:
            text.append(_between(piece, gap, after, previous, answer, style))
        text.append(answer)
        previous = answer or previous
    return "".join(text)


def _between(piece: str, gap: str, after: str, left: str, right: str, style: str) -> str:
    """What stands between two translations on one line."""
    source = {_script(LAST, piece), _script(FIRST, after)}
    if not gap and source == {"spaced"}:
        return ""
    scripts = {_script(LAST, left), _script(FIRST, right)}
    kind = scripts.pop() if len(scripts) == 1 else style
    if kind == "east":
        return ""
    if kind == "southeast":
        return " " if ENDED.search(piece) or (gap and "southeast" in source) else ""
    return gap if gap and source == {"spaced"} and "\u3000" not in gap else " "


def _script(pattern: "regex.Pattern[str]", text: str) -> str:
    match = pattern.search(text)
    return str(match.lastgroup) if match else "spaced"


def _main_script(texts: Sequence[str]) -> str:
    """The kind of script that most of some texts is written in."""
    return max(WORDS, key=lambda name: sum(len(WORDS[name][0].findall(text)) for text in texts) / WORDS[name][1])


def _sentences(text: str) -> Iterator[Span]:
    cased = text != text.lower()
    start = _after_space(text, 0)
    said = _next_word(text, start)
    for match in SENTENCE_END.finditer(text, start):
        end = match.end()
        following = _after_space(text, end)
        if text[end - 1] not in LINE_END and following > end:
            goes_on = cased and text[following : following + 1].islower()  # `e.g. that`, `"Stop!" he said`
            if goes_on or ABBREVIATED.search(text, max(start, end - 8), end):
                continue
        if said < end:  # `. . .` are not three sentences
            yield _stripped(text, start, end)
            start, said = following, _next_word(text, following)
    yield _stripped(text, start, len(text))


def _next_word(text: str, start: int) -> int:
    match = WORD_CHARACTER.search(text, start)
    return match.start() if match else len(text)


def _after_space(text: str, start: int) -> int:
    match = SPACE.match(text, start)
    return match.end() if match else start


def _stripped(text: str, start: int, end: int) -> Span:
    """The span without the white space at its ends."""
    end = start + len(text[start:end].rstrip())
    return min(_after_space(text, start), end), end


def _parts(text: str, start: int, end: int, limit: int, lengths: Lengths) -> list[Span]:
    """Split a sentence that is too long into parts that are not."""
    special = lengths([""])[0]
    room = max(1, limit - special)
    atoms = _atoms(text, list(_clauses(text, start, end)), room, special, lengths)
    fitting: list[Span] = []
    waiting = list(_pack(text, atoms, room))
    while waiting:  # words together may be a few more tokens than each by itself
        tokens = lengths([text[part[0][0] : part[-1][1]] for part in waiting])
        again = []
        for part, count in zip(waiting, tokens, strict=True):
            middle = len(part) // 2
            if count <= limit or not middle:
                fitting.append((part[0][0], part[-1][1]))
            else:
                again += [part[:middle], part[middle:]]
        waiting = again
    return sorted(fitting)


def _clauses(text: str, start: int, end: int) -> Iterator[Span]:
    """Words, and in scripts without spaces what stands between commas."""
    for match in CLAUSE.finditer(text, start, end):
        gap = match["gap"]
        if gap and GLUED.fullmatch(gap):  # nothing but spaces that hold a number or a name together
            continue
        until = match.start() if gap else match.end()
        if until > start:
            yield start, until
        start = match.end()
    if end > start:
        yield start, end


Atom = tuple[int, int, int]  # start, end, tokens


def _atoms(text: str, words: list[Span], room: int, special: int, lengths: Lengths) -> list[Atom]:
    """Words with their tokens; those that do not fit are split, again and again until all parts fit or are one code point."""
    atoms: list[Atom] = []
    waiting = words
    while waiting:
        different = list({text[start:end]: None for start, end in waiting})
        tokens = dict(zip(different, lengths(different), strict=True))
        again: list[Span] = []
        for start, end in waiting:
            count = tokens[text[start:end]] - special
            if count <= room or end - start == 1:
                atoms.append((start, end, count))
            else:
                again += pairwise([start, *_cuts(text, start, end, -(-count // room)), end])
        waiting = again
    return sorted(atoms)


def _cuts(text: str, start: int, end: int, parts: int) -> list[int]:
    """Where to split a stretch of two code points or more into so many parts of about the same size."""
    allowed: list[int] = []
    for level in LEVELS:
        allowed = [match.end() for match in level.finditer(text, start, end)][:-1]
        if allowed:
            break
    chosen: set[int] = set()
    for i in range(1, max(2, parts)):
        ideal = start + (end - start) * i // max(2, parts)
        place = bisect_left(allowed, ideal)
        chosen.add(min(allowed[max(0, place - 1) : place + 1], key=lambda point: abs(point - ideal)))
    return sorted(chosen)


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
