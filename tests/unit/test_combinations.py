"""Strategies beside each other and beside settings: what goes together works, and the rest is refused before training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.strategies import Phase, strategy_from
from nlp_transfer.strategies.common.linear_heads import fit_logistic_regression
from nlp_transfer.strategies.multitask.multitask_model import MultitaskModel
from nlp_transfer.training.position import Position
from nlp_transfer.training.standard_callbacks import EarlyStopping
from tests.builders import prepared, refused, run
from tests.contract.test_strategies import TASKS
from tests.helpers.strategies import document, files

pytestmark = pytest.mark.model


def train(name: str, tiny: dict[str, Path], folder: Path, strategy: Any = None, **training: Any) -> Any:
    """A run of a strategy, or of a list of them."""
    settings = document(name, "single", tiny["bert"], files(folder / "data"), folder / "run", folder, **training)
    settings |= {"task": "text_classification"} | ({} if strategy is None else {"strategy": strategy})
    return fine_tune(settings, with_report=False)


@pytest.mark.parametrize(
    ("strategy", "facts"),
    [
        (["l2_sp", {"name": "distill", "student_layers": 1}], ["strategy.1: distill", "as the first of the list"]),
        (["few_shot", {"name": "features", "cache": "memory"}], ["changes the tables"]),
        (["lora", "few_shot"], ["few_shot first, then the adapter"]),
    ],
)
def test_incompatible_combinations_are_refused(strategy: Any, facts: list[str], tiny: dict[str, Path], tmp_path: Path) -> None:
    with refused(*facts):
        train("full", tiny, tmp_path, strategy)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "strategy",
    [
        ["few_shot", {"name": "partial", "frozen_layers": "all"}],
        [{"name": "features", "cache": "none"}, "few_shot"],
        ["few_shot", "lora"],
        ["features", {"name": "distill", "teacher": "TEACHER"}],
        [{"name": "distill", "student_layers": 1}, "l2_sp", "layerwise_lr"],
    ],
)
def test_compatible_combinations_work(strategy: list[Any], tiny: dict[str, Path], tmp_path: Path) -> None:
    from tests.helpers.strategies import teacher

    place = str(teacher(tiny["bert"], "single", tmp_path))
    known = [part | {"teacher": place} if isinstance(part, dict) and "teacher" in part else part for part in strategy]
    found = train("full", tiny, tmp_path, known)
    assert found.result["train"]["steps"] > 0
    assert load_predictor(tmp_path / "run")(["a good film"])[0]["prediction"] in ("negative", "positive")


def test_restarts_refuse_averaged_weights(tiny: dict[str, Path], tmp_path: Path) -> None:
    with refused("training.ema: found 0.9", "allowed: null, or strategy.restart: false"):
        train("self_training", tiny, tmp_path, ema=0.9)


def test_patience_is_per_phase_and_best_weights_per_run() -> None:
    at, early = Position(phase=Phase()), EarlyStopping(1)

    def evaluated(accuracy: float) -> bool:
        metrics = {"accuracy": accuracy, "loss": 1.0}
        better = at.record_evaluation(metrics, "accuracy", True)
        early.on_evaluate(SimpleNamespace(position=at), metrics)
        return better

    assert evaluated(0.5)
    assert evaluated(0.9)
    at.phase_rank, at.worse, at.stopped = [], 0, False  # the next phase, which begins anew
    for accuracy in (0.4, 0.6, 0.7):
        assert not evaluated(accuracy)
        assert not at.stopped, "it gets better all the time"
    assert not evaluated(0.65)
    assert at.stopped
    assert at.best == 0.9


def test_phases_have_different_row_orders() -> None:
    plans = [WindowPlan(np.full(64, 5), 8, phase=phase) for phase in (0, 1, 2)]
    first = [sorted(np.concatenate(plan.windows(0)[:2]).tolist()) for plan in plans]
    assert first[0] != first[1] != first[2] != first[0]
    assert all(sorted(np.concatenate(plan.windows(0)).tolist()) == list(range(64)) for plan in plans)


def test_multitask_max_steps_and_data_in_memory(tiny: dict[str, Path], tmp_path: Path) -> None:
    source = files(tmp_path / "data")
    frame = pd.read_csv(source["train"])
    other = {"name": "more", "data": {"train": frame, "validation_share": 0}, "task": {"name": "regression", "label": "score"}}
    found = train("full", tiny, tmp_path, {"name": "multitask", "tasks": [other], "temperature": 5}, max_steps=7)
    assert found.result["train"]["steps"] == 7
    assert "DataFrame of 32 rows in memory" in (tmp_path / "run/config.yaml").read_text()


def test_soft_sharing_scales_heads_only(tiny: dict[str, Path]) -> None:
    from nlp_transfer.strategies import Group

    other = {"name": "more", "data": {"train": "a.csv"}, "task": {"name": "regression"}}
    strategy = strategy_from({"name": "multitask", "sharing": "soft", "tasks": [other]})
    single, number = (prepared(tiny["bert"], TASKS[task]).model for task in ("single", "regression"))
    model = MultitaskModel(single, "own", {"more": number}, shares_encoder=False)
    names = [
        f"{prefix}.{name}"
        for prefix in ("main", "auxiliary.more")
        for name in ("bert.encoder.layer.0.output.dense.weight", "classifier.weight")
    ]
    assert set(names) <= dict(model.named_parameters()).keys()
    groups = strategy.param_groups(model, [Group(names, 0.01)])
    rates = {name: group.learning_rate_scale for group in groups for name in group.names}
    assert rates == {name: 10.0 if "classifier" in name else 1.0 for name in rates}
    assert len(rates) == 4


@pytest.mark.parametrize("family", ["distilbert", "roberta", "deberta-v2"])
def test_computed_head_needs_a_single_layer(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    source = files(tmp_path / "data")
    for strategy in ({"name": "features", "classifier": "logistic_regression"}, {"name": "prototypes"}):
        with refused("is new and would keep its random weights", "allowed: task.head: null"):
            run(
                model=tiny[family], data={"train": source["train"]}, strategy=strategy, output_dir=tmp_path / "run",
                task={"head": "family"},
            )  # fmt: skip


def test_logistic_regression_with_a_constant_label(tiny: dict[str, Path]) -> None:
    strategy = strategy_from({"name": "features", "classifier": "logistic_regression"})
    model, _, table, *_ = prepared(tiny["bert"], TASKS["multi_label"], strategy)
    table.dense["labels"][:, 1] = 1
    fit_logistic_regression(model, table)
    with torch.inference_mode():
        rows = np.arange(len(table))
        batch = {name: value for name, value in table.batch(rows).items() if name != "labels"}
        vectors = model.eval().pooled_states(**batch).numpy().astype(np.float64)
        scores = model(**batch).logits.sigmoid().numpy()
    assert (scores[:, 1] > 0.999).all()
    theirs = LogisticRegression(max_iter=2000).fit(vectors, table.dense["labels"][:, 0]).predict_proba(vectors)[:, 1]
    np.testing.assert_allclose(scores[:, 0], theirs, atol=1e-3)


def test_layer_mix_is_trained_with_an_adapter(tiny: dict[str, Path], tmp_path: Path) -> None:
    run(
        model=tiny["bert"], data={"train": files(tmp_path / "data")["train"]}, strategy="lora", task={"head": {"layers": "mix"}},
        training={"max_steps": 3, "learning_rate": 1e-2}, output_dir=tmp_path / "run",
    )  # fmt: skip
    weights = load_predictor(tmp_path / "run").model.mix.weight
    assert float(weights.detach().abs().min()) > 0
    assert torch.equal(load_predictor(tmp_path / "run/adapter").model.mix.weight, weights)


def test_rows_of_different_length_are_selected() -> None:
    rows = [[1, 2, 3], [], [4], [5, 6]]
    found = Ragged.from_lists(rows).select(np.array([3, 0, 0, 1]))
    assert [found.values[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)] == [
        [5, 6], [1, 2, 3], [1, 2, 3], [],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "head"),
    [
        (["features", "self_training"], 1.0),
        ([{"name": "partial", "frozen_layers": "all"}, "self_training"], 1.0),
        (["self_training"], 10.0),
        (["lora", "self_training"], 1.0),
    ],
)
def test_head_rate_is_scaled_once(strategy: list[Any], head: float, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Where the head alone is trained, the rate is one for heads already."""
    from nlp_transfer.strategies import Group

    whole = strategy_from([{"name": part} if isinstance(part, str) else part for part in strategy])
    model = prepared(tiny["bert"], TASKS["single"], whole).model
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = whole.param_groups(model, [Group(names, 0.01)])
    rates = {name: group.learning_rate_scale for group in groups for name in group.names}
    assert sorted(rates) == sorted(names)
    assert {rate for name, rate in rates.items() if "classifier" in name} == {head}
