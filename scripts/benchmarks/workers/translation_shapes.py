"""Creates translation models of common sizes with random weights, for measurements of speed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from protocol import Channel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSeq2SeqLM, M2M100Config, MarianConfig, MarianTokenizer, NllbTokenizer
from workers.plain import pairs_of

channel = Channel()
PIECES = 8000  # trained pieces; the other tokens of the vocabulary never occur
LANGUAGES = 203  # special tokens that the tokenizer of NLLB adds: languages and a mask
SHAPES: dict[str, Any] = {
    "marian": {"vocab_size": 58_101, "d_model": 512, "layers": 6, "ffn": 2048, "heads": 8},
    "nllb-3-layers": {"vocab_size": 256_206, "d_model": 1024, "layers": 3, "ffn": 4096, "heads": 16},
}  # fmt: skip


def filled(vocabulary: dict[str, int], size: int) -> dict[str, int]:
    """Add tokens up to a size."""
    return vocabulary | {f"unused {i}": i for i in range(len(vocabulary), size)}


def marian_tokenizer(texts: Iterator[str], folder: Path, size: int) -> Any:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(folder / "source"), vocab_size=PIECES, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "source.model").rename(folder / "source.spm")
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "source.spm"))
    words = [pieces.id_to_piece(i) for i in range(3, len(pieces))]
    vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *words, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(filled(vocabulary, size)), encoding="utf-8")
    files = (str(folder / name) for name in ("source.spm", "target.spm", "vocab.json"))
    return MarianTokenizer(*files, source_lang="en", target_lang="de", model_max_length=512)


def nllb_tokenizer(texts: Iterator[str], _: Path, size: int) -> Any:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = filled(model["vocab"], size - LANGUAGES)
    return NllbTokenizer(vocab=vocabulary, merges=merges, src_lang="eng_Latn", tgt_lang="deu_Latn", model_max_length=512)


def turn(request: dict[str, Any]) -> dict[str, str]:
    """Write a checkpoint whose tokenizer was trained on the given pairs; return its folder."""
    folder, size = Path(request["folder"]), SHAPES[request["shape"]]
    folder.mkdir(parents=True, exist_ok=True)
    texts = iter([text for side in pairs_of(request["pairs"], *request["columns"]) for text in side])
    is_marian = request["shape"] == "marian"
    tokenizer = (marian_tokenizer if is_marian else nllb_tokenizer)(texts, folder, size["vocab_size"])
    config = (MarianConfig if is_marian else M2M100Config)(
        vocab_size=size["vocab_size"], d_model=size["d_model"], scale_embedding=True, max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id if is_marian else tokenizer.eos_token_id,
        **{f"{side}_{name}": size[key] for side in ("encoder", "decoder")
           for name, key in (("layers", "layers"), ("ffn_dim", "ffn"), ("attention_heads", "heads"))},
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"folder": str(folder)}


channel.serve(turn)
