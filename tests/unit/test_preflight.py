"""The trial step before training: fallbacks, refusals, and absence of side effects."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertForSequenceClassification

from nlp_transfer import load_predictor
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.training.gradient import TrainingError
from nlp_transfer.training.preflight import Preflight, unchanged
from tests.builders import refused
from tests.helpers.processes import launch_pair

pytestmark = pytest.mark.process

Forward = Callable[..., Any]
TRAINING = {"batch_size": 4, "precision": "bf16"}


@pytest.fixture
def train(train: Any) -> Any:
    """A run in bf16."""
    return partial(train, training=TRAINING)


def fail_where(monkeypatch: pytest.MonkeyPatch, fails: Callable[[dict[str, torch.Tensor]], Exception | None]) -> list[int]:
    """Let BERT's forward pass raise what `fails` returns; return the number of rows of each call."""
    forward: Forward = BertForSequenceClassification.forward
    calls: list[int] = []

    def failing(self: Any, **inputs: torch.Tensor) -> Any:
        calls.append(len(inputs["input_ids"]))
        if (error := fails(inputs)) is not None:
            raise error
        return forward(self, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", failing)
    return calls


def is_fast() -> bool:
    return any(isinstance(mode, FastFunctions) for mode in torch.overrides._get_current_function_mode_stack())


def is_bf16() -> bool:
    return torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("fails", "precision", "kernels"),
    [(lambda: is_fast() and torch.is_grad_enabled(), "bf16", "plain"), (is_bf16, "fp32", "fast")],
    ids=["kernels", "precision"],
)
def test_fallback_is_reported_and_can_be_resumed(
    fails: Callable[[], bool], precision: str, kernels: str, train: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fail_where(monkeypatch, lambda _: RuntimeError("no such kernel") if fails() else None)
    train()
    said = capsys.readouterr().err
    assert "bert model failed: RuntimeError: no such kernel" in said
    document = (tmp_path / "run" / "config.yaml").read_text()
    assert (f"precision: {precision}\n" in document, f"kernels: {kernels}\n" in document) == (True, True)
    (tmp_path / "run" / "result.json").unlink()  # as if the run had been interrupted at its end
    train(resume="must")


def test_untrainable_model_is_refused_before_writing(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_where(monkeypatch, lambda _: ValueError("sequences of length 3 alone"))
    with refused("bert model cannot be trained", "ValueError: sequences of length 3 alone"):
        train()
    assert not (tmp_path / "run").exists()


def test_overflow_in_bf16_falls_back_to_fp32(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    forward: Forward = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: forward(self, x) * (torch.inf if is_bf16() else 1))
    assert np.isfinite(train().metrics["test"]["loss"])
    assert "precision falls back from bf16 to fp32" in capsys.readouterr().err


def trains_rows(inputs: dict[str, torch.Tensor]) -> int:
    return len(inputs["input_ids"]) if torch.is_grad_enabled() else 0


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_with_two_rows_is_no_fallback(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fail_where(
        monkeypatch, lambda inputs: out_of_memory() if torch.is_grad_enabled() and len(inputs["input_ids"]) > 1 else None
    )
    train()
    assert calls[:2] == [2, 1]
    assert "precision: bf16" in (tmp_path / "run" / "config.yaml").read_text()


def test_out_of_memory_with_one_row_is_refused(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fail_where(monkeypatch, lambda _: out_of_memory())
    with pytest.raises(TrainingError, match=r"before step 1: out of memory.*task\.max_length"):
        train()
    assert calls == [2, 1]
    assert not (tmp_path / "run").exists()


class Restless(nn.Module):
    """Draws random numbers from all generators and has running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.random()
        return self.frozen(self.dropout(self.norm(values)))


def test_trial_restores_random_states_buffers_and_modes() -> None:
    model = Restless()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index,union-attr]
    with unchanged(model):
        model.train()
        model(torch.randn(3, 4))
        assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # type: ignore[index,union-attr]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (model.training, model.frozen.training) == (True, False)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_trial_does_not_change_the_trained_weights(
    gradient_checkpointing: bool, train: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    weights = []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(Preflight, "find_working", lambda self, precision, kernels, accelerator: (precision, kernels, {}))
        training = TRAINING | {"gradient_checkpointing": gradient_checkpointing, "max_steps": 4}
        train(output_dir=tmp_path / name, training=training)
        weights.append(load_predictor(tmp_path / name).model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_kernel_results_can_be_changed_in_place() -> None:
    layer, values = nn.Linear(4, 4), torch.randn(2, 3, 4, requires_grad=True)
    with FastFunctions(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(values)
        found += 1
        query = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
        attended = nn.functional.scaled_dot_product_attention(query, query, query)
        attended *= 2
    found.float().sum().backward()
    attended.float().sum().backward()
    assert values.grad is not None
    assert query.grad is not None
    expected = layer.weight.to(torch.bfloat16).float().sum(0).expand(2, 3, 4)
    assert torch.allclose(values.grad, expected, atol=2e-2)


def test_all_processes_use_the_fallback_of_one(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    launch_pair("tests.helpers.children.preflight_jobs", tiny["bert"], sentiment["train"], tmp_path)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "fp32"
    assert "precision: fp32" in (tmp_path / "run" / "config.yaml").read_text()
