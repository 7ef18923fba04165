"""Tokenizer files: harmless ones pass as they are, and hostile ones are refused before a library reads them."""

import base64
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nlp_transfer import UserError
from nlp_transfer.data.tokens import tokenize
from nlp_transfer.models.seq2seq.target_tokenizers import train_tokenizer
from nlp_transfer.models.verification.reduced_configs import reduce_tokenizer
from nlp_transfer.models.verification.tokenizer_file import reduce_document
from nlp_transfer.models.verification.tokenizer_growth import growth
from nlp_transfer.models.verification.tokenizer_loading import check_loaded, reduce_tokenizer_file
from nlp_transfer.models.verification.untrusted_json import parse_limited
from tests.builders import edit, opened, refused
from tests.helpers.models import VOCABULARY
from tests.helpers.models import tokenizer as tiny_tokenizer
from tests.helpers.seq2seq_models import TOKENIZERS
from tests.helpers.tokenizer_documents import (
    BYTES,
    PAIRS,
    PIECES,
    SKELETONS,
    added,
    charsmap,
    document,
    precompiled,
    replace,
    sentencepiece_model,
    sequence,
)

pytestmark = pytest.mark.model


@pytest.mark.parametrize("name", SKELETONS)
def test_published_components_are_accepted_unchanged(name: str) -> None:
    good = SKELETONS[name]()
    assert reduce_document(copy.deepcopy(good)) == (good, [])
    assert Tokenizer.from_str(json.dumps(good)).encode("a b").ids or name == "Llama-3", "the library reads it"


@pytest.mark.parametrize("family", ["bert", "trained", *TOKENIZERS])
def test_saved_tokenizers_are_accepted_unchanged(family: str, tmp_path: Path) -> None:
    tokenizer = {"bert": lambda: tiny_tokenizer("bert"), "trained": lambda: train_tokenizer(["a cat", "ein Café …"])}.get(
        family, lambda: TOKENIZERS[family](tmp_path)
    )()
    tokenizer.save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        if path.name in ("tokenizer_config.json", "special_tokens_map.json"):
            reduce_tokenizer(json.loads(path.read_text()))
        else:
            assert reduce_tokenizer_file(path) is None, path
    if (path := tmp_path / "tokenizer.json").is_file():
        assert reduce_document(parse_limited(path, 2**26, strict=True))[0] == json.loads(path.read_text())
    check_loaded(tokenizer, family)


def changed(path: str, value: Any) -> Callable[[], dict[str, Any]]:
    """The BERT skeleton with one value changed; `path` has dots."""

    def make() -> dict[str, Any]:
        found = inner = copy.deepcopy(SKELETONS["BERT"]())
        *names, last = path.split(".")
        for name in names:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        inner[int(last) if isinstance(inner, list) else last] = value
        return found

    return make


def normalizers(*parts: Any) -> Callable[[], dict[str, Any]]:
    return changed("normalizer", sequence("normalizers", *parts))


def nested(levels: int) -> dict[str, Any]:
    return sequence("normalizers", nested(levels - 1)) if levels else {"type": "NFC"}


def damaged_charsmap() -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()[:-40_000]).decode()}


def writing(text: bytes) -> dict[str, str]:
    """A table that writes a text, whatever for."""
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap() + text + b"\0").decode()}


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "doubling": (normalizers(*[replace("a", "aa")] * 30), "normalizer"),
    "doubling by two": (normalizers(*[replace("a", "bb"), replace("b", "aa")] * 6), "normalizer"),
    "doubling by a pattern": (normalizers(*[replace(r"\w", "aa", "Regex")] * 9), "normalizer"),
    "inserting": (normalizers(*[replace("", "ab")] * 9), "normalizer"),
    "a long replacement": (normalizers(replace("a", "b" * 500)), "normalizer"),
    "bytes of bytes": (normalizers(*[{"type": "ByteLevel"}] * 9), "normalizer"),
    "bytes of bytes, later": (changed("pre_tokenizer", sequence("pretokenizers", *[BYTES] * 9)), "normalizer"),
    "one that decomposes": (normalizers(*[replace("ﷺ", "ﷺﷺ"), {"type": "NFKD"}, replace("ل", "ﷺ")] * 3), "normalizer"),
    "a damaged table": (changed("normalizer", damaged_charsmap()), "precompiled_charsmap"),
    "a table that writes a lot": (changed("normalizer", writing(b"x" * 5000)), "normalizer"),
    "backtracking": (normalizers(replace("(a+)+$", "", "Regex")), "normalizer.normalizers[0].pattern"),
    "an unknown component": (changed("normalizer.type", "Python"), "BertNormalizer"),
    "an unknown model": (changed("model.type", "Eval"), "WordPiece"),
    "no type": (changed("pre_tokenizer", {"code": "x"}), "pre_tokenizer.type"),
    "nesting": (changed("normalizer", nested(20)), "nested up to 5 times"),
    "very many components": (normalizers(*[{"type": "NFC"}] * 5000), "up to 64"),
    "a table for ids": (changed("model.vocab.a", 10**9), "1,000,000,000"),
    "ids with gaps": (changed("model.vocab.a", 5000), "5000"),
    "a negative id": (changed("model.vocab.a", -1), "-1"),
    "an id that is none": (changed("model.vocab.a", "3"), "model.vocab"),
    "an id of an added token": (changed("added_tokens.0.id", 10**9), "added_tokens[0].id"),
    "an id in a template": (changed("post_processor.special_tokens.[CLS].ids", [99]), "post_processor"),
    "many ids in a template": (changed("post_processor.special_tokens.[CLS].ids", [0] * 10**5), "post_processor"),
    "a text twice": (changed("post_processor.single", [{"Sequence": {"id": "A", "type_id": 0}}] * 2), "post_processor.single"),
    "long words": (changed("model.max_input_chars_per_word", 10**9), "max_input_chars_per_word"),
    "a long token": (changed("model.vocab", {"a" * 10**5: 0}), "model.vocab"),
    "a long added token": (changed("added_tokens.0.content", "a" * 10**5), "added_tokens[0].content"),
    "no pieces": (lambda: document(PIECES | {"vocab": []}), "model.vocab"),
    "an unknown piece": (lambda: document(PIECES | {"unk_id": 77}), "unk_id"),
    "merges": (lambda: document(PAIRS | {"merges": ["a b c"]}), "model.merges"),
    "no length": (changed("pre_tokenizer", {"type": "FixedLength", "length": 0}), "pre_tokenizer.length"),
    "padding": (changed("padding.strategy", {"Fixed": 2**40}), "padding.strategy"),
    "stride": (changed("truncation.stride", 128), "truncation.stride"),
    "a list": (lambda: [], "model"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizer_is_refused_before_it_is_read(name: str) -> None:
    make, said = HOSTILE[name]
    with refused(said) as error:
        reduce_document(make())
    assert len(str(error.value)) < 2000


def test_unknown_fields_are_dropped_and_reported() -> None:
    good = SKELETONS["BERT"]()
    odd = copy.deepcopy(good) | {"comment": "x"}
    odd["normalizer"]["speed"] = 3
    odd["model"]["file"] = "/etc/passwd"
    reduced, dropped = reduce_document(odd)
    assert reduced == good
    assert sorted(dropped) == ["'comment'", "'model.file'", "'normalizer.speed'"]


@pytest.mark.parametrize(
    ("components", "most"),
    [
        ([], 1), ([{"type": "NFKC"}, {"type": "Lowercase"}], 1), ([replace("a", "bb")], 2), ([replace("aa", "bb")], 1),
        ([replace("a", "bb"), replace("b", "ccc")], 6), ([replace("a", "bb"), replace("x", "ccc")], 3),
        ([replace(" {2,}", " ", "Regex")], 1), ([replace("x*", "ab", "Regex")], 3),
        ([{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")], 2), ([BYTES], 5),
    ],
)  # fmt: skip
def test_growth_has_an_upper_bound(components: list[dict[str, Any]], most: float) -> None:
    assert growth(components) == most


def test_nfkc_table_writes_at_most_eighteen_characters() -> None:
    assert growth([precompiled()]) == 18


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0, "a": 1}}}'),
        ("tokenizer.json", b'{"model": {"vocab": [["a", NaN]]}}'),
        ("tokenizer.json", b"[" * 10**5),
        ("tokenizer.json", b'{"model": {'),
        ("added_tokens.json", b'{"x": 1000000000}'),
        ("vocab.json", b'{"a": 0, "b": 5000}'),
        ("vocab.json", b'{"a": [0]}'),
        ("vocab.txt", b"a\n" + b"b" * 10**5),
        ("vocab.txt", b"\xff\xfe"),
        ("merges.txt", b"\xff a b"),
        ("spiece.model", b"\x08"),
        ("spiece.model", b""),
        ("source.spm", b"\x0a\xff\xff\xff\xff\x0fa"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"allowed|cannot be read|damaged|nested"):
        reduce_tokenizer_file(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_max_length", -5), ("model_max_length", 0), ("model_max_length", True), ("model_max_length", 1e308),
        ("padding_side", "up"), ("added_tokens_decoder", {"1000000000": {"content": "x"}}),
        ("added_tokens_decoder", {"-1": {"content": "x"}}), ("pad_token", "x" * 5000), ("extra_special_tokens", ["x"] * 10**5),
        ("model_max_length", 10**400),
    ],
)  # fmt: skip
def test_invalid_tokenizer_settings_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key):
        reduce_tokenizer({key: value})


def test_sentencepiece_models_and_their_tables(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    for rule in ("nmt_nfkc", "nfkc_cf", "identity"):
        path.write_bytes(sentencepiece_model(rule))
        assert reduce_tokenizer_file(path) is None
    good = sentencepiece_model()
    at = good.index(charsmap())
    for bad in (good[:-1], good[: at + 9999], good[: at + 4] + b"\xff\xff\xff\x7f" * 256 + good[at + 1028 :]):
        path.write_bytes(bad)
        with refused("SentencePiece"):
            reduce_tokenizer_file(path)


def edited(tiny: dict[str, Path], folder: Path, name: str, **fields: Any) -> Path:
    shutil.copytree(tiny["bert"], folder)
    return edit(folder / name, **fields).parent


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("tokenizer.json", {"normalizer": sequence("normalizers", *[replace("a", "aa")] * 40)}, "normalizer"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}}, "(a+)+"),
        ("tokenizer.json", {"added_tokens": added("x", first=10**9)}, "1000000000"),
        ("tokenizer_config.json", {"model_max_length": -5}, "model_max_length"),
        ("tokenizer_config.json", {"model_input_names": 7}, "model_input_names"),
        ("tokenizer.json", {"model": PAIRS | {"vocab": {"a": 0, "b": 1}, "continuing_subword_prefix": "##"}}, ""),
        ("tokenizer.json", {"model": PIECES | {"unk_id": None, "vocab": [["a", 0.0]]}, "post_processor": None}, "cannot encode"),
    ],
)  # fmt: skip
def test_opening_a_hostile_tokenizer_is_refused(
    tiny: dict[str, Path], tmp_path: Path, name: str, fields: dict[str, Any], said: str
) -> None:
    with refused(said, tmp_path / "m"):
        _ = opened(edited(tiny, tmp_path / "m", name, **fields)).tokenizer


@pytest.mark.parametrize("length", ["x", float("nan")])
def test_length_that_is_not_a_number_is_ignored_and_reported(
    tiny: dict[str, Path], tmp_path: Path, length: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(tiny, tmp_path / "m", "tokenizer_config.json", model_max_length=length)
    assert opened(folder).max_length == 64
    assert "model_max_length" in "".join(capsys.readouterr())


def test_unlimited_length_is_allowed(tiny: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(tiny, tmp_path / "m", "tokenizer_config.json", model_max_length=int(1e30))
    assert opened(folder).max_length == 64


def test_ids_beyond_the_embeddings(tiny: dict[str, Path], tmp_path: Path) -> None:
    """An id of the vocabulary itself is no added token, for which rows would be added."""
    from transformers import AutoModel

    state = json.loads((tiny["bert"] / "tokenizer.json").read_text())
    state["model"]["vocab"]["hill"] = 900
    folder = edited(tiny, tmp_path / "m", "tokenizer.json", model=state["model"])
    with refused("900"):
        opened(folder).load(AutoModel)
    many = added(*(f"token{i}" for i in range(2000)), first=len(VOCABULARY))
    folder = edited(tiny, tmp_path / "n", "tokenizer.json", added_tokens=state["added_tokens"] + many)
    with pytest.raises(UserError, match=str(len(VOCABULARY) + 1999)):
        opened(folder).load(AutoModel)


def test_added_token_that_normalizes_to_nothing_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The library would search for nothing, without end."""
    tokens = added("\n\n*a", "\ufeff", first=len(VOCABULARY), normalized=True, special=False, single_word=True)
    folder = edited(tiny, tmp_path / "m", "tokenizer.json", added_tokens=tokens, normalizer=SKELETONS["BERT"]()["normalizer"])
    with refused("ufeff"):
        _ = opened(folder).tokenizer


def test_panic_of_the_library_names_the_tokenizer(capfd: pytest.CaptureFixture[str]) -> None:
    """It is no `Exception` in Python, so that it would pass every handler."""
    from tokenizers.pre_tokenizers import FixedLength

    tokenizer = tiny_tokenizer("bert")
    tokenizer.name_or_path = "some/model"
    tokenizer.backend_tokenizer.pre_tokenizer = FixedLength(0)
    with refused("some/model", "non-zero"):
        tokenize(tokenizer, [["a good film"]], ["input_ids"], 8)
    with refused("some/model", "non-zero"):
        check_loaded(tokenizer, "some/model")
    capfd.readouterr()
