"""Tasks: labels and their order, what counts as a label, strata, and losses against torch's own."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.registry import names
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task, task_from, task_name
from nlp_transfer.tasks.common.label_schema import label_text
from nlp_transfer.tasks.common.labels import balance, sort_labels
from nlp_transfer.tasks.common.objectives import BinaryCrossEntropy, CrossEntropy
from nlp_transfer.tasks.regression import number
from nlp_transfer.utils.errors import Problems
from tests.builders import refused

torch.manual_seed(0)
TEXTS = ["one", "two", "three", "four", "five", "six"]


def fitted(name: str, cells: list[Any], **settings: Any) -> Any:
    problems = Problems()
    rows = from_columns({"text": TEXTS[: len(cells)], "label": cells}, "t")
    task = task_from({"name": name, **settings}).fit(rows, problems)
    task.check(rows, problems)
    problems.raise_if_any()
    return task


def outputs(*logits: list[float]) -> Any:
    return SimpleNamespace(logits=torch.tensor(logits))


def table(labels: np.ndarray) -> TokenTable:
    return TokenTable({"input_ids": Ragged.from_lists([[1]] * len(labels))}, {"labels": labels}, {"input_ids": 0})


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("a", "a"), (" a b ", "a b"), ("", None), ("  ", None), (None, None), (float("nan"), None), (1, "1"),
        (1.0, "1"), ("1", "1"),
        (1.5, "1.5"), (-2.0, "-2"), (0, "0"), (True, "True"), ("NA", "NA"), ("None", "None"),
        (["a"], None), ({}, None), (b"a", None),
    ],
)  # fmt: skip
def test_label_text(cell: object, text: str | None) -> None:
    assert label_text(cell) == text


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]), (["b", "a", "B"], ["B", "a", "b"]), (["2", "x", "10"], ["10", "2", "x"]),
        (["0.5", "0.25"], ["0.25", "0.5"]), (["a", "a"], ["a"]), ([], []),
    ],
)  # fmt: skip
def test_label_order(labels: list[str], ordered: list[str]) -> None:
    assert sort_labels(labels) == sort_labels(reversed(labels)) == ordered


def test_labels_are_learned_or_set() -> None:
    cells = ["b", " a", 1.0, "1", "b ", "a"]
    assert fitted("text_classification", cells).labels == ["1", "a", "b"]
    assert fitted("text_classification", cells, labels=["b", "a", 1]).labels == ["b", "a", "1"]
    assert fitted("text_classification", cells).encode_targets(cells).tolist() == [2, 1, 0, 0, 2, 1]


def test_nan_is_a_label_if_listed() -> None:
    cells = ["nan", "b", "nan", "b"]
    assert fitted("text_classification", cells, labels=["nan", "b"]).encode_targets(cells).tolist() == [0, 1, 0, 1]
    with refused("a missing value"):
        fitted("text_classification", cells)


@pytest.mark.parametrize("name", names("task"))
def test_task_round_trip(name: str) -> None:
    task = task_from({"name": name})
    assert isinstance(task, Task)
    assert task_name(task) == name
    assert task.document() == {"name": name, **task.model_dump(mode="json")}, "defaults too: they may change"
    assert task_from(task.document()) == task
    assert task.traits.best_metric in task.traits.metrics


def test_fitted_task_round_trip() -> None:
    task = fitted("multi_label", ["b|a", "a", "", "b"], threshold=0.3)
    learned = {"name": "multi_label", "threshold": 0.3, "labels": ["a", "b"], "separator": "|", "text": "text"}
    assert learned.items() <= task.document().items()
    assert task_from(task.document()) == task


def test_multi_label_cells() -> None:
    cells = ["b | a", ["a", 1], "", None, [], "a|a|"]
    task = fitted("multi_label", cells)
    assert task.labels == ["1", "a", "b"]
    assert task.encode_targets(cells).tolist() == [[0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    other = fitted("multi_label", ["a|b;c", "c", ""], separator=";")
    assert other.labels == ["a|b", "c"]


def test_strata() -> None:
    def strata(task: Task, cells: list[Any]) -> list[int]:
        return task.describe(from_columns({"text": TEXTS[: len(cells)], "label": cells}, "t")).strata.tolist()

    assert strata(fitted("text_classification", ["x", "y", "x", "y"]), ["x", "y", "x", "y"]) == [0, 1, 0, 1]
    cells = ["a", "a|b", "b|c", "", "a"]
    assert strata(fitted("multi_label", cells), cells) == [0, 1, 2, -1, 0], "the rarest label of a row, -1 where it has none"
    many = from_columns({"text": [""] * 100, "label": list(range(100))}, "t")
    assert np.bincount(task_from({"name": "regression"}).describe(many).strata).tolist() == [10] * 10


def test_cross_entropy_matches_torch() -> None:
    task = fitted("text_classification", ["a", "b", "c", "a", "b", "c"])
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    batch = {"labels": labels}
    weights = torch.tensor([1.0, 2.0, 0.5])
    given = SimpleNamespace(logits=logits)
    options = CrossEntropy(0.1, weights)
    assert task.objective().count(batch) == {"rows": 6.0, "cross_entropy": 6.0}
    torch.testing.assert_close(
        task.objective().loss(given, batch)["cross_entropy"], nn.CrossEntropyLoss(reduction="sum")(logits, labels)
    )
    smooth = nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(CrossEntropy(0.1).loss(given, batch)["cross_entropy"], smooth)
    mean = CrossEntropy(0.0, weights).loss(given, batch)["cross_entropy"] / options.count(batch)["cross_entropy"]
    torch.testing.assert_close(mean, nn.CrossEntropyLoss(weight=weights)(logits, labels))
    both = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1, reduction="sum")(logits, labels)
    torch.testing.assert_close(options.loss(given, batch)["cross_entropy"], both)


def test_binary_cross_entropy_matches_torch() -> None:
    task = fitted("multi_label", ["a|b", "b", "a", ""])
    logits, labels = torch.randn(4, 2), torch.tensor([[1.0, 1], [0, 1], [1, 0], [0, 0]])
    given, batch, weights = SimpleNamespace(logits=logits), {"labels": labels}, torch.tensor([3.0, 1.0])
    assert task.objective().count(batch) == {"rows": 4.0, "binary_cross_entropy": 8.0}
    plain = task.objective().loss(given, batch)["binary_cross_entropy"]
    torch.testing.assert_close(plain, nn.BCEWithLogitsLoss(reduction="sum")(logits, labels))
    torch.testing.assert_close(
        BinaryCrossEntropy(0.2, weights).loss(given, batch)["binary_cross_entropy"],
        nn.BCEWithLogitsLoss(reduction="sum", pos_weight=weights)(logits, labels * 0.8 + 0.1),
    )


def test_squared_error_matches_torch() -> None:
    task = fitted("regression", [1, "2.5", 3.0])
    batch = {"labels": torch.from_numpy(task.encode_targets([1, "2.5", 3.0]))}
    given = outputs([0.5], [2.0], [4.0])
    wanted = nn.MSELoss(reduction="sum")(given.logits[:, 0], batch["labels"].float())
    torch.testing.assert_close(task.objective().loss(given, batch)["squared_error"], wanted)
    assert task.objective().count(batch) == {"rows": 3.0, "squared_error": 3.0}


@pytest.mark.parametrize("name", ["text_classification", "multi_label", "regression"])
def test_losses_are_computed_in_fp32(name: str) -> None:
    cells = {"regression": [1.0, 2.0], "multi_label": ["a|b", "b"], "text_classification": ["a", "b", "a", "b"]}[name]
    task = fitted(name, cells) if name != "multi_label" else fitted(name, [*cells, ""])
    labels = torch.from_numpy(task.encode_targets(cells))
    logits = torch.zeros(len(cells), 1 if name == "regression" else 2, dtype=torch.bfloat16)
    losses = task.objective().loss(SimpleNamespace(logits=logits), {"labels": labels})
    assert set(losses) == set(task.objective().count({"labels": labels})) - {"rows"}
    assert all(value.dtype == torch.float32 and value.shape == () for value in losses.values())


def test_class_weights() -> None:
    labels = np.array([0, 0, 0, 1])
    task = fitted("text_classification", ["a", "a", "b", "b"])
    balanced = task.objective(TrainingConfig(class_weights="balanced"), table(labels)).class_weights
    torch.testing.assert_close(balanced, torch.tensor([4 / 6, 2.0]))
    named = task.objective(TrainingConfig(class_weights={"b": 3, "a": 1}), table(labels)).class_weights
    torch.testing.assert_close(named, torch.tensor([1.0, 3.0]))
    assert task.objective(TrainingConfig(), table(labels)).class_weights is None
    several = fitted("multi_label", ["a|b", "b", "b", ""])
    hot = several.encode_targets(["a|b", "b", "b", ""])
    weights = several.objective(TrainingConfig(class_weights="balanced"), table(hot)).class_weights
    torch.testing.assert_close(weights, torch.tensor([3.0, 1.0]))


def test_label_smoothing_reaches_the_loss() -> None:
    for name, cells in (("text_classification", ["a", "b", "a", "b"]), ("multi_label", ["a|b", "b", ""])):
        task = fitted(name, cells)
        assert task.objective(TrainingConfig(label_smoothing=0.2), table(task.encode_targets(cells))).label_smoothing == 0.2


@pytest.mark.parametrize("cell", [1, 1.5, "1.5", " 2 ", "-1e3", "1e-400"])
def test_numbers(cell: object) -> None:
    assert number(cell) == float(cell)  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", [None, "", "x", "1,5", "1_000", True, float("nan"), "inf", "1e39", 10**400, [1], {}])
def test_no_numbers(cell: object) -> None:
    assert number(cell) is None


def test_predictions_are_described_by_labels() -> None:
    task = fitted("text_classification", ["a", "b", "a", "b"])
    answers = task.predictions(outputs([2.0, 0.0], [0.0, 1.0]))
    described = task.columns(answers, probabilities=True)
    assert described["prediction"] == ["a", "b"]
    torch.testing.assert_close(described["probability"][0], torch.tensor([2.0, 0]).softmax(0)[0].item())
    assert list(described) == ["prediction", "probability", "probability:a", "probability:b"]
    several = fitted("multi_label", ["a|b", "b", ""], threshold=0.7)
    described = several.columns(several.predictions(outputs([2.0, 2.0], [0.5, 0.5])))
    assert described["prediction"] == [["a", "b"], []]
    assert [len(row) for row in described["probability"]] == [2, 0]
    scored = {"prediction": np.array([[True, True], [False, False]]), "scores": np.array([[0.880797, 0.99999994], [0.5, 0.5]])}
    cells = {"reference": ["b", "a|b"], "prediction": ["a|b", ""], "probability": ["0.880797|0.99999994", ""]}
    assert several.columns(scored, np.array([[0, 1], [1, 1]]), cells=True) == cells
    plain = fitted("regression", [1, 2])
    assert plain.columns(plain.predictions(outputs([1.5], [2.0]))) == {"prediction": [1.5, 2.0]}


@pytest.mark.parametrize("name", ["text_classification", "multi_label", "regression"])
def test_metrics_match_metric_names(name: str) -> None:
    task = fitted(name, {"regression": [1, 2, 3, 4], "multi_label": ["a|b", "b", "a", ""]}.get(name, ["a", "b", "a", "b"]))
    logits = torch.randn(4, 1 if name == "regression" else 2)
    cells = {"regression": [1, 2, 3, 4], "multi_label": ["a|b", "b", "a", ""]}.get(name, ["a", "b", "a", "b"])
    found = task.scorer.compute(task.predictions(SimpleNamespace(logits=logits)), {"labels": task.encode_targets(cells)})
    assert set(found) == set(task.traits.metrics)


def test_only_long_rows_are_truncated(tiny: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    task = task_from({"name": "text_classification", "max_length": 5, "text_pair": "other"})
    columns = {"text": ["the cat", "a good film plot"], "other": ["sat", "dog ran"]}
    features = task.encode(columns, tokenizer, targets=False)
    assert features.truncated == 2
    assert [len(ids) for ids in features.ragged["input_ids"]] == [5, 5]
    whole = task.model_copy(update={"max_length": 64}).encode(columns, tokenizer, targets=False)
    assert whole.truncated == 0
    assert [len(ids) for ids in whole.ragged["input_ids"]] == [6, 9]
    assert whole.ragged["token_type_ids"][0] == [0, 0, 0, 0, 1, 1]


def test_balance_warns_about_rare_classes() -> None:
    from collections import Counter

    assert balance(Counter(a=5, b=5), 10) == ["2 labels: a 50.0%, b 50.0%"]
    lines = balance(Counter({str(i): 1 for i in range(9)} | {"x": 91}), 100)
    assert "4 more" in lines[0]
    assert lines[1].startswith("warning: 'x' has 91 rows")
