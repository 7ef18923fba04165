"""Augmentation: whole words, never a special token, never an empty text, and the same however a window is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nlp_transfer.data.augmentation import Augmenter, WordTable, make_augmenter
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import AugmentConfig, TrainingConfig
from nlp_transfer.strategies import Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.training.gradient import WindowGradient
from nlp_transfer.training.standard_callbacks import Augmentation
from tests.builders import refused, trainer

pytestmark = pytest.mark.model

TEXTS = ["unbelievable stories never entertain anybody", "walking talks walked", "a", "story, stories; storytelling!"] * 3
KINDS = ["wordpiece", "metaspace", "bytes", "words"]


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A trained tokenizer of some kind, so small that most words fall into pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "wordpiece":
        raw, trainer = (
            Tokenizer(models.WordPiece(unk_token="[UNK]")),
            trainers.WordPieceTrainer(vocab_size=70, special_tokens=special),
        )
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "metaspace":
        raw = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="[UNK]")
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "bytes":
        raw, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=60, special_tokens=special)
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        raw, trainer = Tokenizer(models.WordLevel(unk_token="[UNK]")), trainers.WordLevelTrainer(special_tokens=special)
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.normalizer = normalizers.Lowercase()
    raw.train_from_iterator(TEXTS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}


def table_of(kind: str, texts: list[Any]) -> TokenTable:
    pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
    encoded = [TOKENIZERS[kind](*pair) for pair in pairs]
    columns = {name: Ragged.from_lists([row[name] for row in encoded]) for name in ("input_ids", "token_type_ids")}
    return TokenTable(columns, {"labels": np.arange(len(texts))}, {"input_ids": 0, "token_type_ids": 0})


def augmenter(kind: str, table: TokenTable, max_length: int = 64, seed: int = 0, **shares: float) -> Augmenter:
    return Augmenter(AugmentConfig(**shares), TOKENIZERS[kind], table, max_length, seed)


def rows_of(batch: dict[str, torch.Tensor], name: str = "input_ids") -> list[list[int]]:
    return [row[mask.bool()].tolist() for row, mask in zip(batch[name], batch["attention_mask"], strict=True)]


def words_of(kind: str, ids: list[int]) -> list[list[list[int]]]:
    """The texts of a row, each a list of words, each a list of ids; an independent and slow reading of the marks."""
    tokenizer, texts, after_special = TOKENIZERS[kind], [], True
    for id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token in ("[CLS]", "[SEP]"):
            texts.append([])
            after_special = True
            continue
        begins = {"wordpiece": not token.startswith("##"), "metaspace": token[0] == "▁", "bytes": token[0] == "Ġ"}.get(kind, True)
        if begins or after_special or token == "[MASK]" or texts[-1][-1] == [tokenizer.mask_token_id]:
            texts[-1].append([id])
        else:
            texts[-1][-1].append(id)
        after_special = False
    return texts[:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_all_its_pieces(kind: str) -> None:
    tokenizer, table = TOKENIZERS[kind], WordTable.of(TOKENIZERS[kind])
    encoded = tokenizer("Unbelievable stories never walked", "storytelling stories")
    ids = np.array(encoded["input_ids"])
    first = table.first(ids, np.zeros(len(ids), np.int64))
    number = np.cumsum(first)
    real = [i for i, word in enumerate(encoded.word_ids()) if word is not None]
    expected = [(encoded.sequence_ids()[i], encoded.word_ids()[i]) for i in real]
    assert len(set(expected)) == 6
    assert [number[i] for i in real] == [number[real[expected.index(word)]] for word in expected], "the tokenizer's own words"
    assert len({number[i] for i in real}) == 6
    assert kind == "words" or len(real) > 8, "words have several pieces"
    assert table.special[[0, 2, 3, 4]].all()
    assert not table.special[1], "an unknown word is a word"


def test_scripts_without_spaces_and_other_marks() -> None:
    class Vocabulary:
        unk_token_id = cls_token_id = sep_token_id = pad_token_id = 0
        all_special_ids = (0,)

        def __init__(self, tokens: str) -> None:
            self.tokens = ["<s>", *tokens.split()]

        def __len__(self) -> int:
            return len(self.tokens)

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [self.tokens[i] for i in ids]

    def starts(tokens: str) -> list[int]:
        table: Any = Vocabulary(tokens)
        ids = np.arange(len(table))
        return np.flatnonzero(WordTable.of(table).first(ids, 0 * ids)).tolist()

    assert starts("▁the ▁film 电 影 s") == [0, 1, 2, 3, 4]
    assert starts("un@@ believ@@ able stor@@ y") == [0, 1, 4]
    assert starts("un believ able</w> y</w> a</w>") == [0, 1, 4, 5]
    assert starts("the film s") == [0, 1, 2, 3]


TEXT = st.lists(st.sampled_from("unbelievable stories never walked a storytelling talks !".split()), min_size=1, max_size=9).map(
    " ".join
)
SHARE = st.floats(0, 0.3)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(TEXT, st.tuples(TEXT, TEXT)), min_size=1, max_size=6),
    st.fixed_dictionaries({"drop": SHARE, "mask": SHARE, "replace": SHARE, "swap": st.floats(0, 0.99)}),
    st.integers(0, 9),
    st.sampled_from(KINDS),
)
def test_what_always_holds(texts: list[Any], shares: dict[str, float], step: int, kind: str) -> None:
    table = table_of(kind, texts)
    limit = int(table.lengths.max())
    change, rows = augmenter(kind, table, limit, **shares), np.arange(len(texts))
    before, after = table.batch(rows), change(table.batch(rows), rows, step)
    again = change(table.batch(rows), rows, step)
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert torch.equal(after["labels"], before["labels"])
    assert after["input_ids"].shape == after["attention_mask"].shape == after["token_type_ids"].shape
    assert after["input_ids"].shape[1] == int(after["attention_mask"].sum(1).max()) <= limit, (
        "padded to the longest, within limits"
    )
    assert not after["input_ids"][after["attention_mask"] == 0].any(), "padding is padding"
    assert {tensor.dtype for tensor in after.values()} == {torch.int64}
    pool = {tuple(word) for row in rows_of(before) for text in words_of(kind, row) for word in text}
    for old, new, types in zip(rows_of(before), rows_of(after), rows_of(after, "token_type_ids"), strict=True):
        assert [id for id in new if id in (2, 3)] == [id for id in old if id in (2, 3)], "special tokens stay"
        assert (new[0], new[-1]) == (2, 3)
        first = new.index(3) + 1
        assert types == [0] * first + [1] * (len(new) - first), "each token has the type of its text"
        for words, changed in zip(words_of(kind, old), words_of(kind, new), strict=True):
            assert 0 < len(changed) <= len(words), "no text is empty, none has more words"
            assert {tuple(word) for word in changed} & {tuple(word) for word in words}, "a word stays"
            assert {tuple(word) for word in changed} <= pool | {(4,)}, "whole words"
    for i in rows:  # alone, in another batch: what happens to a row is its own affair
        alone = change(table.batch(rows[i : i + 1]), rows[i : i + 1], step)
        for name in ("input_ids", "token_type_ids"):
            assert rows_of(alone, name)[0] == rows_of(after, name)[i]


def long_table(kind: str = "wordpiece", rows: int = 200, words: int = 30) -> TokenTable:
    generator = np.random.default_rng(0)
    vocabulary = "unbelievable stories never walked a storytelling talks".split()
    return table_of(kind, [" ".join(generator.choice(vocabulary, words)) for _ in range(rows)])


def test_shares_are_those_asked_for() -> None:
    kind, table, rows = "wordpiece", long_table(), np.arange(200)
    before = [words_of(kind, row)[0] for row in rows_of(table.batch(rows))]
    total = sum(map(len, before))

    def after(**shares: float) -> list[list[list[int]]]:
        return [words_of(kind, row)[0] for row in rows_of(augmenter(kind, table, 999, **shares)(table.batch(rows), rows, 3))]

    error = 4 * (0.25 / total) ** 0.5
    assert 1 - sum(map(len, after(drop=0.2))) / total == pytest.approx(0.2, abs=error)
    assert sum(row.count([4]) for row in after(mask=0.3)) / total == pytest.approx(0.3, abs=error)
    swapped = after(swap=0.2)
    assert [sorted(row) for row in swapped] == [sorted(row) for row in before]
    assert swapped != before
    both = after(drop=0.1, mask=0.2)
    assert 1 - sum(map(len, both)) / total == pytest.approx(0.1, abs=error)
    assert sum(row.count([4]) for row in both) / total == pytest.approx(0.2, abs=error)


def test_swapped_words_are_neighbours_and_as_many_as_asked_for() -> None:
    texts = [" ".join(f"w{i}" for i in range(40))] * 300
    raw = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i + 2 for i in range(40)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    table = TokenTable({"input_ids": Ragged.from_lists([tokenizer(text)["input_ids"] for text in texts])}, {}, {"input_ids": 0})
    rows = np.arange(len(texts))
    for share in (0.1, 0.5, 0.9):
        found = Augmenter(AugmentConfig(swap=share), tokenizer, table, 64, 0)(table.batch(rows), rows, 0)["input_ids"].numpy() - 2
        moved = found - np.arange(40)
        assert set(np.unique(moved)) == {-1, 0, 1}
        assert (moved != 0).mean() == pytest.approx(share * 39 / 40, abs=0.03)


def test_replacing_words_are_drawn_by_frequency() -> None:
    train = table_of("words", ["a a a never"] * 25)
    long = table_of("words", [" ".join(["stories"] * 40)] * 200)
    rows = np.arange(200)
    change = Augmenter(AugmentConfig(replace=0.5), TOKENIZERS["words"], train, 64, 0)
    drawn = [
        word for row in rows_of(change(long.batch(rows), rows, 0)) for word in TOKENIZERS["words"].convert_ids_to_tokens(row)
    ]
    replaced = drawn.count("a") + drawn.count("never")
    assert drawn.count("stories") + replaced == 8000
    assert replaced / 8000 == pytest.approx(0.5, abs=0.03)
    assert drawn.count("a") / replaced == pytest.approx(0.75, abs=0.04)


def test_long_replacements_do_not_lengthen_a_full_row() -> None:
    train = table_of("wordpiece", ["storytelling unbelievable"] * 20)
    full, rows = table_of("wordpiece", ["a a a a a a"] * 20), np.arange(20)
    limit = int(full.lengths.max())
    for most in (limit, 64):
        found = Augmenter(AugmentConfig(replace=0.5), TOKENIZERS["wordpiece"], train, most, 0)(full.batch(rows), rows, 0)
        longest = int(found["attention_mask"].sum(1).max())
        assert longest == limit if most == limit else limit < longest <= 64


def test_steps_rows_and_seeds_differ() -> None:
    table, rows = table_of("words", [" ".join(["a", "never"] * 15)] * 50), np.arange(50)
    change = augmenter("words", table, drop=0.2)
    first = rows_of(change(table.batch(rows), rows, 1))
    assert len({len(row) for row in first}) > 3, "equal rows are changed each in its own way"
    assert first != rows_of(change(table.batch(rows), rows, 2))
    assert first != rows_of(augmenter("words", table, seed=1, drop=0.2)(table.batch(rows), rows, 1))
    many = [len(row) for step in range(40) for row in rows_of(change(table.batch(rows), rows, step))]
    assert np.mean(many) == pytest.approx(2 + 30 * 0.8, abs=0.25), "no step or row is favoured"


def test_a_first_word_without_its_mark_never_ends_another() -> None:
    """Byte-level BPE knows the first word of a text by the missing space: moved, it would be glued to the word before it."""
    tokenizer = TOKENIZERS["bytes"]
    table = table_of("bytes", ["walking stories never walked", "talks never walked"] * 40)
    rows = np.arange(len(table))
    known = {"walking", "stories", "never", "walked", "talks"}
    change = augmenter("bytes", table, swap=0.9, replace=0.3)
    for step in range(5):
        for row in rows_of(change(table.batch(rows), rows, step)):
            assert set(tokenizer.decode(row[1:-1]).split()) <= known


def test_nothing_asked_for_is_nothing_done(tiny: dict[str, Path]) -> None:
    table = long_table(rows=4)
    assert make_augmenter(TrainingConfig(augment={"drop": 0}), TOKENIZERS["words"], table, None) is None
    assert make_augmenter(TrainingConfig(), TOKENIZERS["words"], table, None) is None
    assert make_augmenter(TrainingConfig(augment={"drop": 0.1}), TOKENIZERS["words"], table, None) is not None


def test_masking_without_a_mask_token_is_refused() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["words"].backend_tokenizer, pad_token="[PAD]")
    with refused("training.augment.mask: found 0.1,", "no mask token; allowed: 0"):
        Augmenter(AugmentConfig(mask=0.1), bare, long_table(rows=4), 64, 0)


def test_only_training_batches_of_the_task_are_changed(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's rows go through it once, with the step; validation never does."""
    seen: list[tuple[int, list[int]]] = []
    windows: list[list[int]] = []

    def change(batch: dict[str, torch.Tensor], rows: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        seen.append((step, rows.tolist()))
        return batch

    original: Callable[..., Any] = WindowGradient.backward

    def backward(self: WindowGradient, window: Any, at: Any) -> Any:
        windows.append(sorted(window.rows.tolist()))
        return original(self, window, at)

    monkeypatch.setattr(WindowGradient, "backward", backward)
    trainer(tiny["bert"], callbacks=[Augmentation(change)], evaluate_every=1, gradient_accumulation_steps=2).train()
    assert len(windows) == 4
    for step, rows in enumerate(windows):
        assert sorted(row for at, part in seen if at == step for row in part) == rows


class OnAnotherSplit(Strategy):
    traits = StrategyTraits(owns_phases=True)

    def next_phase(self, state: State, view: View) -> Phase | None:
        return None if state.finished else Phase(split="validation")


def test_another_split_is_never_changed(tiny: dict[str, Path]) -> None:
    def change(*_: Any) -> Any:
        raise AssertionError("only train is changed")

    loop = trainer(tiny["bert"], OnAnotherSplit())
    loop.augment = change
    assert loop.train().step == 4
