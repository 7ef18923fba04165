"""Tiny translation checkpoints of every tested family, made from configurations; nothing is downloaded."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartTokenizer,
    M2M100Config,
    M2M100Tokenizer,
    MarianConfig,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    T5Config,
    T5Tokenizer,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100_LANGUAGES

from tests.helpers.models import save_tiny

NOUNS = [
    ("dog", "Der Hund"), ("cat", "Die Katze"), ("tree", "Der Baum"), ("river", "Der Fluß"), ("hill", "Der Hügel"),
    ("music", "Die Musik"), ("actor", "Der Künstler"), ("story", "Die Erzählung"),
]  # fmt: skip
ENDS = [
    ("is red.", "ist rot."), ("was very cold.", "war sehr kühl, naïve Señora!"), ("is not great.", "ist NICHT groß."),
    ("sat on the mat.", "saß auf dem Café-Tisch …"),
]  # fmt: skip
PAIRS = [(f"The {noun} {end}", f"{subject} {predicate}") for noun, subject in NOUNS for end, predicate in ENDS]
"""32 English sentences, in words that the tiny BERT knows, and German ones with capitals, umlauts and accents."""

SCRIPTS = [
    "El niño comió piñas, ¿verdad? ¡Sí, qué rápido!",
    "Größere Übungen müßten öfter ärgerlich sein – „schön“!",
    "Привіт, її ґанок біля річки; м'ята й об'єкт.",
    "猫坐在红色的垫子上，非常安静。",
    "犬はゆっくりと川まで歩いた。カタカナも「大丈夫」です！",
    "Émile a dit : « Où est l’œuf ? »",
    "👩‍👩‍👧‍👦 🇺🇦 👍🏽 ❤️ done",
    "e\u0301 and o\u0308 stay two characters each, é and ö one",
    "A tab\there, and  two spaces",
    "Write <s> and </s>, <pad> or <unk> as they are",
]
"""Targets in several languages, with what is easily lost on the way."""

WIDTH = 64
# Languages that a multilingual family is told, in its own words.
LANGUAGES = {
    "mbart": ("en_XX", "de_DE"),
    "mbart50": ("en_XX", "de_DE"),
    "m2m100": ("en", "de"),
    "nllb": ("eng_Latn", "deu_Latn"),
    "marian-multilingual": (None, "de"),
}
SEQ2SEQ = ["marian", "t5", "mbart", "m2m100", "nllb"]
"""Families whose checkpoints are encoder-decoders already."""
TRANSLATION = ["bert", *SEQ2SEQ]


def languages(family: str) -> dict[str, str]:
    """The settings of a task that a family needs."""
    given = dict(zip(("source_language", "target_language"), LANGUAGES.get(family, (None, None)), strict=True))
    return {name: code for name, code in given.items() if code}


def _texts(side: int | None = None) -> list[str]:
    return [text for pair in PAIRS for i, text in enumerate(pair) if side in (None, i)]


def _sentencepiece(file: Path, texts: Iterable[str]) -> list[str]:
    """Trains a SentencePiece model and gives back its pieces without the special ones."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=100, hard_vocab_limit=False,
        character_coverage=1.0, normalization_rule_name="identity", num_threads=1, minloglevel=2,
    )  # fmt: skip
    file.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]


def _unigram(special: list[str]) -> list[tuple[str, float]]:
    """The frequent words as pieces, and every character, so that others are spelt."""
    count = Counter(word for text in _texts() for word in text.split())
    words = sorted(f"▁{word}" for word, times in count.items() if times >= 8)
    characters = sorted({"▁", *"".join(_texts())} - {" "})
    return [*((token, 0.0) for token in special), *((word, -2.0) for word in words), *((one, -8.0) for one in characters)]


def _marian(folder: Path, codes: list[str]) -> PreTrainedTokenizerBase:
    pieces = [_sentencepiece(folder / f"{name}.spm", _texts(side)) for side, name in enumerate(("source", "target"))]
    vocabulary = list(dict.fromkeys(["</s>", "<unk>", *codes, *pieces[0], *pieces[1], "<pad>"]))
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    files = (str(folder / name) for name in ("source.spm", "target.spm", "vocab.json"))
    return MarianTokenizer(*files, source_lang="en", target_lang="de", model_max_length=64)


def _m2m100(folder: Path) -> PreTrainedTokenizerBase:
    pieces = _sentencepiece(folder / "sentencepiece.bpe.model", _texts())
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    files = (str(folder / name) for name in ("vocab.json", "sentencepiece.bpe.model"))
    # Published ones list their languages as special tokens.
    codes = [f"__{code}__" for code in M2M100_LANGUAGES["m2m100"]]
    return M2M100Tokenizer(*files, additional_special_tokens=codes, model_max_length=64)


def _bart(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return BartTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=64)


def _nllb(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return NllbTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=64)


TOKENIZERS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "marian": lambda folder: _marian(folder, []),
    "marian-multilingual": lambda folder: _marian(folder, [">>de<<", ">>fr<<", ">>nb<<"]),
    "t5": lambda folder: T5Tokenizer(vocab=_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=4, model_max_length=64),
    "mbart": lambda folder: MBartTokenizer(vocab=_unigram(["<s>", "<pad>", "</s>", "<unk>"]), model_max_length=64),
    "mbart50": lambda folder: MBart50Tokenizer(vocab=_unigram(["<s>", "<pad>", "</s>", "<unk>"]), model_max_length=64),
    "m2m100": _m2m100,
    "nllb": _nllb,
    "bart": _bart,
}


def _config(family: str, tokenizer: Any) -> PretrainedConfig:
    size: dict[str, Any] = {"vocab_size": len(tokenizer) + (8 if family == "m2m100" else 0)}
    if family == "t5":
        return T5Config(
            **size, d_model=WIDTH, d_kv=16, num_heads=2, d_ff=64, num_layers=1, num_decoder_layers=1,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
    size |= {
        "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "scale_embedding": True,
    }  # fmt: skip
    if family.startswith("marian"):  # begins a target with padding, and is told never to write any
        return MarianConfig(**size, decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=tokenizer.eos_token_id)
    if family == "bart":
        return BartConfig(**size, bos_token_id=0, decoder_start_token_id=2, forced_eos_token_id=2)
    if family.startswith("mbart"):
        return MBartConfig(**size, decoder_start_token_id=None if family == "mbart" else tokenizer.eos_token_id)
    return M2M100Config(**size, decoder_start_token_id=tokenizer.eos_token_id)


def save_tiny_seq2seq(family: str, folder: Path) -> Path:
    """A checkpoint to translate from, as `folder`: an encoder for `bert`, else an untrained encoder-decoder."""
    if family == "bert":
        return save_tiny("bert", folder)
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    tokenizer = TOKENIZERS[family](folder)
    model = AutoModelForSeq2SeqLM.from_config(_config(family, tokenizer))
    if family.startswith("marian"):
        model.generation_config.bad_words_ids = [[tokenizer.pad_token_id]]
        model.generation_config.num_beams = 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
