"""The metrics against numbers worked out by hand. Any warning is an error here, and so is any use of the network."""

import math
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from nlp_transfer.evaluation import metrics

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
    "pearson": 4.5 / math.sqrt(8.75 * 5), "spearman": 1 - 6 * 2 / (4 * 15), "mse": (0 + 0 + 1 + 4) / 4,
    "mae": (0 + 0 + 1 + 2) / 4, "rmse": math.sqrt(5 / 4), "r2": 1 - 5 / (2.25 + 0.25 + 2.25 + 0.25),
}  # fmt: skip

TEXTS = ["the cat sat on the mat", "a dog ran under the tree"]
TRANSLATION = {"bleu": 100.0, "chrf": 100.0, "ter": 0.0}  # of texts that are their own references


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


def auc(references: Any, scores: Any, multilabel: bool = False) -> float:
    return metrics.load("auc", "multilabel" if multilabel else None)._compute(prediction_scores=scores, references=references)[
        "auc"
    ]


def test_single_label_values() -> None:
    assert metrics.compute_label_metrics(PREDICTIONS, REFERENCES) == pytest.approx(SINGLE_LABEL)


def test_multilabel_values() -> None:
    found = metrics.compute_label_metrics(MULTILABEL_PREDICTIONS, MULTILABEL_REFERENCES, multilabel=True)
    assert found == pytest.approx(MULTILABEL)


def test_regression_values() -> None:
    found = metrics.compute_regression_metrics(REGRESSION_PREDICTIONS, REGRESSION_REFERENCES)
    assert found == pytest.approx(REGRESSION)


def test_spearman_gives_ties_their_mean_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    found = metrics.compute_regression_metrics(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_a_label_that_never_occurs_does_not_lower_the_macro_average() -> None:
    found = metrics.compute_label_metrics(np.array([0, 5, 5]), np.array([0, 5, 5]))
    assert found["f1_macro"] == 1.0


def test_a_single_multilabel_column_scores_the_label_and_not_its_absence() -> None:
    # Right 1, predicted 1, true 2.
    found = metrics.compute_label_metrics(np.array([[1], [0], [0], [0]]), np.array([[1], [1], [0], [0]]), None, True)
    assert found["accuracy"] == 3 / 4
    for average in ("micro", "macro", "weighted"):
        assert found[f"precision_{average}"] == 1.0
        assert found[f"recall_{average}"] == 1 / 2
        assert found[f"f1_{average}"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("columns", [1, 3])
def test_multilabel_ratios_without_any_label_are_zero(columns: int) -> None:
    nothing = np.zeros((4, columns), dtype=bool)
    found = metrics.compute_label_metrics(nothing, nothing, multilabel=True)
    assert found == {key: float(key == "accuracy") for key in MULTILABEL}


@pytest.mark.parametrize(("predictions", "references"), [([1, 1, 1], [1, 1, 1]), ([0, 0, 0], [0, 1, 1]), ([0, 1, 1], [0, 0, 0])])
def test_mcc_of_one_label_is_zero(predictions: list[int], references: list[int]) -> None:
    assert metrics.compute_label_metrics(np.array(predictions), np.array(references))["mcc"] == 0.0


@pytest.mark.parametrize("labels", [30, 300])
def test_many_labels_with_one_row_each(labels: int) -> None:
    found = metrics.compute_label_metrics(np.arange(labels), np.arange(labels), np.eye(labels))
    assert found == pytest.approx(dict.fromkeys([*SINGLE_LABEL, "auc"], 1.0))


def test_binary_auc_is_that_of_label_one() -> None:
    references, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])  # 3 of 4 pairs in order
    assert auc(references, scores) == 3 / 4
    # The column of label 0 is no complement here: it must not count.
    assert auc(references, np.stack([np.array([0.0, 0.0, 9.0, 9.0]), scores], axis=1)) == 3 / 4


def test_multiclass_auc_is_the_mean_of_one_versus_rest() -> None:
    columns = [[0.5, 0.6, 0.1, 0.2], [0.1, 0.3, 0.2, 0.3], [0.4, 0.1, 0.7, 0.5], [0.0, 0.0, 0.0, 0.1]]
    expected = (2 / 3 + 2.5 / 3 + 1) / 3
    assert auc([0, 1, 2, 2], np.array(columns[:3]).T) == pytest.approx(expected)
    assert auc([0, 1, 2, 2], np.array(columns).T) == pytest.approx(expected), "no row has label 3"


def test_multilabel_auc_is_the_mean_over_labels_with_both_values() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.8, 0.5], [0.4, 0.3, 0.1], [0.6, 0.2, 0.7]])
    assert auc(MULTILABEL_REFERENCES, scores, True) == pytest.approx((2 / 3 + 1 + 3 / 4) / 3)
    all_rows_have_label_0 = MULTILABEL_REFERENCES.copy()
    all_rows_have_label_0[:, 0] = 1
    assert auc(all_rows_have_label_0, scores, True) == pytest.approx((1 + 3 / 4) / 2)


def test_scores_add_the_auc() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    assert metrics.compute_label_metrics(labels, labels, scores)["auc"] == 1.0
    assert "auc" not in metrics.compute_label_metrics(labels, labels)


def test_undefined_auc_is_left_out() -> None:
    ones, scores = np.array([1, 1]), np.array([0.1, 0.2])
    assert math.isnan(auc(ones, scores))
    assert set(metrics.compute_label_metrics(ones, ones, scores)) == set(SINGLE_LABEL)
    assert math.isnan(auc([[1, 0], [1, 0]], [[0.1, 0.2], [0.3, 0.4]], True))
    assert math.isnan(auc([0, 1], [0.1, math.nan]))


@pytest.mark.parametrize(("predictions", "references"), [([2.0, 2.0], [1.0, 3.0]), ([1.0, 3.0], [2.0, 2.0]), ([1.0], [2.0])])
def test_undefined_correlation_is_left_out(predictions: list[float], references: list[float]) -> None:
    for name in ("pearson", "spearman"):
        value = metrics.load(name)._compute(predictions=predictions, references=references)[name]
        assert math.isnan(value)
    others = {"mse": 1.0, "mae": 1.0, "rmse": 1.0} | ({"r2": 0.0} if references == [1.0, 3.0] else {})
    assert metrics.compute_regression_metrics(np.array(predictions), np.array(references)) == others


def test_errors_near_a_large_number_keep_their_digits() -> None:
    references = 2e9 + np.array([1.0, 2.0, 4.0, 3.0])
    found = metrics.compute_regression_metrics(2e9 + REGRESSION_PREDICTIONS, references)
    assert found == pytest.approx(REGRESSION)


def test_nearly_constant_predictions_do_not_warn() -> None:
    found = metrics.compute_regression_metrics(1 + np.array([0.0, 1e-15, 2e-15]), np.array([1.0, 2.0, 3.0]))
    assert found["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_regression_with_a_value_that_is_not_finite_is_undefined(bad: float) -> None:
    assert metrics.compute_regression_metrics(np.array([1.0, bad]), np.array([1.0, 2.0])) == {}


def test_values_are_python_floats() -> None:
    scores = np.linspace(0, 1, 18).reshape(6, 3)
    found = metrics.compute_label_metrics(PREDICTIONS, REFERENCES, scores)
    found |= metrics.compute_regression_metrics(REGRESSION_PREDICTIONS, REGRESSION_REFERENCES)
    found |= metrics.compute_translation_metrics(TEXTS, TEXTS)
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize("multilabel", [False, True])
def test_combined_label_metrics_agree(multilabel: bool) -> None:
    predictions, references, expected = (
        (MULTILABEL_PREDICTIONS, MULTILABEL_REFERENCES, MULTILABEL) if multilabel else (PREDICTIONS, REFERENCES, SINGLE_LABEL)
    )
    combined = metrics.label_metrics(multilabel)
    assert combined.compute(predictions=predictions, references=references) == pytest.approx(expected)
    combined.add_batch(predictions=predictions[:1], references=references[:1])
    combined.add_batch(predictions=predictions[1:], references=references[1:])
    assert combined.compute() == pytest.approx(expected), "in two batches, after another computation"


@pytest.mark.parametrize("name", list(REGRESSION))
def test_regression_metric_by_name(name: str) -> None:
    found = metrics.load(name).compute(predictions=REGRESSION_PREDICTIONS, references=REGRESSION_REFERENCES)
    assert found == pytest.approx({name: REGRESSION[name]})


@pytest.mark.parametrize(
    ("config_name", "references", "scores"),
    [
        (None, [0, 1, 0], [0.2, 0.3, 0.4]),
        (None, [0, 1, 0], [[0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]),
        ("multilabel", [[0], [1], [0]], [[0.2], [0.3], [0.4]]),
    ],
)
def test_auc_by_name(config_name: str | None, references: list[Any], scores: list[Any]) -> None:
    for make in (list, np.array):
        found = metrics.load("auc", config_name).compute(prediction_scores=make(scores), references=make(references))
        assert found == {"auc": 1 / 2}


def test_auc_refuses_predicted_labels() -> None:
    with pytest.raises(ValueError, match="prediction_scores"):
        metrics.load("auc").compute(predictions=[0, 1], references=[0, 1])


def test_interleaved_computations_do_not_mix() -> None:
    right, wrong = metrics.load("accuracy"), metrics.load("accuracy")
    for label in (0, 1, 1):
        right.add_batch(predictions=[label], references=[label])
        wrong.add_batch(predictions=[label], references=[1 - label])
    assert wrong.compute() == {"accuracy": 0.0}
    assert right.compute() == {"accuracy": 1.0}
    assert right.experiment_id != wrong.experiment_id


def test_whole_split_functions_leave_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evaluate_cache: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    metrics.compute_label_metrics(PREDICTIONS, REFERENCES)
    metrics.compute_regression_metrics(REGRESSION_PREDICTIONS, REGRESSION_REFERENCES)
    metrics.compute_translation_metrics(TEXTS, TEXTS, "de")
    metrics.translation_signatures("de")
    assert not list(temporary.iterdir())
    assert not evaluate_cache.exists()


def test_loaded_metrics_write_no_files(evaluate_cache: Path) -> None:
    metric = metrics.load("accuracy")
    metric.add_batch(predictions=[0], references=[0])
    assert not [path for path in evaluate_cache.rglob("*") if path.is_file()]


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
        metrics.compute_label_metrics(np.array(predictions), np.array(references), scores, multilabel)


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_wrong_regression_inputs(predictions: Any, references: Any) -> None:
    with pytest.raises(ValueError, match="predictions: shape"):
        metrics.compute_regression_metrics(np.array(predictions), np.array(references))


def test_every_name_loads() -> None:
    known = "accuracy auc bleu chrf f1 mae mcc mse pearson precision r2 recall rmse spearman ter"
    assert metrics.names() == known.split()
    for name in metrics.names():
        assert isinstance(metrics.load(name), evaluate.Metric)


def test_keys_are_distinct_and_have_a_direction() -> None:
    numbers = {"predictions": [0, 1], "references": [0, 1], "prediction_scores": [0.1, 0.9]}
    texts = {"predictions": TEXTS, "references": TEXTS}
    keys: list[str] = []
    for name in metrics.names():
        metric = metrics.load(name)
        inputs = texts if name in TRANSLATION else numbers
        keys += metric.compute(**{column: inputs[column] for column in metric._feature_names()})
    assert len(keys) == len(set(keys))
    assert set(keys) == {*SINGLE_LABEL, *REGRESSION, *TRANSLATION, "auc"}
    assert {key for key in keys if not metrics.higher_is_better(key)} == {"mae", "mse", "rmse", "ter"}
    assert not metrics.higher_is_better("loss")
    assert metrics.higher_is_better("token_accuracy")


def test_the_ends_of_an_interval_have_its_metrics_direction() -> None:
    keys = metrics.compute_translation_metrics(TEXTS, TEXTS)
    assert set(keys) == {f"{key}{end}" for key in TRANSLATION for end in ("", "_low", "_high")}
    assert {key for key in keys if not metrics.higher_is_better(key)} == {"ter", "ter_low", "ter_high"}


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no metric 'acuracy' \(did you mean 'accuracy'\?\); known: accuracy, auc, bleu, chrf"):
        metrics.load("acuracy")
    with pytest.raises(ValueError, match="no metric 'zzz'; known: accuracy"):
        metrics.load("zzz")


@pytest.mark.parametrize(
    ("name", "config_name", "known"),
    [
        ("f1", "multi", "default, multilabel"),
        ("auc", "binary", "default, multilabel"),
        ("mcc", "multilabel", "default"),
        ("mse", "multilabel", "default"),
    ],
)
def test_unknown_config(name: str, config_name: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"no config '{config_name}'; known configs: {known}$"):
        metrics.load(name, config_name)


def test_unknown_key() -> None:
    with pytest.raises(ValueError, match=r"no metric key 'f1_macros' \(did you mean 'f1_macro'\?\); known: .*loss"):
        metrics.higher_is_better("f1_macros")


def test_hub_metric_is_refused_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(evaluate, "load", asked.append)
    with pytest.raises(ValueError, match=r"'user/metric'.*code written by others.*allow_foreign_code=True"):
        metrics.load_hub_metric("user/metric", allow_foreign_code=False)
    assert asked == []
    metrics.load_hub_metric("user/metric", allow_foreign_code=True)
    assert asked == ["user/metric"]


def test_import_is_cheap() -> None:
    heavy = {"evaluate", "datasets", "sklearn", "scipy", "torch", "sacrebleu"}
    code = f"import sys, nlp_transfer.evaluation.metrics; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
