"""Pruning: which neurons count, that removing them equals masking them, and what plain transformers makes of the result."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from nlp_transfer import load_predictor
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.models.layers import encoder_config, set_new_parameters
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Job, strategy_from
from nlp_transfer.strategies.prune.feed_forward import (
    FeedForward,
    find_feed_forward,
    keep_neurons,
    most_important,
    neuron_importance,
)
from tests.builders import Prepared, prepared, refused, rows, run, sentiment_rows, write
from tests.helpers.models import FAMILIES, save_tiny

pytestmark = pytest.mark.model

NEURONS = 48  # of tiny models
HEADS: dict[str, dict[str, Any]] = {"family": {}, "own": {"head": {"hidden": [16], "pooling": "mean"}}}


def model_of(checkpoint: Path, **task: Any) -> Prepared:
    """A model whose head is declared to be trained, and whose neurons have an influence that is easy to measure."""
    torch.manual_seed(3)
    built = prepared(checkpoint, {"name": "text_classification", "label": "label", **task}, "full")
    set_new_parameters(built.model, ())
    with torch.no_grad():
        for block in find_feed_forward(built.model):
            built.model.get_submodule(block.outer).weight.normal_()
        for name, parameter in built.model.named_parameters():
            if "classifier" in name and parameter.ndim == 2:
                parameter.normal_()
    return built


def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**model_inputs(batch)).logits
    return found


def masked(model: Any, blocks: list[FeedForward], kept: np.ndarray) -> Any:
    """A copy of the model whose other neurons are set to zero by the weights that read them."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for block, neurons in zip(blocks, kept, strict=True):
            removed = np.setdiff1d(np.arange(block.neurons), neurons)
            copied.get_submodule(block.outer).weight[:, removed] = 0
    return copied


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family(family: str, tiny: dict[str, Path]) -> None:
    model = model_of(tiny[family]).model
    blocks = find_feed_forward(model)
    assert len(blocks) == (1 if family == "albert" else encoder_config(model.config).num_hidden_layers)
    assert {block.neurons for block in blocks} == {NEURONS}
    assert len({block.outer for block in blocks}) == len(blocks)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_removed_equals_masked(family: str, head: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    found = model_of(tiny[family], **HEADS[head])
    blocks, batch = find_feed_forward(found.model), found.table.batch(np.arange(8))
    kept = most_important(np.random.default_rng(0).random((len(blocks), NEURONS)), 20)
    expected, full = logits_of(masked(found.model, blocks, kept), batch), logits_of(found.model, batch)
    keep_neurons(found.model, blocks, kept)
    pruned = logits_of(found.model, batch)
    torch.testing.assert_close(pruned, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(pruned, full, atol=1e-3)
    found.model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(again, batch), pruned, rtol=0, atol=1e-6)
    assert {block.neurons for block in find_feed_forward(again)} == {20}


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "albert"])
def test_importance_equals_brute_force(family: str, tiny: dict[str, Path]) -> None:
    """Central differences in fp64: the neuron of all tokens of one row times 1 + e and times 1 - e."""
    found = model_of(tiny[family])
    model, blocks = found.model, find_feed_forward(found.model)
    objective, chosen = found.task.objective(TrainingConfig(), found.table), np.arange(0, 24, 5)
    measured = neuron_importance(model, blocks, objective, found.table, chosen, torch.device("cpu"))
    neurons, step = [0, 7, 30, NEURONS - 1], 1e-4
    model.double()
    for i, block in enumerate(blocks):
        weight: Any = model.get_submodule(block.outer).weight
        expected = np.zeros(len(neurons))
        for row in chosen:
            batch = found.table.batch(np.array([row]))
            for k, neuron in enumerate(neurons):
                losses = []
                for factor in (1 + step, 1 - step):
                    original = weight.detach().clone()
                    with torch.no_grad():
                        weight[:, neuron] *= factor
                        logits = model(**model_inputs(batch)).logits
                        losses.append(float(nn.functional.cross_entropy(logits, batch["labels"])))
                        weight.copy_(original)
                expected[k] += abs(losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(measured[i, neurons], expected, rtol=2e-3, atol=1e-6)


def test_neurons_without_influence_are_removed_first(tiny: dict[str, Path]) -> None:
    found = model_of(tiny["bert"])
    blocks = find_feed_forward(found.model)
    dead = np.random.default_rng(1).permutation(NEURONS)[:24]
    kept = np.tile(np.setdiff1d(np.arange(NEURONS), dead), (len(blocks), 1))
    model, batch = masked(found.model, blocks, kept), found.table.batch(np.arange(8))
    before = logits_of(model, batch)
    job = Job(found.task, {"train": found.table}, {"train": rows()}, found.checkpoint, TrainingConfig())
    strategy = strategy_from({"name": "prune", "width": 0.5, "rows": 10})
    strategy.prepare_data(job, strategy.prepare_model(model))
    torch.testing.assert_close(logits_of(model, batch), before, rtol=0, atol=1e-6)
    assert model.config.intermediate_size == 24


def test_equally_important_neurons_are_kept_in_order() -> None:
    importance = np.array([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0, 1.0]])
    assert most_important(importance, 2).tolist() == [[1, 2], [2, 4]]


def train(model: Path, source: Path, output: Path, strategy: Any, steps: int) -> Any:
    data = {"train": source, "validation_share": 0}
    return run(model=model, data=data, strategy=strategy, training={"max_steps": steps}, output_dir=output)


@pytest.fixture(scope="module")
def tuned(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained everything."""
    folder = tmp_path_factory.mktemp("tuned")
    source = write(folder / "train.csv", sentiment_rows(40))
    train(tiny["bert"], source, folder / "run", {"name": "full"}, 20)
    return folder


def test_a_run_is_pruned_trained_and_saved_smaller(tuned: Path, tmp_path: Path) -> None:
    found = train(tuned / "run", tuned / "train.csv", tmp_path / "run", {"name": "prune", "width": 0.25}, 4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    assert model.config.intermediate_size == NEURONS // 4
    assert found.result["plain"]
    assert found.result["train"]["steps"] == 4
    sizes = [(folder / "run/model/model.safetensors").stat().st_size for folder in (tmp_path, tuned)]
    assert sizes[0] < sizes[1]
    assert load_predictor(tmp_path / "run")(["a good film"])[0]["prediction"] in ("negative", "positive")
    train(tmp_path / "run", tuned / "train.csv", tmp_path / "again", {"name": "prune"}, 2)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again/model")
    assert again.config.intermediate_size == NEURONS // 8


def test_models_that_cannot_be_pruned_are_refused(tiny: dict[str, Path], tuned: Path, tmp_path: Path) -> None:
    with refused("not fine-tuned", "classifier", "First train with strategy.name: full"):
        train(tiny["bert"], tuned / "train.csv", tmp_path / "run", {"name": "prune"}, 2)
    with refused("prune cannot be combined with other strategies"):
        strategy_from([{"name": "prune"}, {"name": "lora"}])
    grouped = model_of(save_tiny("bert", tmp_path / "wide")).model
    grouped.config.intermediate_size = 99
    with refused("feed-forward layers of bert models cannot be identified", "student_layers"):
        find_feed_forward(grouped)
    assert not (tmp_path / "run").exists()
