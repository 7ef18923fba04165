"""Several tasks on one encoder: how rows are mixed and weighed, what is shared, what is saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Phase, Strategy
from nlp_transfer.strategies.multitask.mixed_batches import MixedObjective, MixedTable, split_batch
from nlp_transfer.training.phase_plan import PhasePlanner
from tests.builders import document, prepared, sentiment_rows, write
from tests.contract.test_strategies import TASKS

pytestmark = pytest.mark.model


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    pairs = sentiment_rows(120)
    found = {}
    for name, rows in {
        "own": [(text, label) for text, label in pairs[:64]],
        "tags": [(text, ("even|third", "", "even", "third")[i % 4]) for i, (text, _) in enumerate(pairs[:40])],
        "score": [(text, pairs[-i - 1][0], i % 5) for i, (text, _) in enumerate(pairs[:24])],
        "test": [(text, label) for text, label in pairs[80:]],
    }.items():
        header = ("text", "other", "label") if name == "score" else ("text", "label")
        found[name] = str(write(tmp_path / f"{name}.csv", rows, header))
    return found


def settings(files: dict[str, str], tiny: dict[str, Path], output: Path, **strategy: Any) -> dict[str, Any]:
    tasks = {"tags": "multi_label", "score": {"name": "regression", "text_pair": "other"}}
    others = [{"name": n, "data": {"train": files[n], "validation_share": 0.2}, "task": task} for n, task in tasks.items()]
    return document(
        model=tiny["bert"], data={"train": files["own"], "test": files["test"], "validation_share": 0.2}, output_dir=output,
        strategy={"name": "multitask", "tasks": others} | strategy,
        training={"epochs": 2, "batch_size": 16, "learning_rate": 1e-3},
    )  # fmt: skip


def tables(tiny: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    made = {name: prepared(tiny["bert"], TASKS[name]) for name in ("single", "multi_label", "regression")}
    return {name: one.task for name, one in made.items()}, {name: one.table for name, one in made.items()}


def test_mixed_table_contains_all_rows(tiny: dict[str, Path]) -> None:
    _, parts = tables(tiny)
    mixed = MixedTable.of(parts)
    assert len(mixed) == 3 * 24
    assert mixed.repeats is None
    for i in range(3):
        assert mixed.row[mixed.owner == i].tolist() == list(range(24))
    rows = np.array([64, 3, 40, 7])
    batch = split_batch(mixed.batch(rows))
    assert torch.equal(batch["single"]["input_ids"], parts["single"].batch(np.array([3, 7]))["input_ids"])
    assert torch.equal(batch["regression"]["labels"], parts["regression"].batch(np.array([64 - 48]))["labels"])
    assert mixed.lengths[64] == parts["regression"].lengths[16]


def test_tasks_are_weighted_by_rows_and_weight(tiny: dict[str, Path]) -> None:
    """The loss of a window is that of all rows in one mean, times the weights."""
    tasks, parts = tables(tiny)
    objective = MixedObjective(tasks, {"regression": 3.0})
    mixed = MixedTable.of(parts)
    options = objective.loss_options(TrainingConfig(), mixed)
    rows = np.array([0, 1, 2, 30, 60, 61])  # three of single, one of multi_label, two of regression
    batch = mixed.batch(rows)
    generator = torch.Generator().manual_seed(0)
    sizes = {"single": (3, 2), "multi_label": (1, 2), "regression": (2, 1)}
    outputs: dict[str, Any] = {
        name: type("Outputs", (), {"logits": torch.randn(size, generator=generator)})() for name, size in sizes.items()
    }
    outputs["unused"] = torch.zeros(())
    counts = objective.counts(mixed.targets(rows), options)
    losses = objective.loss(outputs, batch, options)
    total = sum(value / counts.get(name, counts["rows"]) for name, value in losses.items())
    means = {}
    for name, part in split_batch(batch).items():
        term, value = next(iter(tasks[name].loss(outputs[name], part).items()))
        means[name] = value / tasks[name].counts(part)[term]
    wanted = (3 * means["single"] + 1 * means["multi_label"] + 2 * 3.0 * means["regression"]) / 6
    assert float(total) == pytest.approx(float(wanted), rel=1e-6)


def test_every_task_is_saved_with_the_shared_encoder(files: dict[str, str], tiny: dict[str, Path], tmp_path: Path) -> None:
    run = fine_tune(**settings(files, tiny, tmp_path / "run"))
    result = json.loads((run.output_dir / "result.json").read_text())
    assert set(result["tasks"]) == {"tags", "score"}
    assert all(part["plain"] for part in result["tasks"].values())
    assert "f1_macro" in result["tasks"]["tags"]["metrics"]["validation"]
    assert "pearson" in result["tasks"]["score"]["metrics"]["validation"]
    folders = {"own": run.output_dir / "model"} | {name: run.output_dir / "tasks" / name / "model" for name in ("tags", "score")}
    models = {name: AutoModelForSequenceClassification.from_pretrained(folder) for name, folder in folders.items()}
    encoder = AutoModel.from_pretrained(run.output_dir / "shared" / "encoder")
    start = AutoModel.from_pretrained(tiny["bert"])
    weights = encoder.state_dict()
    moved = [name for name, value in start.state_dict().items() if not torch.equal(value, weights[name])]
    assert len(moved) > 20
    for name, model in models.items():
        assert all(torch.equal(value, weights[key]) for key, value in model.bert.state_dict().items()), name
        head = load_file(run.output_dir / "shared" / f"{name}.safetensors")
        assert torch.equal(head["classifier.weight"], model.classifier.weight)
    assert models["tags"].config.id2label == {0: "even", 1: "third"}
    assert len(load_predictor(folders["score"])([("a good film", "a bad film")])) == 1
    scored = [line for line in (run.output_dir / "log.jsonl").read_text().splitlines() if "validation" in line]
    assert all('"mean"' in line and '"score/pearson"' in line for line in scored)


def test_soft_sharing_penalizes_different_encoders(files: dict[str, str], tiny: dict[str, Path], tmp_path: Path) -> None:
    distance = {}
    for tie in (0.001, 10.0):
        run = fine_tune(**settings(files, tiny, tmp_path / str(tie), sharing="soft", tie=tie))
        own, other = (
            AutoModelForSequenceClassification.from_pretrained(run.output_dir / place).bert.state_dict()
            for place in ("model", "tasks/tags/model")
        )
        distance[tie] = sum(float((own[name] - other[name]).float().square().sum()) for name in own)
        assert not (run.output_dir / "shared").exists()
    assert 0 < distance[10.0] < distance[0.001] / 2


def test_temperature_balances_tasks(tiny: dict[str, Path]) -> None:
    """A task with n rows has n ** (1 / temperature) rows in an epoch, in proportion; each row stands there at least once."""
    _, parts = tables(tiny)
    few = {"single": parts["single"], "regression": parts["regression"].select(np.arange(6))}
    for temperature, wanted in ((1e6, [24, 24]), (2.0, [24, 12]), (0.5, [96, 6])):
        repeats = MixedTable.of(few, temperature).repeats
        assert repeats is not None
        assert repeats.totals().tolist() == wanted
        assert len(repeats) == sum(wanted)


def test_repeated_rows_change_in_every_epoch(tiny: dict[str, Path]) -> None:
    """Not the first ones of the file: of 24 rows, 36 in an epoch, every one is repeated in its turn, whatever the order."""
    task, parts = tables(tiny)
    big = TokenTable.concatenate([parts["single"]] * 3).select(np.arange(54))  # 54 and 24 rows: the small one 36 times
    mixed = MixedTable.of({"big": big, "small": parts["regression"]}, 2.0)
    training = TrainingConfig(batch_size=8, seed=3)
    planner = PhasePlanner(task["single"], {"train": mixed}, Strategy(), training, 1, torch.nn.Linear(1, 1))
    plan = planner.window_plan(Phase(objective="mixed"))
    epochs = [np.bincount(np.concatenate(plan.windows(epoch)), minlength=78) for epoch in range(30)]
    assert all(times[:54].tolist() == [1] * 54 for times in epochs)
    small = np.array([times[54:] for times in epochs])
    assert set(small.sum(1).tolist()) == {36}
    assert set(small.ravel().tolist()) == {1, 2}
    assert len({tuple(times) for times in small}) == 30, "drawn anew"
    assert abs(small.mean(0) - 1.5).max() < 0.35
    assert abs(small[:, :12].mean() - small[:, 12:].mean()) < 0.1, "the first half of the file no more than the second"
    again = planner.window_plan(Phase(objective="mixed"))
    assert all(np.array_equal(one, two) for one, two in zip(plan.windows(7), again.windows(7), strict=True))


def test_shared_inputs_are_reported(
    files: dict[str, str], tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaking = [{"name": "same", "data": {"train": files["test"], "validation_share": 0}, "task": "text_classification"}]
    fine_tune(settings(files, tiny, tmp_path / "run", tasks=leaking) | {"training": {"max_steps": 1}})
    with open(files["test"]) as file:
        rows = len(file.readlines()) - 1
    assert f"warning: {rows} of {rows} rows of own's test have an input that is also in train of same" in capsys.readouterr().err
