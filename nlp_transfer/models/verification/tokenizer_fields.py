"""The allowed components, fields and values of a tokenizer.json. All others are refused or dropped.

Each allowed component runs in bounded time and memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_TOKENS = 2**21
LONGEST_TOKEN = 1024  # characters
MAX_POSITIONS = 2**24  # maximum length of truncation or padding


class Field(NamedTuple):
    """The allowed values of a field: `allowed` describes them in messages, and `fits` tests a value."""

    allowed: str
    fits: Callable[[Any], bool]

    def or_null(self) -> "Field":
        """Return the field with null as an additional allowed value."""
        return Field(f"{self.allowed} or null", lambda value: value is None or self.fits(value))


def number(minimum: float, maximum: float) -> Field:
    """Allow integers in a range."""
    return Field(
        f"an integer from {minimum:,} to {maximum:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum,
    )


def text(maximum: int, minimum: int = 0) -> Field:
    """Allow text of limited length."""
    return Field(
        f"{minimum} to {maximum:,} characters", lambda value: isinstance(value, str) and minimum <= len(value) <= maximum
    )


def one_of(*names: str) -> Field:
    """Allow only these words."""
    return Field(", ".join(names), lambda value: isinstance(value, str) and value in names)


FLAG = Field("true or false", lambda value: isinstance(value, bool))
SHARE = Field("0 to 1", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1)
SHORT, CHARACTER, TOKEN = text(64), text(1, 1), text(LONGEST_TOKEN)
ID, TYPE, LENGTH = number(0, MAX_TOKENS), number(0, 255), number(0, MAX_POSITIONS)
PATTERN = Field('{"String": ...} or {"Regex": ...}', lambda value: isinstance(value, dict) and len(value) == 1)
ANY = Field("anything", lambda value: True)  # checked elsewhere
SIDE = one_of("Left", "Right")
TOKEN_AND_ID = Field("a token and its id", lambda v: isinstance(v, list) and len(v) == 2 and TOKEN.fits(v[0]) and ID.fits(v[1]))
BEHAVIOR = one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
BYTE_LEVEL = {"add_prefix_space": FLAG, "trim_offsets": FLAG, "use_regex": FLAG}
METASPACE = {
    "replacement": CHARACTER, "prepend_scheme": one_of("first", "never", "always"), "split": FLAG, "add_prefix_space": FLAG,
    "str_rep": CHARACTER,
}  # fmt: skip
REPLACE = {"pattern": PATTERN, "content": text(LONGEST_TOKEN)}
PROCESSING = {"sep": TOKEN_AND_ID, "cls": TOKEN_AND_ID}
# The components of each section, and their fields.
COMPONENTS: dict[str, dict[str, dict[str, Field]]] = {
    "normalizer": {
        "BertNormalizer": {
            "clean_text": FLAG, "handle_chinese_chars": FLAG, "strip_accents": FLAG.or_null(), "lowercase": FLAG,
        },
        "ByteLevel": {}, "Lowercase": {}, "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {}, "Nmt": {}, "StripAccents": {},
        "Precompiled": {"precompiled_charsmap": text(2**21).or_null()},
        "Prepend": {"prepend": SHORT},
        "Replace": REPLACE,
        "Strip": {"strip_left": FLAG, "strip_right": FLAG},
    },
    "pre_tokenizer": {
        "BertPreTokenizer": {}, "UnicodeScripts": {}, "Whitespace": {}, "WhitespaceSplit": {},
        "ByteLevel": BYTE_LEVEL,
        "CharDelimiterSplit": {"delimiter": CHARACTER},
        "Digits": {"individual_digits": FLAG},
        "FixedLength": {"length": number(1, 2**31)},
        "Metaspace": METASPACE,
        "Punctuation": {"behavior": BEHAVIOR},
        "Split": {"pattern": PATTERN, "behavior": BEHAVIOR, "invert": FLAG},
    },
    "post_processor": {
        "BertProcessing": PROCESSING,
        "RobertaProcessing": PROCESSING | {"trim_offsets": FLAG, "add_prefix_space": FLAG},
        "ByteLevel": BYTE_LEVEL,
        "TemplateProcessing": {"single": ANY, "pair": ANY, "special_tokens": ANY},
    },
    "decoder": {
        "BPEDecoder": {"suffix": SHORT},
        "ByteFallback": {}, "Fuse": {},
        "ByteLevel": BYTE_LEVEL,
        "CTC": {"pad_token": TOKEN, "word_delimiter_token": TOKEN, "cleanup": FLAG},
        "Metaspace": METASPACE,
        "Replace": REPLACE,
        "Strip": {"content": CHARACTER, "start": number(0, 100), "stop": number(0, 100)},
        "WordPiece": {"prefix": SHORT, "cleanup": FLAG},
    },
}  # fmt: skip
LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors", "decoder": "decoders"}
MODELS: dict[str, dict[str, Field]] = {
    "BPE": {
        "dropout": SHARE.or_null(), "unk_token": TOKEN.or_null(), "continuing_subword_prefix": SHORT.or_null(),
        "end_of_word_suffix": SHORT.or_null(), "fuse_unk": FLAG, "byte_fallback": FLAG, "ignore_merges": FLAG, "vocab": ANY,
        "merges": ANY,
    },
    "Unigram": {
        "unk_id": ID.or_null(), "byte_fallback": FLAG, "vocab": ANY, "alpha": SHARE.or_null(),
        "nbest_size": number(-1, 512).or_null(),
    },
    "WordLevel": {"unk_token": TOKEN, "vocab": ANY},
    # Splitting a word takes time quadratic in its length, up to max_input_chars_per_word.
    "WordPiece": {
        "unk_token": TOKEN, "continuing_subword_prefix": SHORT, "max_input_chars_per_word": number(0, 500), "vocab": ANY,
    },
}  # fmt: skip
ADDED_TOKEN = {
    "id": ID, "content": TOKEN, "single_word": FLAG, "lstrip": FLAG, "rstrip": FLAG, "normalized": FLAG, "special": FLAG,
}  # fmt: skip
TRUNCATION = {
    "direction": SIDE, "max_length": LENGTH, "stride": LENGTH,
    "strategy": one_of("LongestFirst", "OnlyFirst", "OnlySecond"),
}  # fmt: skip
PADDING = {
    "direction": SIDE, "pad_to_multiple_of": number(1, MAX_POSITIONS).or_null(), "pad_id": ID, "pad_type_id": TYPE,
    "pad_token": TOKEN,
    "strategy": Field(
        '"BatchLongest" or {"Fixed": length}',
        lambda v: v == "BatchLongest" or (isinstance(v, dict) and [*v] == ["Fixed"] and LENGTH.fits(v["Fixed"])),
    ),
}  # fmt: skip
