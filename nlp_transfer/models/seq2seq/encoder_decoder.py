"""Build encoder-decoders from BERT-family checkpoints, and load pretrained encoder-decoders.

Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", 1907.12461: most of the gain comes from a
pretrained encoder, a little from a warm-started decoder. Kasai et al. 2021, 2006.10369: a deep encoder with a shallow decoder is
as good as two deep ones, and generates much faster.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nlp_transfer.data.sources import find_model
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.compatibility import vocabulary_size
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.models.preparation import dropout_overrides, freeze
from nlp_transfer.models.seq2seq.target_tokenizers import end_token, start_token, train_tokenizer, warn_if_lossy
from nlp_transfer.utils.errors import UserError, prefixed

DECODERS = "a BERT, RoBERTa, XLM-RoBERTa or ELECTRA checkpoint, `encoder` or `new`"
# Parts of weight names in some families, and the corresponding parts in the decoder, which is a BERT model.
BERT_NAMES = (
    ("transformer.layer.", "encoder.layer."), (".attention.q_lin.", ".attention.self.query."),
    (".attention.k_lin.", ".attention.self.key."), (".attention.v_lin.", ".attention.self.value."),
    (".attention.out_lin.", ".attention.output.dense."), (".sa_layer_norm.", ".attention.output.LayerNorm."),
    (".ffn.lin1.", ".intermediate.dense."), (".ffn.lin2.", ".output.dense."), (".output_layer_norm.", ".output.LayerNorm."),
    (".attention.attn.q.", ".attention.self.query."), (".attention.attn.k.", ".attention.self.key."),
    (".attention.attn.v.", ".attention.self.value."), (".attention.attn.o.", ".attention.output.dense."),
    (".attention.LayerNorm.", ".attention.output.LayerNorm."), (".self.query_proj.", ".self.query."),
    (".self.key_proj.", ".self.key."), (".self.value_proj.", ".self.value."),
)  # fmt: skip

# Fields of BERT's configuration, and their names in other families.
FIELD_ALIASES: dict[str, tuple[str, ...]] = {
    "num_attention_heads": (), "intermediate_size": ("hidden_dim",), "hidden_dropout_prob": ("dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
}  # fmt: skip


def build_encoder_decoder(
    checkpoint: Checkpoint,
    decoder: str,
    decoder_layers: int | None,
    target: PreTrainedTokenizerBase,
    same_vocabulary: bool,
    warm_start: bool,
    hidden_dropout: float | None,
    attention_dropout: float | None,
) -> PreTrainedModel:
    """Combine an encoder and a decoder into a model of the family `encoder-decoder`, with its special tokens configured.

    Args:
        decoder: `encoder` (copy the encoder's weights where names and shapes agree), `new`, or the name of a model.
        decoder_layers: number of decoder layers. None means half as many as the encoder has, or all layers of a named model.
        target: the target tokenizer.
        same_vocabulary: whether `target` is the encoder's tokenizer, so that the decoder can use the encoder's embeddings.
        warm_start: if False, the model has the same architecture, but randomly initialized weights.
        hidden_dropout, attention_dropout: dropout rates; None keeps the checkpoint's rates.

    Raises:
        UserError: the decoder has no cross-attention, or cannot be loaded.
    """
    dropout = dropout_overrides(checkpoint.config, hidden_dropout, attention_dropout)
    encoder = checkpoint.load(AutoModel, **dropout)
    if not warm_start:
        encoder = AutoModel.from_config(encoder.config, trust_remote_code=False)
        encoder.new_parameters = frozenset(name for name, _ in encoder.named_parameters())
    if decoder in ("encoder", "new"):
        decoder_model, copied = _new_decoder(encoder, checkpoint.max_length, decoder_layers, target), frozenset[str]()
        if decoder == "encoder" and warm_start:
            copied = copy_layers(encoder, decoder_model, same_vocabulary)
        new = {name for name, _ in decoder_model.named_parameters()} - copied
    else:
        decoder_model = _load_decoder(decoder, decoder_layers, target, hidden_dropout, attention_dropout, warm_start)
        new = set(new_parameters(decoder_model))
    check_cross_attention(decoder_model, decoder)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder_model.config)
    model = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder_model)
    # The unused pooler is frozen instead of removed, since transformers creates one when it loads the model.
    freeze(model, {name for name, _ in encoder.named_parameters(prefix="encoder") if ".pooler." in name})
    set_special_tokens(model, start_token(target), end_token(target), int(target.pad_token_id or 0))
    model.config.vocab_size = decoder_model.config.vocab_size
    projection = {name for name, _ in model.named_parameters() if name.startswith("enc_to_dec_proj")}
    model.new_parameters = frozenset(  # type: ignore[assignment]
        {f"encoder.{name}" for name in new_parameters(encoder)} | {f"decoder.{name}" for name in new} | projection
    )
    return model


def load_encoder_decoder(
    checkpoint: Checkpoint, warm_start: bool, hidden_dropout: float | None, attention_dropout: float | None
) -> PreTrainedModel:
    """Load a pretrained encoder-decoder (Marian, T5, mBART, M2M100 ..., or one created by this toolkit).

    Args:
        warm_start: if False, the model has the same architecture, but randomly initialized weights.
        hidden_dropout, attention_dropout: dropout rates; None keeps the checkpoint's rates.

    Raises:
        UserError: the checkpoint is not an encoder-decoder, or weights are missing.
    """
    overrides: dict[str, Any] = {}
    for name in ("encoder", "decoder"):
        if isinstance(config := getattr(checkpoint.config, name, None), PretrainedConfig):  # the family `encoder-decoder`
            overrides[name] = copy.deepcopy(config)
            overrides[name].update(dropout_overrides(config, hidden_dropout, attention_dropout))
    overrides |= dropout_overrides(checkpoint.config, hidden_dropout, attention_dropout)
    model = checkpoint.load(AutoModelForSeq2SeqLM, **overrides)
    if missing := sorted(new_parameters(model)):
        raise UserError(f"model: {checkpoint.source.name} has no weights for {', '.join(missing[:4])}, so it is incomplete")
    if not warm_start:
        generation = model.generation_config
        model = AutoModelForSeq2SeqLM.from_config(model.config, trust_remote_code=False)
        model.generation_config = generation
        model.new_parameters = frozenset(name for name, _ in model.named_parameters())
    # Sinusoidal positions are parameters in some families, but must not be trained.
    sinusoidal = {f"{path}.weight" for path, module in model.named_modules() if "Sinusoidal" in type(module).__name__}
    pooler = {name for name, _ in model.named_parameters() if name.startswith("encoder.pooler.")}
    freeze(model, sinusoidal | pooler)
    return model


def _new_decoder(encoder: Any, positions: int, layers: int | None, target: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Create a BERT decoder with the width of the encoder, and by default half as many layers."""
    config = encoder.config
    fields = {
        name: getattr(config, alias)
        for name, aliases in FIELD_ALIASES.items()
        for alias in (name, *aliases)
        if isinstance(getattr(config, alias, None), (int, float))
    }
    return BertLMHeadModel(
        BertConfig(
            vocab_size=vocabulary_size(target), hidden_size=config.hidden_size,
            num_hidden_layers=layers or max(1, config.num_hidden_layers // 2), max_position_embeddings=positions,
            layer_norm_eps=getattr(config, "layer_norm_eps", BertConfig().layer_norm_eps), is_decoder=True,
            add_cross_attention=True, tie_word_embeddings=True, bos_token_id=start_token(target),
            eos_token_id=end_token(target), pad_token_id=target.pad_token_id, **fields,
        )
    )  # fmt: skip


def _load_decoder(
    source: str,
    layers: int | None,
    target: PreTrainedTokenizerBase,
    hidden_dropout: float | None,
    attention_dropout: float | None,
    warm_start: bool,
) -> PreTrainedModel:
    """Load the lowest `layers` layers of a checkpoint as a decoder. Its embeddings are used only if the vocabulary size fits."""
    checkpoint = open_decoder(source)
    changes: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True, "vocab_size": vocabulary_size(target)}
    changes |= {"num_hidden_layers": layers} if layers else {}
    changes |= {"bos_token_id": start_token(target), "eos_token_id": end_token(target), "pad_token_id": target.pad_token_id}
    if layers and layers > getattr(checkpoint.config, "num_hidden_layers", layers):
        raise UserError(
            f"task.decoder_layers: found {layers}; allowed: up to {checkpoint.config.num_hidden_layers}, the layers of {source}"
        )
    changes |= dropout_overrides(checkpoint.config, hidden_dropout, attention_dropout)
    try:
        model = checkpoint.load(AutoModelForCausalLM, **changes)
    except UserError as error:
        reason = str(error).removeprefix("model: ").partition("; allowed")[0]
        raise UserError(f"task.decoder: {reason}; allowed: {DECODERS}") from error
    if warm_start:
        return model
    model = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    model.new_parameters = frozenset(name for name, _ in model.named_parameters())
    return model


def open_decoder(source: str) -> Checkpoint:
    """Open the checkpoint of a decoder.

    Raises:
        UserError: the checkpoint cannot be opened.
    """
    with prefixed("task.decoder"):
        return Checkpoint.open(find_model(source))


def max_target_length(decoder: str, requested: int | None, limit: int) -> int:
    """Return the maximum target length in tokens: `limit`, or the number of positions of a named decoder if that is less.

    Args:
        decoder: the setting `task.decoder`.
        requested: the setting `task.max_length`.

    Raises:
        UserError: `requested` exceeds the positions of the decoder.
    """
    if decoder in ("encoder", "new"):
        return limit
    positions = open_decoder(decoder).positions
    if requested is not None and requested > positions:
        raise UserError(f"task.max_length: found {requested}; allowed: up to {positions}, the limit of {decoder}")
    return min(limit, positions)


def choose_target_tokenizer(
    name: str, setting: str, source: PreTrainedTokenizerBase, texts: list[str], vocabulary: int | None
) -> PreTrainedTokenizerBase:
    """Return the target tokenizer: a new one trained on `texts`, the source tokenizer, or the tokenizer of another model.

    Args:
        name: `train`, `source` or the name of a model.
        setting: the task setting that contains `name`, for messages.
    """
    if name == "train":
        return train_tokenizer(texts, vocabulary)
    tokenizer = source
    if name != "source":
        with prefixed(f"task.{setting}"):
            tokenizer = Checkpoint.open(find_model(name)).tokenizer
    warn_if_lossy(tokenizer, name, texts)
    return tokenizer


def copy_layers(encoder: PreTrainedModel, decoder: PreTrainedModel, same_vocabulary: bool) -> frozenset[str]:
    """Copy the encoder's weights into the decoder where names and shapes agree.

    A shallower decoder gets evenly spaced layers. Cross-attention gets the self-attention weights of the same layer.

    Returns:
        The names of the decoder's parameters that were copied.
    """
    weights = dict(_with_bert_names(encoder.state_dict()))
    depth, encoder_depth = decoder.config.num_hidden_layers, encoder.config.num_hidden_layers
    copied = set()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            inner = name.removeprefix("bert.").replace(".crossattention.", ".attention.")
            if inner.startswith("encoder.layer."):
                _, _, number, rest = inner.split(".", 3)
                inner = f"encoder.layer.{round(int(number) * (encoder_depth - 1) / max(1, depth - 1))}.{rest}"
            source = weights.get(inner)
            if inner == "embeddings.position_embeddings.weight" and source is not None:
                source = source[-parameter.shape[0] :]  # RoBERTa does not use its first rows
            if inner == "embeddings.word_embeddings.weight" and not same_vocabulary:
                source = None
            if source is not None and source.shape == parameter.shape:
                parameter.copy_(source)
                copied.add(name)
    return frozenset(copied)


def _with_bert_names(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights with their names in BERT."""
    for name, tensor in state.items():
        bert_name = name
        for other, bert in BERT_NAMES:
            bert_name = bert_name.replace(other, bert)
        yield bert_name, tensor


def check_cross_attention(model: nn.Module, decoder: str) -> None:
    """Raise a UserError if the decoder has no cross-attention: it could be trained, but would ignore the source."""
    if not any("crossattention" in name or "cross_attn" in name for name, _ in model.named_parameters()):
        raise UserError(f"task.decoder: {decoder} has no cross-attention, so it would ignore the source; allowed: {DECODERS}")


def set_special_tokens(model: Any, start: int, end: int, pad: int, forced: int | None = None) -> None:
    """Set the special tokens in the configuration and in the generation settings.

    Args:
        start, end, pad: ids of the decoder's start token, the end token and the padding token.
        forced: id that follows `start` in every target, such as the language token of a multilingual model, or None.
    """
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = start, end, pad
        settings.bos_token_id = getattr(settings, "bos_token_id", None) or start
    model.generation_config.forced_bos_token_id = forced
