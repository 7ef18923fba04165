"""A merged model is W + alpha/r * BA and predicts like the adapted one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import TokenTable, encode_rows
from nlp_transfer.models.layers import find_layers, linear_layers, new_parameters
from nlp_transfer.saved_models.save import quiet
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies.lora import Lora
from nlp_transfer.tasks import task_from
from nlp_transfer.training import Trainer
from nlp_transfer.utils.errors import Problems
from tests.builders import opened, sentiment_rows
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

CASES = [(family, Lora(r=4)) for family in FAMILIES]
CASES += [("bert", Lora(r=3, alpha=5.0, target_modules="attention")), ("roberta", Lora(r=2, bias="all", dropout=0.2))]


def trained(checkpoint: Path, strategy: Lora) -> tuple[Any, TokenTable]:
    """An adapted model after three steps, in evaluation mode."""
    texts, labels = zip(*sentiment_rows(24), strict=True)
    rows = from_columns({"text": list(texts), "label": list(labels)}, "rows")
    source = opened(checkpoint)
    task = task_from({"name": "text_classification"}).fit(rows, Problems())
    table = encode_rows(rows, lambda columns: task.encode(columns, source.tokenizer), task.fill(source.tokenizer))
    settings = TrainingConfig(max_steps=3, batch_size=8, precision="fp32", learning_rate=1e-2)
    torch.manual_seed(0)
    with quiet():
        model = strategy.wrap(task.build_model(source, settings))
    Trainer(model, task, {"train": table}, strategy=strategy, training=settings).train()
    return model.eval(), table


def logits_of(model: nn.Module, table: TokenTable) -> torch.Tensor:
    batch = table.batch(torch.arange(9).numpy())
    batch.pop("labels")
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**batch).logits
    return found


@pytest.mark.parametrize(("family", "strategy"), CASES, ids=lambda case: case if isinstance(case, str) else f"r{case.r}")
def test_merged_is_w_plus_ba_with_same_predictions(family: str, strategy: Lora, tiny: dict[str, Path], tmp_path: Path) -> None:
    model, table = trained(tiny[family], strategy)
    before = logits_of(model, table)
    state = {name.removeprefix("base_model.model."): value.clone() for name, value in model.state_dict().items()}
    scale = (strategy.alpha or 2 * strategy.r) / strategy.r
    merged = strategy.unwrap(model, tmp_path)
    after = merged.state_dict()
    adapted = [name.removesuffix(".base_layer.weight") for name in state if name.endswith(".base_layer.weight")]
    assert adapted
    for name in adapted:
        down, up = (state[f"{name}.lora_{part}.default.weight"] for part in "AB")
        assert up.abs().max() > 0, "training has moved it"
        expected = state[f"{name}.base_layer.weight"] + scale * up @ down
        assert torch.allclose(after[f"{name}.weight"], expected, atol=1e-6), name
    assert not any("lora" in name or "base_layer" in name or "modules_to_save" in name for name in after)
    assert (logits_of(merged, table) - before).abs().max() <= 1e-5
    assert not (tmp_path / "adapter/config.json").exists()


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_merging_twice_is_harmless(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    strategy = Lora(r=4)
    model, table = trained(tiny[family], strategy)
    before = logits_of(model, table)
    model.merge_adapter()
    once = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert all(torch.equal(once[name], value) for name, value in model.state_dict().items())
    merged = strategy.unwrap(model, tmp_path)
    assert (logits_of(merged, table) - before).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_of_the_encoder_are_adapted(family: str, tiny: dict[str, Path]) -> None:
    source = opened(tiny[family])
    task = task_from({"name": "text_classification", "labels": ["a", "b"]})
    with quiet():
        plain = task.build_model(source, TrainingConfig())
        layers = find_layers(plain)
        inner = set(linear_layers(plain, layers))
        wanted = {
            name
            for name, module in plain.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(layers.prefix + ".")
        }
        new = {f"base_model.model.{name}" for name in new_parameters(plain)}
        model = Lora().wrap(plain)
    assert len(inner) >= 4
    adapted = {name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == wanted
    trainable = {name.replace(".modules_to_save.default", "") for name, p in model.named_parameters() if p.requires_grad}
    assert new, "a head is new"
    assert new <= trainable, "what was drawn at random is trained"


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_holds_all_trained_weights(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    strategy = Lora(r=4)
    model, _ = trained(tiny[family], strategy)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    trainable = {name.replace(".modules_to_save.default", "").replace(".default", "") for name in names}
    strategy.unwrap(model, tmp_path)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert trainable <= set(saved)
