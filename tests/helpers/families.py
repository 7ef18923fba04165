"""Tiny checkpoints of every family with a sequence classifier, made from configurations; nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tests.helpers.models import POSITIONS, VOCABULARY, tokenizer

CLASSIFIERS = list(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
"""Model types for which transformers has a sequence classifier."""

# Sizes under the names that the families give them; those that a configuration does not have are left out.
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "d_model": 32, "n_embd": 32, "emb_dim": 32, "dim": 32,
    "embedding_size": 32, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_encoder_layers": 2, "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "d_ff": 48,
    "d_inner": 48, "n_inner": 48, "ffn_dim": 48, "hidden_dim": 48, "dff": 48, "ffn_hidden_size": 48, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": POSITIONS, "n_positions": POSITIONS,
    "max_seq_len": POSITIONS, "n_ctx": POSITIONS, "type_vocab_size": 2, "d_kv": 16, "d_head": 16, "num_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "rotary_dim": 8, "pooler_hidden_size": 32, "n_routed_experts": 2, "n_group": 1, "topk_group": 1,
}  # fmt: skip
IDS = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 3}
OWN: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {"attention_type": "original_full"},
    "big_bird": {"attention_type": "original_full"},
    "canine": {"num_hash_buckets": 512, "local_transformer_stride": 8, "vocab_size": None},
    "longformer": {"attention_window": [8, 8], "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2},
    "mobilebert": {"true_hidden_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 1,
                  "num_cross_attention_heads": 2, "num_self_attention_heads": 2, "max_position_embeddings": POSITIONS},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "local"],
                 "is_decoder": False, "attention_head_size": 16, "feed_forward_size": 48, "local_attn_chunk_length": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2},
    "squeezebert": {"q_groups": 1, "k_groups": 1, "v_groups": 1, "intermediate_groups": 1, "output_groups": 1,
                    "post_attention_groups": 1},
    "convbert": {"conv_kernel_size": 3, "num_groups": 1},
    "ctrl": {"dff": 48},
    "falcon": {"head_dim": None},
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1], "num_hidden_layers": None, "num_decoder_layers": 1},
    "prophetnet": {"num_hidden_layers": None},
    "fsmt": {"src_vocab_size": len(VOCABULARY), "tgt_vocab_size": len(VOCABULARY), "langs": ["en", "de"]},
    "t5": {"decoder_start_token_id": 0},
    "xlnet": {"max_position_embeddings": None},
    "markuplm": {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "max_depth": 50},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8, "pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "layoutlmv3": {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "coordinate_size": 5, "shape_size": 6},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16, "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2},
    "esm": {"position_embedding_type": "absolute", "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2,
            "mask_token_id": 4},
}  # fmt: skip
# Positions that start above the padding id, which for these is 1 in the published checkpoints.
for _family in ("roberta", "xlm-roberta", "camembert", "data2vec-text", "ibert", "luke", "markuplm", "mpnet", "lilt",
                "xlm-roberta-xl", "roberta-prelayernorm", "layoutlmv3"):  # fmt: skip
    OWN.setdefault(_family, {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1})


def family_config(family: str, **changes: Any) -> PretrainedConfig:
    """A tiny configuration of a family."""
    kind = CONFIG_MAPPING[family]
    usual = kind()
    fields = {name: value for name, value in (SIZES | IDS).items() if _has(usual, name)}
    fields |= {name: value for name, value in OWN.get(family, {}).items() if value is not None}
    for name, value in OWN.get(family, {}).items():
        if value is None:
            fields.pop(name, None)
    if "layer_types" in vars(usual) and "num_hidden_layers" in fields:
        fields["layer_types"] = (usual.layer_types or ["full_attention"])[:2]
    return kind(**fields | changes)


def _has(config: PretrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except NotImplementedError:  # XLNet on its length
        return False


def family_tokenizer(config: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of words; where the family pads with 1 (as RoBERTa does) the ids of padding and unknown words are exchanged."""
    backend = tokenizer("bert")
    if getattr(config, "pad_token_id", None) == 1:
        state = json.loads(backend.backend_tokenizer.to_str())
        state["model"]["vocab"] |= {"[PAD]": 1, "[UNK]": 0}
        for token in state["added_tokens"]:
            token["id"] = {"[PAD]": 1, "[UNK]": 0}.get(token["content"], token["id"])
        from tokenizers import Tokenizer

        backend._tokenizer = Tokenizer.from_str(json.dumps(state))
    types = getattr(config, "type_vocab_size", 0) or 0
    backend.model_input_names = [name for name in backend.model_input_names if name != "token_type_ids" or types > 1]
    return backend


def save_family(family: str, folder: Path, auto_class: Any = AutoModel, **changes: Any) -> Path:
    """A pretrained encoder (or decoder) without a head, or what `auto_class` makes of it, with its tokenizer."""
    torch.manual_seed(0)
    config = family_config(family, **changes)
    auto_class.from_config(config).save_pretrained(folder)
    family_tokenizer(config).save_pretrained(folder)
    return folder
