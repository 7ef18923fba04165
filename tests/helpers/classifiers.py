"""Tiny encoder-decoders that classify, made from configurations; nothing is downloaded."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    MBartConfig,
    MT5Config,
    PLBartConfig,
    PretrainedConfig,
    T5Config,
    UMT5Config,
)

from tests.helpers.models import POSITIONS, VOCABULARY, tokenizer

ENCODER_DECODERS = ["bart", "mbart", "plbart", "t5", "mt5", "umt5"]


def _config(family: str) -> PretrainedConfig:
    # The end of a row is [SEP], and a target begins as the family's do: with the end token, or with padding.
    common = {"vocab_size": len(VOCABULARY), "d_model": 32, "pad_token_id": 0, "eos_token_id": VOCABULARY["[SEP]"]}
    if family.endswith("t5"):
        config = {"t5": T5Config, "mt5": MT5Config, "umt5": UMT5Config}[family]
        return config(**common, d_kv=16, num_heads=2, d_ff=48, num_layers=2, num_decoder_layers=3, decoder_start_token_id=0)
    config = {"bart": BartConfig, "mbart": MBartConfig, "plbart": PLBartConfig}[family]
    return config(
        **common, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=POSITIONS, bos_token_id=2, decoder_start_token_id=3, forced_eos_token_id=3,
    )  # fmt: skip


def save_encoder_decoder(family: str, folder: Path) -> Path:
    """A pretrained encoder-decoder that writes text, as `folder`: what fine-tuning of a classifier starts from."""
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(_config(family)).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder
