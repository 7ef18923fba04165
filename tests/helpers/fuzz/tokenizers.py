"""Tokenizers that fight back: published ones with components, ids, patterns, values and bytes changed."""

import copy
import json
import random
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.tokens import tokenize
from nlp_transfer.models.verification.model_files import load_tokenizer
from nlp_transfer.models.verification.tokenizer_fields import COMPONENTS, LISTS, MODELS
from nlp_transfer.models.verification.tokenizer_file import max_token_id
from nlp_transfer.utils.errors import converted
from tests.helpers.fuzz.cases import Case, ViolationError, mutate, odd_text
from tests.helpers.fuzz.settings import value as odd_value
from tests.helpers.tokenizer_documents import PUBLISHED, SKELETONS, added, precompiled, sentencepiece_model

TEXTS = ["a b", "ab " * 333, "a" * 1000, "b" * 999 + "!", " \n" * 400, "aé漢ﷺİ🎉\u0301" * 100, "<s> a </s>[CLS]" * 9, ""]
MOST_TOKENS = 64 * 8  # for a character
ATOMS = [
    "a", "b", ".", r"\w", r"\s", " ", "[ab]", "[^a]", "(?:a|b)", "(?:ab|a)", "(?!a)", "(?=b)", r"\b", "$", "^", "(a+)", r"\p{L}",
]  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "content": ["", "a", "aa", "b", " ", "▁", "ﷺ", "x" * 40], "prepend": ["▁", "", "ab"], "sep": [["</s>", 1]],
    "behavior": ["Isolated", "Removed", "Contiguous"], "cls": [["<s>", 0]], "replacement": ["▁", "a"],
    "prepend_scheme": ["always", "first", "never"], "delimiter": ["a", " "], "str_rep": ["▁"], "length": [1, 5, 0],
    "start": [0, 1], "stop": [0, 3], "unk_token": ["<unk>", "a", None], "unk_id": [0, 2, None, 99],
    "dropout": [None, 0.0, 0.5, 1.0, 7], "continuing_subword_prefix": ["##", "", None, "é"], "end_of_word_suffix": ["</w>", None],
    "max_input_chars_per_word": [100, 0, 1], "alpha": [None, 0.5], "nbest_size": [None, 2, -1, 0], "suffix": ["</w>"],
    "prefix": ["##"],
}  # fmt: skip
KINDS = ["unchanged", *["components"] * 4, "model", "ids", "values", "values", "bytes", "settings", "files"]
CLASSES = ["PreTrainedTokenizerFast", "PreTrainedTokenizerFast", "BertTokenizer", "T5Tokenizer", "GPT2Tokenizer"]
FILE_CLASSES = ["T5Tokenizer", "XLMRobertaTokenizer", "BertTokenizer", "GPT2Tokenizer", "M2M100Tokenizer"]
SETTINGS = [
    "model_max_length", "padding_side", "pad_token", "added_tokens_decoder", "model_input_names", "extra_special_tokens",
    "cls_token",
]  # fmt: skip
QUANTIFIERS = ["", "", "?", "*", "+", "+", "{1,3}", "{2,}", "++", "+?", "{0,99}"]


def pattern(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(list(PUBLISHED.values()))

    def alternative() -> str:
        return "".join(rng.choice(ATOMS) + rng.choice(QUANTIFIERS) for _ in range(rng.randint(1, 4)))

    found = "|".join(alternative() for _ in range(rng.randint(1, 4)))
    return f"({found})+" if rng.random() < 0.1 else found


def field(rng: random.Random, name: str) -> Any:
    """A value that a field may have, mostly."""
    if rng.random() < 0.05:
        return odd_value(rng)
    if name == "pattern":
        return {"Regex": pattern(rng)} if rng.random() < 0.6 else {"String": rng.choice(["a", " ", "ab", "", "\n", "é"])}
    if name == "precompiled_charsmap":
        table = precompiled()["precompiled_charsmap"]
        at = rng.randrange(len(table)) if rng.random() < 0.6 else len(table)
        return table[:at] + rng.choice(["", "AAAA", "////"]) + table[at + 4 :]
    return rng.choice(VALUES.get(name, [True, False]))


def component(rng: random.Random, section: str, depth: int = 0) -> Any:
    if depth < 4 and rng.random() < 0.35:
        parts = [component(rng, section, depth + 1) for _ in range(rng.choice([0, 1, 2, 3, 8]))]
        return {"type": "Sequence", LISTS[section]: parts * rng.choice([1, 1, 1, 10 if len(str(parts)) < 2000 else 1])}
    kind = rng.choice(list(COMPONENTS[rng.choice([section] * 20 + list(LISTS))]))
    known = COMPONENTS[section].get(kind, {})
    if kind == "TemplateProcessing":
        found = copy.deepcopy(SKELETONS[rng.choice(["BERT", "XLM-R", "T5"])]()["post_processor"])
        return spoil(rng, found) if rng.random() < 0.3 else found
    return {"type": kind} | {name: field(rng, name) for name in known if rng.random() < 0.95}


def spoil(rng: random.Random, document: Any) -> Any:
    """Replace, remove or repeat something at a random place."""
    places: list[tuple[Any, Any]] = []
    rest = [document]
    while rest:
        inner = rest.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else []
        places += [(inner, key) for key in keys]
        rest += [inner[key] for key in keys]
    for inner, key in rng.choices(places, k=rng.randint(1, 3)) if places else []:
        what = rng.randrange(5)
        if isinstance(inner, list) and key >= len(inner):
            continue
        if what == 0:
            inner.pop(key, None) if isinstance(inner, dict) else inner.pop(key)
        elif what == 1 and isinstance(inner, list):
            inner[key:key] = [copy.deepcopy(inner[key])] * rng.choice([1, 5, 100])
        elif what == 2 and isinstance(inner, dict):
            inner[odd_text(rng, 2)] = odd_value(rng)
        elif what == 3:
            inner[key] = rng.choice([-1, 0, 1, 2, 7, 4000, 2**31, 2**32, 10**9, 2**64, 1.5])
        else:
            inner[key] = odd_value(rng)
    return document


def make(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(list(SKELETONS))
    document = copy.deepcopy(SKELETONS[name]())  # its parts are shared
    kind = rng.choice(
        ["unchanged", "components", "components", "components", "model", "ids", "values", "values", "bytes", "settings", "files"]
    )
    path = folder / "tokenizer.json"
    if kind == "components":
        for section in rng.sample(list(LISTS), rng.randint(1, 3)):
            document[section] = component(rng, section)
    elif kind == "model":
        model = document["model"]
        fields = MODELS[rng.choice(list(MODELS))] if rng.random() < 0.2 else MODELS.get(model.get("type", ""), {})
        names = [name for name in fields if name not in ("vocab", "merges") and rng.random() < 0.5]
        model |= {name: field(rng, name) for name in names}
        if rng.random() < 0.3:
            model["merges"] = rng.choices(["a b", "b a", "ab a", ["a", "b"], "a", "  ", "é b"], k=rng.randint(0, 4))
    elif kind == "ids":
        tokens = [odd_text(rng, 2) for _ in range(rng.choice([1, 3, 40]))]
        flags = {name: rng.random() < 0.5 for name in ("normalized", "special", "lstrip", "single_word")}
        document["added_tokens"] = added(*tokens, first=rng.choice([0, 3, 5, 900, 10**9]), **flags)
        if rng.random() < 0.5 and isinstance(document["model"]["vocab"], dict):
            ids = rng.choices([-1, 0, 5, 6, 7, 900, 5000, 2**32, 1.5], k=rng.randint(1, 3))
            document["model"]["vocab"] |= {odd_text(rng, 2): i for i in ids}
    elif kind == "values":
        document = spoil(rng, document)
    content = json.dumps(document).encode()
    if kind == "bytes":
        content = mutate(rng, content)
    settings: dict[str, Any] = {"tokenizer_class": rng.choice(FILE_CLASSES if kind == "files" else CLASSES)}
    if kind == "settings":
        settings |= {name: odd_value(rng) for name in rng.sample(SETTINGS, rng.randint(1, 3))}
    if kind == "files":
        vocabulary = json.dumps({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5}).encode()
        for file, whole in {
            "spiece.model": sentencepiece_model(), "sentencepiece.bpe.model": sentencepiece_model(), "vocab.json": vocabulary,
            "merges.txt": b"#version: 0.2\na b\n", "vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##b\n",
            "added_tokens.json": b'{"<x>": 60}', "special_tokens_map.json": b'{"pad_token": "<pad>"}',
        }.items():  # fmt: skip
            (folder / file).write_bytes(mutate(rng, whole) if rng.random() < 0.3 else whole)
    else:
        path.write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    def run() -> None:
        tokenizer = load_tokenizer(ModelSource(str(folder), str(folder)))
        columns, _ = tokenize(tokenizer, [TEXTS], ["input_ids"], 10**6)
        rows = [columns["input_ids"][i] for i in range(len(TEXTS))]
        used = max([len(tokenizer), *tokenizer.get_vocab().values()])
        if not tokenizer.is_fast:  # M2M100 has ids for languages besides its vocabulary
            used = max_token_id(used)
        if used > 2 * max_token_id(len(tokenizer)) or any(not 0 <= i <= used for row in rows for i in row):
            raise ViolationError(f"ids up to {max(i for row in rows for i in row)} and {used} with {len(tokenizer)} tokens")
        for text, row in zip(TEXTS, rows, strict=True):
            if len(row) > MOST_TOKENS * (len(text) + 64):
                raise ViolationError(f"{len(row)} tokens of {len(text)} characters")
        with converted(f"the tokenizer in {folder}"):
            tokenizer.batch_decode(rows)
        if kind == "unchanged" and settings["tokenizer_class"] == "PreTrainedTokenizerFast":
            right = PreTrainedTokenizerFast(tokenizer_file=str(path))(TEXTS)["input_ids"]
            if rows != right:
                raise ViolationError("an unchanged tokenizer gives other ids")

    return Case(kind, run, (str(folder),))
