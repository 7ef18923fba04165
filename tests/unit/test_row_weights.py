"""Weights of training rows: the loss and gradient equal those of repeated and removed rows; what cannot use weights refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from nlp_transfer import load_predictor
from nlp_transfer.data.row_weights import WEIGHT
from nlp_transfer.strategies.common.linear_heads import last_linear, layer_inputs
from nlp_transfer.tasks import Objective
from nlp_transfer.tasks.common.objectives import BinaryCrossEntropy, CrossEntropy, SquaredError, TokenCrossEntropy
from tests.builders import columns, refused, rows, run

TIMES = [3, 1, 0, 2, 4]
CLASS_WEIGHTS = torch.tensor([1.0, 2.5, 0.5])
LABELS = {
    CrossEntropy: torch.tensor([0, 1, 2, 2, 1]),
    BinaryCrossEntropy: torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]]),
    SquaredError: torch.tensor([0.5, -1.0, 3.0, 2.0, 0.0], dtype=torch.float64),
}
OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": CrossEntropy(),
    "class_weights": CrossEntropy(0.1, CLASS_WEIGHTS),
    "focal": CrossEntropy(0.1, CLASS_WEIGHTS, 2.0),
    "binary": BinaryCrossEntropy(),
    "binary_weights": BinaryCrossEntropy(0.1, CLASS_WEIGHTS),
    "binary_focal": BinaryCrossEntropy(0.1, CLASS_WEIGHTS, 2.0),
    "squared_error": SquaredError(0.5, 2.0),
}


def mean_loss(objective: Objective, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    counts = objective.count(batch)
    ((name, value),) = objective.loss(SimpleNamespace(logits=logits), batch).items()
    return value / counts[name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_integer_weights_equal_repeated_rows(name: str) -> None:
    """Weight 0 equals a removed row; compared are the loss of an optimizer step and its gradient for the logits."""
    objective, generator = OBJECTIVES[name], torch.Generator().manual_seed(0)
    logits = torch.randn(5, 1 if name == "squared_error" else 3, generator=generator)
    labels: Any = LABELS[type(objective)]  # type: ignore[index]
    weighted = logits.clone().requires_grad_()
    loss = mean_loss(objective, weighted, {"labels": labels, WEIGHT: torch.tensor(TIMES).float()})
    loss.backward()
    index = torch.tensor(np.repeat(np.arange(5), TIMES))
    repeated = logits.clone().requires_grad_()
    expected = mean_loss(objective, repeated[index], {"labels": labels[index]})
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(weighted.grad, repeated.grad)


def weighted_data(weights: list[Any], **more: Any) -> dict[str, Any]:
    table = pd.DataFrame(columns(len(weights), "text", "label", "tags", "score") | {"weight": weights})
    return {"train": table, "weight": "weight", "validation_share": 0, **more}


def weights_of(model_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(model_folder / "model.safetensors")


def test_training_uses_the_weights(tiny: dict[str, Path], tmp_path: Path) -> None:
    """One step of SGD without dropout on weighted rows, and on repeated rows, changes the model equally."""
    times = [1, 3, 0, 2] * 6
    repeated = weighted_data(times)
    repeated["train"] = repeated["train"].loc[np.repeat(np.arange(24), times)]
    del repeated["weight"]
    models = []
    for name, data in (("weighted", weighted_data(times)), ("repeated", repeated)):
        training = {
            "optimizer": "SGD",
            "learning_rate": 0.1,
            "batch_size": 64,
            "max_steps": 1,
            "dropout": 0,
            "attention_dropout": 0,
        }
        run(model=tiny["bert"], data=data, training=training | {"warmup": 0, "weight_decay": 0}, output_dir=tmp_path / name)
        models.append(weights_of(tmp_path / name / "model"))
    for name, values in models[0].items():
        torch.testing.assert_close(values, models[1][name], rtol=1e-4, atol=1e-6)


def test_logistic_regression_uses_the_weights(tiny: dict[str, Path], tmp_path: Path) -> None:
    weights = [0.5, 2.0, 0.0, 3.0] * 6
    strategy = {"name": "features", "classifier": "logistic_regression"}
    run(
        model=tiny["bert"],
        data=weighted_data(weights),
        strategy=strategy,
        training={"max_steps": None},
        output_dir=tmp_path / "run",
    )
    predictor = load_predictor(tmp_path / "run")
    layer = last_linear(predictor.model, "")
    inputs = layer_inputs(predictor.model, layer, predictor.encode(rows(24))).astype(np.float64)
    used = np.flatnonzero(weights)
    labels = np.array(columns(24)["label"])
    expected = LogisticRegression(max_iter=2000).fit(inputs[used], labels[used], np.array(weights)[used])
    difference = (layer.weight[1] - layer.weight[0]).detach().numpy()
    np.testing.assert_allclose(difference, expected.coef_[0], atol=1e-3)


@pytest.mark.parametrize("cell", [-1, "nan", "much", None, "inf"])
def test_bad_weights_are_refused(cell: Any, tiny: dict[str, Path], tmp_path: Path) -> None:
    data = weighted_data([1, cell] * 12)
    with refused("weight", "row 2"):
        run(model=tiny["bert"], data=data, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["prototypes", "few_shot", "zero_shot", "self_training"])
def test_strategies_without_weights_refuse_them(strategy: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    with refused("data.weight", strategy):
        run(model=tiny["bert"], data=weighted_data([1.0] * 24), strategy=strategy, output_dir=tmp_path / "run")


def test_other_refusals(tiny: dict[str, Path], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": tiny["bert"], "output_dir": tmp_path / "run"}
    with refused("every row has the weight 0"):
        run(data=weighted_data([0] * 24), **arguments)
    with refused("training.class_weights", "balanced"):
        run(data=weighted_data([1] * 24), training={"class_weights": "balanced"}, **arguments)
    assert not TokenCrossEntropy().weighted
