"""The fast kernels against PyTorch."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nlp_transfer.kernels.attention import softmax, softmax_backward
from nlp_transfer.kernels.dropout import dropout, keep_mask
from nlp_transfer.kernels.first_token import first_token_only, last_layer
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.kernels.linear import MIN_PACKED
from nlp_transfer.models.preparation import enable_gradient_checkpointing
from tests.helpers.models import FAMILIES, tiny_classifier

BF16 = torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_rate_and_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 333, dtype=dtype, requires_grad=True)
    found = dropout(values, p)
    kept = (found != 0).float()
    deviation = math.sqrt(p * (1 - p) / values.numel())
    assert abs(float(kept.mean()) - (1 - p)) < 5 * deviation
    for axis in (0, 1):  # neither rows nor columns are favoured
        share = kept.mean(axis)
        assert (share - (1 - p)).abs().max() < 6 * math.sqrt(p * (1 - p) / kept.shape[axis])
    assert set(found.unique().tolist()) == {0.0, float(torch.ones(1, dtype=dtype) * (1 / (1 - p)))}
    found.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, found.detach()), "what is dropped learns nothing"


def test_masks_follow_the_generator_of_pytorch() -> None:
    shape = torch.Size([7, 5])
    torch.manual_seed(3)
    first, second = keep_mask(shape, 0.5, BF16), keep_mask(shape, 0.5, BF16)
    torch.manual_seed(3)
    assert torch.equal(keep_mask(shape, 0.5, BF16), first)
    assert not torch.equal(first, second)


def test_dropout_supports_any_layout() -> None:
    values = torch.randn(6, 5, 4).transpose(0, 2)
    found = dropout(values, 0.5)
    assert ((found == 0) | (found == values * 2)).all()
    assert 0 < (found == 0).sum() < values.numel()


def linear_result(fast: bool, bias: bool, frozen: bool) -> Any:
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias)
    layer.weight.requires_grad_(not frozen)
    results = []
    functions = FastFunctions()
    for _ in range(2):  # the weights change in between
        values = torch.randn(4, 7, 48, requires_grad=True)
        with torch.autocast("cpu", BF16):
            if fast:
                with functions:
                    found = layer(values)
            else:
                found = layer(values)
            found.float().square().sum().backward()
        results += [found.detach(), values.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.01)
        layer.zero_grad()
    return results


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_equals_autocast_bit_for_bit(bias: bool, frozen: bool) -> None:
    for plain, fast in zip(linear_result(False, bias, frozen), linear_result(True, bias, frozen), strict=True):
        assert plain.dtype == fast.dtype
        assert torch.equal(plain, fast)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [2, MIN_PACKED, 100])
def test_linear_of_predictions_equals_autocast(outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, functions = nn.Linear(48, outputs, bias=bias), FastFunctions()
    every_second = torch.randn(6, 8, 48).transpose(0, 1)[:, ::2]
    texts = torch.randn(1, 48), torch.randn(3, 5, 48), torch.randn(200, 48, dtype=BF16), every_second, torch.randn(0, 48)
    with torch.inference_mode(), torch.autocast("cpu", BF16):
        for values in texts:
            with functions:
                found = layer(values)
            expected = layer(values)
            assert (found.shape, found.dtype) == (expected.shape, BF16)
            torch.testing.assert_close(found, expected, rtol=1 / 128, atol=1e-3)  # the last bit may be rounded differently


def test_copy_made_in_prediction_serves_training() -> None:
    layer, functions = nn.Linear(8, 8), FastFunctions()
    with torch.inference_mode(), torch.autocast("cpu", BF16), functions:
        layer(torch.randn(2, 8))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    with torch.autocast("cpu", BF16), functions:
        found = layer(torch.randn(2, 8))
    assert found.abs().max() == 0
    found.sum().backward()


def test_layers_are_exact_outside_of_autocast() -> None:
    layer, values = nn.Linear(8, 8), torch.randn(2, 8)
    with FastFunctions():
        assert torch.equal(layer(values), F.linear(values, layer.weight, layer.bias))


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal", "one_row_blind"])
def test_attention_equals_fp32_up_to_bf16(mask: str) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(3, 4, tokens, 16) for tokens in (9, 9 if mask == "causal" else 13, 9 if mask == "causal" else 13)]
    seen = torch.rand(3, 1, 9, parts[1].shape[2]) > 0.4
    seen[..., 0] = True
    if mask == "one_row_blind":
        seen[1, :, 2] = False
    given: Any = {"none": None, "causal": None, "float": torch.zeros(seen.shape).masked_fill(~seen, -1e4)}.get(mask, seen)
    found, exact = [], []
    for results, dtype in ((found, BF16), (exact, torch.float32)):
        query, key, value = (part.to(BF16).to(dtype).requires_grad_() for part in parts)
        own = given if given is None or given.dtype == torch.bool else given.to(dtype)
        if dtype == BF16:
            with FastFunctions():
                out = F.scaled_dot_product_attention(query, key, value, attn_mask=own, is_causal=mask == "causal")
            assert "AttentionBackward" in type(out.grad_fn).__name__ or "View" in type(out.grad_fn).__name__
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=own, is_causal=mask == "causal")
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        if mask == "one_row_blind":  # what a token that sees nothing takes is nobody's business, as long as it is a number
            assert out.isfinite().all()
            weight[1, :, 2] = 0
            out = out.masked_fill(torch.zeros(9, 1, dtype=torch.bool).index_fill(0, torch.tensor([2]), True), 0)
        (out.float() * weight).sum().backward()
        results += [out.detach().float(), *(part.grad.float() for part in (query, key, value) if part.grad is not None)]
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max() + 0.01


@pytest.mark.parametrize("columns", [1, 7, 8, 15, 16, 23, 31, 32, 40])
def test_softmax_equals_pytorch_for_all_lengths(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    scores, gradient = (torch.randn(6, 5, columns, generator=generator).bfloat16() for _ in range(2))
    wanted = torch.softmax(scores.float(), -1)
    found = softmax(scores.clone())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16())
    back = softmax_backward(gradient, found)
    assert back.dtype == torch.bfloat16
    exact = found.double() * (gradient.double() - (gradient.double() * found.double()).sum(-1, keepdim=True))
    assert torch.allclose(back.double(), exact, rtol=2**-7, atol=1e-6)


def test_attention_with_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(64, 8, 12, 16).to(BF16) for _ in range(3))
    with FastFunctions():
        whole = F.scaled_dot_product_attention(query, key, value)
        dropped = torch.stack([F.scaled_dot_product_attention(query, key, value, dropout_p=0.3) for _ in range(30)])
    assert not torch.equal(dropped[0], dropped[1])
    error = (dropped.float().mean(0) - whole.float()).abs().mean()
    spread = (dropped.float() - whole.float()).abs().mean()
    assert error < 2 * spread / math.sqrt(30)


def test_unsupported_arguments_use_pytorch() -> None:
    table, values = nn.Embedding(10, 4), torch.randn(3, 4)
    with FastFunctions({id(table.weight): lambda *_: pytest.fail("max_norm cannot be computed by rows")}):
        table.max_norm = 1.0
        table(torch.tensor([1, 2]))
        assert F.dropout(values.double(), 1.0).abs().max() == 0
        assert F.dropout(values, 1.0).abs().max() == 0
        assert F.dropout(values, 0.5, training=False) is values


PLAIN_FAMILIES = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_token_only_gives_the_same_gradients(family: str, attention: str, recompute: bool) -> None:
    torch.manual_seed(0)
    model = tiny_classifier(family)
    layer = last_layer(model)
    assert (layer is not None) == (family in PLAIN_FAMILIES)
    if layer is None:
        return
    model.set_attn_implementation(attention)
    model.eval()
    if recompute:
        enable_gradient_checkpointing(model)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    ids = torch.randint(5, 40, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    results = []
    for only in (None, layer):
        model.zero_grad()
        with first_token_only(only):
            logits = model(input_ids=ids, attention_mask=mask).logits
            logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for whole, first in zip(*results, strict=True):
        torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-6)
    assert "forward" not in vars(layer)
    assert model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1].shape[1] == 9
