"""Encoder-decoders from BERT-family checkpoints.

Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", 1907.12461: a pretrained encoder
brings most of the gain, a warm-started decoder a little. Kasai et al. 2021, 2006.10369: a deep encoder with a shallow decoder
is as good as two deep ones, and answers much faster.
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
from nlp_transfer.models.checkpoint import Checkpoint, dropout_overrides, freeze, new_parameters
from nlp_transfer.models.compatibility import vocabulary_size
from nlp_transfer.models.seq2seq.target_tokenizers import end_token, start_token, train_tokenizer, warn_if_lossy
from nlp_transfer.utils.errors import UserError

DECODERS = "a BERT, RoBERTa, XLM-RoBERTa or ELECTRA checkpoint, `encoder` or `new`"
# What some families call the parts of a layer that BERT, and so the decoder, calls otherwise.
OTHER_NAMES = (
    ("transformer.layer.", "encoder.layer."), (".attention.q_lin.", ".attention.self.query."),
    (".attention.k_lin.", ".attention.self.key."), (".attention.v_lin.", ".attention.self.value."),
    (".attention.out_lin.", ".attention.output.dense."), (".sa_layer_norm.", ".attention.output.LayerNorm."),
    (".ffn.lin1.", ".intermediate.dense."), (".ffn.lin2.", ".output.dense."), (".output_layer_norm.", ".output.LayerNorm."),
    (".attention.attn.q.", ".attention.self.query."), (".attention.attn.k.", ".attention.self.key."),
    (".attention.attn.v.", ".attention.self.value."), (".attention.attn.o.", ".attention.output.dense."),
    (".attention.LayerNorm.", ".attention.output.LayerNorm."), (".self.query_proj.", ".self.query."),
    (".self.key_proj.", ".self.key."), (".self.value_proj.", ".self.value."),
)  # fmt: skip


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
    """A model of the plain family `encoder-decoder`, its start, end and padding tokens set wherever they are looked for.

    Args:
        decoder: `encoder` (its weights come from the encoder's where names and shapes agree), `new`, or a model.
        same_vocabulary: whether `target` is the encoder's own tokenizer, so that its embeddings serve both tokenizers.
        warm_start: false draws every weight at random, in the same shape.

    Raises:
        UserError: the decoder cannot attend to an encoder, or is not what it has to be.
    """
    dropout = dropout_overrides(checkpoint.config, hidden_dropout, attention_dropout)
    encoder = checkpoint.load(AutoModel, **dropout)
    if not warm_start:
        encoder = AutoModel.from_config(encoder.config, trust_remote_code=False)
        encoder.new_parameters = frozenset(name for name, _ in encoder.named_parameters())
    if decoder in ("encoder", "new"):
        part, copied = _decoder_like(encoder, checkpoint.max_length, decoder_layers, target), frozenset[str]()
        if decoder == "encoder" and warm_start:
            copied = copy_layers(encoder, part, same_vocabulary)
        new = {name for name, _ in part.named_parameters()} - copied
    else:
        part = _decoder_from(decoder, decoder_layers, target, hidden_dropout, attention_dropout, warm_start)
        new = set(new_parameters(part))
    check_cross_attention(part, decoder)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, part.config)
    model = EncoderDecoderModel(config=config, encoder=encoder, decoder=part)
    # The pooler is of no use here. It stays, since every program that loads the model makes one, but is never trained.
    freeze(model, {name for name, _ in encoder.named_parameters(prefix="encoder") if ".pooler." in name})
    set_special_tokens(model, start_token(target), end_token(target), int(target.pad_token_id or 0))
    model.config.vocab_size = part.config.vocab_size
    projection = {name for name, _ in model.named_parameters() if name.startswith("enc_to_dec_proj")}
    model.new_parameters = frozenset(  # type: ignore[assignment]
        {f"encoder.{name}" for name in new_parameters(encoder)} | {f"decoder.{name}" for name in new} | projection
    )
    return model


def load_encoder_decoder(
    checkpoint: Checkpoint, warm_start: bool, hidden_dropout: float | None, attention_dropout: float | None
) -> PreTrainedModel:
    """A model that is an encoder-decoder already: Marian, T5, mBART, M2M100 ..., or one that was made by this toolkit.

    Raises:
        UserError: it is none, or weights are missing.
    """
    overrides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        if isinstance(part := getattr(checkpoint.config, side, None), PretrainedConfig):  # two families under one roof
            overrides[side] = copy.deepcopy(part)
            overrides[side].update(dropout_overrides(part, hidden_dropout, attention_dropout))
    overrides |= dropout_overrides(checkpoint.config, hidden_dropout, attention_dropout)
    model = checkpoint.load(AutoModelForSeq2SeqLM, **overrides)
    if missing := sorted(new_parameters(model)):
        raise UserError(f"model: {checkpoint.source.name} has no weights for {', '.join(missing[:4])}; it is no whole model")
    if not warm_start:
        generation = model.generation_config
        model = AutoModelForSeq2SeqLM.from_config(model.config, trust_remote_code=False)
        model.generation_config = generation
        model.new_parameters = frozenset(name for name, _ in model.named_parameters())
    # Positions that are computed are parameters in some families, though none that could be trained.
    computed = {f"{path}.weight" for path, module in model.named_modules() if "Sinusoidal" in type(module).__name__}
    pooler = {name for name, _ in model.named_parameters() if name.startswith("encoder.pooler.")}
    freeze(model, computed | pooler)
    return model


def _decoder_like(encoder: Any, positions: int, layers: int | None, target: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A BERT decoder of the encoder's width; by default half as deep."""
    config = encoder.config
    named = BertConfig()
    fields = {
        name: getattr(config, other)
        for name in ("num_attention_heads", "intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob")
        for other in (name, *_field_aliases(config, name))
        if isinstance(getattr(config, other, None), (int, float))
    }
    depth = layers or max(1, config.num_hidden_layers // 2)
    return BertLMHeadModel(
        BertConfig(
            vocab_size=vocabulary_size(target), hidden_size=config.hidden_size, num_hidden_layers=depth,
            max_position_embeddings=positions, layer_norm_eps=getattr(config, "layer_norm_eps", named.layer_norm_eps),
            is_decoder=True, add_cross_attention=True, tie_word_embeddings=True, bos_token_id=start_token(target),
            eos_token_id=end_token(target), pad_token_id=target.pad_token_id, **fields,
        )
    )  # fmt: skip


def _field_aliases(config: Any, name: str) -> tuple[str, ...]:
    """Fields of other families for a field of BERT's."""
    own = {"intermediate_size": ("hidden_dim",), "hidden_dropout_prob": ("dropout",)}
    return own.get(name, ("attention_dropout",) if name == "attention_probs_dropout_prob" else ())


def _decoder_from(
    source: str,
    layers: int | None,
    target: PreTrainedTokenizerBase,
    hidden_dropout: float | None,
    attention_dropout: float | None,
    warm_start: bool,
) -> PreTrainedModel:
    """A checkpoint as decoder: its lowest `layers` layers, its embeddings where `target` is of their size."""
    opened = open_decoder(source)
    changes: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True, "vocab_size": vocabulary_size(target)}
    changes |= {"num_hidden_layers": layers} if layers else {}
    changes |= {"bos_token_id": start_token(target), "eos_token_id": end_token(target), "pad_token_id": target.pad_token_id}
    if layers and layers > getattr(opened.config, "num_hidden_layers", layers):
        raise UserError(
            f"task.decoder_layers: found {layers}; allowed: up to {opened.config.num_hidden_layers}, the layers of {source}"
        )
    changes |= dropout_overrides(opened.config, hidden_dropout, attention_dropout)
    try:
        model = opened.load(AutoModelForCausalLM, **changes)
    except UserError as error:
        reason = str(error).removeprefix("model: ").partition("; allowed")[0]
        raise UserError(f"task.decoder: {reason}; allowed: {DECODERS}") from error
    if warm_start:
        return model
    model = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    model.new_parameters = frozenset(name for name, _ in model.named_parameters())
    return model


def open_decoder(source: str, setting: str = "decoder") -> Checkpoint:
    """The checkpoint that a decoder, or a target tokenizer, comes from.

    Raises:
        UserError: there is none; the message names the `setting`.
    """
    try:
        return Checkpoint.open(find_model(source))
    except UserError as error:
        raise UserError(f"task.{setting}: {str(error).removeprefix('model: ')}") from error


def open_tokenizer(source: str, setting: str) -> PreTrainedTokenizerBase:
    """The tokenizer of such a checkpoint. Raises a UserError as `open_decoder` does."""
    try:
        return open_decoder(source, setting).tokenizer
    except UserError as error:
        plain = str(error).removeprefix("model: ").removeprefix(f"task.{setting}: ")
        raise UserError(f"task.{setting}: {plain}") from error


def max_target_length(decoder: str, asked: int | None, most: int) -> int:
    """The longest target, in tokens, of a decoder that is taken from a model: `most`, or fewer where it has fewer positions.

    Raises:
        UserError: more are asked for than it has positions.
    """
    if decoder in ("encoder", "new"):
        return most
    positions = open_decoder(decoder).positions
    if asked is not None and asked > positions:
        raise UserError(f"task.max_length: found {asked}; allowed: up to {positions}, the limit of {decoder}")
    return min(most, positions)


def choose_target_tokenizer(
    wanted: str, setting: str, source: PreTrainedTokenizerBase, texts: list[str], vocabulary: int | None
) -> PreTrainedTokenizerBase:
    """The target's tokenizer: trained on its texts (`train`), the `source`'s own, or that of the model named by `setting`."""
    if wanted == "train":
        return train_tokenizer(texts, vocabulary)
    tokenizer = source if wanted == "source" else open_tokenizer(wanted, setting)
    warn_if_lossy(tokenizer, wanted, texts)
    return tokenizer


def copy_layers(encoder: PreTrainedModel, decoder: PreTrainedModel, same_vocabulary: bool) -> frozenset[str]:
    """Puts the encoder's weights into the decoder where names and shapes agree, and gives back the names that got some.

    A shallower decoder takes layers evenly from bottom to top. Cross-attention, which an encoder has none of, starts as the
    self-attention of its layer.
    """
    given = dict(_in_terms_of_bert(encoder.state_dict()))
    depth, of = decoder.config.num_hidden_layers, encoder.config.num_hidden_layers
    copied = set()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            inner = name.removeprefix("bert.").replace(".crossattention.", ".attention.")
            if inner.startswith("encoder.layer."):
                _, _, number, rest = inner.split(".", 3)
                inner = f"encoder.layer.{round(int(number) * (of - 1) / max(1, depth - 1))}.{rest}"
            source = given.get(inner)
            if inner == "embeddings.position_embeddings.weight" and source is not None:
                source = source[-parameter.shape[0] :]  # RoBERTa's kind keeps its first ones for nothing
            if inner == "embeddings.word_embeddings.weight" and not same_vocabulary:
                source = None
            if source is not None and source.shape == parameter.shape:
                parameter.copy_(source)
                copied.add(name)
    return frozenset(copied)


def _in_terms_of_bert(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        ours = name
        for other, bert in OTHER_NAMES:
            ours = ours.replace(other, bert)
        yield ours, tensor


def check_cross_attention(model: nn.Module, decoder: str) -> None:
    """Raises a UserError where no decoder layer can attend to the encoder: such a model would train, and translate nothing."""
    if not any("crossattention" in name or "cross_attn" in name for name, _ in model.named_parameters()):
        raise UserError(f"task.decoder: {decoder} has no cross-attention, so it would not see the source; allowed: {DECODERS}")


def set_special_tokens(model: Any, start: int, end: int, pad: int, forced: int | None = None) -> None:
    """Says where generation begins and ends, in the configuration and in the settings that `generate` really reads.

    `forced` is the token that every target begins with after `start`: the language, in multilingual models.
    """
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = start, end, pad
        settings.bos_token_id = getattr(settings, "bos_token_id", None) or start
    model.generation_config.forced_bos_token_id = forced
