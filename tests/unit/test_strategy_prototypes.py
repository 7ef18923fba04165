"""Nearest means, and the layer that they are written into."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel

from nlp_transfer import load_predictor
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.heads import HeadConfig, attach_head
from nlp_transfer.strategies.common.linear_heads import layer_inputs
from nlp_transfer.strategies.common.nearest_mean import nearest_mean, write_prototypes
from tests.builders import columns, run, write

pytestmark = pytest.mark.model


def clouds(seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 3], [7, 12, 9])  # nothing has label 2
    return generator.normal(size=(28, 5)) + apart * generator.normal(size=(4, 5))[labels], labels


def test_logits_are_scaled_distances_to_the_means() -> None:
    inputs, labels = clouds()
    weight, bias = nearest_mean(inputs, labels, 4)
    logits = inputs @ weight.T + bias
    known = [0, 1, 3]
    means = np.stack([inputs[labels == label].mean(0) for label in known])
    distances = ((inputs[:, None] - means) ** 2).sum(-1)
    assert (np.array(known)[distances.argmin(1)] == logits.argmax(1)).all()
    shared = logits[:, known] - logits[:, known][:, :1]
    scale = shared[:, 1:] / (distances[:, :1] - distances[:, 1:])
    assert np.allclose(scale, scale[0, 0])
    assert scale[0, 0] > 0
    assert logits[:, 2].max() < logits[:, known].min() - 1000


def test_scale_maximizes_the_leave_one_out_likelihood() -> None:
    inputs, labels = clouds(apart=0.5)

    def likelihood(scale: float) -> float:
        total = 0.0
        for row, label in enumerate(labels):
            rest = np.arange(len(labels)) != row
            means = np.stack([inputs[rest & (labels == known)].mean(0) for known in (0, 1, 3)])
            logits = -scale * ((inputs[row] - means) ** 2).sum(-1)
            total += logits[[0, 1, 3].index(label)] - np.log(np.exp(logits).sum())
        return total

    weight, _ = nearest_mean(inputs, labels, 4)
    scale = float(np.linalg.norm(weight[0]) / np.linalg.norm(inputs[labels == 0].mean(0))) / 2
    assert likelihood(scale) > max(likelihood(scale * 1.02), likelihood(scale / 1.02))


def test_separable_data_gives_a_finite_scale() -> None:
    inputs, labels = clouds(apart=1e3)
    weight, bias = nearest_mean(inputs, labels, 4)
    assert np.isfinite(weight).all()
    assert ((inputs @ weight.T + bias).argmax(1) == labels).all()


def test_multi_label_has_two_means_per_label(tiny: dict[str, Path]) -> None:
    model = attach_head(AutoModel.from_pretrained(tiny["bert"]), HeadConfig(), num_labels=2)
    generator = np.random.default_rng(0)
    ids = Ragged.from_lists([[2, *generator.integers(5, 30, 1 + i % 6).tolist(), 3] for i in range(30)])
    marks = (generator.random((30, 2)) < 0.4).astype(np.float32)
    table = TokenTable({"input_ids": ids}, {"labels": marks}, {"input_ids": 0})
    write_prototypes(model, table, "strategy.name")
    inputs = layer_inputs(model, model.classifier[-1], table)
    weight, bias = (p.detach().numpy() for p in model.classifier[-1].parameters())
    given = inputs @ weight.T + bias > 0
    for label in (0, 1):
        means = [inputs[marks[:, label] == mark].mean(0) for mark in (0, 1)]
        nearer = ((inputs - means[1]) ** 2).sum(1) < ((inputs - means[0]) ** 2).sum(1)
        assert (given[:, label] == nearer).all()
    assert given.any(0).all()
    assert not given.all(0).any()


def train(folder: Path, model: Path, task: dict[str, Any]) -> Any:
    data = {"train": write(folder / "train.csv", columns(60)), "validation_share": 0.2}
    return run(model=model, data=data, task=task, strategy={"name": "prototypes"}, output_dir=folder / "run")


@pytest.mark.parametrize(
    "task",
    [
        {"name": "text_classification"},
        {"name": "multi_label", "label": "tags"},
        {"name": "text_classification", "head": "family"},
    ],
    ids=["single", "multi_label", "family"],
)
def test_run_without_steps_predicts_the_same_after_loading(task: dict[str, Any], tiny: dict[str, Path], tmp_path: Path) -> None:
    done = train(tmp_path, tiny["bert"], task)
    assert done.result["train"]["steps"] == 0
    assert done.result["plain"] is (task.get("head") == "family")
    assert done.metrics["validation"]["loss"] > 0
    answers = load_predictor(tmp_path / "run")(["a good film", "a bad film"], probabilities=True)
    shares = [answer[name] for answer in answers for name in answer if name.startswith("probability:")]
    assert len(shares) == 4
    assert 0 < min(shares) < max(shares) < 1
