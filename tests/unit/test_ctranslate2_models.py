"""CTranslate2 computes the probabilities of tokens that transformers computes, for every layout of encoder-decoders."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    MT5Config,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from nlp_transfer.export.ctranslate2_model import write_ctranslate2
from nlp_transfer.inference.exported_generator import read_vocabulary
from tests.builders import refused
from tests.helpers.seq2seq_models import SEQ2SEQ, save_tiny_seq2seq

SOURCE, TARGET = [7, 9, 12, 8, 30], [10, 6, 21, 11]


def opened(layout: str, folder: Path) -> tuple[Any, Any]:
    """A random model with a tokenizer. In T5 1.1 and mT5, the last states are not scaled."""
    tokenizer: Any = AutoTokenizer.from_pretrained(save_tiny_seq2seq("t5" if layout in OTHERS else layout, folder / "base"))
    if layout not in OTHERS:
        return AutoModelForSeq2SeqLM.from_pretrained(folder / "base"), tokenizer
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer)}
    if layout == "roberta":
        shape = {**size, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2}
        shape["layer_norm_eps"] = 1e-5
        encoder = RobertaModel(RobertaConfig(**shape, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1))
        decoder = BertLMHeadModel(BertConfig(**shape, max_position_embeddings=40, is_decoder=True, add_cross_attention=True))
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        model: Any = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
        model.config.decoder_start_token_id = 0
        model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    else:
        kind = MT5Config if layout == "mt5" else T5Config
        shape = {**size, "d_model": 32, "d_kv": 16, "num_heads": 2, "d_ff": 48, "num_layers": 2}
        special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
        model = AutoModelForSeq2SeqLM.from_config(
            kind(**shape, **special, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
        )
    for name, parameter in model.named_parameters():  # otherwise norms and biases would be ones and zeros
        if name.endswith((".bias", "norm.weight", "Norm.weight")):
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model, tokenizer


OTHERS = ["t5-1.1", "mt5", "roberta"]


@pytest.mark.parametrize("layout", [*SEQ2SEQ, "bart", *OTHERS])
def test_probabilities_equal_those_of_transformers(layout: str, tmp_path: Path) -> None:
    model, tokenizer = opened(layout, tmp_path)
    start = model.config.decoder_start_token_id
    start, end = 5 if start is None else start, int(tokenizer.eos_token_id)  # mBART starts with the language
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([[start, *TARGET]])).logits[0]
    expected = logits.log_softmax(-1)[range(len(TARGET) + 1), [*TARGET, end]].tolist()
    pair: Any = SimpleNamespace(source=tokenizer, target=tokenizer)
    write_ctranslate2(model, pair, tmp_path / "ct2", "fp32")
    sources, targets = (read_vocabulary(tmp_path / "ct2", side) for side in ("source", "target"))
    starts = json.loads((tmp_path / "ct2/config.json").read_text())["decoder_start_token"] is None
    translator = ctranslate2.Translator(str(tmp_path / "ct2"))
    target = [targets[i] for i in ([start] if starts else []) + TARGET]
    (scored,) = translator.score_batch([[sources[i] for i in SOURCE]], [target])
    assert scored.log_probs == pytest.approx(expected, abs=1e-4)


def test_other_families_are_refused(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(model_type="prophetnet"))
    with refused("prophetnet", "marian", "NLLB"):
        write_ctranslate2(model, model, tmp_path, "fp32")
