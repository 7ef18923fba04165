"""Split texts that are longer than a model's training texts into pieces, and join the translations of the pieces.

Sentence splitting is implemented here since it must handle all scripts, bound the tokens of each piece, and run in linear time.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import regex

Span = tuple[int, int]
CountTokens = Callable[[Sequence[str]], list[int]]

# Scripts without spaces between words. Southeast Asian scripts have spaces between sentences, East Asian scripts do not.
EAST = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\u3001-\u303f\u30fb\u30fc"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uff9e\uff9f"
)
SOUTHEAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
SPACELESS = EAST + SOUTHEAST
# Scripts with spaces between words; a change from one script to another also separates words.
SPACED = (
    "Latin Greek Cyrillic Armenian Georgian Hebrew Arabic Syriac Thaana Nko Devanagari Bengali Gurmukhi Gujarati Oriya Tamil "
    "Telugu Kannada Malayalam Sinhala Hangul Ethiopic Cherokee Mongolian Tifinagh Katakana"
).split()
WHITE = r"\s\x1c-\x1f"  # the characters that `str.strip` removes
GLUE = r"\u00a0\u2007\u202f"  # non-breaking spaces: `2 000`, `M. Dupont`
LINE_END = "\r\n\u2028\u2029"

# The end of a sentence: an end mark with closing quotes before a space (not required in scripts without spaces), or a line end.
# Possessive quantifiers (++) prevent backtracking, so a megabyte of dots takes no longer than a megabyte of words.
SENTENCE_END = regex.compile(
    rf"(?<![.!?…؟۔।॥።၊။។])[.!?…؟۔।॥።။។]++[\"'”’»)\]]*+(?=(?![{GLUE}])[{WHITE}])"
    rf"|(?<![。！？｡])[。！？｡]++[\p{{Pe}}\p{{Pf}}]*+(?![，、；：])"
    rf"|(?<=[{EAST}])[.!?]++[”’)]*+(?=[{EAST}])"
    rf"|[{LINE_END}]+"
)
ENDED = regex.compile(r"[.!?…؟۔।॥።။។。！？｡][\p{Pe}\p{Pf}\"']*$")
# The dots of `J. R. R. Tolkien`, `13. Mai` and common abbreviations do not end a sentence.
_ABBREVIATIONS = (
    "Mr Mrs Ms Dr Prof St Jr Sr Sra Mme Mlle Hr Fr No Nr Fig Art Abs Vol pp vs approx ca bzw e.g i.e z.B d.h u.a Inc Ltd Corp"
)
ABBREVIATED = regex.compile(rf"(?<![\w.])(?:\w|\d{{1,2}}|{'|'.join(map(regex.escape, _ABBREVIATIONS.split()))})\.$")
WORD_CHARACTER = regex.compile(r"\w")
SPACE = regex.compile(rf"[{WHITE}]*")
GLUED = regex.compile(rf"[{GLUE}]+")
CLAUSE_END = tuple(",;:—–،؛，、；：.!?…")
# Preferred positions for splitting a sentence: at spaces, and after commas without a space, except between digits.
CLAUSE = regex.compile(
    rf"(?P<gap>[{WHITE}]++)|(?!(?<=\p{{Nd}})[，：](?=\p{{Nd}}))[，、；：]++[\p{{Pe}}\p{{Pf}}。！？｡，、；：]*+|(?<=[{EAST}])[,;:]++(?=[{EAST}])"
)

# Units for splitting text without spaces, from the largest to the smallest:
# 1. characters of scripts without spaces (with marks that must not begin or end a line), and runs of other characters (`iPhone`,
#    `3.14`, a URL);
# 2. the same without the marks, for a word that fits only without those after it;
# 3. words in one script, and numbers;
# 4. grapheme clusters (accents, emoji sequences, flags);
# 5. code points.
_OPEN = r"[\p{Ps}\p{Pi}\"'¿¡#＃$€£¥＄￥]"
_CLOSE = r"[\p{Pe}\p{Pf}。、，．：；！？｡…‥・.,:;!?%％‰℃°～〜ー々〻ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶฯๆໆ។-៖၊။]"
_RUN = rf"(?:(?!{_OPEN}{{1,4}}+[{SPACELESS}])(?![{SPACELESS}])(?:[^{WHITE}]|[{GLUE}])|(?<=\p{{Nd}})[，．：／](?=\p{{Nd}}))++"
_CORE = rf"(?:[\p{{Katakana}}ー・ｰﾞﾟ]++|[\u0e40-\u0e44\u0ec0-\u0ec4]?+(?=[{SPACELESS}])\X|{_RUN}|.)"
_UNIT = rf"{_OPEN}*+{_CORE}{_CLOSE}*+"
_LETTERS = "|".join(rf"\p{{{script}}}(?:['’]?[\p{{{script}}}\p{{M}}ー])*+" for script in SPACED)
LEVELS = [
    regex.compile(rf"{_UNIT}(?:[\"']++(?:{_UNIT})?+)*+|.", regex.DOTALL),
    regex.compile(_CORE, regex.DOTALL),
    regex.compile(rf"\p{{Nd}}++(?:[.,'’٫٬，．：:]\p{{Nd}}++)*+|{_LETTERS}|\X"),
    regex.compile(r"\X"),
    regex.compile(r".", regex.DOTALL),
]

# The kind of script of the first or last letter of a text; it determines the space between two texts.
_SCRIPT = rf"(?P<east>[{EAST}])|(?P<southeast>[{SOUTHEAST}])|(?P<spaced>[\p{{L}}\p{{N}}])"
FIRST, LAST = regex.compile(_SCRIPT), regex.compile(rf"(?r){_SCRIPT}")
WORDS = {  # for each kind of script, a pattern of its characters or words, and the average number of matches in a word
    "east": (regex.compile(rf"[{EAST}]"), 2),
    "southeast": (regex.compile(rf"[{SOUTHEAST}]"), 4),
    "spaced": (regex.compile(rf"(?:(?![{SPACELESS}])[\p{{L}}\p{{M}}])++"), 1),
}


def split_text(text: str, limit: int, count_tokens: CountTokens) -> list[tuple[str, str]]:
    """Split a text into pieces of at most `limit` tokens.

    A piece is a sentence if possible, else a sequence of words, preferably up to a comma. In scripts without spaces it is a
    sequence of characters, but numbers and words of other scripts are not split. Only words of more than `limit` tokens are split
    between characters, and a code point of more than `limit` tokens is never split. Sentences are not combined, since models
    trained on single sentences translate single sentences best.

    Args:
        count_tokens: a function that returns the number of tokens in each text, including special tokens. It is called a few
            times, with many texts.

    Returns:
        Each piece, with the white space between it and the next one.
    """
    if count_tokens([text])[0] <= limit:
        return [(text, "")]
    sentences = list(_sentences(text))
    spans: list[Span] = []
    for (start, end), tokens in zip(sentences, count_tokens([text[start:end] for start, end in sentences]), strict=True):
        spans += [(start, end)] if tokens <= limit else _split_sentence(text, start, end, limit, count_tokens)
    spans = [(start, end) for start, end in (_stripped(text, *span) for span in spans) if start < end]
    starts = [start for start, _ in spans[1:]] + [spans[-1][1]] if spans else []
    return [(text[start:end], text[end:after]) for (start, end), after in zip(spans, starts, strict=True)]


def join_pieces(pieces: Sequence[tuple[str, str]], translations: Sequence[str]) -> str:
    """Join the translations of a text's pieces with the spacing of their language.

    Line ends of the source are preserved. On one line, Chinese and Japanese pieces are joined without a space. Thai, Lao, Khmer
    and Burmese pieces get a space between sentences. Pieces in other languages get the white space of the source, or a space if
    the source has none. Pieces of one long word, such as a URL, are joined without a space.

    Args:
        pieces: the result of `split_text`.
        translations: the translation of each piece.
    """
    joined, previous = [translations[0]], translations[0]
    main_script = _main_script(translations)
    for (piece, gap), (next_piece, _), translation in zip(pieces, pieces[1:], translations[1:], strict=False):
        if any(mark in gap for mark in LINE_END):
            joined.append(gap)
        elif previous and translation:
            joined.append(_space_between(piece, gap, next_piece, previous, translation, main_script))
        joined.append(translation)
        previous = translation or previous
    return "".join(joined)


def _space_between(piece: str, gap: str, next_piece: str, left: str, right: str, main_script: str) -> str:
    """Return the white space between two translations on one line."""
    source_scripts = {_script(LAST, piece), _script(FIRST, next_piece)}
    if not gap and source_scripts == {"spaced"}:
        return ""
    scripts = {_script(LAST, left), _script(FIRST, right)}
    script = scripts.pop() if len(scripts) == 1 else main_script
    if script == "east":
        return ""
    if script == "southeast":
        return " " if ENDED.search(piece) or (gap and "southeast" in source_scripts) else ""
    return gap if gap and source_scripts == {"spaced"} and "\u3000" not in gap else " "


def _script(pattern: "regex.Pattern[str]", text: str) -> str:
    match = pattern.search(text)
    return str(match.lastgroup) if match else "spaced"


def _main_script(texts: Sequence[str]) -> str:
    """Return the kind of script that most words of the texts have."""
    return max(WORDS, key=lambda name: sum(len(WORDS[name][0].findall(text)) for text in texts) / WORDS[name][1])


def _sentences(text: str) -> Iterator[Span]:
    """Yield the spans of sentences; each contains a word."""
    cased = text != text.lower()
    start = _after_space(text, 0)
    first_word = _next_word(text, start)
    for match in SENTENCE_END.finditer(text, start):
        end = match.end()
        following = _after_space(text, end)
        if text[end - 1] not in LINE_END and following > end:
            continues = cased and text[following : following + 1].islower()  # `e.g. that`, `"Stop!" he said`
            if continues or ABBREVIATED.search(text, max(start, end - 8), end):
                continue
        if first_word < end:  # `. . .` are not three sentences
            yield _stripped(text, start, end)
            start, first_word = following, _next_word(text, following)
    yield _stripped(text, start, len(text))


def _next_word(text: str, start: int) -> int:
    match = WORD_CHARACTER.search(text, start)
    return match.start() if match else len(text)


def _after_space(text: str, start: int) -> int:
    match = SPACE.match(text, start)
    return match.end() if match else start


def _stripped(text: str, start: int, end: int) -> Span:
    """Return a span without the white space at its ends."""
    end = start + len(text[start:end].rstrip())
    return min(_after_space(text, start), end), end


def _split_sentence(text: str, start: int, end: int, limit: int, count_tokens: CountTokens) -> list[Span]:
    """Split a sentence of more than `limit` tokens into spans of at most `limit` tokens."""
    special = count_tokens([""])[0]
    room = max(1, limit - special)
    atoms = _atoms(text, list(_words(text, start, end)), room, special, count_tokens)
    fitting: list[Span] = []
    remaining = list(_pack(text, atoms, room))
    while remaining:  # a group may have a few more tokens than the sum of its words
        counts = count_tokens([text[group[0][0] : group[-1][1]] for group in remaining])
        too_long = []
        for group, count in zip(remaining, counts, strict=True):
            middle = len(group) // 2
            if count <= limit or not middle:
                fitting.append((group[0][0], group[-1][1]))
            else:
                too_long += [group[:middle], group[middle:]]
        remaining = too_long
    return sorted(fitting)


def _words(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the spans of words, or in scripts without spaces, of clauses between commas."""
    for match in CLAUSE.finditer(text, start, end):
        gap = match["gap"]
        if gap and GLUED.fullmatch(gap):  # only non-breaking spaces
            continue
        word_end = match.start() if gap else match.end()
        if word_end > start:
            yield start, word_end
        start = match.end()
    if end > start:
        yield start, end


Atom = tuple[int, int, int]  # start, end, tokens


def _atoms(text: str, words: list[Span], room: int, special: int, count_tokens: CountTokens) -> list[Atom]:
    """Return words with their token counts. Words of more than `room` tokens are split until they fit or are one code point."""
    atoms: list[Atom] = []
    remaining = words
    while remaining:
        distinct = list({text[start:end]: None for start, end in remaining})
        tokens = dict(zip(distinct, count_tokens(distinct), strict=True))
        too_long: list[Span] = []
        for start, end in remaining:
            count = tokens[text[start:end]] - special
            if count <= room or end - start == 1:
                atoms.append((start, end, count))
            else:
                too_long += pairwise([start, *_split_points(text, start, end, -(-count // room)), end])
        remaining = too_long
    return sorted(atoms)


def _split_points(text: str, start: int, end: int, count: int) -> list[int]:
    """Return the positions that split a span of at least two code points into about `count` parts of similar size."""
    boundaries: list[int] = []
    for level in LEVELS:
        boundaries = [match.end() for match in level.finditer(text, start, end)][:-1]
        if boundaries:
            break
    points: set[int] = set()
    for i in range(1, max(2, count)):
        ideal = start + (end - start) * i // max(2, count)
        index = bisect_left(boundaries, ideal)
        points.add(min(boundaries[max(0, index - 1) : index + 1], key=lambda point: abs(point - ideal)))
    return sorted(points)


def _pack(text: str, atoms: list[Atom], room: int) -> Iterator[list[Atom]]:
    """Yield groups of atoms of at most `room` tokens together.

    A group contains as many atoms as fit, but ends earlier if a clause ends in its second half.
    """
    packed: list[Atom] = []
    size = 0
    for atom in atoms:
        while packed and size + atom[2] > room:
            ends = [i for i, (_, end, _) in enumerate(packed, start=1) if i > len(packed) // 2 and text[end - 1] in CLAUSE_END]
            count = ends[-1] if ends else len(packed)
            yield packed[:count]
            packed = packed[count:]
            size = sum(tokens for _, _, tokens in packed)
        packed.append(atom)
        size += atom[2]
    if packed:
        yield packed
