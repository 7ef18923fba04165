"""An encoder split at a layer gives the same numbers as an unsplit one."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nlp_transfer.models.backbone import Backbone
from nlp_transfer.models.preparation import enable_gradient_checkpointing
from tests.helpers.families import family_config

pytestmark = pytest.mark.model

FAMILIES = (
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
    "ernie", "esm", "gpt2", "layoutlm", "llama", "luke", "markuplm", "megatron-bert", "mobilebert", "modernbert",
    "mpnet", "nystromformer", "openai-gpt", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "xlm-roberta", "xmod",
)  # fmt: skip
CONVOLUTION = {
    "conv_kernel_size": 3, "conv_act": "gelu", "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
}  # fmt: skip


def make(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    layers = {} if family == "modernbert" else {"num_hidden_layers": 3}
    if family == "albert":
        layers["num_hidden_groups"] = 3
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(family_config(family, **layers, **changes))
    return model.eval()


def batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, 4:] = 0, 0
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id or 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = (torch.arange(11) > 4).long().expand(3, 11).contiguous()
    return inputs


def result(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def randomize(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_passes_equal_one_pass(family: str, depth: int) -> None:
    model = make(family)
    inputs, backbone = batch(model), Backbone(model)
    live, depth = result(model, inputs), min(depth, len(backbone.layers) - 1)
    assert depth > 0
    ran: list[int] = []
    for i, layer in enumerate(backbone.layers):
        forward = layer.forward
        layer.forward = lambda *a, i=i, forward=forward, **n: ran.append(i) or forward(*a, **n)
    with torch.no_grad():
        states = backbone.encode_to(depth, **inputs)
    assert ran == list(range(depth)), "layers above do not run"
    assert states.shape[:2] == inputs["input_ids"].shape
    with backbone.run_from(depth, states):
        result(model, inputs)  # learns what the layers return
        for layer in backbone.layers[:depth]:
            randomize(layer)
        ran.clear()
        assert torch.equal(result(model, inputs), live)
    assert ran == list(range(depth, len(backbone.layers))), "layers below do not run"
    assert not torch.equal(result(model, inputs), live), "afterwards all layers run again"


def test_computing_between_layers_is_kept() -> None:
    """DeBERTa's convolution follows the first layer and reads the embeddings as well."""
    model = make("deberta-v2", **CONVOLUTION)
    inputs, backbone = batch(model), Backbone(model)
    assert model.deberta.encoder.conv is not None
    live = result(model, inputs)
    for depth in (1, 2):
        with torch.no_grad():
            states = backbone.encode_to(depth, **inputs)
        with backbone.run_from(depth, states):
            assert torch.equal(result(model, inputs), live), depth


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_recomputed_gradients_start_from_the_states(family: str) -> None:
    """Gradient checkpointing runs layers again in the backward pass, when the split is over."""
    found = []
    for recompute in (False, True):
        model = make(family)
        inputs, backbone = batch(model), Backbone(model)
        with torch.no_grad():
            states = backbone.encode_to(1, **inputs)
        for module in (model.get_input_embeddings(), backbone.layers[0]):
            module.requires_grad_(False)
            randomize(module)
        if recompute:
            enable_gradient_checkpointing(model)
            model.train()  # the layers recompute in training mode alone
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        with backbone.run_from(1, states):
            logits: Any = model(**inputs).logits
        logits.sum().mul(1000).backward()
        found.append({name: p.grad for name, p in backbone.layers[-1].named_parameters() if p.grad is not None})
        found[-1] |= {f"1.{name}": p.grad for name, p in backbone.layers[1].named_parameters() if p.grad is not None}
    assert len(found[0]) > 10
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 1
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", ["encode_to", "run_from"])
def test_layers_are_restored_after_an_error(error: str) -> None:
    model = make("bert")
    inputs, backbone = batch(model), Backbone(model)
    live = result(model, inputs)
    unknown = {"input_ids": inputs["input_ids"] + 10_000}
    if error == "encode_to":
        with pytest.raises(IndexError):
            backbone.encode_to(1, **unknown)
    else:
        with backbone.run_from(1, torch.zeros(3, 11, 32)), pytest.raises(IndexError):
            result(model, unknown)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(result(model, inputs), live)
