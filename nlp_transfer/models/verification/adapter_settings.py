"""Check and load untrusted adapters: `adapter_config.json` is reduced to data before peft reads it.

The settings could make peft import modules, open files, call the hub and match slow patterns. Therefore peft reads a private
folder with the reduced settings and the checked weight file.
"""

import dataclasses
import json
import math
import re
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.models.verification.allocation_limit import AllocationLimit
from nlp_transfer.models.verification.allowed import ADAPTER_WEIGHTS
from nlp_transfer.models.verification.model_files import find_file, link_file, read_settings
from nlp_transfer.models.verification.weight_files import check_finite, count_values, explain_load_error
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, shorten

SETTINGS = "adapter_config.json"
# PEFT methods whose adapters can include a head. The strategies lora and peft save no other adapters.
SUPPORTED_METHODS = frozenset(
    """ADAMSS BEFT BOFT C3A CARTRIDGE DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA LOKR LORA MISS
    OFT OSF PEANUT PREFIX_TUNING PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA ROAD SHIRA SUPERTUNING TINYLORA UNILORA VBLORA VERA
    WAVEFT""".split()
)
NUMBER_SETTINGS = frozenset(
    """alpha apply_GS asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta block_share block_size
    boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor cayley_neumann_eps coft d_initial decompose_both
    decompose_factor deft_dropout delora_lambda depth effective_rank encoder_dropout encoder_hidden_size encoder_num_layers
    ensure_weight_tying eps fan_in_fan_out final_warmup frod_dropout generator_seed gralora_dropout
    gralora_k group_size hira_dropout hybrid_r inference_mode init_ia3_weights init_logits_std init_scale init_theta_d_bound
    init_v_bound init_vector_bank_bound init_warmup lora_alpha lora_bias lora_dropout mask_interval mini_r miss_dropout
    module_dropout n_frequency num_B num_attention_heads num_cayley_neumann_terms num_frozen_tokens num_layers num_subspaces
    num_transformer_submodules num_vectors num_virtual_tokens oft_block_size para prefix_projection progressbar proj_seed
    projection_prng_key projection_seed proportional_parameters psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b psoft_orth
    psoft_svd_lowrank_niter pvera_dropout qalora_group_size r randlora_alpha randlora_dropout random_loc_seed random_seed
    rank_dropout rank_dropout_scale regularization_alpha sample_at_inference save_indices save_only_topk_weights
    save_precomputed_indices save_projection scaling select_top sparse sparse_rate sparsity stride_A subspace_rank svd_threshold
    theta_d_length tinylora_dropout token_dim topk u unilora_dropout use_asa use_cayley_neumann use_dora use_dynamic_rank
    use_effective_conv2d use_idwt use_qalora use_rslora vblora_dropout vector_length vera_dropout very_sparse
    weight_tying""".split()
)
WORD_SETTINGS = {
    "ab_svd_init": "psoft_init|pissa_init",
    "act_fn": r"[a-z]\w{0,30}",  # a key of a table in transformers
    "bias": r"none|all|[a-z]+_only",
    "config_A_B": "lora|vector|constant|none",
    "config_C": "lora|vector|none",
    "config_D_E": "vector|constant|none",
    "decomposition_method": "relu|qr",
    "encoder_reparameterization_type": "MLP|LSTM",
    "init_lora_weights": r"gaussian|eva|olora|pissa|pissa_niter_\d{1,2}|orthogonal|mica",
    "init_weights": "bat|gaussian|kaiming_uniform|lycoris|mini|orthogonal|uniform|xavier_uniform|zero",
    "mask_type": "random",
    "peft_version": r"\d{1,4}(\.\d{1,4}){1,3}[\w.@+-]{0,60}",
    "psoft_svd": "full|lowrank",
    "task_type": "SEQ_CLS|SEQ_2_SEQ_LM|TOKEN_CLS|QUESTION_ANS",
    "variant": r"road_[124]",
    "wavelet_family": r"[a-z]{2,4}\d{0,2}",
}
TOGGLED_WORDS = ("init_lora_weights", "init_weights")  # these may be true, false or null as well
PATTERNS = ("target_modules", "feedforward_modules", "exclude_modules")
NAMES = ("modules_to_save", "target_parameters")
BY_PATTERN = (
    "alpha_pattern", "block_size_pattern", "lambda_pattern", "n_frequency_pattern", "rank_pattern", "target_svd_config",
)  # fmt: skip
# Settings that contain other settings, and the words allowed there. CorDA's settings are not allowed, since they name files.
GROUPS = {
    "eva_config": (),
    "kasa_config": (),
    "lora_ga_config": ("ArBr", "A2rBr", "ArB2r", "random", "stable", "weight_svd", "gd_scale", "unit"),
    "monteclora_config": (),
    "use_bdlora": (),
    "velora_config": ("batch_average", "batch_average_once", "random"),
}
# Settings on the origin and initialization of an adapter. They are dropped, because the model's record names the base, and the
# weights are stored.
UNUSED = frozenset(
    """auto_mapping base_model_name_or_path megatron_core prompt_tuning_init prompt_tuning_init_text revision runtime_config
    runtime_offload_base_weight tokenizer_kwargs tokenizer_name_or_path""".split()
)

NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
# Module names, `\.`, `.`, `.*`, `\d+`, classes such as [01], and groups of alternatives, optionally between `^` and `$`. Repeated
# groups are not allowed, since matching them may take exponential time.
PATTERN = re.compile(r"(?P<repeat>(?:\\[dw]|\.|\[[\w-]+\])[+*]\??)|(?P<group>\((\?:)?)|[\w|)-]|\\[.dw-]|\.|\[[\w-]+\]")
MAX_CHARACTERS = 2**16
MAX_REPEATS, MAX_GROUPS = 3, 6
MAX_KEYS = 200  # maximum patterns in a setting; each is matched with each module, and Python caches 512 compiled patterns
MAX_COMBINATIONS = 2**22  # maximum combinations of alternatives and of lengths of repeats in a pattern
REPEATS = 64  # number of lengths that a repeat is assumed to match, for MAX_COMBINATIONS
MAX_NAMES = 4096
MAX_SIZE = 2**14  # maximum of ranks, virtual tokens, widths ...
MAX_LAYERS = 128  # maximum number of layers after replication
MAX_ITERATIONS = {"num_cayley_neumann_terms": 100, "psoft_svd_lowrank_niter": 100}
LARGE = re.compile(r"seed|key|n_frequency|theta")  # settings that do not affect memory, or only the length of a single vector
# Limits for loading an adapter. Allocated elements are limited relative to the elements of the base and the adapter (PEFT methods
# need up to 3 times as many). Operations are limited relative to the base's modules (BOFT needs the most: 500 for a module of
# width 384).
MAX_RATIO, EXTRA_ELEMENTS = 8, 10**7
OPERATIONS_PER_MODULE, EXTRA_OPERATIONS = 3000, 10**5


def reduce_adapter_settings(document: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Reduce the settings of an adapter to numbers, known words, module names and patterns of module names.

    Settings unknown to peft are dropped and reported. Settings of peft that this module does not list must have their default
    values.

    Args:
        origin: the settings file, for messages.

    Raises:
        UserError: the PEFT method is not supported, or a setting has a value that is not allowed.
    """
    method = document.get("peft_type")
    supported = SUPPORTED_METHODS & _defaults().keys()
    if not isinstance(method, str) or method not in supported:
        raise UserError(f"{origin}: found peft_type: {shorten(method)}; allowed: {', '.join(sorted(supported))}")
    defaults = _defaults()[method]
    if unknown := sorted(shorten(name) for name in document if name not in defaults):
        listed = ", ".join(unknown[:8]) + (" ..." if len(unknown) > 8 else "")
        say(f"note: {origin}: ignored {listed}: peft has no such settings for {method}")
    reduced: dict[str, Any] = {"peft_type": method}
    for name, value in document.items():
        if name == "peft_type" or name not in defaults or name in UNUSED:
            continue
        if (problem := _problem(name, value, defaults[name])) is None:
            reduced[name] = value
        elif value != defaults[name]:
            raise UserError(f"{origin}: found {name}: {shorten(value)}; allowed: {problem}")
    return reduced


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    """Return the settings of each method of the installed peft, with their defaults."""
    import peft  # noqa: F401  # registers the methods
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {
        method.value: {
            field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in dataclasses.fields(schema)
        }
        for method, schema in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }


def _problem(name: str, value: Any, default: Any) -> str | None:
    """Return None if the value of a setting is allowed, else a description of the allowed values."""
    if name in WORD_SETTINGS:
        is_word = isinstance(value, str) and re.fullmatch(WORD_SETTINGS[name], value)
        is_toggle = name in TOGGLED_WORDS and (value is None or isinstance(value, bool))
        return None if is_word or is_toggle else WORD_SETTINGS[name].replace("|", ", ")
    if name in NUMBER_SETTINGS:
        return _number_problem(name, value, default)
    if name in PATTERNS and isinstance(value, str):
        return pattern_problem(value)
    if name in (*PATTERNS, *NAMES):
        return None if _are_names(value) else f"a list of up to {MAX_NAMES:,} names of modules"
    if name in BY_PATTERN:
        return _by_pattern_problem(value)
    if name in GROUPS:
        return _group_problem(name, value)
    if name == "layer_replication":
        return _replication_problem(value)
    return f"{default!r}"


def _number_problem(name: str, value: Any, default: Any) -> str | None:
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true, false"
    if value is None:
        return None if default is None else "a number"
    limit = 2**63 if LARGE.search(name) else MAX_ITERATIONS.get(name, MAX_SIZE)
    is_number = isinstance(value, (int, float)) and (default is None or not isinstance(value, bool))
    return None if is_number and abs(value) <= limit else f"a number up to {limit:,}"


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) <= MAX_NAMES
    return is_list and all(isinstance(name, str) and len(name) <= 500 and NAME.fullmatch(name) for name in value)


def pattern_problem(pattern: str, max_repeats: int = MAX_REPEATS) -> str | None:
    """Return None if a pattern of module names can be matched quickly, else a description of the allowed patterns."""
    pattern = pattern.removeprefix("^").removesuffix("$")
    pieces = list(PATTERN.finditer(pattern))
    is_plain = len(pattern) <= MAX_CHARACTERS and sum(len(piece[0]) for piece in pieces) == len(pattern)
    repeats = sum(piece["repeat"] is not None for piece in pieces)
    groups = sum(piece["group"] is not None for piece in pieces)
    combinations = REPEATS**repeats * math.prod(group.count("|") + 1 for group in re.split(r"[()]", pattern))
    if not is_plain or repeats > max_repeats or groups > MAX_GROUPS or combinations > MAX_COMBINATIONS:
        return (
            r"a list of names of modules, or a pattern made of names, `\.`, `.`, [01] and alternatives in round brackets, with "
            rf"up to {max_repeats} of `.*` and `\d+`"
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError) as error:
        return f"a pattern of module names ({error})"
    return None


def _by_pattern_problem(value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > MAX_KEYS or sum(map(len, value)) > MAX_CHARACTERS:
        return f"numbers by pattern of module names, up to {MAX_KEYS} patterns of {MAX_CHARACTERS:,} characters together"
    for key, number in value.items():
        if problem := pattern_problem(key, max_repeats=1):  # peft adds a repeat before the key
            return f"keys that are {problem}"
        if problem := _number_problem("", number, 0):
            return f"values that are {problem}"
    return None


def _group_problem(name: str, value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > 20:
        return "null, or settings by name"
    for key, inner in value.items():
        if not re.fullmatch(r"\w{1,40}", key):
            return "settings by name"
        is_plain = inner is None or isinstance(inner, bool) or inner in GROUPS[name] or _are_names(inner)
        if not is_plain and (problem := _number_problem(key, inner, 0)):
            return f"{key} that is {problem}"
    return None


def _replication_problem(value: Any) -> str | None:
    is_list = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    is_small = is_list and all(type(n) is int and 0 <= n <= MAX_LAYERS for pair in value for n in pair)
    if is_small and len(value) <= MAX_LAYERS and sum(abs(end - begin) for begin, end in value) <= MAX_LAYERS:
        return None
    return f"pairs of first and last layer, with up to {MAX_LAYERS} layers together"


def load_adapter(model: Any, folder: Path, merge: Any = None, hint: str = "") -> Any:
    """Load the adapter in a folder onto its base model.

    Args:
        merge: a function that merges the adapter into the base; None keeps the adapter separate.
        hint: text that is appended to the message of a load error, such as the base that the adapter was trained on.

    Returns:
        The model with the adapter, or the result of `merge`.

    Raises:
        UserError: the settings are not allowed, the weights do not fit the settings or are not finite, or loading would
            allocate far more memory than the base and the weights.
    """
    from peft import PeftModel

    source = ModelSource(str(folder), str(folder))
    settings = reduce_adapter_settings(read_settings(source, SETTINGS) or {}, f"{folder}: {SETTINGS}")
    name, weights = next(((name, path) for name in ADAPTER_WEIGHTS if (path := find_file(source, name))), ("", None))
    if weights is None:
        raise UserError(f"{folder}: the adapter has no weights; allowed: {' or '.join(ADAPTER_WEIGHTS)} in its folder")
    elements = count_values(weights) + sum(parameter.numel() for parameter in model.parameters())
    operations = OPERATIONS_PER_MODULE * sum(1 for _ in model.modules())
    limit = AllocationLimit(f"{folder}: {SETTINGS}", MAX_RATIO * elements + EXTRA_ELEMENTS, operations + EXTRA_OPERATIONS)
    with tempfile.TemporaryDirectory(prefix="nlp_transfer-adapter-") as private:
        Path(private, SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        link_file(weights, Path(private, name))
        try:
            with limit, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapted: Any = PeftModel.from_pretrained(model, private)
                if unfit := _unfit(adapted, private):
                    raise ValueError(f"{name} {unfit}")
                check_finite(adapted, f"{folder}: {name}", "train the adapter again, or copy it again")
            return adapted if merge is None else merge(adapted)
        except UserError:
            raise
        except Exception as error:  # peft raises errors of any type if settings, weights and base do not match
            raise UserError(f"{folder}: the adapter cannot be loaded: {explain_load_error(error, [Path(name)])}{hint}") from error


def _unfit(adapted: Any, private: str) -> str | None:
    """Describe how the stored tensors differ from those of the adapter; None if they agree. peft does not report this."""
    from peft import get_peft_model_state_dict, load_peft_weights

    def shapes(**settings: Any) -> dict[str, Any]:
        return {name: tensor.shape for name, tensor in get_peft_model_state_dict(adapted, **settings).items()}

    needed = shapes(save_embedding_layers=False)
    stored = {name: tensor.shape for name, tensor in load_peft_weights(private, device="cpu").items()}
    differences = {
        "has no": needed.keys() - stored.keys(),
        "also has": stored.keys() - shapes(save_embedding_layers=True).keys(),  # embeddings of tokens that were added to the base
        "has in another shape": {name for name in needed.keys() & stored.keys() if needed[name] != stored[name]},
    }
    for difference, names in differences.items():
        if names:
            listed = ", ".join(shorten(name) for name in sorted(names)[:4]) + (" ..." if len(names) > 4 else "")
            return f"{difference} {listed}; allowed: the tensors that {SETTINGS} describes for this base"
    return None
