"""The training loop: logging, number of steps, stopping, trained parameters, and final weights."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nlp_transfer import TrainingError
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.strategies import Phase, State, Strategy, View, strategy_from
from nlp_transfer.training import validation_scores
from nlp_transfer.training.run_log import RunLog
from tests.builders import refused, run, trainer
from tests.golden import record
from tests.helpers.models import FAMILIES, VOCABULARY, save_tiny

pytestmark = pytest.mark.model

Weights = dict[str, torch.Tensor]


def log_of(output: Path, key: str = "loss") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def weights_of(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def gradients() -> Iterator[list[Weights]]:
    """Gradients by name that the optimizer sees in each step, after clipping."""
    seen: list[Weights] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = [(n, p) for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)]
        divisor = getattr(optimizer, "grad_scale", 1.0)  # a fused optimizer scales in its step
        seen.append({name: p.grad.detach().clone() / divisor for name, p in groups if p.grad is not None})

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def norm(gradient: Weights) -> float:
    return float(torch.cat([part.flatten() for part in gradient.values()]).norm())


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_log_has_one_line_per_step(tiny: dict[str, Path], tmp_path: Path) -> None:
    trainer(tiny["bert"], output=tmp_path, max_steps=7, warmup=2, max_grad_norm=0).train()
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert [line["epoch"] for line in lines] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4])
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.0005, 0.001, 0.001, 0.0008, 0.0006, 0.0004, 0.0002])
    for line in lines:
        assert set(line) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "examples_per_second"}
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in line.values())
    validated = log_of(tmp_path, "validation")
    assert [line["step"] for line in validated] == [5, 7]
    assert {"accuracy", "f1_macro", "loss"} <= set(validated[0]["validation"])


def test_log_lines_are_means_over_logging_steps(tiny: dict[str, Path], tmp_path: Path) -> None:
    for name, every in (("each", 1), ("third", 3)):
        trainer(tiny["bert"], output=tmp_path / name, max_steps=7, logging_steps=every).train()
    losses = {line["step"]: line["loss"] for line in log_of(tmp_path / "each")}
    lines = log_of(tmp_path / "third")
    assert [line["step"] for line in lines] == [3, 6, 7]
    expected = [np.mean([losses[s] for s in steps]) for steps in ((1, 2, 3), (4, 5, 6), (7,))]
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-5)


def test_resume_drops_log_lines_of_later_steps(tiny: dict[str, Path], tmp_path: Path) -> None:
    log = RunLog(trainer(tiny["bert"]).accelerator, tmp_path)
    for step in (1, 2, 3):
        log.write(step, loss=0.5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    log.drop_after(2)
    log.write(3, loss=math.inf)
    assert [(line["step"], line["loss"]) for line in log_of(tmp_path)] == [(1, 0.5), (2, 0.5), (3, None)]


def test_tensorboard_gets_training_and_validation(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = {"max_steps": 4, "logging_steps": 2, "evaluate_every": 2, "trackers": ["tensorboard"]}
    data = {"train": sentiment["train"], "validation_share": 0.1}
    files = list(
        run(model=tiny["bert"], data=data, training=training, output_dir=tmp_path / "run").output_dir.rglob(
            "events.out.tfevents.*"
        )
    )
    assert files
    scalars: dict[str, list[int]] = {}
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        scalars |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("train/loss", "train/learning_rate", "train/grad_norm", "validation/accuracy", "validation/loss"):
        assert scalars[tag] == [2, 4], tag


# --- how long ---------------------------------------------------------------------------------------------------------


def test_max_steps_overrides_epochs(tiny: dict[str, Path]) -> None:
    assert trainer(tiny["bert"], epochs=50, max_steps=3).train().step == 3
    assert trainer(tiny["bert"], epochs=2, max_steps=None).train().step == 10


@pytest.mark.parametrize(("rows", "epochs"), [(40, 20), (800, 20), (1600, 12), (3200, 6), (6400, 3), (64000, 3)])
def test_auto_epochs_give_300_steps_on_small_data(rows: int, epochs: int, tiny: dict[str, Path]) -> None:
    loop = trainer(tiny["bert"], max_steps=None, batch_size=64)
    table = loop.tables["train"]
    many = np.arange(rows) % len(table)
    ids = type(table.ragged["input_ids"]).from_lists([[2, 3]] * rows)
    loop.tables["train"] = TokenTable({"input_ids": ids}, {"labels": table.dense["labels"][many]}, table.fill)
    assert loop.planner.epochs() == epochs
    assert loop.planner.steps() == epochs * math.ceil(rows / 64)


# --- what stops it ----------------------------------------------------------------------------------------------------


def test_nan_loss_stops_training_and_names_step_and_rows(
    sentiment: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word has a NaN embedding; the message must name the rows that contain it."""
    monkeypatch.setattr("nlp_transfer.models.checkpoint.check_finite", lambda *args: None)  # which refuses it as it is loaded
    folder = save_tiny("bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][VOCABULARY["hill"]] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    lines = sentiment["train"].read_text().splitlines()
    broken = [i for i, line in enumerate(lines) if "hill" in line.split(",")[0].split()]
    assert 0 < len(broken) < 60
    data = {"train": sentiment["train"]}
    with pytest.raises(TrainingError) as error:
        run(model=folder, data=data, training={"batch_size": 2, "epochs": 1}, output_dir=tmp_path / "run")
    message = str(error.value)
    step = int(message.removeprefix("step ").split(":")[0])
    assert 1 <= step <= 48
    named = [int(part.split()[0].rstrip(",;.")) for part in message.split("row ")[1:] if part[0].isdigit()]
    assert len(named) == 2
    assert {row - 1 for row in named} & set(broken), "rows are counted as an editor counts lines"
    assert "train.csv" in message
    assert not (tmp_path / "run/result.json").exists()
    assert not (tmp_path / "run/model").exists()


Scores = Callable[..., tuple[dict[str, float], dict[str, Any]]]


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float] | None = None) -> list[Weights]:
    """Replace validation metrics by the given ones; return the weights at each evaluation."""
    seen: list[Weights] = []

    def score(model: nn.Module, *_: Any, **__: Any) -> tuple[dict[str, float], dict[str, Any]]:
        seen.append(weights_of(model))
        place = len(seen) - 1
        return {"accuracy": accuracies[place], "loss": losses[place] if losses else 1.0}, {}

    monkeypatch.setattr(validation_scores, "score", score)
    return seen


@pytest.mark.parametrize("on_disk", [True, False])
def test_early_stopping_restores_the_best_weights(
    on_disk: bool, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [0.5, 0.7, 0.6, 0.7, 0.9])
    output = tmp_path if on_disk else None
    loop = trainer(tiny["bert"], output=output, max_steps=9, evaluate_every=1, early_stopping=2)
    position = loop.train()
    assert (position.step, position.best_step, position.best) == (4, 2, 0.7)
    assert len(seen) == 4
    assert not equal(seen[1], seen[3]), "training has gone on after the best evaluation"
    assert equal(weights_of(loop.model), seen[1])


def test_best_weights_are_restored_without_early_stopping(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [0.5, 0.9, 0.6, 0.7])
    loop = trainer(tiny["bert"], output=tmp_path, evaluate_every=1)
    assert loop.train().step == 4
    assert equal(weights_of(loop.model), seen[1])


def test_equal_metrics_are_compared_by_loss(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.5, 0.5, 0.4], [1.0, 0.8, 0.9, 0.1])
    assert trainer(tiny["bert"], evaluate_every=1).train().best_step == 2


def test_lower_is_better_for_loss(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.9, 0.5, 0.5, 0.5], [1.0, 0.8, 0.2, 0.3])
    assert trainer(tiny["bert"], evaluate_every=1, best_metric="loss").train().best_step == 3


def test_undefined_metric_is_never_better(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [math.nan, 0.1, math.nan, 0.05])
    assert trainer(tiny["bert"], evaluate_every=1).train().best_step == 2


def test_undefined_metrics_are_compared_by_loss(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A useless early checkpoint must not be the best one because its predictions correlate by chance."""
    scripted(monkeypatch, [-0.2, math.nan, math.nan, math.nan], [30.0, 3.0, 1.0, 2.0])
    position = trainer(tiny["bert"], evaluate_every=1).train()
    assert position.best_step == 3


class Two(Strategy):
    """The head, then everything."""

    def next_phase(self, state: State, view: View) -> Phase | None:
        head = tuple(name for name, _ in view.model.named_parameters() if name.startswith("classifier"))
        everything = tuple(name for name, _ in view.model.named_parameters())
        phases = [Phase("head", trainable=head, following=1), Phase("all", trainable=everything)]
        return phases[len(state.finished)] if len(state.finished) < 2 else None


def test_early_stopping_ends_only_the_phase(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [0.5, 0.4, 0.6, 0.5])
    loop = trainer(tiny["bert"], Two(), tmp_path, max_steps=9, evaluate_every=1, early_stopping=1)
    position = loop.train()
    assert position.strategy.finished == ["head", "all"]
    assert (position.step, position.best_step) == (4, 3)
    word = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(seen[0][word], seen[1][word]), "the first phase trains the head alone"
    assert not torch.equal(seen[1][word], seen[2][word])
    assert equal(weights_of(loop.model), seen[2])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_max_steps_limits_all_phases_together(steps: int, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Remaining steps are divided evenly among phases; the learning rate decays within each phase."""
    loop = trainer(tiny["bert"], Two(), tmp_path, max_steps=steps, warmup=0)
    assert loop.train().step == steps
    assert loop.planner.steps() == steps
    rates = [line["learning_rate"] for line in log_of(tmp_path)]
    head = max(1, steps // 2)
    wanted = [(head - i) / head for i in range(head)] + [(steps - head - i) / (steps - head) for i in range(steps - head)]
    assert rates == pytest.approx([1e-3 * factor for factor in wanted])


# --- the optimiser step -----------------------------------------------------------------------------------------------


def test_gradients_are_clipped_to_max_grad_norm(tiny: dict[str, Path], tmp_path: Path, gradients: list[Weights]) -> None:
    for limit in (0, 0.01, 1000):
        trainer(tiny["bert"], output=tmp_path / str(limit), max_steps=1, max_grad_norm=limit).train()
    logged = [log_of(tmp_path / str(limit))[0]["grad_norm"] for limit in (0, 0.01, 1000)]
    assert logged[0] == logged[1] == logged[2] > 0.01, "the norm that is logged is the one before"
    assert norm(gradients[0]) == norm(gradients[2]) == pytest.approx(logged[0], rel=1e-5)
    assert norm(gradients[1]) == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_is_in_the_training_loss(tiny: dict[str, Path], tmp_path: Path) -> None:
    loop = trainer(tiny["bert"], output=tmp_path, max_steps=1, label_smoothing=0.2, dropout=0.0, attention_dropout=0.0)
    with torch.no_grad():
        loop.model.get_parameter("classifier.weight").mul_(100)  # new weights are so small that smoothing hardly shows
    rows = loop.planner.window_plan().windows(0)[0]
    batch = loop.tables["train"].batch(rows)
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = loop.model.eval()(**batch).logits
    loop.train()
    logged = log_of(tmp_path)[0]["loss"]
    # Share 0.2 of the target is spread evenly over both classes.
    likely = logits.log_softmax(-1)
    target = F.one_hot(labels, 2) * 0.8 + 0.1
    assert logged == pytest.approx(float(-(target * likely).sum(-1).mean()), rel=1e-5)
    assert logged != pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


STRATEGIES: dict[str, dict[str, Any]] = {"full": {}, "partial": {"frozen_layers": 1}, "lora": {"r": 4, "dropout": 0.1}}
CANNOT_RECOMPUTE = ("albert", "mpnet")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CANNOT_RECOMPUTE])
def test_gradient_checkpointing_gives_the_same_gradient(
    strategy: str, family: str, tiny: dict[str, Path], gradients: list[Weights]
) -> None:
    """With dropout, whose masks must be equal in the second forward pass."""
    calls: list[list[int]] = []
    for checkpointing in (False, True):
        document = {"name": strategy, **STRATEGIES[strategy]}
        loop = trainer(
            tiny[family], strategy_from(document), max_steps=1, max_grad_norm=0, gradient_checkpointing=checkpointing,
            dropout=0.1, kernels="plain",
        )  # fmt: skip
        del loop.tables["validation"]
        mine: list[int] = []
        for name, module in loop.model.named_modules():
            if ".layer" in name and name.rpartition(".")[2] == "1":  # the second layer, which every strategy trains
                inner = next(child for child in module.modules() if isinstance(child, nn.Linear))
                inner.register_forward_pre_hook(lambda *_, mine=mine: mine.append(1))
        loop.train()
        calls.append(mine)
    assert calls[0]
    assert len(calls[1]) == 2 * len(calls[0]), "activations are computed again in the backward pass"
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert norm(plain) > 0
    assert norm({name: plain[name] - checkpointed[name] for name in plain}) <= 1e-6 * norm(plain)


@pytest.mark.parametrize("family", CANNOT_RECOMPUTE)
def test_unsupported_gradient_checkpointing_is_reported(family: str, tiny: dict[str, Path]) -> None:
    with refused("training.gradient_checkpointing: found true", f"{family} models", "allowed: false"):
        trainer(tiny[family], gradient_checkpointing=True)


def test_frozen_modules_run_without_dropout(tiny: dict[str, Path]) -> None:
    loop = trainer(tiny["bert"], strategy_from({"name": "partial", "frozen_layers": 1}), max_steps=2)
    model: Any = loop.model
    watched = {
        "embeddings": model.bert.embeddings.dropout,
        "fixed layer": model.bert.encoder.layer[0].output.dropout,
        "trained layer": model.bert.encoder.layer[1].output.dropout,
        "head": model.dropout,
    }
    modes: dict[str, set[bool]] = {name: set() for name in watched}
    for name, module in watched.items():
        module.register_forward_hook(
            lambda module, *_, name=name: modes[name].add(module.training) if torch.is_grad_enabled() else None
        )
    loop.train()
    assert modes == {"embeddings": {False}, "fixed layer": {False}, "trained layer": {True}, "head": {True}}


def test_batches_respect_the_token_limit(tiny: dict[str, Path]) -> None:
    loop = trainer(tiny["bert"], batch_tokens=50, max_steps=None, epochs=1)
    sizes: list[int] = []

    def look(module: nn.Module, arguments: Any, named: dict[str, torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            sizes.append(named["input_ids"].numel())

    loop.model.register_forward_pre_hook(look, with_kwargs=True)
    position = loop.train()
    assert len(sizes) == position.step > 5
    assert max(sizes) <= 50
    assert position.examples == 40, "each row once"
    assert position.tokens == loop.tables["train"].lengths.sum()


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps() -> Iterator[list[Weights]]:
    """The trained weights after each optimizer step."""
    seen: list[Weights] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = [(n, p) for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)]
        seen.append({name: p.detach().clone() for name, p in groups})

    handle = register_optimizer_step_post_hook(look)
    yield seen
    handle.remove()


@pytest.mark.parametrize("validated", [True, False])
def test_moving_average_is_scored_and_saved(
    validated: bool, tiny: dict[str, Path], steps: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = scripted(monkeypatch, [0.1, 0.9])
    loop = trainer(tiny["bert"], ema=0.3, max_steps=4, evaluate_every=2)
    if not validated:
        del loop.tables["validation"]
    average = weights_of(loop.model)
    loop.train()
    assert len(steps) == 4
    for i, after in enumerate(steps, start=1):
        decay = min(0.3, (1 + i) / (10 + i))
        average = {name: decay * average[name] + (1 - decay) * after[name] for name in average}
    left = weights_of(loop.model)
    assert all(torch.allclose(left[name], average[name], atol=1e-6) for name in average)
    assert not equal(left, steps[-1])
    if validated:
        assert equal(left, scored[1])
        assert any(not torch.equal(scored[0][name], steps[1][name]) for name in left)


def test_moving_average_includes_weights_unfrozen_later(tiny: dict[str, Path], steps: list[Weights]) -> None:
    loop = trainer(tiny["bert"], Two(), ema=0.3, max_steps=4)
    del loop.tables["validation"]
    loop.train()
    word = "bert.embeddings.word_embeddings.weight"
    assert word not in steps[1]
    assert not torch.equal(weights_of(loop.model)[word], steps[-1][word])


def test_every_phase_uses_the_requested_precision(tiny: dict[str, Path]) -> None:
    """Accelerate marks a prepared model. If the mark remained, the second phase would compute in fp32."""
    loop = trainer(tiny["bert"], Two(), precision="bf16", max_steps=4)
    seen: list[torch.dtype] = []
    loop.model.classifier.register_forward_hook(lambda module, _, output: seen.append(output.dtype) if module.training else None)
    loop.train()
    assert len(seen) == 4
    assert set(seen) == {torch.bfloat16}
    assert "forward" not in vars(loop.model), "and the model is as it was"


def test_optimizer_state_survives_a_phase_without_its_weights(tiny: dict[str, Path]) -> None:
    class HeadBodyHead(Strategy):
        def next_phase(self, state: State, view: View) -> Phase | None:
            names = [name for name, _ in view.model.named_parameters()]
            head = tuple(name for name in names if name.startswith("classifier"))
            body = tuple(name for name in names if name not in head)
            done = len(state.finished)
            return Phase(f"{done}", trainable=(head, body, head)[done], following=2 - done) if done < 3 else None

    loop = trainer(tiny["bert"], HeadBodyHead(), max_steps=6)
    loop.train()
    counted = {name: int(value) for name, value in loop.checkpointer.optimizer_state.items() if name.endswith("/step")}
    assert counted["classifier.weight/step"] == 4
    assert counted["bert.embeddings.word_embeddings.weight/step"] == 2


@pytest.fixture(scope="module")
def seeded(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Saved weights of three runs: two with the same seed."""
    folder = tmp_path_factory.mktemp("seeds")
    found = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        data, training = {"train": sentiment["train"]}, {"max_steps": 3, "seed": seed}
        done = run(model=tiny["bert"], data=data, training=training, output_dir=folder / name)
        found[name] = load_file(done.output_dir / "model/model.safetensors")
    return found


def test_seed_determines_the_weights(seeded: dict[str, Weights]) -> None:
    assert equal(seeded["first"], seeded["again"])
    assert not torch.equal(seeded["first"]["classifier.weight"], seeded["other"]["classifier.weight"])
    word = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(seeded["first"][word], seeded["other"][word])


# --- a recorded run ---------------------------------------------------------------------------------------------------


def test_tiny_run_reproduces_the_recorded_losses(tmp_path: Path) -> None:
    """The losses of each step equal the recorded ones up to rounding."""
    golden = json.loads(record.FILE.read_text())
    found = record.losses(tmp_path)
    assert len(found) == len(golden["losses"]) == 40
    differences = np.array(found) - np.array(golden["losses"])
    assert np.abs(differences).max() <= golden["tolerance"], f"recorded with {golden['versions']}"
    assert abs(differences.mean()) <= golden["tolerance"] / 4, "a drift"
    assert np.mean(golden["losses"][-5:]) < 0.5 * golden["losses"][0], "the recorded run learned something"
