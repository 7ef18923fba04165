"""What every strategy promises, for every task and family: what is declared moves, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nlp_transfer.models.layers import find_layers, new_parameters
from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.strategies import Job, strategy_from
from nlp_transfer.strategies.common.strategy_checks import check_strategy
from nlp_transfer.tasks import task_from
from nlp_transfer.training import Trainer
from nlp_transfer.utils.errors import Problems
from tests.builders import prepared, refused, rows
from tests.helpers.mistakes.strategies import NEEDS
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

TASKS: dict[str, dict[str, Any]] = {
    "single": {"name": "text_classification"},
    "pair": {"name": "text_classification", "text_pair": "other"},
    "multi_label": {"name": "multi_label", "label": "tags"},
    "regression": {"name": "regression", "label": "score"},
    "translation": {"name": "translation", "source": "text", "target": "other", "target_vocabulary": 300},
    "summarization": {"name": "summarization", "summary": "other", "target_vocabulary": 300},
    "deep": {"name": "text_classification", "head": {"hidden": [16], "pooling": "mean"}},
    "entities": {"name": "token_classification", "tokens": "text", "tags": "words"},
    "question_answering": {
        "name": "question_answering", "question": "other", "context": "text", "answers": "answer", "answer_start": "answer_start",
        "max_length": 24, "stride": 3,
    },
}  # fmt: skip
STRATEGIES: dict[str, list[dict[str, Any]]] = {
    "full": [{}],
    "partial": [{"frozen_layers": 1}, {"frozen_layers": "all"}],
    "features": [{"cache": "none"}],
    "lora": [{}, {"target_modules": "attention", "r": 2}],
    "bitfit": [{}, {"normalisation": True}],
    "layerwise_lr": [{}],
    "l2_sp": [{}],
    "gradual_unfreezing": [{}],
    "distill": [{"student_layers": 1}],
    "few_shot": [{"epochs": 10}],
    "prototypes": [{}],
    "zero_shot": [{}],
    "peft": [{}, {"type": "LN_TUNING"}],
}
CASES = [{"name": name, **settings} for name, many in STRATEGIES.items() for settings in many]
ELSEWHERE = ("translation", "summarization", "question_answering", "entities")  # they predict from no vector of a text
NOT_FOR = dict.fromkeys(("prototypes", "zero_shot"), ("regression", "deep", *ELSEWHERE))
NOT_FOR |= dict.fromkeys(("few_shot", "features", "distill"), ELSEWHERE)
Declared = Callable[[str, torch.nn.Module], bool]


def declared(case: dict[str, Any], name: str, model: torch.nn.Module, new: frozenset[str]) -> bool:
    """Whether a parameter should move, said here a second time and in other words than in the strategy."""
    if name.startswith("encoder.pooler."):
        return False  # a decoder looks at all states, never at the pooled one
    if case["name"] in ("full", "layerwise_lr", "l2_sp", "gradual_unfreezing", "distill", "few_shot"):
        return True
    if case["name"] in ("prototypes", "zero_shot"):
        return False
    if case["name"] == "features":
        return not name.startswith("encoder.")
    if case["name"] == "bitfit":
        above = name.split(".")[0] in ("classifier", "pre_classifier", "pooler", "head", "decoder") or ".pooler." in name
        norm = case.get("normalisation", False) and "norm" in name.lower()
        return above or norm or name in new or name.endswith(".bias")
    if case["name"] == "peft":
        return "ia3_l" in name or "ln_tuning_layers" in name or "modules_to_save" in name
    if case["name"] == "lora":
        return "lora_" in name or "modules_to_save" in name
    layers = find_layers(model)
    frozen = layers.depth if case["frozen_layers"] == "all" else case["frozen_layers"]
    return layers.depth_of(name) > frozen or name in new


def check(folder: Path, document: dict[str, Any], case: dict[str, Any]) -> None:
    strategy = strategy_from(case)
    check_strategy(strategy, DataConfig(train="rows"), task_from(document), problems := Problems())
    problems.raise_if_any()
    model, task, table, new, checkpoint = prepared(folder, document, strategy)
    # Without decay: it would move what has a gradient of zero.
    steps = 4 if case["name"] == "few_shot" else 2  # it has two phases
    training = TrainingConfig(max_steps=steps, batch_size=12, precision="fp32", learning_rate=1e-2, weight_decay=0)
    job = Job(task, {"train": table}, {"train": rows()}, checkpoint, training, torch.device("cpu"))
    if case["name"] in ("few_shot", "prototypes", "zero_shot"):
        job = strategy.prepare_data(job, model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    learning: list[set[str]] = []

    def look(*_: Any) -> None:
        learning.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})

    handle = register_optimizer_step_pre_hook(look)
    try:
        Trainer(model, task, job.tables, strategy=strategy, settings=training, objectives=job.objectives).train()
    finally:
        handle.remove()
    should = {name for name in before if declared(case, name, model, new)}
    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable == should
    # A softmax over tokens does not depend on a bias that all of them share: its gradient is zero, up to rounding.
    shared = {name for name in should if "qa_outputs" in name and name.endswith("bias")}
    # Words and positions that no row holds get no gradient; each table moves all the same, in the rows that occur.
    assert moved | shared == should
    assert bool(should) == strategy.traits.takes_steps, "something must be learned"
    if case["name"] == "few_shot":
        assert learning.pop(0) == learning.pop(0) == {name for name in should if not name.startswith("classifier.")}
    # In the first step LoRA's A has none, since B is zero.
    assert len(learning) == 2 * strategy.traits.takes_steps
    assert not learning or learning[0] - shared <= learning[1] | shared == should


def test_every_registered_task_is_covered() -> None:
    assert set(STRATEGIES) < set(registry.names("strategy"))  # all of them go through test_matrix.py
    assert {document["name"] for document in TASKS.values()} == set(registry.names("task"))
    assert len(FAMILIES) == 9


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
@pytest.mark.parametrize("family", FAMILIES)
def test_only_declared_parameters_change_in_every_family(family: str, case: dict[str, Any], tiny: dict[str, Path]) -> None:
    if family == "albert" and case.get("frozen_layers") == 1:
        case = {"name": "partial", "frozen_layers": "all"}  # its layers share one set of weights
    if family == "albert" and case["name"] in ("layerwise_lr", "gradual_unfreezing"):
        with refused("albert model shares one set of weights", "allowed: another strategy"):
            check(tiny[family], TASKS["single"], case)
        return
    if family == "modernbert" and case == {"name": "bitfit"}:
        case = {"name": "bitfit", "normalisation": True}  # it has no biases
    check(tiny[family], TASKS["single"], case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
@pytest.mark.parametrize("task", list(TASKS))
def test_only_declared_parameters_change_in_every_task(task: str, case: dict[str, Any], tiny: dict[str, Path]) -> None:
    if case["name"] in NOT_FOR and task in NOT_FOR[case["name"]]:
        why = ("task.head.hidden", "no hidden layers") if task == "deep" else ("which predicts", NEEDS[case["name"]])
        with refused(f"found {case['name']}", why[0], f"allowed: {why[1]}"):
            check(tiny["bert"], TASKS[task], case)
        return
    check(tiny["bert"], TASKS[task], case)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_custom_head_has_a_gradient(family: str, tiny: dict[str, Path]) -> None:
    check(tiny[family], TASKS["deep"], {"name": "full"})


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", {"bert.pooler.dense", "classifier"}),
        ("distilbert", {"pre_classifier", "classifier"}),
        ("roberta", {"classifier"}),
        ("deberta-v2", {"pooler", "classifier"}),
        ("modernbert", {"head", "classifier"}),
        ("mpnet", {"classifier"}),
    ],
)
def test_adapter_contains_new_parameters(family: str, expected: set[str], tiny: dict[str, Path]) -> None:
    model = prepared(tiny[family], TASKS["single"], "lora").model
    saved = set(model.peft_config["default"].modules_to_save) - {"score"}  # which peft adds for heads of another kind
    assert saved == expected
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert not any(f"base_model.model.{name}" in frozen for name in new_parameters(model.get_base_model()))


def test_adapter_contains_a_new_pooler(tiny: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny["bert"], tmp_path / "bare")
    weights = load_file(tmp_path / "bare/model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "bare/model.safetensors", {"format": "pt"})
    model = prepared(tmp_path / "bare", TASKS["single"], "lora").model
    assert any("pooler" in name and value.requires_grad for name, value in model.named_parameters())
