"""Long texts in pieces: nothing is lost, everything fits, sentences stay whole where they can, and it takes no time."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nlp_transfer.models.seq2seq.long_texts import join_pieces, split_text

SPECIAL = 2  # tokens that every text has beside its own


class Counter:
    """Tokens of texts: one a word, one a character, or something between; and how much it was asked."""

    def __init__(self, token: str) -> None:
        self.token = re.compile(token, re.DOTALL)
        self.calls = self.characters = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.calls += 1
        self.characters += sum(map(len, texts))
        return [sum(1 for _ in self.token.finditer(text)) + SPECIAL for text in texts]


WORDS, CHARACTERS, PARTS = r"\S+", r"\S", r"\w{1,4}|[^\w\s]"


def cut(text: str, limit: int, token: str = WORDS) -> list[str]:
    return [piece for piece, _ in split_text(text, limit, Counter(token))]


def test_text_that_fits_is_not_split() -> None:
    assert split_text("One. Two.\nThree.", 5, Counter(WORDS)) == [("One. Two.\nThree.", "")]


def test_sentences_are_preferred() -> None:
    text = 'A dog ran. "Where to?" he asked!  The cat (it was red.) And then… Nothing'
    assert split_text(text, 7, Counter(WORDS)) == [
        ("A dog ran.", " "),
        ('"Where to?" he asked!', "  "),
        ("The cat (it was red.)", " "),
        ("And then…", " "),
        ("Nothing", ""),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\n\n \n", "\u2029"])
def test_line_ends_separate_sentences_and_are_restored(end: str) -> None:
    text = f"a heading{end}the first line of it{end}and another one"
    assert split_text(text, 7, Counter(WORDS)) == [("a heading", end), ("the first line of it", end), ("and another one", "")]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("我走了。他来了！？「好。」然后我们回家。", ["我走了。", "他来了！？", "「好。」", "然后我们回家。"]),
        ("مرحبا؟ كيف حالك اليوم۔ جيد", ["مرحبا؟", "كيف حالك اليوم۔", "جيد"]),
        ("वह गया। फिर वह सो गया॥ अब", ["वह गया।", "फिर वह सो गया॥", "अब"]),
    ],
)
def test_sentences_of_other_scripts(text: str, pieces: list[str]) -> None:
    assert cut(text, 16, CHARACTERS) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            "It is 3.14 or so, see a.b.c for more. Then it ends there",
            ["It is 3.14 or so, see a.b.c for more.", "Then it ends there"],
        ),
        (
            "Some of it, e.g. the dog, is here. The rest of it is not",
            ["Some of it, e.g. the dog, is here.", "The rest of it is not"],
        ),
        ("A book by J. R. R. Tolkien was there. And it was read", ["A book by J. R. R. Tolkien was there.", "And it was read"]),
        ("wait for it . . . . . now. here. it comes at last", ["wait for it .", ". . . . now.", "here.", "it comes at last"]),
    ],
)
def test_not_every_dot_ends_a_sentence(text: str, pieces: list[str]) -> None:
    assert cut(text, 11) == pieces


def test_long_sentences_are_split_at_commas_or_words() -> None:
    assert cut("one two three four five six seven eight", 5) == ["one two three", "four five six", "seven eight"]
    assert cut("one two three four, five six seven eight nine ten", 8) == ["one two three four,", "five six seven eight nine ten"]
    assert cut("one, two three four five six seven eight", 8) == ["one, two three four five six", "seven eight"]


def test_scripts_without_spaces_are_split_at_commas() -> None:
    assert cut("我们去商店，买了很多东西，回家", 10, CHARACTERS) == ["我们去商店，", "买了很多东西，", "回家"]
    pieces = cut("漢字" * 50, 12, CHARACTERS)
    assert "".join(pieces) == "漢字" * 50
    assert max(map(len, pieces)) <= 10
    assert len(pieces) <= 13


def test_grapheme_clusters_are_not_split() -> None:
    family, accent = "👨‍👩‍👧‍👦", "e\u0301\u0323"
    for mark in (family, accent, "👍🏽", "क्षि", "❤️"):
        pieces = cut(mark * 30, 10 + SPECIAL, r"(?s).")
        assert len(pieces) > 1
        assert "".join(pieces) == mark * 30
        assert all(not re.match("[\u0300-\u036f\u200d\ufe0f\U0001f3fb-\U0001f3ff]", piece) for piece in pieces)
        assert not any(piece.endswith("\u200d") for piece in pieces)


def test_long_runs_of_accents_are_split() -> None:
    pieces = cut("a" + "\u0301" * 1000, 12, r"(?s).")
    assert "".join(pieces) == "a" + "\u0301" * 1000
    assert max(map(len, pieces)) <= 10


def test_character_over_the_limit_is_not_split() -> None:
    assert cut("ab c", SPECIAL, CHARACTERS) == ["a", "b", "c"]


def test_groups_over_the_limit_are_split_again() -> None:
    def lengths(texts: Sequence[str]) -> list[int]:  # each space is a token as well
        return [len(text.split()) + text.count(" ") + SPECIAL for text in texts]

    pieces = [piece for piece, _ in split_text("a b c d e f g h i j", 7, lengths)]
    assert " ".join(pieces) == "a b c d e f g h i j"
    assert max(lengths(pieces)) <= 7
    assert len(pieces) < 10


TEXT = st.text(
    st.one_of(
        st.sampled_from(list("ab. ,!?\n\r\t\"'…。，！」 \u2028\u3000\u200d\u0301")), st.characters(exclude_categories=["Cs"])
    ),
    max_size=200,
)


@settings(max_examples=300, deadline=None)
@given(text=TEXT, limit=st.integers(SPECIAL + 1, 20), token=st.sampled_from([WORDS, CHARACTERS, PARTS]))
def test_pieces_contain_the_text_in_order(text: str, limit: int, token: str) -> None:
    lengths = Counter(token)
    pieces = split_text(text, limit, lengths)
    if lengths([text])[0] <= limit:
        assert pieces == [(text, "")]
        return
    assert "".join(piece + gap for piece, gap in pieces) == text.strip()
    assert all(piece and piece == piece.strip() and not gap.strip() for piece, gap in pieces)
    for piece, tokens in zip(pieces, lengths([piece for piece, _ in pieces]), strict=True):
        assert tokens <= limit or len(piece[0]) == 1


@settings(max_examples=200, deadline=None)
@given(text=TEXT, limit=st.integers(SPECIAL + 1, 12))
def test_unchanged_pieces_are_joined_to_the_text(text: str, limit: int) -> None:
    lengths = Counter(CHARACTERS)
    assume(lengths([text])[0] > limit)
    pieces = split_text(text, limit, lengths)
    joined = join_pieces(pieces, [piece for piece, _ in pieces])
    assert "".join(joined.split()) == "".join(text.split())
    line_ends = "[\r\n\u2028\u2029]"
    assert re.findall(line_ends, joined) == re.findall(line_ends, text.strip())


# Words that stand in Chinese and Japanese text without spaces around them.
FOREIGN = [
    "iPhone", "naïveté", "e\u0301te\u0301", "Привет", "Ελλάδα", "한국어를", "שלום", "مرحبا", "नमस्ते", "தமிழ்", "ქართული",
    "ÜBERGRÖSSE", "カタカナー", "ｉＰｈｏｎｅ", "3.14", "2,000", "1，234", "１２，３４５", "10:30", "50%", "user@mail.com", "C++",
    "U.S.", "don't", "\U00010414\U0001042f\U00010445", "👨‍👩‍👧‍👦", "👍🏽", "🇺🇦", "❤️", "邉\U000e0100", "が", "か\u3099",
]  # fmt: skip
CHINESE = ["我们", "昨天", "买了", "一部", "新的", "，", "。", "「好」", "“走”", "很", "！", "、"]
JAPANESE = ["私は", "きょう", "新しい", "を買った", "。", "、", "しかし", "「はい」", "とても", "人々"]


@settings(max_examples=300, deadline=None)
@given(
    words=st.one_of(
        *(
            st.lists(st.one_of(st.sampled_from(own), st.sampled_from(FOREIGN)), min_size=8, max_size=60)
            for own in (CHINESE, JAPANESE)
        )
    ),
    room=st.integers(16, 40),
)
@example(words=["我们", "我们", "我们", "user@mail.com", *"，，，，"], room=16)
@example(words=["iPhone", "我们", "한국어를", "user@mail.com", "，", "。", "，", "我们"], room=28)
def test_numbers_and_foreign_words_are_not_split(words: list[str], room: int) -> None:
    """Each code point is a token; the longest foreign word has 13."""
    own = {*CHINESE, *JAPANESE}
    separated = [words[0]]  # words of letters that touch would be one
    for before, word in pairwise(words):
        separated += [word] if before in own or word in own else ["的", word]
    text = "".join(separated)
    lengths = Counter(r"(?s).")
    pieces = [piece for piece, _ in split_text(text, room + SPECIAL, lengths)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= room
    ends = {sum(map(len, pieces[:i])) for i in range(1, len(pieces))}
    start = 0
    for word in separated:
        if word in FOREIGN:
            assert not ends & set(range(start + 1, start + len(word))), (word, pieces)
        start += len(word)
    most_marks = max(map(len, re.findall("[，。、！」”]+", text)), default=0)
    for left, right in pairwise(pieces):
        if most_marks <= room - 13:  # a word always fits with the marks after it
            assert right[0] not in "，。、！」”々ー\u3099", "these begin no line"
        assert left[-1] not in "「“", "these end none"


SCRIPTS = {
    "latin": "abcdefgħéß", "greek": "αβγδεζ", "cyrillic": "абвгдеё", "armenian": "աբգդե", "hebrew": "אבגדה", "arabic": "ابتثج",
    "devanagari": "कखगघ", "tamil": "கஙசஞ", "hangul": "가나다라", "georgian": "აბგდ", "ethiopic": "ሀለሐመ", "katakana": "アイウエオ",
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(sorted(SCRIPTS)).flatmap(lambda name: st.text(SCRIPTS[name], min_size=1, max_size=9)),
        min_size=2,
        max_size=40,
    ),
    st.sampled_from(["", "-", " ", "漢", "漢字、", "/", "…"]),
    st.integers(9, 25),
)
def test_words_that_fit_are_not_split(words: list[str], between: str, room: int) -> None:
    text = between.join(words)
    pieces = [piece for piece, _ in split_text(text, room + SPECIAL, Counter(r"(?s)."))]
    assert "".join("".join(pieces).split()) == "".join(text.split()), "nothing is lost or doubled"
    assert max(map(len, pieces)) <= room
    at = 0
    for left, right in pairwise(pieces):
        at = text.index(right, at + len(left)) if between == " " else at + len(left)
        before, after = (
            next((name for name, letters in SCRIPTS.items() if letter in letters), "") for letter in (left[-1], right[0])
        )
        if before and before == after and not text[at - 1].isspace():
            run = re.search(f"[{SCRIPTS[before]}]*$", text[:at]), re.match(f"[{SCRIPTS[before]}]*", text[at:])
            assert sum(len(part.group()) for part in run if part) > room, "a run of one script that is too long by itself"


def test_non_breaking_spaces() -> None:
    text = "Il y a 12\u202f000 habitants ici, et M.\u00a0Dupont en est. Où\u00a0? « Là\u00a0! »"
    pieces = cut(text, 8 + SPECIAL, r"\w+|[^\w\s]")
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for kept in ("12\u202f000", "M.\u00a0Dupont", "Où\u00a0?"):
        assert any(kept in piece for piece in pieces), kept


@pytest.mark.parametrize(
    ("room", "source", "answer", "joined"),
    [
        (13, "我用iPhone。他用Android。她不用。", "X.", "X. X. X."),  # a sentence that ends in another script
        (13, "これはiPhone。それはAndroid。", "X.", "X. X."),
        (7, "他说“好。”“走。”", "X.", "X. X."),
        (6, "他来了!我走了?好.", "X.", "X. X. X."),
        (3, "我们去商店买了很多东西然后", "x", "x x x x x"),  # within a sentence
        (13, "One is here. Two is there. And three.", "好。", "好。好。好。"),
        (13, "One is here. Two is there. And three.", "「はい。」", "「はい。」「はい。」「はい。」"),
        (13, "One is here.\nTwo is there.\n\nAnd three.", "好。", "好。\n好。\n\n好。"),
        (4, "我走了。\n\n他来了。", "X.", "X.\n\nX."),
        (4, "我走了。 他来了。", "好。", "好。好。"),
        (4, "我走了。\u3000他来了。", "X.", "X. X."),
        (13, "One is here. Two is there.", "예.", "예. 예."),  # Korean has spaces
        (4, "我走了。他来了。", "예.", "예. 예."),
        (5, "one two three four five", "字", "字字字字字"),  # words of a sentence that is too long
        (13, "One is here. Two is there.", "ไปแล้ว", "ไปแล้ว ไปแล้ว"),  # Thai has spaces between sentences
        (5, "seven eight nine", "ไป", "ไปไปไป"),  # and none within
        (4, "x" * 12, "yy", "yyyyyy"),  # parts of one word
    ],
)  # fmt: skip
def test_joining_uses_the_spacing_of_the_language(room: int, source: str, answer: str, joined: str) -> None:
    pieces = split_text(source, room + SPECIAL, Counter(CHARACTERS))
    assert join_pieces(pieces, [answer] * len(pieces)) == joined


def test_foreign_words_do_not_change_the_spacing() -> None:
    english = [("One is here.", " "), ("Two is there.", " "), ("Three.", "")]
    assert join_pieces(english, ["我用iPhone", "2024年3月。", "OK。"]) == "我用iPhone 2024年3月。OK。"
    assert join_pieces(english, ["我用iPhone", "在2024", "年。"]) == "我用iPhone在2024年。"
    assert (
        join_pieces(english, ["He is called 北京", "and she 上海.", "It is so."]) == "He is called 北京 and she 上海. It is so."
    )
    assert join_pieces(english, ["Yes.", "", "No."]) == "Yes. No.", "no space is doubled around a translation that is empty"
    assert join_pieces([("One.", "  "), ("Two.", "")], ["Ich gehe.", "Er kam."]) == "Ich gehe.  Er kam.", (
        "the source's own spaces stay"
    )
    assert join_pieces([("One.", " "), ("Two.", "")], ["", ""]) == ""


LONG = {
    "words": ("word " * 50_000, WORDS),
    "different words": (" ".join(map(str, range(40_000))), WORDS),
    "sentences": ("A dog runs. " * 20_000, WORDS),
    "one word": ("x" * 250_000, CHARACTERS),
    "no spaces": ("漢字。" * 80_000, CHARACTERS),
    "dots": ("." * 250_000, CHARACTERS),
    "dots and spaces": (". " * 120_000, CHARACTERS),
    "quotes": ('."' * 120_000, CHARACTERS),
    "spaces": ("a " + " " * 250_000 + "b" * 30, CHARACTERS),
    "line ends": ("a\n" * 100_000, CHARACTERS),
    "accents": ("e" + "\u0301" * 250_000, CHARACTERS),
    "commas": ("，" * 250_000, CHARACTERS),
}


@pytest.mark.parametrize("name", LONG)
def test_work_is_linear_in_the_text(name: str) -> None:
    """The tokenizer sees each character a few times, however long the text is; and nothing else takes its time squared."""
    text, token = LONG[name]
    lengths = Counter(token)
    pieces = split_text(text, 50, lengths)
    assert lengths.calls <= 20
    assert lengths.characters <= 10 * len(text)
    assert "".join(piece + gap for piece, gap in pieces) == text.strip()
    assert max(lengths([piece for piece, _ in pieces])) <= 50


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Mr. Smith met Dr. Jones. They talked.", ["Mr. Smith met Dr. Jones.", "They talked."]),
        ("Am 13. Mai kam er. Es war heiß.", ["Am 13. Mai kam er.", "Es war heiß."]),
        ("See Fig. 3 and No. 5. That is all.", ["See Fig. 3 and No. 5.", "That is all."]),
        (
            "He paid approx. 3.5 million. It was in 1999. Then he left.",
            ["He paid approx. 3.5 million.", "It was in 1999.", "Then he left."],
        ),
        ("J. R. R. Tolkien wrote it. So did C. S. Lewis.", ["J. R. R. Tolkien wrote it.", "So did C. S. Lewis."]),
    ],
)
def test_abbreviations_do_not_end_sentences(text: str, sentences: list[str]) -> None:
    limit = max(len(sentence.split()) for sentence in sentences) + SPECIAL
    assert [piece for piece, _ in split_text(text, limit, Counter(r"\S+"))] == sentences
