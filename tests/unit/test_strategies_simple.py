"""Strategies that are a hook or two: biases alone, rates by depth, a pull towards the start, layers set free one by one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, State, Strategy, View, strategy_from
from nlp_transfer.training import Trainer
from nlp_transfer.training.optimizer import named_groups
from tests.builders import prepared, refused, run
from tests.contract.test_strategies import TASKS
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

SINGLE, TRANSLATION = TASKS["single"], TASKS["translation"]


def built(folder: Path, strategy: Any, task: Mapping[str, Any] = SINGLE) -> tuple[Any, Strategy]:
    """A wrapped model with its strategy."""
    folded = strategy_from(strategy)
    return prepared(folder, dict(task), folded).model, folded


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rates(model: torch.nn.Module, strategy: Strategy, decay: float = 0.01) -> dict[str, tuple[float, float]]:
    """Factor on the rate, and weight decay, by parameter."""
    groups = named_groups(model, TrainingConfig(weight_decay=decay), strategy)
    return {name: (group.learning_rate_scale, group.weight_decay) for group in groups for name in group.names}


# Query and first layer after attention, of the lowest layer, said family by family.
TWO_BIASES = {
    "bert": {"bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.intermediate.dense"},
    "distilbert": {"distilbert.transformer.layer.0.attention.q_lin", "distilbert.transformer.layer.0.ffn.lin1"},
    "roberta": {"roberta.encoder.layer.0.attention.self.query", "roberta.encoder.layer.0.intermediate.dense"},
    "xlm-roberta": {"roberta.encoder.layer.0.attention.self.query", "roberta.encoder.layer.0.intermediate.dense"},
    "electra": {"electra.encoder.layer.0.attention.self.query", "electra.encoder.layer.0.intermediate.dense"},
    "deberta-v2": {"deberta.encoder.layer.0.attention.self.query_proj", "deberta.encoder.layer.0.intermediate.dense"},
    "albert": {
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn",
    },
    "mpnet": {"mpnet.encoder.layer.0.attention.attn.q", "mpnet.encoder.layer.0.intermediate.dense"},
}
# Everything that is no layer and no embedding.
HEADS = {
    "bert": {"bert.pooler.dense", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "xlm-roberta": {"classifier.dense", "classifier.out_proj"},
    "electra": {"classifier.dense", "classifier.out_proj"},
    "deberta-v2": {"pooler.dense", "classifier"},
    "albert": {"albert.pooler", "classifier"},
    "mpnet": {"classifier.dense", "classifier.out_proj"},
}


@pytest.mark.parametrize("family", TWO_BIASES)
def test_query_and_intermediate_biases(family: str, tiny: dict[str, Path]) -> None:
    model, _ = built(tiny[family], {"name": "bitfit", "biases": "query_and_intermediate"})
    layers = ["0", "1"] if family != "albert" else ["0"]
    biases = {f"{path.replace('.layer.0.', f'.layer.{i}.')}.bias" for path in TWO_BIASES[family] for i in layers}
    assert trained(model) == biases | {f"{path}.{kind}" for path in HEADS[family] for kind in ("weight", "bias")}


def test_every_family_has_an_expected_share() -> None:
    assert [*TWO_BIASES, "modernbert"] == FAMILIES == [*HEADS, "modernbert"]


@pytest.mark.parametrize("family", HEADS)
def test_biases_are_under_two_percent_without_norms(family: str, tiny: dict[str, Path]) -> None:
    model, _ = built(tiny[family], {"name": "bitfit"})
    head = {f"{path}.{kind}" for path in HEADS[family] for kind in ("weight", "bias")}
    below = trained(model) - head
    assert below == {name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"} - head
    assert any("norm" in name.lower() for name in below), "that of a normalisation is a bias too"
    more, _ = built(tiny[family], {"name": "bitfit", "normalisation": True})
    weights = {name for name, p in more.named_parameters() if "norm" in name.lower() and name.endswith("weight")} - head
    assert trained(more) == trained(model) | weights > trained(model)


def test_family_without_biases_is_refused(tiny: dict[str, Path]) -> None:
    with refused("modernbert model have no biases", "allowed: strategy.normalisation: true"):
        built(tiny["modernbert"], {"name": "bitfit"})
    model, _ = built(tiny["modernbert"], {"name": "bitfit", "normalisation": True})
    assert {name for name in trained(model) if name.startswith("model.")} == {
        "model.embeddings.norm.weight", "model.final_norm.weight", *(f"model.layers.{i}.mlp_norm.weight" for i in range(3)),
        *(f"model.layers.{i}.attn_norm.weight" for i in (1, 2)),
    }  # fmt: skip


def train(model: Path, output: Path, data: dict[str, Path], strategy: Any, **training: Any) -> Any:
    settings = {"max_steps": 6, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1} | training
    data = {"train": data["train"], "validation": data["test"]}
    return run(model=model, data=data, strategy=strategy, training=settings, output_dir=output)


def test_biases_file_restores_the_encoder(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    found = train(tiny["bert"], tmp_path / "run", sentiment, "bitfit")
    assert found.result["plain"] is True
    biases = load_file(tmp_path / "run/biases.safetensors")
    encoder, saved = AutoModel.from_pretrained(tiny["bert"]), load_file(tmp_path / "run/model/model.safetensors")
    plain = {name.removeprefix("bert."): value for name, value in biases.items()}
    assert set(plain) == {name for name, _ in encoder.named_parameters() if name.endswith(".bias") and "pooler" not in name}
    assert any(not torch.equal(value, encoder.state_dict()[name]) for name, value in plain.items())
    encoder.load_state_dict(plain, strict=False)
    for name, value in encoder.state_dict().items():
        assert "pooler" in name or torch.equal(value, saved[f"bert.{name}"]), name


def small_marian() -> Any:
    return MarianMTModel(
        MarianConfig(
            vocab_size=50, d_model=16, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0, decoder_start_token_id=0,
        )
    )  # fmt: skip


def small_t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0, decoder_start_token_id=0)
    )


def test_biases_of_both_stacks_are_trained() -> None:
    model = strategy_from({"name": "bitfit", "biases": "query_and_intermediate"}).wrap(small_marian())
    inner = ("self_attn.q_proj", "fc1")
    both = {f"model.encoder.layers.{i}.{part}.bias" for i in range(3) for part in inner}
    both |= {f"model.decoder.layers.{i}.{part}.bias" for i in range(2) for part in (*inner, "encoder_attn.q_proj")}
    assert trained(model) == both
    with refused("t5 model have no biases", "allowed"):
        strategy_from({"name": "bitfit"}).wrap(small_t5())


DEPTHS = {
    "bert.embeddings.LayerNorm.bias": 0.25, "bert.embeddings.word_embeddings.weight": 0.25,
    "bert.encoder.layer.0.attention.self.query.weight": 0.5, "bert.encoder.layer.0.output.LayerNorm.weight": 0.5,
    "bert.encoder.layer.1.output.dense.bias": 1.0, "bert.pooler.dense.weight": 10.0, "classifier.weight": 10.0,
}  # fmt: skip
LAYERWISE = {"name": "layerwise_lr", "decay": 0.5}


@pytest.mark.parametrize("others", [[], [{"name": "full"}], [{"name": "l2_sp"}], [{"name": "full"}, {"name": "l2_sp"}]])
@pytest.mark.parametrize("first", [True, False])
def test_learning_rates_fall_with_depth_in_any_order(others: list[Any], first: bool, tiny: dict[str, Path]) -> None:
    model, strategy = built(tiny["bert"], [LAYERWISE, *others] if first else [*others, LAYERWISE])
    found = rates(model, strategy)
    assert {name: found[name][0] for name in DEPTHS} == pytest.approx(DEPTHS)
    assert set(found) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("head_scale", [1, 4])
def test_head_keeps_the_rate_of_another_strategy(head_scale: float, tiny: dict[str, Path]) -> None:
    full = {"name": "full", "head_scale": head_scale}
    for order in ([full, LAYERWISE], [LAYERWISE, full], [{"name": "l2_sp"}, full, LAYERWISE]):
        model, strategy = built(tiny["bert"], order)
        found = rates(model, strategy)
        assert found["classifier.weight"][0] == found["bert.pooler.dense.bias"][0] == head_scale
        assert found["bert.encoder.layer.0.output.dense.weight"][0] == 0.5


@pytest.mark.parametrize("lora_first", [True, False])
def test_learning_rates_of_lora(lora_first: bool, tiny: dict[str, Path]) -> None:
    """Nothing but the layers' depth decides: LoRA trains the head at the rate of the rest."""
    lora = {"name": "lora", "target_modules": "attention"}
    model, strategy = built(tiny["bert"], [lora, LAYERWISE] if lora_first else [LAYERWISE, lora])
    found = rates(model, strategy)
    expected = {f"encoder.layer.{i}.attention.self.{part}.lora_{side}.default.weight": rate
                for i, rate in ((0, 0.5), (1, 1.0)) for part in ("query", "key", "value") for side in "AB"}  # fmt: skip
    expected |= {f"{path}.modules_to_save.default.{kind}": 1.0 for path in ("pooler.dense",) for kind in ("weight", "bias")}
    names = {f"base_model.model.bert.{name}": rate for name, rate in expected.items()}
    names |= {f"base_model.model.classifier.modules_to_save.default.{kind}": 1.0 for kind in ("weight", "bias")}
    assert {name: rate for name, (rate, _) in found.items()} == names


def test_learning_rates_with_frozen_layers(tiny: dict[str, Path]) -> None:
    partial = {"name": "partial", "frozen_layers": 1}
    for order in ([partial, LAYERWISE], [LAYERWISE, partial]):
        model, strategy = built(tiny["bert"], order)
        assert {name.split(".")[1]: rate for name, (rate, _) in rates(model, strategy).items()} == {
            "encoder": 1.0, "pooler": 10.0, "weight": 10.0, "bias": 10.0
        }  # fmt: skip


def test_learning_rates_of_encoder_decoders(tiny: dict[str, Path]) -> None:
    strategy = strategy_from(LAYERWISE)
    found = {name: rate for name, (rate, _) in rates(strategy.wrap(small_marian()), strategy).items()}
    for i, rate in enumerate((0.25, 0.5, 1.0)):
        assert found[f"model.encoder.layers.{i}.fc1.weight"] == rate
    for i, rate in enumerate((0.5, 1.0)):
        assert found[f"model.decoder.layers.{i}.encoder_attn.q_proj.weight"] == rate
    assert found["model.shared.weight"] == 0.125, "below three layers"
    model, strategy = built(tiny["bert"], LAYERWISE, TRANSLATION)
    for name, (rate, _) in rates(model, strategy).items():
        below = {"encoder.embeddings": 0.25, "encoder.encoder.layer.0": 0.5, "encoder.encoder.layer.1": 1.0}
        expected = next((value for prefix, value in below.items() if name.startswith(f"{prefix}.")), 3.0)
        assert rate == pytest.approx(expected), name


def test_log_contains_the_base_learning_rate(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    train(tiny["bert"], tmp_path / "run", sentiment, [LAYERWISE], schedule="constant", warmup=0)
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    assert {line["learning_rate"] for line in lines if "loss" in line} == {1e-3}


def moved(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_l2_sp_matches_the_formula(tiny: dict[str, Path]) -> None:
    """Its value and its gradient, written out parameter by parameter, in fp64."""
    model, strategy = built(tiny["bert"], {"name": "l2_sp", "alpha": 0.3, "beta": 0.7})
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moved(model)
    losses = strategy.loss({"cross_entropy": torch.ones(())}, None, {"labels": torch.zeros(5)}, model)
    assert set(losses) == {"cross_entropy", "l2_sp"}
    losses["l2_sp"].backward()
    total = 0.0
    for name, parameter in model.named_parameters():
        if name == "classifier.bias":
            assert parameter.grad is None, "a new bias is left alone"
            continue
        strength, goal = (0.7, torch.zeros_like(parameter)) if name == "classifier.weight" else (0.3, start[name])
        away = parameter.detach().double() - goal.double()
        total += strength / 2 * float(away.square().sum())
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad.double(), 5 * strength * away, rtol=1e-5, atol=1e-7), name
    assert float(losses["l2_sp"].detach()) == pytest.approx(5 * total, rel=1e-5)


def test_no_weight_decay_for_penalized_parameters(tiny: dict[str, Path]) -> None:
    for beta, head in ((0.1, 0.0), (0.0, 0.2)):
        model, strategy = built(tiny["bert"], {"name": "l2_sp", "beta": beta})
        found = rates(model, strategy, decay=0.2)
        assert {name: decay for name, (_, decay) in found.items() if decay} == ({"classifier.weight": head} if head else {})
        assert found["classifier.weight"][0] == found["bert.pooler.dense.weight"][0] == 10
        assert found["bert.encoder.layer.0.output.dense.weight"][0] == 1
    model, strategy = built(tiny["bert"], {"name": "l2_sp", "alpha": 0, "beta": 0})
    assert rates(model, strategy, decay=0.2)["bert.encoder.layer.0.output.dense.weight"][1] == 0.2
    assert set(strategy.loss({}, None, {"labels": torch.zeros(5)}, model)) == set()


@pytest.mark.parametrize("other", ["partial", "lora"])
@pytest.mark.parametrize("first", [True, False])
def test_frozen_parameters_are_not_penalized(other: str, first: bool, tiny: dict[str, Path]) -> None:
    pull = {"name": "l2_sp", "alpha": 1, "beta": 2}
    model, strategy = built(tiny["bert"], [pull, {"name": other}] if first else [{"name": other}, pull])
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moved(model)
    strategy.loss({}, None, {"labels": torch.zeros(1)}, model)["l2_sp"].backward()
    pulled = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(pulled) == {name for name in trained(model) if "classifier" not in name or "weight" in name}
    for name, parameter in pulled.items():
        new = "lora_" in name or "classifier" in name
        goal = 2 * parameter if new else parameter - start[name]
        assert torch.allclose(parameter.grad, goal, atol=1e-6), name


def test_new_decoder_is_pulled_towards_zero(tiny: dict[str, Path]) -> None:
    model, strategy = built(tiny["bert"], {"name": "l2_sp", "alpha": 0, "beta": 1}, TRANSLATION)
    strategy.loss({}, None, {"labels": torch.zeros(1, 4)}, model)["l2_sp"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name.startswith("decoder.") and parameter.ndim > 1), name


@pytest.fixture
def view(tiny: dict[str, Path]) -> View:
    model, _ = built(tiny["bert"], {"name": "full"})
    return View(model, {}, [], lambda table: {}, epochs=8, windows_in_epoch=10)


def phases(strategy: Strategy, view: View) -> list[Phase]:
    """All of them, through JSON as a checkpoint has it, with what a phase does to the model done to it."""
    found: list[Phase] = []
    state = State()
    while phase := strategy.next_phase(state, view):
        found.append(phase)
        for name, parameter in view.model.named_parameters():
            parameter.requires_grad_(name in (phase.trainable or ()))
        state = State(**json.loads(json.dumps({"finished": [*state.finished, phase.name], "memory": state.memory})))
    return found


def test_layers_are_unfrozen_from_the_top_down(view: View) -> None:
    names = [name for name, _ in view.model.named_parameters()]
    found = phases(strategy_from({"name": "gradual_unfreezing"}), view)
    assert [(phase.name, phase.epochs) for phase in found] == [
        ("head", 1), ("layer 2 and above", 1), ("layer 1 and above", 1), ("all", 5)
    ]  # fmt: skip
    beginnings = ["classifier.", "bert.pooler.", "bert.encoder.layer.1.", "bert.encoder.layer.0.", "bert.embeddings."]
    for phase, many in zip(found, (2, 3, 4, 5), strict=True):
        assert phase.trainable == tuple(name for name in names if name.startswith(tuple(beginnings[:many])))
        assert phase.keep_optimizer
        assert phase.patience is None


@pytest.mark.parametrize(
    ("epochs", "at_a_time", "expected"),
    [
        (8, 2, [("head", 1), ("layer 1 and above", 1), ("all", 6)]),
        (8, 5, [("head", 1), ("layer 1 and above", 1), ("all", 6)]),
        (3, 1, [("head", 0.5), ("layer 2 and above", 0.5), ("layer 1 and above", 0.5), ("all", 1.5)]),
        (0.4, 1, [("head", 0.1), ("layer 2 and above", 0.1), ("all", 0.2)]),
        (0.2, 1, [("head", 0.1), ("all", 0.1)]),
        (0.1, 1, [("all", 0.1)]),
    ],
)
def test_half_of_a_short_run_trains_all_layers(epochs: float, at_a_time: int, expected: list[Any], view: View) -> None:
    short = View(view.model, {}, [], view.predict, epochs=epochs, windows_in_epoch=10)
    found = phases(strategy_from({"name": "gradual_unfreezing", "layers_at_a_time": at_a_time}), short)
    assert [(phase.name, pytest.approx(phase.epochs)) for phase in found] == expected


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 13, 31])
def test_phases_take_max_steps_in_total(steps: int, tiny: dict[str, Path]) -> None:
    strategy = strategy_from({"name": "gradual_unfreezing"})
    model, task, table, *_ = prepared(tiny["bert"], SINGLE, strategy)
    training = TrainingConfig(max_steps=steps, batch_size=8, precision="fp32")
    assert Trainer(model, task, {"train": table}, strategy=strategy, training=training).train().step == steps


def test_a_plateau_ends_a_phase(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    """With a rate at which nothing changes, each phase ends after two evaluations that are no better than its first."""
    plateau = {"name": "gradual_unfreezing", "by": "plateau", "patience": 2}
    still = train(tiny["bert"], tmp_path / "run", sentiment, plateau, max_steps=None, epochs=9, learning_rate=1e-12)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    evaluations = sum("validation" in line for line in lines)
    assert 4 * 3 <= evaluations < 30, "4 phases of 9 epochs would make 36"
    assert still.result["train"]["steps"] == 6 * evaluations


def test_pretrained_encoder_decoder_is_refused() -> None:
    with refused("found gradual_unfreezing", "new part"):
        strategy_from({"name": "gradual_unfreezing"}).wrap(small_marian())


def test_pooler_of_an_encoder_decoder_stays_frozen(tiny: dict[str, Path]) -> None:
    model, strategy = built(tiny["bert"], {"name": "gradual_unfreezing"}, TRANSLATION)
    found = phases(strategy, View(model, {}, [], lambda table: {}, epochs=8, windows_in_epoch=10))
    assert all(name.startswith("decoder.") for name in found[0].trainable or ())
    every = {name for name, _ in model.named_parameters()}
    assert every - set(found[-1].trainable or ()) == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
