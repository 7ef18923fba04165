"""Every method of the installed peft: trained, saved and loaded it answers as before, or it is refused in words."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nlp_transfer import load_adapters, load_predictor
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.layers import find_layers, new_parameters
from nlp_transfer.saved_models.load import open_adapter, quiet
from nlp_transfer.saved_models.save import verify_adapter
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import strategy_from
from nlp_transfer.strategies.common.adapter_modules import can_merge
from nlp_transfer.strategies.peft import Peft
from nlp_transfer.strategies.peft.method_settings import methods
from nlp_transfer.training import Trainer
from tests.builders import prepared, refused, rows, run, sentiment_rows, write
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

METHODS = sorted(methods())
# Sizes that peft chooses for large models.
SMALL: dict[str, dict[str, Any]] = {
    "MISS": {"r": 8}, "SHIRA": {"r": 4}, "WAVEFT": {"n_frequency": 100}, "PROMPT_TUNING": {"num_virtual_tokens": 4},
}  # fmt: skip
# What a method lacks for a single task with a new head, in words of its message.
REFUSED = {
    "ADALORA": "moves ranks between layers after every step", "ADAPTION_PROMPT": "cannot save a head", "CPT": "CAUSAL_LM",
    "MULTITASK_PROMPT_TUNING": "task_ids", "POLY": "task_ids", "SHADOW": "peft cannot put SHADOW",
    "TRAINABLE_TOKENS": "cannot save a head", "XLORA": "cannot save a head",
}  # fmt: skip
UNMERGED = {"CARTRIDGE", "LILY", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, SMALL.get(name, {})) for name in METHODS if name not in REFUSED),
    ("LORA", {"use_dora": True, "r": 4}),
    ("LORA", {"use_rslora": True, "r": 4, "target_modules": "attention"}),
    ("LORA", {"init_lora_weights": "pissa", "r": 4}),
]


@pytest.fixture(scope="module")
def lively(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose answers differ much from text to text, so that small mistakes show."""
    folder = tmp_path_factory.mktemp("lively") / "bert"
    shutil.copytree(tiny["bert"], folder)
    weights = load_file(folder / "model.safetensors")
    scaled = {name: value * 8 if name.endswith("weight") and value.ndim == 2 else value for name, value in weights.items()}
    save_file(scaled, folder / "model.safetensors", {"format": "pt"})
    return folder


def built(folder: Path, **document: Any) -> Any:
    torch.manual_seed(0)
    return prepared(folder, {"name": "text_classification", "max_length": 30, **document}, data=rows(24, "text", "label"))


def answers(model: nn.Module, table: TokenTable) -> torch.Tensor:
    batch = table.batch(torch.arange(8).numpy())
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return found


def wrapped(folder: Path, kind: str, settings: dict[str, Any] | None = None, **document: Any) -> Any:
    with quiet():
        return Peft(type=kind, settings=settings or {}).prepare_model(built(folder, **document).model)


@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=lambda value: str(value) if value else "")
def test_every_method_survives_saving_and_loading(
    kind: str, settings: dict[str, Any], lively: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, task, table, _, source = built(lively)
    shape = {name: value.shape for name, value in plain.state_dict().items()}
    strategy = Peft(type=kind, settings=settings)
    with quiet():
        model: Any = strategy.prepare_model(plain)
    said = capsys.readouterr().err
    assert ("cannot be merged" in said) == (kind in UNMERGED)
    fixed = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    own = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in n}
    training = TrainingConfig(max_steps=3, batch_size=12, precision="fp32", learning_rate=2e-2)
    untrained = answers(model, table)
    Trainer(model, task, {"train": table}, strategy=strategy, settings=training).train()
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in fixed.items()), "what is pretrained stays as it was"
    assert any(not torch.equal(value, after[name]) for name, value in own.items()), "the adapter learns"
    trained = answers(model, table)
    assert (trained - untrained).abs().max() > 1e-2
    assert trained.std(0).max() > 5e-4, "answers that differ between texts"
    with quiet():
        saved = strategy.export_model(model, tmp_path)
    verify_adapter(tmp_path / "adapter", source, task, saved, table.batch(torch.arange(4).numpy()))
    assert torch.allclose(answers(saved, table), trained, atol=2e-5)
    assert torch.allclose(answers(open_adapter(tmp_path / "adapter")[0], table), trained, atol=2e-5)
    assert not (tmp_path / "adapter/config.json").exists()
    if kind not in UNMERGED:
        assert {name: value.shape for name, value in saved.state_dict().items()} == shape, "merged it is a model like any other"


@pytest.mark.parametrize("kind", list(REFUSED))
def test_unsupported_methods_are_refused(kind: str, tiny: dict[str, Path]) -> None:
    with refused(kind, REFUSED[kind]):
        wrapped(tiny["bert"], kind)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "LILY"])
def test_translation_needs_mergeable_methods(kind: str, tiny: dict[str, Path]) -> None:
    document = {"name": "translation", "source": "text", "target": "other", "target_vocabulary": 300}
    with refused(f"found {kind}", "cannot be merged", "generating text"):
        prepared(tiny["bert"], document, Peft(type=kind))


def test_every_method_of_peft_is_tested() -> None:
    assert len(METHODS) > 20
    assert {name for name, _ in VARIANTS} | set(REFUSED) == set(METHODS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["IA3", "LN_TUNING", "LOHA", "PREFIX_TUNING", "PROMPT_TUNING"])
def test_every_family_supports_or_refuses_a_method(kind: str, family: str, tiny: dict[str, Path]) -> None:
    if kind == "PREFIX_TUNING" and family not in ("bert", "roberta", "xlm-roberta", "electra"):
        with refused(f"on a {family} model", "past key values"):
            wrapped(tiny[family], kind)
        return
    plain = built(tiny[family]).model
    new, layers = new_parameters(plain), find_layers(plain)
    with quiet():
        model: Any = Peft(type=kind).prepare_model(plain)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {name.replace(".modules_to_save.default", "").removeprefix("base_model.").removeprefix("model.") for name in learning}
    assert {name.removeprefix("model.") for name in new} <= heads, "what was drawn at random is trained"
    inside = [name for name in learning if "modules_to_save" not in name]
    assert inside
    if kind not in ("PREFIX_TUNING", "PROMPT_TUNING"):
        assert all(layers.prefix + "." in name for name in inside), "nothing of the head is adapted"


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_scales_keys_values_and_feed_forward(family: str, tiny: dict[str, Path]) -> None:
    model = wrapped(tiny[family], "IA3")
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "ia3_l")}
    layers = find_layers(model.get_base_model())
    ends = [module for module in adapted.values() if module.is_feedforward]
    assert len(ends) == layers.depth
    assert all(module.in_features == 48 and module.out_features == 32 for module in ends), "from the wide to the narrow side"
    per_layer = 2 if family == "modernbert" else 3  # there one projection makes queries, keys and values
    assert len(adapted) == per_layer * layers.depth


def test_settings_are_passed_to_peft(tiny: dict[str, Path]) -> None:
    settings = {"r": 3, "target_modules": ["query"], "layers_to_transform": 1}
    model = wrapped(tiny["bert"], "LORA", settings)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert adapted == ["base_model.model.bert.encoder.layer.1.attention.self.query"]
    assert model.peft_config["default"].r == 3
    assert settings == {"r": 3, "target_modules": ["query"], "layers_to_transform": 1}, "the caller's own stay as they were"


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"target_modules": "(a|b)*c"}, ["strategy.settings", "(a|b)*c", "target_modules"]),
        ({"task_type": "CAUSAL_LM"}, ["has no 'task_type'"]),
    ],
)
def test_unsafe_settings_are_refused(settings: dict[str, Any], facts: list[str]) -> None:
    with refused(*facts):
        strategy_from({"name": "peft", "settings": settings})


def test_adamss_that_moves_ranks_is_refused(tiny: dict[str, Path]) -> None:
    with refused("ADAMSS with use_asa", "moves ranks"):
        wrapped(tiny["bert"], "ADAMSS", {"use_asa": True})


def test_missing_package_is_named(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import IA3Config

    def fails(self: Any) -> None:
        raise ModuleNotFoundError("No module named 'rare'", name="rare")

    monkeypatch.setattr(IA3Config, "__post_init__", fails)
    with refused("IA3", "rare", "not installed"):
        wrapped(tiny["bert"], "IA3")


def test_adapter_without_effect_is_refused(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.ia3.layer import Linear

    monkeypatch.setattr(Linear, "forward", lambda self, x, *args, **kwargs: self.base_layer(x))
    with refused("the adapter has no effect"):
        wrapped(tiny["bert"], "IA3")


def test_merge_that_changes_predictions_is_not_saved(lively: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from peft.tuners.ia3.layer import Linear

    model = wrapped(lively, "IA3")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3 if "ia3_l" in name else 1)
    monkeypatch.setattr(Linear, "merge", lambda self, *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="merging the adapter changed the logits"):
        Peft().export_model(model, tmp_path)


def test_prompt_and_text_share_the_positions(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    with refused("task.max_length: found 64; allowed: up to 44", "PROMPT_TUNING", "20 tokens"):
        train(tiny["bert"], sentiment, tmp_path / "run", {"name": "peft", "type": "PROMPT_TUNING"}, max_length=None)
    assert not (tmp_path / "run").exists()


def test_prompts_need_the_family_head(tiny: dict[str, Path]) -> None:
    head = {"hidden": [8], "pooling": "mean"}
    assert can_merge(wrapped(tiny["bert"], "LN_TUNING", head=head))


def test_weight_decay_applies_to_the_head_only(tiny: dict[str, Path]) -> None:
    from nlp_transfer.training.optimizer import named_groups

    model = wrapped(tiny["bert"], "IA3")
    groups = named_groups(model, TrainingConfig(weight_decay=0.1), Peft())
    decayed = {name for group in groups if group.weight_decay for name in group.names}
    assert decayed == {name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1 and "modules_to" in name}
    assert decayed


def train(model: Path, data: dict[str, Path], folder: Path, strategy: dict[str, Any], **task: Any) -> Path:
    training = {"batch_size": 16, "learning_rate": 2e-2}
    run(model=model, data=data, task={"max_length": 30, **task}, strategy=strategy, training=training, output_dir=folder)
    return folder


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4},
    "ia3": {"name": "peft"},
    "prompts": {"name": "peft", "type": "P_TUNING"},
    "norms": {"name": "peft", "type": "LN_TUNING"},
    # These change the weights below them, so no other adapter may share those.
    "pissa": {"name": "peft", "type": "LORA", "settings": {"r": 4, "init_lora_weights": "pissa"}},
    "osf": {"name": "peft", "type": "OSF"},
}
TEXTS = ["a good film", "an awful dull plot", "the scene was quite bright"]


@pytest.fixture(scope="module")
def runs(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: train(tiny["bert"], sentiment, folder / name, strategy) for name, strategy in ADAPTERS.items()}
    three = write(folder / "three.csv", [(text, "xyz"[i % 3]) for i, (text, _) in enumerate(sentiment_rows(30))])
    made["three"] = train(tiny["bert"], {"train": three, "test": three}, folder / "three", {"name": "lora", "r": 2})
    return made


def test_unmerged_run_saves_a_working_adapter(runs: dict[str, Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = runs["prompts"]
    result = json.loads((folder / "result.json").read_text())
    saved = json.loads((folder / "model/nlp_transfer.json").read_text())
    assert result["plain"] is False
    assert saved["plain"] is saved["merges"] is False
    assert saved["metrics"]["test"] == result["metrics"]["test"]
    assert saved["base"]["model"].endswith("bert")
    assert not (folder / "model/config.json").exists()
    card = (folder / "model/README.md").read_text()
    assert "cannot be merged" in card
    assert "load_predictor" in card
    assert "pipeline(" not in card
    answers = [load_predictor(place)(TEXTS, probabilities=True) for place in (folder, folder / "model", folder / "adapter")]
    assert answers[0] == answers[1] == answers[2]
    with pytest.raises((OSError, ValueError)):
        AutoModelForSequenceClassification.from_pretrained(folder / "model")


def test_adapters_on_one_base_predict_like_their_models(runs: dict[str, Path], tiny: dict[str, Path]) -> None:
    adapters = load_adapters(str(tiny["bert"]), runs)
    assert adapters.names == list(runs)
    for name in [*runs, *reversed(runs)]:  # each again after all the others
        found, own = (p(TEXTS, probabilities=True) for p in (adapters.predictor(name), load_predictor(runs[name])))
        for a, b in zip(found, own, strict=True):
            assert a.keys() == b.keys()
            assert a["prediction"] == b["prediction"]
            assert all(a[key] == pytest.approx(b[key], abs=1e-4) for key in a if key != "prediction")
    with refused("'lorra'", "did you mean 'lora'?", "known: lora, "):
        adapters.predictor("lorra")


def test_base_model_is_in_memory_once(runs: dict[str, Path], tiny: dict[str, Path]) -> None:
    base = sum(p.numel() for p in load_predictor(runs["lora"]).model.parameters())
    light = {name: runs[name] for name in ("lora", "ia3", "prompts", "norms", "three")}
    each = [load_adapters(str(tiny["bert"]), {name: folder}).parameters() for name, folder in light.items()]
    together = load_adapters(str(tiny["bert"]), light).parameters()
    assert together < sum(each) - 3 * base
    adapters = load_adapters(str(tiny["bert"]), light)
    models: list[Any] = [adapters.predictor(name).model for name in light]
    places = {model.get_base_model().get_input_embeddings().weight.data_ptr() for model in models}
    assert len(places) == 1


def test_adapters_of_other_bases_are_refused(
    runs: dict[str, Path], tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path
) -> None:
    full = train(tiny["bert"], sentiment, tmp_path / "full", {"name": "full"})
    bases = f"was trained on {tiny['bert'].resolve()}; the base is {tiny['roberta'].resolve()}"
    with refused("adapters.a", bases, f"adapters.b: found no adapter in {full}", "adapters.c"):
        load_adapters(str(tiny["roberta"]), {"a": runs["lora"], "b": full, "c": tmp_path / "nowhere"})
    with refused("adapters: found none; allowed: run folders"):
        load_adapters(str(tiny["bert"]), {})


def test_filled_in_fields_exist_in_peft() -> None:
    """Names that this strategy fills in are the installed peft's own."""
    names = {field.name for schema in methods().values() for field in dataclasses.fields(schema)}
    filled = "modules_to_save feedforward_modules layers_to_transform layers_pattern num_virtual_tokens token_dim"
    assert set(filled.split()) <= names
    assert {"num_layers", "num_attention_heads", "block_size", "group_size", "vector_length", "progressbar"} <= names
