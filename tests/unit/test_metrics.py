"""The metrics against numbers worked out by hand. Any warning is an error here, and so is any use of the network."""

import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from nlp_transfer.evaluation import metrics
from nlp_transfer.evaluation.metrics.classification_metrics import roc_auc

pytestmark = pytest.mark.filterwarnings("error")

# Label: right, predicted, true. 0: 2, 3, 3. 1: 2, 3, 2. 2: 0, 0, 1.
REFERENCES = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 1, 0])
SINGLE_LABEL = {
    "accuracy": 4 / 6,
    "precision_micro": 4 / 6,
    "precision_macro": (2 / 3 + 2 / 3 + 0) / 3,
    "precision_weighted": (3 * 2 / 3 + 2 * 2 / 3 + 0) / 6,
    "recall_micro": 4 / 6,
    "recall_macro": (2 / 3 + 1 + 0) / 3,
    "recall_weighted": (3 * 2 / 3 + 2 * 1 + 0) / 6,
    "f1_micro": 4 / 6,
    "f1_macro": (2 / 3 + 4 / 5 + 0) / 3,
    "f1_weighted": (3 * 2 / 3 + 2 * 4 / 5 + 0) / 6,
    "mcc": (4 * 6 - (3 * 3 + 3 * 2 + 0 * 1)) / math.sqrt((36 - 9 - 9 - 0) * (36 - 9 - 4 - 1)),
}

# Label: right, predicted, true. 0: 3, 3, 3. 1: 1, 1, 2. 2: 1, 2, 2.
MULTILABEL_REFERENCES = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1]])
MULTILABEL_PREDICTIONS = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]])
MULTILABEL = {
    "accuracy": 1 / 4,
    "precision_micro": 5 / 6,
    "precision_macro": (1 + 1 + 1 / 2) / 3,
    "precision_weighted": (3 * 1 + 2 * 1 + 2 * 1 / 2) / 7,
    "recall_micro": 5 / 7,
    "recall_macro": (1 + 1 / 2 + 1 / 2) / 3,
    "recall_weighted": (3 * 1 + 2 * 1 / 2 + 2 * 1 / 2) / 7,
    "f1_micro": 10 / 13,
    "f1_macro": (1 + 2 / 3 + 1 / 2) / 3,
    "f1_weighted": (3 * 1 + 2 * 2 / 3 + 2 * 1 / 2) / 7,
}

REGRESSION_REFERENCES = np.array([1.0, 2.0, 4.0, 3.0])
REGRESSION_PREDICTIONS = np.array([1.0, 2.0, 3.0, 5.0])
REGRESSION = {
    "r2": 1 - 5 / (2.25 + 0.25 + 2.25 + 0.25), "pearson": 4.5 / math.sqrt(8.75 * 5), "spearman": 1 - 6 * 2 / (4 * 15),
    "mae": (0 + 0 + 1 + 2) / 4, "rmse": math.sqrt(5 / 4), "mse": (0 + 0 + 1 + 4) / 4,
}  # fmt: skip

TEXTS = ["the cat sat on the mat", "a dog ran under the tree"]
PROBABILITY = {"ece", "brier", "coverage", "accuracy_covered", "precision_positive", "recall_positive", "f1_positive"}
TRANSLATION = {"bleu": 100.0, "chrf": 100.0, "ter": 0.0}  # of texts that are their own references

NAMES = "accuracy auc bleu chrf f1 mae mcc mse pearson precision r2 recall rmse spearman ter".split()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a metric used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def evaluate_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    cache = tmp_path / "evaluate"
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(cache))
    return cache


def columns(*arrays: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(np.array, arrays))


# Predictions, references, and some of the expected values.
LABEL_CASES: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "each label": (PREDICTIONS, REFERENCES, SINGLE_LABEL),
    "labels 1 to 4 never occur": ([0, 5, 5], [0, 5, 5], {"f1_macro": 1.0}),
    "one label, right": ([1, 1, 1], [1, 1, 1], {"mcc": 0.0}),
    "one label predicted": ([0, 0, 0], [0, 1, 1], {"mcc": 0.0}),
    "one label true": ([0, 1, 1], [0, 0, 0], {"mcc": 0.0}),
    "multi-label": (MULTILABEL_PREDICTIONS, MULTILABEL_REFERENCES, MULTILABEL),
    # Right 1, predicted 1, true 2; the absence of the label is not scored.
    "one column": ([[1], [0], [0], [0]], [[1], [1], [0], [0]], {"accuracy": 3 / 4}
        | {f"{name}_{end}": value for name, value in (("precision", 1), ("recall", 1 / 2), ("f1", 2 / 3))
           for end in ("micro", "macro", "weighted")}),
    "no labels": (np.zeros((4, 3), bool), np.zeros((4, 3), bool), {key: float(key == "accuracy") for key in MULTILABEL}),
    "no labels, one column": (np.zeros((4, 1)) > 0, np.zeros((4, 1)) > 0, {key: float(key == "accuracy") for key in MULTILABEL}),
}  # fmt: skip


@pytest.mark.parametrize("case", LABEL_CASES)
def test_label_metrics(case: str) -> None:
    predictions, references, expected = LABEL_CASES[case]
    predictions, references = columns(predictions, references)
    multilabel = references.ndim == 2
    values = metrics.compute_label_metrics(predictions, references, multilabel=multilabel)
    assert tuple(values) == tuple(MULTILABEL if multilabel else SINGLE_LABEL)
    assert {key: values[key] for key in expected} == pytest.approx(expected)


REGRESSION_CASES: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "plain": (REGRESSION_PREDICTIONS, REGRESSION_REFERENCES, REGRESSION),
    "near a large number": (2e9 + REGRESSION_PREDICTIONS, 2e9 + REGRESSION_REFERENCES, REGRESSION),
    "constant predictions": ([2.0, 2.0], [1.0, 3.0], {"r2": 0.0, "mae": 1.0, "rmse": 1.0, "mse": 1.0}),
    "constant references": ([1.0, 3.0], [2.0, 2.0], {"mae": 1.0, "rmse": 1.0, "mse": 1.0}),
    "one row": ([1.0], [2.0], {"mae": 1.0, "rmse": 1.0, "mse": 1.0}),
    "NaN": ([1.0, math.nan], [1.0, 2.0], {}),
    "infinite": ([1.0, 2.0], [1.0, math.inf], {}),
}


@pytest.mark.parametrize("case", REGRESSION_CASES)
def test_regression_metrics(case: str) -> None:
    predictions, references, expected = REGRESSION_CASES[case]
    values = metrics.compute_regression_metrics(*columns(predictions, references))
    assert values == pytest.approx(expected)
    assert list(values) == list(expected)


def test_spearman_of_tied_and_nearly_constant_values() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    tied = metrics.compute_regression_metrics(*columns([1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]))
    assert tied["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    nearly_constant = 1 + np.array([0.0, 1e-15, 2e-15])
    assert metrics.compute_regression_metrics(nearly_constant, np.array([1.0, 2.0, 3.0]))["spearman"] == pytest.approx(1.0)


SCORES = [[0.5, 0.6, 0.1, 0.2], [0.1, 0.3, 0.2, 0.3], [0.4, 0.1, 0.7, 0.5], [0.0, 0.0, 0.0, 0.1]]
MULTILABEL_SCORES = [[0.9, 0.1, 0.2], [0.5, 0.8, 0.5], [0.4, 0.3, 0.1], [0.6, 0.2, 0.7]]
AUC_CASES: dict[str, tuple[Any, Any, float]] = {
    "two labels": ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 3 / 4),  # 3 of 4 pairs in order
    "two labels, two columns": ([[0, 0.1], [0, 0.4], [9, 0.35], [9, 0.8]], [0, 0, 1, 1], 3 / 4),  # label 0 does not count
    "one against the rest": (np.transpose(SCORES[:3]), [0, 1, 2, 2], (2 / 3 + 2.5 / 3 + 1) / 3),
    "no row has label 3": (np.transpose(SCORES), [0, 1, 2, 2], (2 / 3 + 2.5 / 3 + 1) / 3),
    "multi-label": (MULTILABEL_SCORES, MULTILABEL_REFERENCES, (2 / 3 + 1 + 3 / 4) / 3),
    "all rows have label 0": (MULTILABEL_SCORES, MULTILABEL_REFERENCES | [1, 0, 0], (1 + 3 / 4) / 2),
    "one label": ([0.1, 0.2], [1, 1], math.nan),
    "all or no rows have each label": ([[0.1, 0.2], [0.3, 0.4]], [[1, 0], [1, 0]], math.nan),
    "NaN": ([0.1, math.nan], [0, 1], math.nan),
}


@pytest.mark.parametrize("case", AUC_CASES)
def test_auc(case: str) -> None:
    scores, references, expected = AUC_CASES[case]
    multilabel = np.ndim(references) == 2
    scores, references = columns(scores, references)
    assert roc_auc(scores, references, multilabel) == pytest.approx(expected, nan_ok=True)
    values = metrics.compute_label_metrics(references, references, scores, multilabel)
    assert values.get("auc", math.nan) == pytest.approx(expected, nan_ok=True), "undefined values are left out"
    assert ("auc" in values) == math.isfinite(expected)
    loaded = metrics.load("auc", "multilabel" if multilabel else None)
    for make in (list, np.array):
        value = loaded.compute(prediction_scores=make(scores), references=make(references))
        assert value == pytest.approx({"auc": expected}, nan_ok=True)


@pytest.mark.parametrize("labels", [30, 300])
def test_many_labels_with_one_row_each(labels: int) -> None:
    values = metrics.compute_label_metrics(np.arange(labels), np.arange(labels), np.eye(labels))
    assert values == pytest.approx(dict.fromkeys([*SINGLE_LABEL, "auc"], 1.0))


def test_values_are_python_floats_and_no_files_are_written(evaluate_cache: Path) -> None:
    scores = np.linspace(0, 1, 18).reshape(6, 3).astype(np.float32)
    values = metrics.compute_label_metrics(PREDICTIONS, REFERENCES, scores)
    values |= metrics.compute_regression_metrics(REGRESSION_PREDICTIONS, REGRESSION_REFERENCES)
    values |= metrics.compute_translation_metrics(TEXTS, TEXTS, "de")
    assert {type(value) for value in values.values()} == {float}
    assert not evaluate_cache.exists()


@pytest.mark.parametrize(
    ("predictions", "references", "scores", "multilabel", "message"),
    [
        ([], [], None, False, "predictions: shape .* at least one row"),
        ([0, 1], [0], None, False, r"predictions: shape \(2,\), but references: shape \(1,\)"),
        ([0, 1], [0, -100], None, False, "references: label id -100"),
        ([0.9, 0.1], [1, 0], None, False, "predictions: dtype float64"),
        ([[0, 1]], [[0, 1]], None, False, r"expected \(rows,\)"),
        ([0, 1], [0, 1], None, True, r"expected \(rows, num_labels\)"),
        ([[0, 2]], [[0, 1]], None, True, "predictions: values from 0 to 2"),
        ([0, 1], [0, 1], [0.1], False, r"prediction_scores: shape \(1,\)"),
        ([0, 2], [0, 2], [0.1, 0.2], False, "label id 2, but prediction_scores are for 2 labels"),
        ([[0, 1]], [[0, 1]], [[0.1]], True, r"prediction_scores: shape \(1, 1\)"),
    ],
)
def test_wrong_label_inputs(predictions: Any, references: Any, scores: Any, multilabel: bool, message: str) -> None:
    scores = None if scores is None else np.array(scores)
    with pytest.raises(ValueError, match=message):
        metrics.compute_label_metrics(*columns(predictions, references), scores, multilabel)


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_wrong_regression_inputs(predictions: Any, references: Any) -> None:
    with pytest.raises(ValueError, match="predictions: shape"):
        metrics.compute_regression_metrics(*columns(predictions, references))


# The adapter to `evaluate`


@pytest.mark.parametrize("multilabel", [False, True])
def test_combined_label_metrics(multilabel: bool) -> None:
    predictions, references, expected = LABEL_CASES["multi-label" if multilabel else "each label"]
    names = ("accuracy", "precision", "recall", "f1", *([] if multilabel else ["mcc"]))
    combined = evaluate.combine([metrics.load(name, "multilabel" if multilabel else None) for name in names])
    assert combined.compute(predictions=predictions, references=references) == pytest.approx(expected)
    combined.add_batch(predictions=predictions[:1], references=references[:1])
    combined.add_batch(predictions=predictions[1:], references=references[1:])
    assert combined.compute() == pytest.approx(expected), "in two batches, after another computation"


@pytest.mark.parametrize("name", REGRESSION)
def test_load_regression_metric(name: str) -> None:
    values = metrics.load(name).compute(predictions=REGRESSION_PREDICTIONS, references=REGRESSION_REFERENCES)
    assert values == pytest.approx({name: REGRESSION[name]})
    undefined = metrics.load(name).compute(predictions=[1.0, math.nan], references=[1.0, 2.0])
    assert undefined == pytest.approx({name: math.nan}, nan_ok=True)


def test_load_gives_every_known_metric() -> None:
    assert metrics.names() == NAMES
    numbers = {"predictions": [0, 1], "references": [0, 1], "prediction_scores": [0.1, 0.9]}
    keys: list[str] = []
    for name in NAMES:
        metric = metrics.load(name)
        assert isinstance(metric, evaluate.Metric)
        inputs = {"predictions": TEXTS, "references": TEXTS} if name in TRANSLATION else numbers
        used = "prediction_scores" if name == "auc" else "predictions"
        keys += metric.compute(**{column: inputs[column] for column in (used, "references")})
    assert len(keys) == len(set(keys))
    assert set(keys) == {*SINGLE_LABEL, *REGRESSION, *TRANSLATION, "auc"}


def test_loaded_metrics_share_nothing_and_write_no_files(evaluate_cache: Path) -> None:
    right, wrong = metrics.load("accuracy"), metrics.load("accuracy")
    for label in (0, 1, 1):
        right.add_batch(predictions=[label], references=[label])
        wrong.add_batch(predictions=[label], references=[1 - label])
    assert wrong.compute() == {"accuracy": 0.0}
    assert right.compute() == {"accuracy": 1.0}
    assert right.experiment_id != wrong.experiment_id
    assert not [path for path in evaluate_cache.rglob("*") if path.is_file()]


def test_auc_refuses_predicted_labels() -> None:
    with pytest.raises(ValueError, match="prediction_scores"):
        metrics.load("auc").compute(predictions=[0, 1], references=[0, 1])


@pytest.mark.parametrize(
    ("name", "config_name", "message"),
    [
        ("acuracy", None, r"no metric 'acuracy' \(did you mean 'accuracy'\?\); known: accuracy, auc, bleu, chrf"),
        ("zzz", None, "no metric 'zzz'; known: accuracy"),
        ("f1", "multi", "'f1' has no config 'multi'; known configs: default, multilabel$"),
        ("auc", "binary", "'auc' has no config 'binary'; known configs: default, multilabel$"),
        ("mcc", "multilabel", "'mcc' has no config 'multilabel'; known configs: default$"),
        ("mse", "multilabel", "'mse' has no config 'multilabel'; known configs: default$"),
    ],
)
def test_load_refuses_unknown_names(name: str, config_name: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.load(name, config_name)


# Keys, metrics from the hub, imports


def test_every_key_has_a_direction() -> None:
    bounds = set(metrics.compute_translation_metrics(TEXTS, TEXTS))
    assert bounds == {f"{key}{end}" for key in TRANSLATION for end in ("", "_low", "_high")}
    assert set(metrics.KNOWN_KEYS) == {*SINGLE_LABEL, *REGRESSION, *bounds, "auc", "token_accuracy", "loss", *PROBABILITY}
    lower = {key for key in metrics.KNOWN_KEYS if not metrics.higher_is_better(key)}
    assert lower == {"mae", "mse", "rmse", "ter", "ter_low", "ter_high", "loss", "ece", "brier"}
    with pytest.raises(ValueError, match=r"no metric key 'f1_macros' \(did you mean 'f1_macro'\?\); known: .*loss"):
        metrics.higher_is_better("f1_macros")


def test_hub_metric_needs_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(evaluate, "load", loaded.append)
    with pytest.raises(ValueError, match=r"hub_metrics: found 'user/metric'.*code.*--allow-hub-metrics.*allow_hub_metrics=True"):
        metrics.load_hub_metric("user/metric", allow_hub_metrics=False)
    assert loaded == []
    metrics.load_hub_metric("user/metric", allow_hub_metrics=True)
    assert loaded == ["user/metric"]


def test_import_is_cheap() -> None:
    heavy = {"evaluate", "datasets", "sklearn", "scipy", "torch", "sacrebleu"}
    code = f"import sys, nlp_transfer.evaluation.metrics; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
