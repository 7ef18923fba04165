"""Convert encoder-decoders to CTranslate2, by its own loaders or, for those of BERT layers, by one of this package."""

import copy
from pathlib import Path
from typing import Any

from nlp_transfer.export.bert_decoder_spec import bert_spec
from nlp_transfer.inference.exported_generator import check_settings
from nlp_transfer.models.seq2seq.tokenizer_pair import TokenizerPair
from nlp_transfer.utils.errors import UserError, first_line

QUANTIZATION = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
ENCODER_DECODER = "encoder-decoder"
LOADERS = {  # NLLB checkpoints are of the family m2m_100
    "bart": "BartLoader", "m2m_100": "M2M100Loader", "marian": "BartLoader", "mbart": "MBartLoader", "mt5": "MT5Loader",
    "t5": "T5Loader",
}  # fmt: skip
# Fields of older configurations that the loaders read. The models of transformers 5 are always built as stated here.
#
# Marian models are read as BART models. CTranslate2's own loader removes the padding token and starts the decoder from a zero
# embedding, but fine-tuning changes the embedding of that token, since the output layer shares it.
LAYOUTS = {
    "bart": {"normalize_before": False, "normalize_embedding": True},
    "marian": {"normalize_before": False, "normalize_embedding": False},
    "mbart": {"normalize_before": True, "normalize_embedding": True},
}


def write_ctranslate2(model: Any, tokenizers: TokenizerPair, folder: Path, precision: str) -> None:
    """Write the weights and the vocabulary of an encoder-decoder.

    Args:
        model: The model, which cannot be used afterwards, because CTranslate2 quantizes its weights in place.
        folder: Folder to write.
        precision: `fp32`, `bf16` or `int8`.

    Raises:
        UserError: CTranslate2 cannot represent the model.
    """
    import torch
    from ctranslate2.converters import Converter, transformers

    family = model.config.model_type
    if family not in (*LOADERS, ENCODER_DECODER):
        raise UserError(
            f"export: CTranslate2 cannot represent models of the family {family}; allowed: {', '.join(LOADERS)}, NLLB, and "
            "encoder-decoders of BERT or RoBERTa"
        )
    check_settings(model.generation_config)

    class ModelConverter(Converter):
        """A converter of a model in memory."""

        def _load(self) -> Any:
            with torch.no_grad():
                if family == ENCODER_DECODER:
                    source = _tokens(tokenizers.source, model.encoder.config)
                    return bert_spec(model, source, _tokens(tokenizers.target, model.decoder.config))
                loader = getattr(transformers, LOADERS[family])()
                loader.get_vocabulary = lambda model, tokenizer: _tokens(tokenizer, model.config)
                spec = loader(model, tokenizers.source)
            spec.config.bos_token = spec.config.bos_token or spec.config.eos_token  # has no effect, but must be a text
            return spec

    config = model.to("cpu").config
    model.config = adapted(config)
    try:
        ModelConverter().convert(str(folder), quantization=QUANTIZATION[precision], force=True)
    except UserError:
        raise
    except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
        raise UserError(f"export: the {family} model cannot be converted to CTranslate2: {first_line(error)}") from error
    finally:
        model.config = config


def _tokens(tokenizer: Any, config: Any) -> list[str]:
    """Return the vocabulary of one side in the order of ids, with a name for every id of the model."""
    tokens = [f"<unused {i}>" for i in range(config.vocab_size)]
    for token, i in tokenizer.get_vocab().items():
        if i < len(tokens):
            tokens[i] = token
    return tokens


def adapted(config: Any) -> Any:
    """Return a copy of a configuration with the fields that CTranslate2's loaders read.

    `tie_word_embeddings` stands for T5's scaling of its last states there, which transformers 5 keeps in another field.
    """
    config = copy.deepcopy(config)
    for name, value in LAYOUTS.get(config.model_type, {}).items():
        setattr(config, name, value)
    if config.model_type in ("t5", "mt5"):
        config.tie_word_embeddings = config.model_type == "t5" and config.scale_decoder_outputs
    return config
