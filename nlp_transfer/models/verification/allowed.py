"""The allowed file names and configuration keys of an untrusted model. All others are ignored.

A key that a new version of a library introduces has no effect until it is listed here. Numbers, booleans and null are allowed
under every listed key. Text is allowed as labels and tokens, and as single words under the keys in `WORD_KEYS`; a word cannot
name a path or a repository.
"""

import re

CONFIGURATIONS = ("config.json", "generation_config.json")
RECORD = "nlp_transfer.json"
TRIMMED_VOCABULARY = "trimmed_vocabulary.json"  # what was measured when the vocabulary was trimmed
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SHARD = re.compile(r"[\w-][\w.-]*\.(safetensors|bin)")  # in the same folder as its index
# Names of the tokenizer files of transformers, except pickles (`vocab.pkl`).
TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "spm_char.model",
    "tokenizer.model", "source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "bpe.codes",
    "dict.txt", "emoji.json", "entity_vocab.json", "byte_maps.json", "prophetnet.tokenizer", "word_shape.json",
    "word_pronunciation.json",
)  # fmt: skip
FOLDERS = ("", "target_tokenizer", "built")

# --- Keys of config.json, in addition to the fields of the family's configuration class

# Fields that transformers reads although the configuration classes do not declare them.
UNDECLARED = frozenset((
    "model_type", "num_labels", "torch_dtype", "tokenizer_class", "rope_scaling", "rope_theta", "rotary_emb_base",
    "rotary_pct", "partial_rotary_factor", "global_rope_theta", "local_rope_theta", "rope_local_base_freq",
    "global_attn_every_n_layers", "sliding_window_pattern", "full_attention_interval", "head_dim", "n_embed",
    "attention_head_size", "embedding_size", "pooler_hidden_size", "cls_dropout", "classifier_dropout", "hidden_dropout",
    "conv_act", "conv_groups", "conv_kernel_size", "norm_rel_ebd", "position_buckets", "share_att_key", "talking_head",
    "position_embedding_type", "is_decoder", "add_cross_attention", "tie_word_embeddings", "scale_decoder_outputs",
    "decoder_start_token_id", "dense_act_fn", "is_gated_act", "force_bos_token_to_be_generated", "first_k_dense_replace",
    "moe_layer_freq", "summary_type", "summary_activation", "summary_use_proj", "summary_first_dropout",
    "summary_last_dropout", "summary_proj_to_labels", "lang2id", "id2lang", "asm_cutoffs", "asm_div_value",
    "output_attentions", "type_vocab_size", "dropout_rate", "cross_attention_hidden_size", "bos_token_id", "eos_token_id",
    "pad_token_id", "sep_token_id", "cls_token_id",
))  # fmt: skip
# Fields that may contain a word, or words in a list or mapping.
WORD_KEYS = frozenset((
    "model_type", "architectures", "tokenizer_class", "dtype", "torch_dtype", "transformers_version", "problem_type",
    "activation", "activation_function", "afn", "approx_mode", "attention_layers", "attention_type", "attention_types",
    "attn_impl", "attn_layers", "attn_type", "average_approximation_function", "classifier_activation", "classifier_pooling",
    "conv_act", "cross_attention_shape_for_attention", "default_language", "dense_act_fn", "early_stopping",
    "encoder_attention_type", "feed_forward_proj", "ff_activation", "force_dequant", "hidden_act", "hidden_activation",
    "hidden_mamba_act", "init_device", "langs", "languages", "layer_types", "layers", "layers_block_type", "mamba_dt_rank",
    "mlp_layer_types", "norm_rel_ebd", "norm_type", "normalization_type", "pooler_hidden_act", "pooling", "pooling_type",
    "pos_att_type", "position_embedding_type", "position_embeddings_type", "projector_hidden_act", "rope_type",
    "router_dtype", "second_expert_policy", "sliding_window_pattern", "speech_encoder_hidden_act", "summary_activation",
    "summary_type", "topk_method", "type", "__float__",
))  # fmt: skip
LABELS = frozenset(("id2label", "label2id", "id2lang", "lang2id"))  # these may contain any text
# Fields that may contain a complete configuration, in addition to the `sub_configs` of a class.
NESTED_CONFIGS = frozenset(("encoder", "decoder"))
# A model with one of these fields is refused, because ignoring the field would change what the model computes.
UNSUPPORTED = {"quantization_config": "its weights are quantized; allowed: a checkpoint in fp32, fp16 or bf16"}
# Keys without effect in transformers 5: ignored without a message.
IGNORED_SILENTLY = frozenset((
    "_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset", "gradient_checkpointing",
    "task_specific_params", "finetuning_task", "output_past", "xla_device", "directionality", "pooler_fc_size",
    "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "use_bfloat16",
    "torchscript", "prefix", "tie_weights_", "n_positions", "use_cache", "tf_legacy_loss", "reference_compile",
    "output_hidden_states", "return_dict", "_num_labels", "add_bias_logits", "add_final_layer_norm", "classif_dropout",
    "normalize_before", "normalize_embedding", "static_position_embeddings", "extra_pos_embeddings", "down_scale_factor",
    "gap_size", "net_structure_type", "num_memory_blocks", "attention_mode", "ignore_attention_mask",
    "repad_logits_with_grad", "untie_r", "n_ctx", "tie_encoder_decoder", "padding_idx", "do_blenderbot_90_layernorm",
))  # fmt: skip

# --- Keys of tokenizer_config.json

TOKENS = frozenset((
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "mask_token_sent",
    "x_sep_token", "question_token", "empty_token", "space_token", "line_token", "eod_token", "word_delimiter_token",
    "entity_1_token", "entity_2_token", "entity_mask_token", "entity_mask2_token", "entity_pad_token", "entity_unk_token",
    "prefix_token", "middle_token", "suffix_token", "eot_token", "fill_token", "additional_special_tokens",
    "extra_special_tokens", "model_specific_special_tokens", "added_tokens_decoder", "never_split",
))  # fmt: skip
TOKENIZER_WORDS = frozenset((
    "tokenizer_class", "padding_side", "truncation_side", "errors", "vocab_type", "src_lang", "tgt_lang", "source_lang",
    "target_lang", "language", "language_codes", "langs", "lang2id", "id2lang", "task", "wordpieces_prefix",
    "model_input_names", "backend", "word_tokenizer_type", "subword_tokenizer_type",
))  # fmt: skip
TOKENIZER_NUMBERS = frozenset((
    "model_max_length", "max_len", "pad_token_type_id", "unk_id", "extra_ids", "offset", "num_madeup_words", "sp_model_kwargs",
    "max_entity_length", "max_mention_length", "do_lower_case", "do_basic_tokenize", "do_lowercase", "do_clean_text",
    "do_lowercase_and_remove_accent", "do_word_tokenize", "do_subword_tokenize", "tokenize_chinese_chars", "strip_accents",
    "clean_up_tokenization_spaces", "clean_text", "remove_space", "keep_accents", "add_prefix_space", "add_bos_token",
    "add_eos_token", "trim_offsets", "split_special_tokens", "split_by_punct", "legacy", "legacy_behaviour", "normalization",
    "normalize", "separate_vocabs", "return_token_type_ids", "use_default_system_prompt",
))  # fmt: skip
TOKENIZER_UNSUPPORTED = {
    "auto_map": "it refers to code in the model, and no code of a model is run here; allowed: tokenizers that transformers knows"
}
TOKENIZER_IGNORED_SILENTLY = frozenset((
    "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "init_inputs", "chat_template",
    "processor_class", "transformers_version", "use_fast", "is_local", "local_files_only", "files_loaded", "full_tokenizer_file",
    "max_length", "stride", "truncation", "truncation_strategy", "padding", "pad_to_multiple_of", "device_map",
))  # fmt: skip
