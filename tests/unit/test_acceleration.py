"""The entry point of the fast kernels: which of them apply, and what training with them gives."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from nlp_transfer.kernels import accelerated, acceleration
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.kernels.linear import Bf16Copies
from tests.helpers.models import tiny_classifier

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def lazy_tables_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "MIN_SPARSE_ROWS", 8)


def make() -> Any:
    torch.manual_seed(0)
    return tiny_classifier("bert").eval()


def optimizer_of(model: nn.Module, kind: Any = torch.optim.AdamW, **options: Any) -> Any:
    return kind(model.parameters(), lr=1e-2, **options)


def inputs(step: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def train(steps: int = 5, limit: float | None = 0.1, dense: bool = False, **options: Any) -> tuple[list[float], Any]:
    """Return the norms before clipping and the weights; with `dense` the loss reads the embedding table too."""
    model = make()
    optimizer = optimizer_of(model, fused=True)
    fast = accelerated(model, optimizer, **options)
    norms = []
    for step in range(steps):
        with fast:
            loss = model(**inputs(step)).logits.square().sum()
            if dense:
                loss = loss + model.get_input_embeddings().weight.square().sum()
            loss.backward()
        if limit is not None:
            norms.append(float(fast.clip(limit)))
        fast.step()
    fast.sync()
    return norms, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("limit", [0.1, 0.0, None])
@pytest.mark.parametrize("lazy", [False, True])
def test_training_equals_plain_training(lazy: bool, limit: float | None) -> None:
    plain, fast = train(limit=limit, enabled=False), train(limit=limit, lazy_updates=lazy)
    assert fast[0] == pytest.approx(plain[0], rel=1e-4)
    for name, weight in plain[1].items():
        torch.testing.assert_close(fast[1][name], weight, rtol=1e-3, atol=1e-5)


def test_clipping_applies_to_one_step() -> None:
    model = make()
    optimizer = optimizer_of(model, fused=True)
    fast = accelerated(model, optimizer)
    scales: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: scales.append(getattr(optimizer, "grad_scale", None)))
    for clips in (True, False):
        model(**inputs(0)).logits.sum().backward()
        if clips:
            fast.clip(1e-3)
        fast.step()
    assert float(scales[0]) > 10
    assert scales[1] is None


@pytest.mark.parametrize(
    ("kind", "options", "lazy"),
    [
        (torch.optim.AdamW, {"fused": True}, True),
        (torch.optim.AdamW, {}, False),
        (torch.optim.AdamW, {"fused": True, "amsgrad": True}, False),
        (torch.optim.Adam, {"fused": True}, False),
        (torch.optim.SGD, {"fused": True}, False),
    ],
)
def test_only_fused_adamw_has_lazy_tables(kind: Any, options: dict[str, Any], lazy: bool) -> None:
    model = make()
    optimizer = optimizer_of(model, kind, **options)
    fast = accelerated(model, optimizer, lazy_updates=True)
    table = model.get_input_embeddings().weight
    assert ("seen" in optimizer.state[table]) == lazy
    assert fast.can_clip == (kind is torch.optim.AdamW and "fused" in options)
    with fast:
        model(**inputs(0)).logits.sum().backward()
    assert (table.grad is None) == lazy


def test_gradients_of_rows_and_of_a_table_add_up() -> None:
    for limit in (None, 0.1):
        plain, fast = train(dense=True, limit=limit, enabled=False), train(dense=True, limit=limit, lazy_updates=True)
        for name, weight in plain[1].items():
            torch.testing.assert_close(fast[1][name], weight, rtol=1e-3, atol=1e-5)


def test_context_ends_and_can_be_entered_again() -> None:
    model = make()
    fast, all_tokens = accelerated(model), accelerated(model, logits_only=False)
    layer = model.bert.encoder.layer[-1]

    def active() -> int:
        return sum(isinstance(mode, FastFunctions) for mode in _get_current_function_mode_stack())

    for _ in range(2):
        with fast:
            assert ("forward" in vars(layer), active()) == (True, 1)
            with fast:
                assert active() == 2
        assert ("forward" in vars(layer), active()) == (False, 0)
    with all_tokens:
        assert ("forward" in vars(layer), active()) == (False, 1)
    with pytest.raises(IndexError), fast:
        model(input_ids=torch.tensor([[10_000]]))
    assert ("forward" in vars(layer), active()) == (False, 0)


@pytest.mark.parametrize("frozen", [True, False])
def test_copies_of_weights_are_kept_while_they_are_frozen(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused optimizers change weights without a new version, so copies of trained weights cannot be kept."""
    model = make().requires_grad_(not frozen)
    made: list[bool] = []
    real = Bf16Copies.of

    def of(copies: Bf16Copies, parameter: Any, packed: bool = False) -> torch.Tensor:
        before = copies._copies.get((id(parameter), packed))
        copy = real(copies, parameter, packed)
        made.append(before is None or copy is not before[2])
        return copy

    monkeypatch.setattr(Bf16Copies, "of", of)

    def predict() -> tuple[torch.Tensor, int]:
        made.clear()
        with torch.inference_mode(), accelerated(model), torch.autocast("cpu", torch.bfloat16):
            return model(**inputs(0)).logits, sum(made)

    first, count = predict()
    assert count > 10
    again, count_again = predict()
    assert torch.equal(first, again)
    assert count_again == (0 if frozen else count)
    if frozen:
        model.classifier.weight.mul_(-20.0)
    else:
        optimizer = optimizer_of(model, fused=True)
        model(**inputs(0)).logits.sum().backward()
        optimizer.step()
    assert (predict()[0] - first).abs().max() > 0.1


def test_training_renews_the_copies_of_a_model_that_is_frozen_before_and_after() -> None:
    model = make().requires_grad_(False)

    def predict() -> torch.Tensor:
        with torch.inference_mode(), accelerated(model), torch.autocast("cpu", torch.bfloat16):
            return model(**inputs(0)).logits

    first = predict()
    optimizer = optimizer_of(model.requires_grad_(True), fused=True)
    model(**inputs(0)).logits.sum().backward()
    accelerated(model, optimizer).step()
    model.requires_grad_(False)
    assert (predict() - first).abs().max() > 0.1


def test_copies_are_freed_with_their_model() -> None:
    model = make().requires_grad_(False)
    with torch.inference_mode(), accelerated(model), torch.autocast("cpu", torch.bfloat16):
        model(**inputs(0))
    weight = weakref.ref(model.classifier.weight)
    assert model in acceleration._COPIES
    del model
    gc.collect()
    assert weight() is None


def test_other_devices_and_plain_settings_use_pytorch() -> None:
    model = make()
    before = len(_get_current_function_mode_stack())
    with accelerated(model, enabled=False):
        assert len(_get_current_function_mode_stack()) == before
    with accelerated(model.to("meta")):
        assert len(_get_current_function_mode_stack()) == before
