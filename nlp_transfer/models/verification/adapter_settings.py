"""Adapters from elsewhere: `adapter_config.json` reduced to settings that are known to be data, and an adapter put on its model.

peft imports modules, opens files and asks the hub where these settings tell it to, and matches patterns in them. It is given a
private folder with the reduced settings, written anew, and the file of weights, which was checked.
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
# The methods whose adapters keep a head, and which the strategies lora and peft therefore save.
KINDS = frozenset(
    """ADAMSS BEFT BOFT C3A CARTRIDGE DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA LOKR LORA MISS
    OFT OSF PEANUT PREFIX_TUNING PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA ROAD SHIRA SUPERTUNING TINYLORA UNILORA VBLORA VERA
    WAVEFT""".split()
)
NUMBERS = frozenset(
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
WORDS = {
    "ab_svd_init": "psoft_init|pissa_init",
    "act_fn": r"[a-z]\w{0,30}",  # a key of transformers' own table
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
    "task_type": "SEQ_CLS|SEQ_2_SEQ_LM",
    "variant": r"road_[124]",
    "wavelet_family": r"[a-z]{2,4}\d{0,2}",
}
TOGGLED_WORDS = ("init_lora_weights", "init_weights")  # these may be true, false or null as well
PATTERNS = ("target_modules", "feedforward_modules", "exclude_modules")
NAMES = ("modules_to_save", "target_parameters")
BY_PATTERN = (
    "alpha_pattern", "block_size_pattern", "lambda_pattern", "n_frequency_pattern", "rank_pattern", "target_svd_config",
)  # fmt: skip
# Settings that are groups of settings; those of corda, which name files, are not among them.
GROUPS = {
    "eva_config": (),
    "kasa_config": (),
    "lora_ga_config": ("ArBr", "A2rBr", "ArB2r", "random", "stable", "weight_svd", "gd_scale", "unit"),
    "monteclora_config": (),
    "use_bdlora": (),
    "velora_config": ("batch_average", "batch_average_once", "random"),
}
# Where an adapter came from and how its values began, which the stored weights replace. The record names the base.
NOT_NEEDED = frozenset(
    """auto_mapping base_model_name_or_path megatron_core prompt_tuning_init prompt_tuning_init_text revision runtime_config
    runtime_offload_base_weight tokenizer_kwargs tokenizer_name_or_path""".split()
)

NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
# Module names, `\.`, `.`, `.*`, `\d+`, classes such as [01], and groups of alternatives, perhaps between `^` and `$`: no repeated
# group, which may take exponential time to match.
PATTERN = re.compile(r"(?P<repeat>(?:\\[dw]|\.|\[[\w-]+\])[+*]\??)|(?P<group>\((\?:)?)|[\w|)-]|\\[.dw-]|\.|\[[\w-]+\]")
MAX_CHARACTERS = 2**16
MAX_REPEATS, MAX_GROUPS = 3, 6
MAX_KEYS = 200  # of settings by pattern: each is matched with each module, and Python remembers 512 patterns
MAX_WAYS = 2**22  # in which the alternatives of a pattern can be combined, and a repeat be split
REPEATS = 64  # characters over which a repeat may reach, for the count of ways
MAX_NAMES = 4096
MAX_SIZE = 2**14  # ranks, virtual tokens, widths
MAX_LAYERS = 128  # after replication
REPEATED = {"num_cayley_neumann_terms": 100, "psoft_svd_lowrank_niter": 100}  # what is computed so often
LARGE = re.compile(r"seed|key|n_frequency|theta")  # numbers that may be larger, since they are no sizes, or lengths of a vector
# What loading may take: numbers allocated, by those in the base and the adapter's weights; operations, by the base's modules.
# The methods of peft take up to 3 times as many numbers; BOFT, with the most operations, 500 a module for a width of 384.
TIMES, SPARE = 8, 10**7
OPERATIONS, SPARE_OPERATIONS = 3000, 10**5


def reduce_adapter_settings(document: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the settings of an adapter that are data: numbers, known words, names of modules and patterns of these.

    Settings that peft does not know are dropped, and named. Those that peft knows and that are not in the lists above are
    dropped where they have peft's default.

    Args:
        place: of the settings, for messages.

    Raises:
        UserError: peft's method is not one that is saved here, or a setting has a value that is not allowed.
    """
    kind = document.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS & _schemas().keys():
        known = ", ".join(sorted(KINDS & _schemas().keys()))
        raise UserError(f"{place}: found peft_type: {shorten(kind)}; allowed: {known}")
    defaults = _schemas()[kind]
    if unknown := sorted(shorten(name) for name in document if name not in defaults):
        listed = ", ".join(unknown[:8]) + (" ..." if len(unknown) > 8 else "")
        say(f"note: {place}: ignored {listed}: peft has no such settings for {kind}")
    reduced: dict[str, Any] = {"peft_type": kind}
    for name, value in document.items():
        if name == "peft_type" or name not in defaults or name in NOT_NEEDED:
            continue
        if (problem := _problem(name, value, defaults[name])) is None:
            reduced[name] = value
        elif value != defaults[name]:
            raise UserError(f"{place}: found {name}: {shorten(value)}; allowed: {problem}")
    return reduced


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    """The settings of each method of the installed peft and their defaults."""
    import peft  # noqa: F401  # registers them
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {
        kind.value: {
            field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in dataclasses.fields(schema)
        }
        for kind, schema in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }


def _problem(name: str, value: Any, default: Any) -> str | None:
    """Return what is allowed for a setting where its value is not; None where it is."""
    if name in WORDS:
        is_word = isinstance(value, str) and re.fullmatch(WORDS[name], value)
        is_toggle = name in TOGGLED_WORDS and (value is None or isinstance(value, bool))
        return None if is_word or is_toggle else WORDS[name].replace("|", ", ")
    if name in NUMBERS:
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
    most = 2**63 if LARGE.search(name) else REPEATED.get(name, MAX_SIZE)
    is_number = isinstance(value, (int, float)) and (default is None or not isinstance(value, bool))
    return None if is_number and abs(value) <= most else f"a number up to {most:,}"


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) <= MAX_NAMES
    return is_list and all(isinstance(name, str) and len(name) <= 500 and NAME.fullmatch(name) for name in value)


def pattern_problem(pattern: str, most: int = MAX_REPEATS) -> str | None:
    """Return what is allowed where a pattern of module names could take long to match; None where it cannot.

    Args:
        most: repeats that it may have.
    """
    pattern = pattern.removeprefix("^").removesuffix("$")
    pieces = list(PATTERN.finditer(pattern))
    is_plain = len(pattern) <= MAX_CHARACTERS and sum(len(piece[0]) for piece in pieces) == len(pattern)
    repeats = sum(piece["repeat"] is not None for piece in pieces)
    groups = sum(piece["group"] is not None for piece in pieces)
    ways = REPEATS**repeats * math.prod(part.count("|") + 1 for part in re.split(r"[()]", pattern))
    if not is_plain or repeats > most or groups > MAX_GROUPS or ways > MAX_WAYS:
        return (
            r"a list of names of modules, or a pattern made of names, `\.`, `.`, [01] and alternatives in round brackets, with "
            rf"up to {most} of `.*` and `\d+`"
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
        if problem := pattern_problem(key, most=1):  # peft puts another one before it
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
    return f"pairs of first and last layer, which together give up to {MAX_LAYERS} layers"


def load_adapter(model: Any, folder: Path, merge: Any = None, bases: str = "") -> Any:
    """Put the adapter in a folder on a model.

    Args:
        merge: a function that puts the adapter's updates into the model's own weights; None: the adapter stays beside them.
        bases: on what base the adapter was trained, and what to do where this is another one, for messages.

    Returns:
        The adapted model, or what `merge` makes of it.

    Raises:
        UserError: the settings are not allowed, the weights do not fit them or are not finite, or loading would allocate far more
            than the base and the weights together.
    """
    from peft import PeftModel

    source = ModelSource(str(folder), str(folder))
    settings = reduce_adapter_settings(read_settings(source, SETTINGS) or {}, f"{folder}: {SETTINGS}")
    name, weights = next(((name, path) for name in ADAPTER_WEIGHTS if (path := find_file(source, name))), ("", None))
    if weights is None:
        raise UserError(f"{folder}: the adapter has no weights; allowed: {' or '.join(ADAPTER_WEIGHTS)} in its folder")
    numbers = count_values(weights) + sum(parameter.numel() for parameter in model.parameters())
    operations = OPERATIONS * sum(1 for _ in model.modules())
    limit = AllocationLimit(f"{folder}: {SETTINGS}", TIMES * numbers + SPARE, operations + SPARE_OPERATIONS)
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
        except Exception as error:  # whatever peft raises over settings and weights that do not fit each other or the model
            raise UserError(
                f"{folder}: the adapter cannot be loaded: {explain_load_error(error, [Path(name)])}{bases}"
            ) from error


def _unfit(adapted: Any, private: str) -> str | None:
    """Return how the stored tensors differ from those of the adapter: peft leaves what is missing as it was drawn."""
    from peft import get_peft_model_state_dict, load_peft_weights

    def shapes(**settings: Any) -> dict[str, Any]:
        return {name: tensor.shape for name, tensor in get_peft_model_state_dict(adapted, **settings).items()}

    needed = shapes(save_embedding_layers=False)
    stored = {name: tensor.shape for name, tensor in load_peft_weights(private, device="cpu").items()}
    differences = {
        "has no": needed.keys() - stored.keys(),
        "also has": stored.keys() - shapes(save_embedding_layers=True).keys(),  # of tokens that were added to the base
        "has in another shape": {name for name in needed.keys() & stored.keys() if needed[name] != stored[name]},
    }
    for difference, names in differences.items():
        if names:
            listed = ", ".join(shorten(name) for name in sorted(names)[:4]) + (" ..." if len(names) > 4 else "")
            return f"{difference} {listed}; allowed: the tensors that {SETTINGS} describes for this base"
    return None
