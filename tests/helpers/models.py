"""Tiny checkpoints of every tested family, made from configurations; nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

WORDS = (
    "the a good bad film plot actor awful great dull bright story was is very not quite and but music scene cold warm slow fast "
    "red blue one two three cat dog sat ran on under mat tree river hill".split()
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {token: i for i, token in enumerate(SPECIAL + WORDS)}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
POSITIONS = 64


def _config(family: str) -> PretrainedConfig:
    vocabulary = len(VOCABULARY)
    common = {"vocab_size": vocabulary, "pad_token_id": 0}
    bert = common | SIZE | {"max_position_embeddings": POSITIONS}
    shifted = bert | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
    configs = {
        "bert": lambda: BertConfig(**bert),
        "distilbert": lambda: DistilBertConfig(
            **common, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=POSITIONS
        ),
        "roberta": lambda: RobertaConfig(**shifted),
        "xlm-roberta": lambda: XLMRobertaConfig(**shifted),
        "electra": lambda: ElectraConfig(**bert, embedding_size=16),
        "deberta-v2": lambda: DebertaV2Config(
            **bert, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
            pooler_hidden_size=32, norm_rel_ebd="layer_norm", share_att_key=True,
        ),
        "albert": lambda: AlbertConfig(**bert, embedding_size=16),
        "mpnet": lambda: MPNetConfig(**bert),
        "modernbert": lambda: ModernBertConfig(
            **(bert | {"num_hidden_layers": 3}), cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
            local_attention=8, global_attn_every_n_layers=3,
        ),
    }  # fmt: skip
    return configs[family]()


def tiny_classifier(family: str) -> PreTrainedModel:
    """A sequence classifier with random weights."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(_config(family))
    return model


FAMILIES = ["bert", "distilbert", "roberta", "xlm-roberta", "electra", "deberta-v2", "albert", "mpnet", "modernbert"]


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = (
        ["input_ids", "token_type_ids", "attention_mask"]
        if family in ("bert", "electra", "albert")
        else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=POSITIONS, model_input_names=names,
    )  # fmt: skip


def save_tiny(family: str, folder: Path, **config_changes: object) -> Path:
    """A pretrained encoder without head, as `folder`: what a fine-tuning run starts from."""
    torch.manual_seed(0)
    config = _config(family)
    for name, value in config_changes.items():
        setattr(config, name, value)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == 0
    return folder
