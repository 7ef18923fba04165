"""Trimmed vocabularies: the same tokens and outputs for given texts, in folders that other programs and commands accept."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from nlp_transfer import load_predictor
from nlp_transfer.export.tokenizer_vocabulary import trimmed
from nlp_transfer.export.trimmed_model import trim_vocabulary
from nlp_transfer.hub.package import make_package
from tests.builders import command, printed, read_table, refused, run, succeed, write
from tests.helpers.models import POSITIONS, save_tiny
from tests.helpers.seq2seq_models import PAIRS, save_tiny_seq2seq
from tests.helpers.tokenizer_documents import SKELETONS

pytestmark = pytest.mark.model
SYLLABLES = ["ka", "lo", "mi", "ren", "tas", "vu", "ble", "zor"]
WORDS = ["".join(parts) for n in (1, 2, 3) for parts in itertools.product(SYLLABLES, repeat=n)]
OUTSIDE = ["zorzorzor kavu, Größe", "🙂 unknown-words", "mimimi renka"]
TOKENIZERS = {
    "bert": BertTokenizer,
    "roberta": RobertaTokenizer,
    "xlm-roberta": XLMRobertaTokenizer,
    "deberta-v2": DebertaV2Tokenizer,
}


def sentences(count: int, words: list[str], seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(words, k=generator.randint(3, 9))) + "." for _ in range(count)]


def tokenizer(kind: Any) -> Any:
    """A tokenizer of a family, trained on made-up words; nearly all words become one token."""
    corpus, special = sentences(3000, WORDS), ["<s>", "<pad>", "</s>", "<unk>"]
    settings: dict[str, Any] = {"vocab_size": 600, "show_progress": False}
    if kind is BertTokenizer:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], **settings)
    elif kind is RobertaTokenizer:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=[*special, "<mask>"], initial_alphabet=alphabet, **settings)
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", **settings)
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    if kind in (BertTokenizer, RobertaTokenizer):
        merges = {"merges": [tuple(pair) for pair in model["merges"]]} if "merges" in model else {}
        return kind(vocab=model["vocab"], model_max_length=POSITIONS, **merges)
    return kind(vocab=[(piece, score) for piece, score in model["vocab"]], model_max_length=POSITIONS)


def save_model(family: str, folder: Path) -> Path:
    """A tiny pretrained encoder with a tokenizer of word pieces."""
    made = tokenizer(TOKENIZERS[family])
    save_tiny(family, folder, vocab_size=len(made), pad_token_id=made.pad_token_id)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training rows of a few of the words."""
    rows = [(text, "good" if "ka" in text else "bad") for text in dict.fromkeys(sentences(60, WORDS[::11]))]
    return write(tmp_path_factory.mktemp("trimming") / "train.csv", rows)


@pytest.fixture(scope="module")
def runs(table: Path) -> dict[str, Any]:
    """A run of each kind of tokenizer; the one of BERT has a head of our own."""
    task = {"name": "text_classification"}
    return {
        family: run(
            model=save_model(family, table.parent / family), data={"train": table, "validation_share": 0.2},
            task=task | ({"head": {"pooling": "mean"}} if family == "bert" else {}), output_dir=table.parent / f"{family}-run",
            training={"max_steps": 4, "learning_rate": 5e-3},
        )
        for family in TOKENIZERS
    }  # fmt: skip


@pytest.mark.parametrize("family", TOKENIZERS)
def test_outputs_of_covered_texts_are_equal(family: str, runs: dict[str, Any], table: Path) -> None:
    folder = runs[family].output_dir
    texts = [row["text"] for row in read_table(table)]
    result = trim_vocabulary(folder, [table])
    assert result.folder == folder / "exports" / "trimmed"
    assert load_predictor(result.folder)(texts, probabilities=True) == load_predictor(folder)(texts, probabilities=True)
    tokens, parameters = result.report["tokens"], result.report["parameters"]
    assert tokens["after"] < tokens["before"]
    assert parameters["after"] == parameters["before"] - 32 * (tokens["before"] - tokens["after"])
    assert result.report["output_difference"] <= 1e-6
    old, new = AutoTokenizer.from_pretrained(folder / "model"), AutoTokenizer.from_pretrained(result.folder)
    assert len(new) == tokens["after"]
    assert [new.tokenize(text) for text in texts] == [old.tokenize(text) for text in texts]
    for text in OUTSIDE:
        assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])
    inputs = [loaded(texts[:8], padding=True, return_tensors="pt") for loaded in (old, new)]
    plain = [AutoModelForSequenceClassification.from_pretrained(place).eval() for place in (folder / "model", result.folder)]
    with torch.inference_mode():
        before, after = (model(**batch).logits for model, batch in zip(plain, inputs, strict=True))
    assert torch.equal(before, after)
    assert plain[1].config.pad_token_id == new.pad_token_id


def test_held_out_texts_are_reported(runs: dict[str, Any], tmp_path: Path) -> None:
    held_out = write(tmp_path / "other.txt", [*OUTSIDE, "ka"])
    covering = write(tmp_path / "texts.jsonl", [{"body": "ka lo mi"}, {"body": None}])
    folder = runs["xlm-roberta"].output_dir / "model"
    _, said = succeed(
        "trim-vocabulary",
        folder,
        "--texts",
        covering,
        "--column",
        "body",
        "--data.validation",
        held_out,
        "--output",
        tmp_path / "new",
    )
    assert str(tmp_path / "new") in said
    report = json.loads((tmp_path / "new/trimmed_vocabulary.json").read_text())
    assert report["texts"] == 2
    assert report["held_out"]["texts"] == 4
    assert 0.25 <= report["held_out"]["changed_tokens"] <= 0.75  # not of "ka"
    assert 0 <= report["held_out"]["same_predictions"] <= 1
    validation = trim_vocabulary(runs["roberta"].output_dir, output=tmp_path / "second").report["held_out"]
    assert validation["texts"] == 12
    assert validation["same_predictions"] == 1


def test_commands_accept_a_trimmed_model(runs: dict[str, Any], table: Path, tmp_path: Path) -> None:
    small = trim_vocabulary(runs["bert"].output_dir, output=tmp_path / "small").folder
    assert "Trimmed vocabulary" in (small / "README.md").read_text()
    assert printed("evaluate", small, "--data.test", table)["rows"] == 60
    with make_package(small, "user/small") as package:
        assert {"model.safetensors", "trimmed_vocabulary.json", "tokenizer.json"} <= set(package.files)
    again = run(model=small, data={"train": table}, output_dir=tmp_path / "again")
    assert load_predictor(again.output_dir)("ka")["prediction"] in ("good", "bad")
    twice = trim_vocabulary(small, [table], tmp_path / "twice").report["tokens"]
    assert twice["after"] <= twice["before"] == len(AutoTokenizer.from_pretrained(small))


def test_language_model_keeps_logits(runs: dict[str, Any], table: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = table.parent / "roberta"
    config = AutoModelForMaskedLM.from_pretrained(source).config
    model = AutoModelForMaskedLM.from_config(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "base")
    result = trim_vocabulary(tmp_path / "base", [table], tmp_path / "small")
    assert result.report["output_difference"] <= 1e-6
    weights = load_file(tmp_path / "small/model.safetensors")
    assert len(weights["lm_head.bias"]) == len(weights["roberta.embeddings.word_embeddings.weight"])
    run(model=tmp_path / "small", data={"train": table}, output_dir=tmp_path / "run")


def test_merged_adapters_are_trimmed_others_refused(runs: dict[str, Any], table: Path, tmp_path: Path) -> None:
    model = table.parent / "roberta"
    lora = run(model=model, data={"train": table}, strategy={"name": "lora", "r": 2}, output_dir=tmp_path / "lora").output_dir
    result = trim_vocabulary(lora)
    text = read_table(table)[0]["text"]
    assert load_predictor(result.folder)(text) == load_predictor(lora)(text)
    task = {"name": "text_classification", "max_length": 32}
    prefix = {"name": "peft", "type": "PREFIX_TUNING", "settings": {"num_virtual_tokens": 2}}
    unmerged = run(model=model, data={"train": table}, strategy=prefix, task=task, output_dir=tmp_path / "prefix").output_dir
    with refused("adapter", "merged"):
        trim_vocabulary(unmerged)
    assert not (tmp_path / "prefix/exports/trimmed").exists()


def test_refusals_name_what_is_allowed(runs: dict[str, Any], tiny: dict[str, Path], table: Path, tmp_path: Path) -> None:
    with refused("WordLevel", "WordPiece"):
        trim_vocabulary(tiny["bert"], [table], tmp_path / "new")
    translator = run(
        model=save_tiny_seq2seq("bert", tmp_path / "translator"), output_dir=tmp_path / "translation",
        data={"train": write(tmp_path / "pairs.csv", PAIRS, ("source", "target"))}, task={"name": "translation"},
        training={"max_steps": 1},
    )  # fmt: skip
    with refused("generates text"):
        trim_vocabulary(translator.output_dir)
    folder = runs["bert"].output_dir
    with refused("--output", "is required"):
        trim_vocabulary(folder / "model", [table])
    with refused("--texts", "is required"):
        trim_vocabulary(folder / "model", output=tmp_path / "new")
    with refused("--texts", "there is no column 'text'"):
        trim_vocabulary(folder, [write(tmp_path / "other.csv", [("ka",)], ("body",))], tmp_path / "new")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with refused("--output", "is not replaced"):
        trim_vocabulary(folder, output=tmp_path / "mine", overwrite=True)
    assert command("trim-vocabulary", folder, "--data.test", table)[0] == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", SKELETONS)
def test_documents_of_all_families(name: str) -> None:
    document = json.loads(Tokenizer.from_str(json.dumps(SKELETONS[name]())).to_str())
    backend = Tokenizer.from_str(json.dumps(document))
    everything, kept = trimmed(document, backend.get_vocab().values())
    assert everything == document
    assert kept == sorted(backend.get_vocab().values())
    smaller = Tokenizer.from_str(json.dumps(trimmed(document, backend.encode("a").ids)[0]))
    assert set(smaller.get_vocab()) <= set(backend.get_vocab())
    assert smaller.encode("a").tokens == backend.encode("a").tokens


def test_scores_and_special_tokens_of_t5_are_kept() -> None:
    document = json.loads(tokenizer(T5Tokenizer).backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(document))
    texts = sentences(20, WORDS[::7])
    smaller, kept = trimmed(document, {i for text in texts for i in backend.encode(text).ids})
    scores = dict(map(tuple, document["model"]["vocab"]))
    assert all(scores[piece] == score for piece, score in smaller["model"]["vocab"])
    new = Tokenizer.from_str(json.dumps(smaller))
    assert [new.encode(text).tokens for text in texts] == [backend.encode(text).tokens for text in texts]
    assert [kept[i] for i in new.encode(texts[0]).ids] == backend.encode(texts[0]).ids
    assert {token["content"] for token in smaller["added_tokens"]} == {token["content"] for token in document["added_tokens"]}


def test_merges_build_their_tokens() -> None:
    document = json.loads(tokenizer(RobertaTokenizer).backend_tokenizer.to_str())
    model = trimmed(document, {document["model"]["vocab"]["karen"]} if "karen" in document["model"]["vocab"] else ())[0]["model"]
    assert all(part in model["vocab"] for merge in model["merges"] for part in (*merge, "".join(merge)))
    assert len(model["vocab"]) < len(document["model"]["vocab"])
