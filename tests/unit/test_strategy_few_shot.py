"""Groups of rows to compare, what is learned from them, and the run around it."""

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nlp_transfer import load_predictor
from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Job, strategy_from
from nlp_transfer.strategies.few_shot.contrastive_groups import ContrastiveObjective, GroupTable, similarity
from tests.builders import columns, opened, prepared, refused, run, write

pytestmark = pytest.mark.model


def table_of(labels: np.ndarray, seed: int = 0) -> TokenTable:
    """Rows that hold their own number first, and some more tokens."""
    lengths = np.random.default_rng(seed).integers(2, 30, len(labels))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.ones(offsets[-1], np.int32)
    values[offsets[:-1]] = np.arange(len(labels))
    return TokenTable({"input_ids": Ragged(values, offsets)}, {"labels": labels}, {"input_ids": 0})


LABELS = {
    "many": np.repeat(np.arange(40), 5),
    "two": np.repeat([0, 1], [150, 50]),
    "gaps": np.repeat([0, 3, 7], [90, 30, 80]),
    "sets": (np.random.default_rng(1).random((200, 6)) < 0.3).astype(np.float32),
    "numbers": np.random.default_rng(2).normal(size=200).astype(np.float32),
}


@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize("size", [4, 9, 16])
def test_group_contains_different_and_similar_rows(kind: str, size: int) -> None:
    table = table_of(LABELS[kind])
    members = GroupTable.over(table, 300, size, seed=3).members(np.arange(300))
    assert members.shape == (300, size)
    assert all(len(set(group)) == size for group in members.tolist())
    alike = similarity(table.dense["labels"], members)[:, 0, 1:]
    wanted = 0.99 if kind in ("many", "two", "gaps") else 0.0  # sets share a label at least, numbers are near
    found = (alike.max(1) > wanted).mean() if kind != "numbers" else (alike.max(1) > 0.5).mean()
    assert found > 0.8
    assert len(np.unique(members)) > 190, "every row takes part"


@pytest.mark.parametrize("kind", ["many", "two", "gaps"])
def test_labels_of_a_group_are_balanced(kind: str) -> None:
    table = table_of(LABELS[kind])
    members = GroupTable.over(table, 200, 12, seed=0).members(np.arange(200))
    for group in members:
        counts = np.unique(table.dense["labels"][group], return_counts=True)[1]
        assert sorted(counts.tolist()) == {"many": [2] * 6, "two": [6, 6], "gaps": [4, 4, 4]}[kind]


def test_texts_of_a_group_have_similar_lengths() -> None:
    table = table_of(LABELS["two"])
    members = GroupTable.over(table, 300, 4, seed=0).members(np.arange(300))
    lengths = table.lengths
    assert (
        np.ptp(lengths[members], axis=1).mean()
        < 0.4 * np.ptp(lengths[np.random.default_rng(0).permutation(200)].reshape(50, 4), axis=1).mean()
    )


def test_groups_depend_on_seed_and_number_only() -> None:
    table = table_of(LABELS["many"])
    groups = GroupTable.over(table, 50, 8, seed=1)
    whole = groups.members(np.arange(50))
    order = np.random.default_rng(0).permutation(50)
    assert (groups.members(order) == whole[order]).all()
    assert (GroupTable.over(table, 10**9, 8, seed=1).members(np.arange(50)) == whole).all()
    assert (GroupTable.over(table, 50, 8, seed=2).members(np.arange(50)) != whole).any()


def test_batch_contains_each_text_once() -> None:
    table = table_of(LABELS["sets"])
    groups = GroupTable.over(table, 100, 6, seed=0)
    indices = np.array([7, 3, 99])
    batch, members = groups.batch(indices), groups.members(indices)
    rows = batch["input_ids"][:, 0].numpy()
    assert len(set(rows)) == len(rows)
    assert (rows[batch["labels"][..., 0].long().numpy()] == members).all()
    assert np.allclose(batch["labels"][..., 1:], similarity(table.dense["labels"], members))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}, "what else is there would be given to the model"


def test_similarity_of_sets_and_numbers() -> None:
    sets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]], np.float32)
    found = similarity(sets, np.arange(5)[None])[0]
    assert found[0].tolist() == [1, 0.5, 0, 0, 0]
    assert found[3].tolist() == [0, 0, 0, 1, 1]
    numbers = np.array([0, 1, 4], np.float32)
    expected = np.exp(-2 * np.abs(numbers[:, None] - numbers) / numbers.std())
    assert np.allclose(similarity(numbers, np.arange(3)[None])[0], expected)


def test_groups_of_a_million_rows_are_cheap() -> None:
    labels = np.random.default_rng(0).integers(0, 1000, 10**6)
    groups = GroupTable.over(table_of(labels), 10**7, 16, seed=0)
    groups.batch(np.array([5]))  # what is computed once
    tracemalloc.start()
    groups.batch(np.random.default_rng(0).integers(0, 10**7, 32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


@pytest.mark.parametrize("how", ["contrastive", "cosine"])
@pytest.mark.parametrize("kind", ["many", "sets", "numbers"])
def test_loss_is_the_same_for_any_batch_size(how: Any, kind: str) -> None:
    groups = GroupTable.over(table_of(LABELS[kind]), 60, 6, seed=0)
    vectors = torch.randn(200, 8, dtype=torch.float64)
    objective = ContrastiveObjective(how)

    def loss(indices: np.ndarray) -> float:
        batch = groups.batch(indices)
        outputs = SimpleNamespace(embedding=vectors[batch["input_ids"][:, 0]])
        return float(objective.loss(outputs, batch)[how])

    window = np.random.default_rng(0).permutation(60)[:24]
    whole = loss(window)
    assert whole > 0
    for cut in (2, 3, 24):
        assert sum(loss(part) for part in np.array_split(window, cut)) == pytest.approx(whole, rel=1e-5)
    assert objective.count(groups.targets(window)) == {"rows": 24.0, how: 144.0} == objective.count(groups.batch(window))


def test_contrastive_loss_matches_the_formula() -> None:
    members, labels = np.array([[0, 1, 2, 3]]), np.array([5, 5, 2, 5])
    vectors = F.normalize(torch.randn(4, 6), dim=-1)
    given = np.concatenate([np.arange(4.0)[None, :, None], similarity(labels, members)], -1)
    batch = {"labels": torch.from_numpy(given).float()}
    found = ContrastiveObjective("contrastive", 0.5).loss(SimpleNamespace(embedding=3 * vectors), batch)["contrastive"]
    expected = 0.0
    for i, likes in {0: (1, 3), 1: (0, 3), 3: (0, 1)}.items():  # the third has no like
        others = [j for j in range(4) if j != i]
        logits = (vectors[i] @ vectors[others].T / 0.5).log_softmax(-1)
        expected -= sum(float(logits[others.index(j)]) for j in likes) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def train(folder: Path, model: Path, task: Any, **strategy: Any) -> Any:
    source = write(folder / "train.csv", columns(48))
    return run(
        model=model, data={"train": source, "validation_share": 0.25}, task=task,
        strategy={"name": "few_shot", "group": 4, "epochs": 2} | strategy, output_dir=folder / "run",
        training={"batch_size": 4, "epochs": 1, "learning_rate": 1e-3},
    )  # fmt: skip


@pytest.mark.parametrize("classifier", ["trained", "logistic_regression"])
@pytest.mark.parametrize(
    "task",
    [
        {"name": "text_classification"},
        {"name": "multi_label", "label": "tags"},
        {"name": "regression", "label": "score"},
        {"name": "text_classification", "head": {"hidden": [8], "layers": "mix"}},
    ],
    ids=["single", "multi_label", "regression", "deep"],
)
def test_every_task_has_both_phases(task: dict[str, Any], classifier: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    if classifier == "logistic_regression" and (task["name"] == "regression" or "head" in task):
        with refused("strategy.classifier: found logistic_regression"):
            train(tmp_path, tiny["bert"], task, classifier=classifier)
        return
    done = train(tmp_path, tiny["bert"], task, classifier=classifier)
    # 36 rows, and one for each label: twice in groups of 4 make 19 (18 of numbers), of which 4 a step; then 4 rows a step.
    pairs, head = 5, 9 if task["name"] == "regression" else 10
    assert done.result["train"]["steps"] == pairs + (head if classifier == "trained" else 0)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in log if "validation" in line) > pairs if classifier == "trained" else True
    answers = load_predictor(tmp_path / "run")(["a good film", "the bad plot was dull"])
    assert all(answer["prediction"] is not None for answer in answers)


def job_of(strategy: dict[str, Any], task: dict[str, Any], tiny: dict[str, Path], **training: Any) -> Job:
    few_shot = strategy_from({"name": "few_shot"} | strategy)
    model, fitted, table, _, checkpoint = prepared(tiny["bert"], task, few_shot)
    job = Job(fitted, {"train": table}, {}, checkpoint, TrainingConfig(**training), torch.device("cpu"))
    return few_shot.prepare_data(job, model)


def test_label_descriptions_are_training_rows(tiny: dict[str, Path]) -> None:
    single = {"name": "text_classification"}
    table = job_of({"labels": {"negative": "bad"}}, single, tiny).tables["train"]
    tokenizer = opened(tiny["bert"]).tokenizer
    assert len(table) == 24 + 2
    last = table.batch(np.array([24, 25]))
    assert last["labels"].tolist() == [0, 1]
    assert last["input_ids"][0].tolist() == tokenizer("bad")["input_ids"]
    assert last["input_ids"][1].tolist() == tokenizer("positive")["input_ids"]
    several = job_of({}, {"name": "multi_label", "label": "tags"}, tiny).tables["train"]
    assert several.dense["labels"][24:].tolist() == [[1, 0], [0, 1]]
    for strategy, task in (
        ({"learn_labels": False}, single),
        ({}, single | {"text_pair": "other"}),
        ({}, {"name": "regression", "label": "score"}),
        ({}, single | {"label": "score"}),  # 0 to 4: no words
    ):
        assert len(job_of(strategy, task, tiny).tables["train"]) == 24, (strategy, task)


def test_auto_settings_for_few_rows(tiny: dict[str, Path]) -> None:
    training = job_of({}, {"name": "text_classification"}, tiny, batch_size=4).training
    assert (training.epochs, training.label_smoothing) == (20, 0)  # 24 rows and 2 labels: 6 steps a pass
    training = job_of({}, {"name": "text_classification"}, tiny, epochs=2, label_smoothing=0.2).training
    assert (training.epochs, training.label_smoothing) == (2, 0.2)
