"""What published tokenizers are made of: their regular expressions, and their tokenizer.json with a tiny vocabulary."""

import base64
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import sentencepiece

from nlp_transfer.models.verification.sentencepiece_file import fields
from tests.helpers.models import WORDS

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "Llama-3": (
        ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "Qwen2": ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": O200K,
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "DeepSeek-V3": (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "DeepSeek-V3, Chinese": "[一-龥぀-ゟ゠-ヿ]+",
    "DeepSeek-LLM": r"\s?\p{L}+",
    "BLOOM": " ?[^(\\s|[.,!?…。，、।۔،])]+",
    "Kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+|[^\r\n\p{L}\p{N}]?[\p{Lu}&&[^\p{Han}]]+",
    "XLM-R": " {2,}",
    "StarCoder": r"\p{N}{1,3}",
    "Falcon": "[0-9][0-9][0-9]",
    "words": r"\w+|[^\w\s]+",
    "numbers": r"\d+(?:\.\d+)?",
    "all in a group": r"(?:'s|'t| ?\w+|\s+(?!\S)|\s+)",
}  # fmt: skip


@cache
def sentencepiece_model(rule: str = "nmt_nfkc") -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 9), model_writer=model, model_type="unigram", vocab_size=60,
        hard_vocab_limit=False, normalization_rule_name=rule, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@cache
def charsmap() -> bytes:
    """What such a model's normalizer writes."""
    specification = next(value for number, value in fields(sentencepiece_model()) if number == 3)
    assert isinstance(specification, bytes)
    table = next(value for number, value in fields(specification) if number == 2)
    assert isinstance(table, bytes)
    return table


def precompiled() -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()).decode()}


def sequence(kind: str, *parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(parts)}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def template(start: str, end: str, middle: int = 1, types: int = 1) -> dict[str, Any]:
    def special(token: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": kind}}

    def text(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [special(start, 0), text("A", 0), special(end, 0)]
    return {
        "type": "TemplateProcessing", "single": single,
        "pair": [*single, *[special(end, 0)] * (middle - 1), text("B", types), special(end, types)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in enumerate((start, end))},
    }  # fmt: skip


BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
OLD_METASPACE = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORD_PIECES = {
    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    "vocab": {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "##a": 4},
}  # fmt: skip
PIECES = {"type": "Unigram", "unk_id": 2, "vocab": [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0], ["▁a", -1.5], ["a", -2.0]]}
PAIRS = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, "merges": ["a b"],
}  # fmt: skip
WORD_PIECE_DECODER = {"type": "WordPiece", "prefix": "##", "cleanup": True}


def document(model: Any, normalizer: Any = None, pre: Any = None, post: Any = None, decoder: Any = None, **more: Any) -> Any:
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre,
        "post_processor": post, "decoder": decoder, "model": model, **more,
    }  # fmt: skip


def added(*contents: str, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return [{"id": first + i, "content": content, **flags, **more} for i, content in enumerate(contents)]


XLM_R_TEMPLATE = template("<s>", "</s>", middle=2, types=0)
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
END = {"SpecialToken": {"id": "</s>", "type_id": 0}}
T5_TEMPLATE = {
    "type": "TemplateProcessing", "single": [A, END], "pair": [A, END, B, END],
    "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
}  # fmt: skip
SKELETONS: dict[str, Callable[[], dict[str, Any]]] = {
    "BERT": lambda: document(
        WORD_PIECES, BERT, {"type": "BertPreTokenizer"}, template("[CLS]", "[SEP]"), WORD_PIECE_DECODER,
        added_tokens=added("[CLS]", "[SEP]", "[UNK]"),
        truncation={"max_length": 128, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    ),
    "ELECTRA, old": lambda: document(
        {name: value for name, value in WORD_PIECES.items() if name != "type"}, BERT, {"type": "BertPreTokenizer"},
        {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]}, WORD_PIECE_DECODER,
    ),
    "RoBERTa": lambda: document(
        PAIRS, None, BYTES,
        {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False},
        BYTES, added_tokens=added("<mask>", first=5, lstrip=True),
    ),
    "XLM-R": lambda: document(
        PIECES, sequence("normalizers", precompiled(), replace(" {2,}", " ", "Regex")),
        sequence("pretokenizers", {"type": "WhitespaceSplit"}, METASPACE), XLM_R_TEMPLATE, METASPACE,
    ),
    "XLM-R, old": lambda: document(
        PIECES, precompiled(), sequence("pretokenizers", {"type": "WhitespaceSplit"}, OLD_METASPACE), XLM_R_TEMPLATE,
        OLD_METASPACE,
    ),
    "CamemBERT": lambda: document(
        PIECES, sequence("normalizers", replace("\n", " "), precompiled(), replace(" {2,}", " ", "Regex")), METASPACE,
        XLM_R_TEMPLATE, METASPACE, added_tokens=added("<s>NOTUSED", "<pad>", first=5),
    ),
    "DeBERTa-v3": lambda: document(
        PIECES | {"byte_fallback": False},
        sequence(
            "normalizers", STRIP, precompiled(), replace(" {2,}", " ", "Regex")
        ),
        sequence("pretokenizers", METASPACE), template("<s>", "</s>"), METASPACE,
    ),
    "ALBERT": lambda: document(
        PIECES,
        sequence(
            "normalizers", replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"},
            {"type": "Lowercase"}, precompiled(), replace(" {2,}", " ", "Regex"),
        ),
        METASPACE, template("<s>", "</s>"), METASPACE,
    ),
    "T5": lambda: document(
        PIECES, precompiled(), sequence("pretokenizers", {"type": "WhitespaceSplit"}, METASPACE),
        T5_TEMPLATE,
        METASPACE, added_tokens=added(*(f"<extra_id_{i}>" for i in range(100)), first=5),
    ),
    "mBART": lambda: document(
        PIECES, sequence("normalizers", precompiled(), replace(" {2,}", " ", "Regex")),
        sequence("pretokenizers", {"type": "WhitespaceSplit"}, METASPACE), XLM_R_TEMPLATE, METASPACE,
        added_tokens=added("ar_AR", "cs_CZ", "de_DE", first=5),
    ),
    "ModernBERT": lambda: document(
        PAIRS | {"merges": [["a", "b"]]}, {"type": "NFC"}, BYTES, template("<s>", "</s>"), BYTES,
        added_tokens=added("|||IP_ADDRESS|||", " " * 24, first=5, normalized=True, special=False),
    ),
    "Llama-2": lambda: document(
        PAIRS | {"fuse_unk": True, "byte_fallback": True},
        sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        None, template("<s>", "</s>"),
        sequence(
            "decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
    ),
    "Llama-3": lambda: document(
        PAIRS | {"ignore_merges": True}, None,
        sequence(
            "pretokenizers",
            {"type": "Split", "pattern": {"Regex": PUBLISHED["Llama-3"]}, "behavior": "Isolated", "invert": False},
            BYTES | {"use_regex": False},
        ),
        sequence("processors", BYTES, template("<s>", "</s>")), BYTES,
    ),
    "Gemma": lambda: document(
        PAIRS, replace(" ", "▁"),
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        template("<s>", "</s>"), sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
    ),
    "Falcon": lambda: document(
        PAIRS, None,
        sequence(
            "pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, BYTES,
            {"type": "Digits", "individual_digits": False},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
        ),
        BYTES, BYTES,
    ),
    "German letters": lambda: document(
        WORD_PIECES,
        sequence("normalizers", *map(replace, "äöüÄÖÜß", ("ae", "oe", "ue", "Ae", "Oe", "Ue", "ss")), BERT),
        {"type": "BertPreTokenizer"}, template("[CLS]", "[SEP]"), WORD_PIECE_DECODER,
    ),
}  # fmt: skip
