"""Represent encoder-decoders of BERT layers in CTranslate2, exactly.

CTranslate2 has no counterpart of the transformation in BERT's output layer, LayerNorm(GELU(W x + b)). It becomes a further
decoder layer, whose attentions add zeros, and whose feed-forward layer is W with GELU, followed by the identity. Without a norm
of its own, a feed-forward layer of CTranslate2 has no residual connection. The norm of the transformation becomes the last norm
of the decoder. The norms of the two attentions do not change their input, since normalizing twice is the same as normalizing
once: the scale and the shift of the norm before them move into the last of the three.
"""

from typing import Any

import torch
from torch import nn

from nlp_transfer.utils.errors import UserError

ENCODERS = ("bert", "roberta", "xlm-roberta")


def bert_spec(model: Any, source_tokens: list[str], target_tokens: list[str]) -> Any:
    """Return the specification of an `EncoderDecoderModel`.

    Args:
        source_tokens, target_tokens: The vocabularies, in the order of ids.

    Raises:
        UserError: CTranslate2 cannot represent the model.
    """
    from ctranslate2.converters.transformers import _SUPPORTED_ACTIVATIONS as ACTIVATIONS
    from ctranslate2.specs import TransformerSpec, transformer_spec

    encoder, decoder = model.encoder, model.decoder
    _check(model)
    shapes = [
        {"num_heads": part.num_attention_heads, "activation": ACTIVATIONS[part.hidden_act], "layernorm_embedding": True}
        for part in (encoder.config, decoder.config)
    ]
    spec = TransformerSpec(
        transformer_spec.TransformerEncoderSpec(encoder.config.num_hidden_layers, pre_norm=False, **shapes[0]),
        transformer_spec.TransformerDecoderSpec(decoder.config.num_hidden_layers + 1, **shapes[1]),
    )
    spec.decoder.pre_norm = False  # only now, since it has a last norm, unlike other decoders with norms after the layers
    _set_embeddings(spec.encoder, spec.encoder.embeddings[0], encoder.embeddings, encoder.config)
    _set_embeddings(spec.decoder, spec.decoder.embeddings, decoder.bert.embeddings, decoder.config)
    for target, layer in zip(spec.encoder.layer, encoder.encoder.layer, strict=True):
        _set_layer(target, layer)
    for target, layer in zip(spec.decoder.layer[:-1], decoder.bert.encoder.layer, strict=True):
        _set_layer(target, layer)
        _set_attention(target.attention, layer.crossattention, fused=((0,), (1, 2)))
    _set_head(spec.decoder.layer[-2], spec.decoder.layer[-1], decoder)
    head = decoder.cls.predictions
    _set_norm(spec.decoder.layer_norm, head.transform.LayerNorm)
    _set_dense(spec.decoder.projection, head.decoder.weight, head.decoder.bias)
    spec.register_source_vocabulary(source_tokens)
    spec.register_target_vocabulary(target_tokens)
    settings = model.generation_config
    spec.config.layer_norm_epsilon = decoder.config.layer_norm_eps
    spec.config.decoder_start_token = target_tokens[settings.decoder_start_token_id]
    spec.config.bos_token = spec.config.decoder_start_token
    spec.config.eos_token = target_tokens[int(torch.as_tensor(settings.eos_token_id).reshape(-1)[0])]
    spec.config.unk_token = target_tokens[settings.pad_token_id]  # every id has a token, so none is unknown
    return spec


def _set_head(before: Any, target: Any, decoder: Any) -> None:
    """Set the layer that stands for the transformation in the output layer, and the norm of the layer before it."""
    dense, norm, width = decoder.cls.predictions.transform.dense, before.ffn.layer_norm, decoder.config.hidden_size
    target.attention.layer_norm.gamma, target.attention.layer_norm.beta = norm.gamma, norm.beta
    for plain in (norm, target.self_attention.layer_norm):
        plain.gamma, plain.beta = torch.ones(width), torch.zeros(width)
    for attention, sizes in ((target.self_attention, (3, 1)), (target.attention, (1, 2, 1))):
        for linear, size in zip(attention.linear, sizes, strict=True):
            _set_dense(linear, torch.zeros(size * width, width), torch.zeros(size * width))
    _set_dense(target.ffn.linear_0, dense.weight, dense.bias)
    _set_dense(target.ffn.linear_1, torch.eye(width), torch.zeros(width))
    del target.ffn.layer_norm


def _check(model: Any) -> None:
    encoder, decoder = model.encoder.config, model.decoder.config
    found = [encoder.model_type, decoder.model_type]
    if encoder.model_type not in ENCODERS or decoder.model_type != "bert":
        raise UserError(
            f"export: found an encoder-decoder of {' and '.join(found)}; CTranslate2 can represent an encoder of "
            f"{', '.join(ENCODERS)} with a decoder of bert"
        )
    if hasattr(model, "enc_to_dec_proj") or encoder.layer_norm_eps != decoder.layer_norm_eps:
        raise UserError(
            "export: the encoder and the decoder have different widths, or another epsilon in their norms, which CTranslate2 "
            "cannot represent; allowed: equal ones"
        )
    if {decoder.hidden_act, encoder.hidden_act} != {"gelu"}:
        raise UserError(
            f"export: found the activations {encoder.hidden_act} and {decoder.hidden_act}; CTranslate2 can represent "
            "encoder-decoders of BERT layers with gelu"
        )


def _set_embeddings(side: Any, target: Any, embeddings: Any, config: Any) -> None:
    # All tokens have type 0, so its embedding becomes part of the embeddings of the tokens.
    target.weight = embeddings.word_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    positions = embeddings.position_embeddings.weight
    # RoBERTa counts positions from the padding id.
    side.position_encodings.encodings = positions if config.model_type == "bert" else positions[config.pad_token_id + 1 :].clone()
    side.scale_embeddings = False
    _set_norm(side.layernorm_embedding, embeddings.LayerNorm)


def _set_layer(target: Any, layer: Any) -> None:
    _set_attention(target.self_attention, layer.attention, fused=((0, 1, 2),))
    _set_dense(target.ffn.linear_0, layer.intermediate.dense.weight, layer.intermediate.dense.bias)
    _set_dense(target.ffn.linear_1, layer.output.dense.weight, layer.output.dense.bias)
    _set_norm(target.ffn.layer_norm, layer.output.LayerNorm)


def _set_attention(target: Any, attention: Any, fused: tuple[tuple[int, ...], ...]) -> None:
    """Set the linear layers of an attention; `fused` lists the ones of queries (0), keys (1) and values (2) that are joined."""
    parts = (attention.self.query, attention.self.key, attention.self.value)
    for linear, joined in zip(target.linear, fused, strict=False):
        _set_dense(linear, torch.cat([parts[i].weight for i in joined]), torch.cat([parts[i].bias for i in joined]))
    _set_dense(target.linear[-1], attention.output.dense.weight, attention.output.dense.bias)
    _set_norm(target.layer_norm, attention.output.LayerNorm)


def _set_dense(target: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    target.weight, target.bias = weight, bias


def _set_norm(target: Any, norm: nn.LayerNorm) -> None:
    target.gamma, target.beta = norm.weight, norm.bias
