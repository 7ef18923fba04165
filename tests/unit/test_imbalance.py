"""Rare classes: the focal loss, and rows that stand more than once in an epoch."""

from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nlp_transfer.data.oversampling import Repeats, class_repeats
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objectives import CrossEntropy
from nlp_transfer.tasks.multi_label import MultiLabel
from nlp_transfer.tasks.text_classification import TextClassification
from tests.builders import run, sentiment_rows, write

pytestmark = pytest.mark.model

ONE = TextClassification(labels=["a", "b", "c", "d"])
SEVERAL = MultiLabel(labels=["a", "b", "c", "d"])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


def batch_of(task: Any, rows: int = 12) -> tuple[Any, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, 4, generator=generator) * 3).requires_grad_()
    if task is ONE:
        return SimpleNamespace(logits=logits), {"labels": torch.randint(0, 4, (rows,), generator=generator)}
    return SimpleNamespace(logits=logits), {"labels": (torch.rand(rows, 4, generator=generator) < 0.4).float()}


def direct(task: Any, logits: torch.Tensor, labels: torch.Tensor, options: Any) -> torch.Tensor:
    """The focal loss item by item, from probabilities."""
    gamma, smoothing, total = options.focal_gamma, options.label_smoothing, torch.zeros((), dtype=torch.float64)
    weights = torch.ones(4) if options.class_weights is None else options.class_weights
    for row, label in zip(logits.double(), labels, strict=True):
        for c in range(4):
            if task is ONE:
                p = row.exp()[c] / row.exp().sum()
                wanted = (1 - smoothing) * float(label == c) + smoothing / 4
                total = total - weights[c] * wanted * (1 - p) ** gamma * p.log()
            else:
                p = 1 / (1 + (-row[c]).exp())
                wanted = float(label[c]) * (1 - smoothing) + smoothing / 2
                total = total - weights[c] * wanted * (1 - p) ** gamma * p.log()
                total = total - (1 - wanted) * p**gamma * (1 - p).log()
    return total


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one label", "several"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_loss_and_its_gradient(task: Any, gamma: float, weights: torch.Tensor | None, smoothing: float) -> None:
    options = task.loss_type(smoothing, weights, gamma)
    outputs, batch = batch_of(task)
    (found,) = options.loss(outputs, batch).values()
    expected = direct(task, outputs.logits, batch["labels"], options)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    gradients = [torch.autograd.grad(value, outputs.logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    plain = task.loss_type(smoothing, weights)
    assert float(found) < float(*plain.loss(outputs, batch).values())
    assert options.count(batch) == plain.count(batch), "items are counted as before"


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one label", "several"])
@pytest.mark.parametrize("gamma", [None, 0.0])
def test_gamma_zero_is_the_plain_loss(task: Any, gamma: float | None) -> None:
    outputs, batch = batch_of(task)
    table = labels_table(batch["labels"].numpy())
    (found,) = task.objective(TrainingConfig(focal_gamma=gamma), table).loss(outputs, batch).values()
    logits, labels = outputs.logits, batch["labels"]
    plain = F.cross_entropy if task is ONE else F.binary_cross_entropy_with_logits
    if task is ONE:
        assert torch.equal(found, plain(logits, labels, reduction="none").sum())
    else:
        assert torch.equal(found, plain(logits, labels, reduction="sum"))


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one label", "several"])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_certain_predictions_have_finite_gradients(task: Any, gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0, -200.0, -200.0]] * 2, requires_grad=True)
    labels = torch.tensor([0, 1]) if task is ONE else torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 1.0, 1.0]])
    (loss,) = task.loss_type(0.0, None, gamma).loss(SimpleNamespace(logits=logits), {"labels": labels}).values()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any(), "what is right and certain teaches nothing"
    assert logits.grad[1].any()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weight_decimals", [0, 3])
def test_weights_and_smoothing_match_pytorch(weights: torch.Tensor | None, smoothing: float, weight_decimals: int) -> None:
    """Over a window, however it is cut: the sum of losses divided by the sum of counts is PyTorch's mean, gradients too."""
    weights = None if weights is None else (weights * 1.2345).round(decimals=weight_decimals) + 0.5
    objective = CrossEntropy(smoothing, weights)
    outputs, batch = batch_of(ONE, 13)
    wanted = F.cross_entropy(outputs.logits, batch["labels"], weight=weights, label_smoothing=smoothing)
    parts = [slice(0, 5), slice(5, 6), slice(6, 13)]
    total = sum(
        objective.loss(SimpleNamespace(logits=outputs.logits[rows]), {"labels": batch["labels"][rows]})["cross_entropy"]
        for rows in parts
    )
    found = total / objective.count(batch)["cross_entropy"]
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    gradients = [torch.autograd.grad(value, outputs.logits)[0] for value in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    (summed,) = objective.loss(outputs, batch).values()
    sums = F.cross_entropy(outputs.logits, batch["labels"], weight=weights, label_smoothing=smoothing, reduction="sum")
    assert float(summed) == pytest.approx(float(sums), rel=1e-6)


def labels_table(labels: np.ndarray) -> TokenTable:
    return TokenTable({"input_ids": Ragged.from_lists([[1]] * len(labels))}, {"labels": labels}, {"input_ids": 0})


@pytest.mark.parametrize("oversample", [None, 0.3, 0.5, "balanced"])
def test_balanced_weights_after_oversampling(oversample: Any) -> None:
    """Rows of a label in an epoch times its weight are the same for all labels, and the weights of an epoch's rows are 1 on
    average: rare labels are not corrected for twice."""
    table = labels_table(np.repeat([0, 1, 2, 3], [90, 31, 8, 3]))
    training = TrainingConfig(class_weights="balanced", oversample=oversample)
    weights = ONE.objective(training, table).class_weights
    assert weights is not None
    repeats = class_repeats(table.dense["labels"], training.oversample)
    rows = np.arange(len(table)) if repeats is None else repeats.rows(np.random.default_rng(0))
    frequency = np.bincount(table.dense["labels"][rows])
    np.testing.assert_allclose(weights.numpy() * frequency, len(rows) / 4, rtol=1e-6)
    assert (weights == 1).all() == (oversample == "balanced")


@pytest.mark.parametrize("oversample", [None, 0.5, "balanced"])
def test_balanced_multi_label_weights_after_oversampling(oversample: Any) -> None:
    generator = np.random.default_rng(5)
    hot = (generator.random((400, 4)) < [0.7, 0.3, 0.1, 0.02]).astype(np.float32)
    table = labels_table(hot)
    training = TrainingConfig(class_weights="balanced", oversample=oversample)
    weights = SEVERAL.objective(training, table).class_weights
    assert weights is not None
    repeats = class_repeats(table.dense["labels"], training.oversample)
    epochs = [np.arange(400)] if repeats is None else [repeats.rows(generator) for _ in range(200)]
    seen = hot[np.concatenate(epochs)]
    np.testing.assert_allclose(weights.numpy(), np.maximum(1, (1 - seen).sum(0) / seen.sum(0)), rtol=0.01)
    if oversample is not None:
        plain = SEVERAL.objective(training.model_copy(update={"oversample": None}), table).class_weights
        assert plain is not None
        assert weights[3] < 0.5 * plain[3]


def test_metrics_use_the_plain_loss() -> None:
    assert ONE.objective() == CrossEntropy()
    outputs, batch = batch_of(ONE)
    found = ONE.objective().items(outputs, batch)["cross_entropy"][0]
    assert found == pytest.approx(float(F.cross_entropy(outputs.logits, batch["labels"], reduction="sum")), rel=1e-6)


def epoch_rows(plan: WindowPlan, epoch: int) -> np.ndarray:
    return np.concatenate(plan.windows(epoch))


def plan_of(classes: np.ndarray, power: float, frequency: np.ndarray | None = None, **cut: Any) -> WindowPlan:
    lengths = np.random.default_rng(1).integers(3, 40, len(classes))
    found = np.bincount(classes[classes >= 0]) if frequency is None else frequency
    return WindowPlan(lengths, **{"batch_size": 8, "seed": 3} | cut, repeats=Repeats(classes, found, power))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-1, 5), min_size=1, max_size=80).filter(lambda classes: max(classes) >= 0),
    st.floats(0.05, 1),
    st.sampled_from([{}, {"batch_tokens": 120}, {"accumulation": 2, "processes": 2}]),
)
def test_every_row_is_in_every_epoch(classes: list[int], power: float, cut: dict[str, int]) -> None:
    array = np.array(classes)
    plan = plan_of(array, power, **cut)
    frequency = Counter(classes)
    most = max(count for label, count in frequency.items() if label >= 0)
    for epoch in (0, 1):
        times = Counter(epoch_rows(plan, epoch).tolist())
        assert set(times) == set(range(len(classes))), "each row"
        assert sum(times.values()) == plan.rows_in_epoch
        for label, count in frequency.items():
            own = [times[row] for row in np.flatnonzero(array == label)]
            expected = count if label < 0 else count * (most / count) ** power
            assert abs(sum(own) - expected) <= 0.5 + 1e-9
            assert max(own) - min(own) <= 1, "no row of a class stands much oftener than another"
    if not cut.get("batch_tokens"):
        assert plan.windows_in_epoch == len(plan.windows(0)) == len(plan.windows(5))


def test_oversampling_power() -> None:
    classes = np.repeat([0, 1, 2], [100, 30, 4])
    for power, expected in ((1.0, [100, 100, 100]), (0.5, [100, 55, 20])):
        assert np.bincount(classes[epoch_rows(plan_of(classes, power), 0)]).tolist() == expected


def test_repeated_rows_change_between_epochs() -> None:
    classes = np.repeat([0, 1], [90, 60])  # each of the sixty once, and half of them twice
    plan = plan_of(classes, 1.0)
    epochs = [Counter(epoch_rows(plan, epoch).tolist()) for epoch in range(40)]
    twice = [frozenset(row for row, times in epoch.items() if times == 2) for epoch in epochs]
    assert {len(rows) for rows in twice} == {30}
    assert len(set(twice)) == 40
    times = np.array([sum(epoch[row] for epoch in epochs) for row in range(90, 150)]) / 40
    assert times.mean() == pytest.approx(1.5)
    assert abs(times - 1.5).max() < 0.35, "each of them in its turn"


def test_oversampling_resumes_for_any_batch_size() -> None:
    classes = np.repeat([0, 1, 2], [100, 30, 4])
    plan, cut = plan_of(classes, 1.0, batch_size=32), plan_of(classes, 1.0, batch_size=8, accumulation=2, processes=2)
    through = list(islice(plan.windows_from(0, 0), 30))
    later = list(islice(cut.windows_from(through[13].epoch, through[13].index), 10))
    for one, two in zip(through[13:23], later, strict=True):
        assert (one.epoch, one.index, one.of) == (two.epoch, two.index, two.of)
        assert np.array_equal(one.rows, two.rows)
        parts = [micro.rows for process in (0, 1) for micro in cut.micro_batches(two.rows, process) if micro.counted]
        assert sorted(np.concatenate(parts).tolist()) == sorted(one.rows.tolist())


def test_copies_of_a_row_are_spread_over_windows() -> None:
    classes = np.repeat([0, 1], [400, 4])
    plan = plan_of(classes, 1.0, batch_size=32)
    windows = plan.windows(0)
    for row in range(400, 404):
        most = max(int((window == row).sum()) for window in windows)
        assert most <= 25, "a hundred copies, by length alone they would fill three windows"


def test_oversampling_keeps_grouping_by_length() -> None:
    classes = np.repeat([0, 1], [900, 300])
    plan = plan_of(classes, 1.0, batch_size=32)
    padded = sum(int(plan.lengths[window].max()) * len(window) for window in plan.windows(0))
    shuffled = np.random.default_rng(0).permutation(epoch_rows(plan, 0))
    mixed = sum(int(plan.lengths[part].max()) * len(part) for part in np.split(shuffled[:1792], 56))
    assert padded < 0.75 * mixed


def test_multi_label_row_is_repeated_by_its_rarest_label() -> None:
    hot = np.zeros((40, 4), np.float32)
    hot[:30, 0] = 1  # thirty rows of a, ten of which have b too, and three of these d
    hot[:10, 1] = 1
    hot[:3, 3] = 1
    hot[30:35, 2] = 1  # five of c; five rows have no label
    table = labels_table(hot)
    repeats = class_repeats(table.dense["labels"], TrainingConfig(oversample="balanced").oversample)
    assert repeats is not None
    times = Counter(repeats.rows(np.random.default_rng(0)).tolist())
    assert [times[row] for row in (0, 1, 2)] == [10] * 3, "30 rows of a, 3 of d"
    assert [times[row] for row in range(3, 10)] == [3] * 7
    assert [times[row] for row in range(10, 30)] == [1] * 20
    assert [times[row] for row in range(30, 35)] == [6] * 5
    assert [times[row] for row in range(35, 40)] == [1] * 5
    assert class_repeats(table.dense["labels"], TrainingConfig().oversample) is None


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = sentiment_rows(80)
    kept = [row for row in rows if row[1] == "negative"] + [row for row in rows if row[1] == "positive"][:8]
    return write(tmp_path_factory.mktemp("data") / "train.csv", kept)


def test_run_reports_oversampling(
    uneven: Path, tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"oversample": "balanced", "focal_gamma": 2, "class_weights": "balanced", "epochs": 2, "batch_size": 8}
    training["augment"] = {"drop": 0.1, "mask": 0.2}
    counts = run(model=tiny["bert"], data={"train": uneven}, training=training, output_dir=tmp_path / "run").result["train"]
    said = capsys.readouterr().err
    assert "oversampling: 80 rows per epoch instead of 48" in said
    assert "focal loss, gamma 2" in said
    assert "class weights balanced: 1 to 1, computed after oversampling" in said
    assert "augmentation, shares of words: drop 0.1, mask 0.2" in said
    assert (counts["steps"], counts["examples"]) == (20, 160), "two epochs of eighty rows"
