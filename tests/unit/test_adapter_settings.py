"""The settings of an adapter are reduced to data, and loading it allocates no more than its weights call for."""

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlp_transfer.models.verification.adapter_settings import (
    NUMBER_SETTINGS,
    SETTINGS,
    SUPPORTED_METHODS,
    load_adapter,
    pattern_problem,
    reduce_adapter_settings,
)
from nlp_transfer.models.verification.allocation_limit import AllocationLimit
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.strategies.common.adapter_modules import save_adapter
from nlp_transfer.strategies.peft import Peft
from nlp_transfer.strategies.peft.method_settings import methods
from tests.builders import edit, refused
from tests.helpers.models import tiny_classifier
from tests.unit.test_strategy_peft import METHODS, REFUSED

pytestmark = pytest.mark.model

IDS = torch.tensor([[2, 7, 9, 3], [2, 11, 30, 3]])


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return tiny_classifier("bert")


@pytest.fixture(scope="module")
def saved(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters by name."""
    folder = tmp_path_factory.mktemp("adapters")
    made: dict[str, dict[str, Any]] = {
        "lora": {"type": "LORA", "settings": {"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {".*key": 3}}},
        "prefix": {"type": "PREFIX_TUNING"},
        "replicated": {"type": "LORA", "settings": {"r": 4, "layer_replication": [[0, 2], [1, 2]]}},
        "kasa": {"type": "LORA", "settings": {"r": 4, "kasa_config": {}}},
        "pattern": {"type": "LORA", "settings": {"r": 4, "target_modules": r".*layer\.[01]\..*(query|value)"}},
    }
    for name, document in made.items():
        with quiet():
            save_adapter(Peft(**document).prepare_model(copy.deepcopy(base)), folder / name)
    return {name: folder / name for name in made}


def loaded(folder: Path, base: Any) -> Any:
    with quiet():
        return load_adapter(copy.deepcopy(base), folder)


def changed(folder: Path, place: Path, **settings: Any) -> Path:
    shutil.copytree(folder, place)
    return edit(place / SETTINGS, **settings).parent


@pytest.mark.parametrize("name", ["lora", "prefix", "replicated", "kasa", "pattern"])
def test_adapters_load_as_with_peft(name: str, saved: dict[str, Path], base: Any) -> None:
    from peft import PeftModel

    with quiet(), torch.inference_mode():
        expected = PeftModel.from_pretrained(copy.deepcopy(base), str(saved[name])).eval()(IDS).logits
        assert torch.equal(loaded(saved[name], base).eval()(IDS).logits, expected)


def test_adapter_loads_from_a_relative_path(saved: dict[str, Path], base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved["lora"].parent)
    assert "default" in loaded(Path("lora"), base).peft_config


def test_supported_methods_are_those_that_strategies_save() -> None:
    assert set(METHODS) - set(REFUSED) == SUPPORTED_METHODS


def test_all_numeric_settings_of_peft_are_listed() -> None:
    """A new version of peft brings settings that nobody looked at: they are refused until they are in the lists."""
    fields = [field for kind in SUPPORTED_METHODS for field in dataclasses.fields(methods()[kind])]
    numbers = {field.name for field in fields if isinstance(field.default, (bool, int, float))}
    elsewhere = {"init_lora_weights", "init_weights", "runtime_offload_base_weight"}  # words as well; where a run keeps weights
    assert numbers - NUMBER_SETTINGS == elsewhere
    assert {field.name for field in fields} > NUMBER_SETTINGS


def test_origin_is_dropped_and_unknown_settings_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "base_model_name_or_path": "/etc", "prompt_tuning_init": "TEXT",
        "tokenizer_name_or_path": "org/name", "prompt_tuning_init_text": "x", "modules_to_save": ["classifier"],
        "auto_map": {"AutoModel": "evil.M"}, "future": 5,
    }  # fmt: skip
    reduced = reduce_adapter_settings(document, "here")
    assert reduced == {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "modules_to_save": ["classifier"]}
    said = capsys.readouterr().err
    assert all(name in said for name in ("here", "auto_map", "future"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "XLORA"), ("peft_type", None), ("r", "8"), ("r", 10**6), ("r", True), ("r", float("nan")), ("r", 10**400),
        ("kasa_config", {"org/name": 1}), ("r", None),
        ("use_dora", 1), ("lora_dropout", [0.1]), ("bias", "../x"), ("init_lora_weights", "corda"),
        ("init_lora_weights", "pissa_niter_999"), ("corda_config", {"cache_file": "/etc/passwd"}), ("arrow_config", {"top_k": 1}),
        ("megatron_config", {"x": 1}), ("target_modules", "(.*)*x"), ("target_modules", ["a|b"]), ("target_modules", 5),
        ("modules_to_save", ["(a+)+$"]), ("modules_to_save", "classifier"), ("rank_pattern", {"(a+)+$": 2}),
        ("rank_pattern", {"query": 10**9}), ("layers_pattern", "(a+)+$"), ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]] * 3000), ("layer_replication", [[0, 10**9]]), ("kasa_config", {"beta": "/x"}),
        ("trainable_token_indices", [1]), ("exclude_modules", "((((")
    ],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused_by_name(name: str, value: Any) -> None:
    with refused() as error:
        reduce_adapter_settings({"peft_type": "LORA", name: value}, "here")
    assert str(error.value).startswith(f"here: found {name}: ")


@pytest.mark.parametrize(
    "pattern",
    [
        "query", "all-linear", r"(bert\.encoder\.layer|x)\.\d+\.(attention\.self\.query|output\.dense)", r"(a)\.(0|1)\.(\-)",
        ".*query", r".*\.layer\..*", r".*layer\.[01]\.(?:a|b)", r"x\.a\.norm|x\.b\.norm",
        r".*\.(query|value)$", "^bert.*query", r"[0-9]+\.\w+", ".*(encoder|decoder).*(SelfAttention|EncDecAttention).*(q|v|k|o)",
    ],
)  # fmt: skip
def test_quick_patterns_are_allowed(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+", "(a|b)*", "a?", "a{1,9}", ".*.*.*.*", r"\d+\d+\d+\d+", r"(a)\1", "(?=a)", "(?P<a>b)", "a^", "$a", r"\S", "[^a]",
        "(", "a)",
        "(a|a)" * 20, "((a|b)|(c|d))*", "a" * 70_000,
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_slow_patterns_are_refused(pattern: str) -> None:
    assert pattern_problem(pattern) is not None


def test_sizes_that_multiply_are_refused_before_allocation(saved: dict[str, Path], base: Any, tmp_path: Path) -> None:
    folder = changed(saved["prefix"], tmp_path / "x", num_virtual_tokens=2**14, num_layers=2**14, token_dim=2**14)
    with refused(f"{folder}: {SETTINGS}", f"{2 * 2**42:,} numbers"):
        loaded(folder, base)


@pytest.mark.parametrize("make", [torch.empty, torch.zeros, torch.randn, lambda n: torch.full((n,), 1), torch.arange,
                                  torch.randperm, lambda n: torch.eye(n // 300, 300), torch.ones(1).new_zeros])  # fmt: skip
def test_allocations_are_counted_in_advance(make: Any) -> None:
    with AllocationLimit("here", 1000, 50):
        assert make(900).numel() > 0
    with refused("here: describes tensors of"), AllocationLimit("here", 10**6, 50):
        make(10**12)
    with refused("here: needs more than 10 operations"), AllocationLimit("here", 10**6, 10):
        [make(300) for _ in range(20)]


def test_missing_and_additional_tensors_are_refused(saved: dict[str, Path], base: Any, tmp_path: Path) -> None:
    weights = load_file(saved["lora"] / "adapter_model.safetensors")
    name = sorted(weights)[3]
    for i, (others, fact) in enumerate(
        [
            ({key: value for key, value in weights.items() if key != name}, f"has no '{name}'"),
            (weights | {"more": torch.ones(2)}, "also has 'more'"),
            (weights | {name: torch.ones(3, 3)}, "size mismatch"),
            (weights | {name: torch.full_like(weights[name], torch.nan)}, "NaN or infinite"),
        ]
    ):
        folder = changed(saved["lora"], tmp_path / str(i))
        save_file(others, folder / "adapter_model.safetensors", {"format": "pt"})
        with refused(fact, folder):
            loaded(folder, base)


def test_adapter_without_weights_is_refused(saved: dict[str, Path], base: Any, tmp_path: Path) -> None:
    folder = changed(saved["lora"], tmp_path / "x")
    (folder / "adapter_model.safetensors").unlink()
    with refused(f"{folder}: the adapter has no weights"):
        loaded(folder, base)


def test_number_of_settings_by_pattern_is_limited() -> None:
    for patterns in ({f"zz{i}": 16 for i in range(600)}, {"z" * 1000 + str(i): 16 for i in range(100)}, {".*.*x": 2}):
        with refused("rank_pattern"):
            reduce_adapter_settings({"peft_type": "LORA", "rank_pattern": patterns}, "here")
    for key in (r".*\.query$", "^bert.*query", "query"):
        assert reduce_adapter_settings({"peft_type": "LORA", "rank_pattern": {key: 2}}, "here")["rank_pattern"] == {key: 2}
