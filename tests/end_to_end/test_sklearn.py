"""The scikit-learn estimators: the checks of scikit-learn, its meta-estimators, labels, pickles, weights and refusals."""

import pickle
import pickletools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from transformers import AutoModel, AutoTokenizer

from nlp_transfer import load_embedder, load_predictor
from nlp_transfer.sklearn import MultiLabelTextClassifier, TextClassifier, TextEncoder, TextRegressor
from tests.builders import refused, sentiment_rows
from tests.helpers.number_texts import NumberClassifier, NumberEncoder

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore:only .* optimizer steps")]
TEXTS, LABELS = map(list, zip(*sentiment_rows(48), strict=True))
LINEAR = {"name": "features", "classifier": "logistic_regression"}

NUMBERS = "passes numbers, and the estimators read texts"
GENERAL = """check_fit_score_takes_y check_estimators_overwrite_params check_dont_overwrite_parameters
    check_estimators_fit_returns_self check_readonly_memmap_input check_n_features_in_after_fitting
    check_positive_only_tag_during_fit check_estimators_dtypes check_complex_data check_dtype_object check_pipeline_consistency
    check_estimators_nan_inf check_estimator_sparse_array check_estimators_pickle check_f_contiguous_array_estimator
    check_methods_sample_order_invariance check_methods_subset_invariance check_fit2d_1sample check_fit2d_1feature
    check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted check_n_features_in check_fit2d_predict1d""".split()
SUPERVISED = """check_sample_weights_pandas_series check_sample_weights_not_an_array check_sample_weights_list
    check_all_zero_sample_weights_error check_sample_weights_shape check_sample_weights_not_overwritten
    check_sample_weight_equivalence_on_dense_data""".split()
CLASSIFIER = """check_classifier_data_not_an_array check_classifiers_one_label check_classifiers_one_label_sample_weights
    check_classifiers_classes check_classifiers_train check_classifiers_regression_target
    check_decision_proba_consistency""".split()
MULTI_LABEL = """check_classifier_multioutput check_classifiers_multilabel_representation_invariance
    check_classifiers_multilabel_output_format_predict check_classifiers_multilabel_output_format_predict_proba
    check_classifiers_multilabel_output_format_decision_function check_classifier_not_supporting_multiclass""".split()
REGRESSOR = """check_regressors_train check_regressor_data_not_an_array check_regressors_no_decision_function
    check_regressors_int""".split()
Y_2D = "check_supervised_y_2d"  # skipped for multi-output estimators
TRANSFORMER = ["check_transformer_data_not_an_array", "check_transformer_general"]
ESTIMATORS = {
    TextClassifier: [*GENERAL, *SUPERVISED, *CLASSIFIER, Y_2D],
    MultiLabelTextClassifier: [*GENERAL, *SUPERVISED, *CLASSIFIER, *MULTI_LABEL],
    TextRegressor: [*GENERAL, *SUPERVISED, *REGRESSOR, Y_2D],
    TextEncoder: [*GENERAL, *TRANSFORMER],
}
ROUNDING = "rows that are predicted together are padded to the same length, which changes the rounding of float32"


@pytest.fixture
def model(tiny: dict[str, Path]) -> str:
    return str(tiny["bert"])


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_checks_of_scikit_learn_on_text_estimators(kind: type, model: str) -> None:
    """All checks pass that do not depend on numeric input."""
    results = check_estimator(kind(model), expected_failed_checks=dict.fromkeys(ESTIMATORS[kind], NUMBERS), on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(ESTIMATORS[kind])
    assert sum(result["status"] == "passed" for result in results) >= 15


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [(NumberEncoder, {}, {}), (NumberClassifier, {"strategy": LINEAR}, {"check_methods_subset_invariance": ROUNDING})],
)
def test_checks_of_scikit_learn_on_numbers_as_texts(kind: type, settings: Any, expected: Any, model: str) -> None:
    """With texts that are made from the numbers of the checks, all checks pass, up to rounding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind(model, **settings), expected_failed_checks=expected, on_skip=None)
    assert sum(result["status"] == "passed" for result in results) >= 45


@pytest.mark.parametrize("labels", [("negative", "positive"), (7, -2), (False, True), (0.0, 1.0), ("1", "1.0")])
def test_labels_keep_their_type(labels: tuple[Any, Any], model: str) -> None:
    y = np.array([labels[i % 2] for i in range(48)])
    fitted = TextClassifier(model, "prototypes").fit(np.array(TEXTS), y)
    assert fitted.classes_.dtype == y.dtype
    assert list(fitted.classes_) == sorted(labels)
    predicted = fitted.predict(pd.Series(TEXTS))
    assert predicted.dtype == y.dtype
    assert fitted.score(TEXTS, y) == (predicted == y).mean() > 0.6
    assert (fitted.classes_[fitted.predict_proba(TEXTS).argmax(1)] == predicted).all()
    assert ((fitted.decision_function(TEXTS) > 0) == (predicted == fitted.classes_[1])).all()


def test_fit_leaves_no_traces(model: str, capfd: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """Nothing is printed, no file remains, and the global random numbers continue as if nothing had happened."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    np.random.seed(3)
    expected = np.random.get_state()[1].copy()
    state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        TextClassifier(model, epochs=1).fit(TEXTS, LABELS).predict(TEXTS)
        TextEncoder(model).fit_transform(TEXTS)
    assert capfd.readouterr() == ("", "")
    assert any("optimizer steps" in str(warning.message) for warning in raised)
    assert list(tmp_path.iterdir()) == []
    assert (np.random.get_state()[1] == expected).all()
    assert torch.equal(torch.get_rng_state(), state)
    TextClassifier(model, "prototypes", verbose=1).fit(TEXTS, LABELS)
    assert "train: 48 rows" in capfd.readouterr().err


def test_predictions_equal_those_of_the_saved_model(model: str, tmp_path: Path) -> None:
    fitted = TextClassifier(model, "features", epochs=2, output_dir=tmp_path / "run").fit(TEXTS, LABELS)
    fitted.save_model(tmp_path / "copy")
    for folder in ("run", "copy"):
        expected = load_predictor(tmp_path / folder)(TEXTS, probabilities=True)
        np.testing.assert_allclose(
            fitted.predict_proba(TEXTS),
            [[row[f"probability:{label}"] for label in fitted.classes_] for row in expected],
            atol=1e-6,
        )
        assert list(fitted.predict(TEXTS)) == [row["prediction"] for row in expected]
    assert fitted.result_["train"]["steps"] > 0
    encoder = "encoder/model.safetensors"
    assert not any(name.startswith("encoder/") for name in pickle.loads(pickle.dumps(fitted))._files), "weights only once"
    assert (tmp_path / "copy" / encoder).read_bytes() == (tmp_path / "run/model" / encoder).read_bytes()
    with refused("is not empty"):
        fitted.save_model(tmp_path / "copy")


def test_vectors_equal_those_of_transformers(model: str) -> None:
    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.no_grad():
        states = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS[:8]]
    for pooling, pool in (("mean", lambda s: s.mean(0)), ("cls", lambda s: s[0]), ("max", lambda s: s.amax(0))):
        expected = torch.stack([pool(state) for state in states])
        for normalize in (False, True):
            vectors = TextEncoder(model, pooling=pooling, normalize=normalize).fit_transform(TEXTS[:8])
            reference = torch.nn.functional.normalize(expected, dim=-1) if normalize else expected
            np.testing.assert_allclose(vectors, reference.numpy(), atol=1e-5)


def test_column_transformer_and_pipeline(model: str) -> None:
    table = pd.DataFrame({"text": TEXTS, "other": TEXTS[::-1], "number": np.arange(48.0)})
    encoder = TextEncoder(model)
    parts = ColumnTransformer(
        [
            ("one", encoder, "text"),
            ("table", encoder, ["other"]),
            ("pair", encoder, ["text", "other"]),
            ("n", StandardScaler(), ["number"]),
        ]
    ).set_output(transform="pandas")
    vectors = parts.fit_transform(table)
    width = encoder.fit(TEXTS).transform(TEXTS).shape[1]
    assert vectors.shape == (48, 3 * width + 1)
    assert vectors.columns[0] == "one__textencoder0"
    assert parts.named_transformers_["pair"].n_features_in_ == 2
    assert list(parts.named_transformers_["pair"].feature_names_in_) == ["text", "other"]
    assert make_pipeline(parts, LogisticRegression(max_iter=500)).fit(table, LABELS).score(table, LABELS) > 0.7


def test_cross_validation_calibration_and_stacking(model: str) -> None:
    classifier = TextClassifier(model, "prototypes")
    scores = cross_val_score(classifier, TEXTS, LABELS, cv=KFold(2))
    for score, (train, test) in zip(scores, KFold(2).split(TEXTS), strict=True):
        fitted = clone(classifier).fit(np.array(TEXTS)[train], np.array(LABELS)[train])
        assert fitted.score(np.array(TEXTS)[test], np.array(LABELS)[test]) == score
    calibrated = CalibratedClassifierCV(classifier, cv=2).fit(TEXTS, LABELS)
    assert calibrated.predict_proba(TEXTS).shape == (48, 2)
    others = [("texts", classifier), ("vectors", make_pipeline(TextEncoder(model), LogisticRegression()))]
    assert StackingClassifier(others, cv=2).fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.6


@pytest.mark.process
def test_grid_search_and_pickles_in_other_processes(model: str) -> None:
    """The pickles contain bytes of safetensors, and no module or tensor of PyTorch; the processes of the search load them."""
    prototypes = TextClassifier(model, "prototypes")
    search = GridSearchCV(prototypes, {"strategy": ["prototypes", LINEAR]}, cv=2, n_jobs=2).fit(TEXTS, LABELS)
    assert search.best_params_["strategy"] in ("prototypes", LINEAR)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    alone = cross_val_score(prototypes, TEXTS, LABELS, cv=2)
    assert search.cv_results_["mean_test_score"][0] == alone.mean()
    fitted, encoder = prototypes.fit(TEXTS, LABELS), TextEncoder(model).fit(TEXTS)
    for estimator in (fitted, encoder):
        names = {str(value) for _, value, _ in pickletools.genops(pickle.dumps(estimator)) if isinstance(value, str)}
        assert "model.safetensors" in names
        assert not any(
            name.startswith(("torch.", "transformers.", "nlp_transfer.models", "nlp_transfer.inference")) for name in names
        )
    calls = [joblib.delayed(fitted.predict_proba)(TEXTS), joblib.delayed(encoder.transform)(TEXTS)]
    probabilities, vectors = joblib.Parallel(n_jobs=2)(calls)
    np.testing.assert_allclose(probabilities, fitted.predict_proba(TEXTS), atol=1e-6)
    np.testing.assert_allclose(vectors, encoder.transform(TEXTS), atol=1e-5)


def test_multi_label_targets_in_several_forms(model: str) -> None:
    """Indicators, a DataFrame of indicators and collections of labels give the same model and predictions of that form."""
    hot = np.array([[i % 2, i % 3 == 0] for i in range(48)], int)
    names = [[name for name, value in zip(("even", "third"), row, strict=True) if value] for row in hot]
    forms = (hot, pd.DataFrame(hot, columns=["even", "third"]), names)
    fitted = [MultiLabelTextClassifier(model, "prototypes").fit(TEXTS, y) for y in forms]
    assert [list(each.classes_) for each in fitted] == [[0, 1], ["even", "third"], ["even", "third"]]
    probabilities = [each.predict_proba(TEXTS) for each in fitted]
    np.testing.assert_allclose(probabilities[0], probabilities[2], atol=1e-6)
    predicted = fitted[0].predict(TEXTS)
    assert (predicted == (probabilities[0] >= 0.5)).all()
    assert fitted[2].predict(TEXTS) == [tuple(np.array(["even", "third"])[row == 1]) for row in predicted]
    assert fitted[0].score(TEXTS, hot) == fitted[2].score(TEXTS, names) == (predicted == hot).all(1).mean()
    low = clone(fitted[0]).set_params(settings={"task.threshold": 0.01}).fit(TEXTS, hot)
    assert low.predict(TEXTS).sum() > predicted.sum()


def test_regression_and_pairs(model: str) -> None:
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    y = np.arange(48) * 100.0 + 5000
    fitted = TextRegressor(model, "features", epochs=1).fit(pairs, y)
    assert fitted.n_features_in_ == 2
    assert 4000 < fitted.predict(pairs).mean() < 10000
    assert fitted.predict(pairs).dtype == np.float64
    with pytest.raises(ValueError, match="expecting 2 features"):
        fitted.predict(TEXTS)


def test_weights_equal_repeated_rows(model: str) -> None:
    times = np.array([1, 3, 0, 2] * 12)
    classifier = TextClassifier(model, LINEAR)
    weighted = clone(classifier).fit(TEXTS, LABELS, sample_weight=times)
    repeated = clone(classifier).fit(np.repeat(TEXTS, times), np.repeat(LABELS, times))
    np.testing.assert_allclose(weighted.predict_proba(TEXTS), repeated.predict_proba(TEXTS), atol=1e-3)
    with refused("data.weight", "prototypes"):
        TextClassifier(model, "prototypes").fit(TEXTS, LABELS, sample_weight=times)


def test_settings_by_dotted_name(model: str) -> None:
    settings = {"strategy.r": 2, "training.max_steps": 1, "task.head": {"pooling": "max"}}
    classifier = TextClassifier(model, "lora", settings=settings)
    assert clone(classifier).get_params()["settings"] == settings
    fitted = classifier.fit(TEXTS, LABELS)
    assert fitted.result_["train"]["steps"] == 1
    with refused("training.max_stepz"):
        TextClassifier(model, settings={"training.max_stepz": 1}).fit(TEXTS, LABELS)


def test_settings_that_fit_determines_are_refused(model: str) -> None:
    """For example, other labels would permute the probabilities, and predictions cannot be withheld."""
    for name, value in {
        "task.labels": ["positive", "negative"],
        "task.label": "other",
        "task.abstain": 0.8,
        "task": {"head": "family"},
        "data.train": "other.csv",
        "model": "other",
        "output_dir": "other",
    }.items():
        with refused(f"found {name},"):
            TextClassifier(model, settings={name: value}).fit(TEXTS, LABELS)


def test_predict_applies_the_threshold(model: str) -> None:
    settings = {"task.positive": "negative", "task.threshold": 0.3}
    fitted = TextClassifier(model, "prototypes", settings=settings).fit(TEXTS, LABELS)
    probability = fitted.predict_proba(TEXTS)[:, 0]
    assert ((probability >= 0.3) != (probability >= 0.5)).any()
    assert list(fitted.predict(TEXTS)) == np.where(probability >= 0.3, "negative", "positive").tolist()
    assert list(fitted.predict(TEXTS)) == [row["prediction"] for row in fitted.predictor_(TEXTS)]


def test_encoder_of_a_run_keeps_its_length(model: str, tmp_path: Path) -> None:
    """A fine-tuned model is found in its run folder; the length of its inputs survives pickling."""
    TextClassifier(model, "features", epochs=1, max_length=4, output_dir=tmp_path / "run").fit(TEXTS, LABELS)
    texts = ["good film", "a very good film and a very bad plot"]
    encoder = TextEncoder(tmp_path / "run").fit(texts)
    np.testing.assert_allclose(encoder.transform(texts), load_embedder(tmp_path / "run")(texts), atol=1e-6)
    longer = TextEncoder(model).fit_transform(texts)
    assert np.abs(longer - encoder.transform(texts)).max(1)[1] > 1e-3
    np.testing.assert_allclose(pickle.loads(pickle.dumps(encoder)).transform(texts), encoder.transform(texts), atol=1e-6)
    for source, length in ((tmp_path / "run", 9), (model, 1000)):
        with refused("max_length", str(length)):
            TextEncoder(source, max_length=length).fit(texts)


def test_incomplete_encoder_is_refused(model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors")
    missing = next(name for name in weights if "attention.self.query.weight" in name)
    weights.pop(missing)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused("no weights", "query.weight"):
        TextEncoder(folder).fit(TEXTS)


def test_warnings_name_the_line_of_the_caller(model: str) -> None:
    with pytest.warns(UserWarning, match="optimizer steps") as raised:
        TextClassifier(model, LINEAR | {"classifier": "trained"}, epochs=1).fit(TEXTS, LABELS)
    assert {Path(warning.filename) for warning in raised if "optimizer steps" in str(warning.message)} == {Path(__file__)}


def test_wrong_input_is_refused(model: str) -> None:
    classifier = TextClassifier(model, "prototypes")
    for inputs, facts in (
        ("a single text", ("X",)),
        ([1, 2], ("X[0]", "1", "int")),
        (["a", None], ("X[1]", "None")),
        ([("a", "b"), ("a", " ")], ("X[1, 1]", "empty")),
        ([("a", "b", "c")] * 2, ("3 columns",)),
    ):
        with refused(*facts):
            classifier.fit(inputs, ["x", "y"])
    with refused("one class"):
        classifier.fit(["a", "b"], ["x", "x"])
    for missing in (None, np.nan, pd.NA):
        with refused("1 of 3 labels"):
            classifier.fit(["a", "b", "c"], pd.Series(["x", missing, "y"]))
    with refused("int", "str"):
        classifier.fit(["a", "b"], np.array([1, "x"], object))
    with refused("'x|y'", "a list of labels"):
        MultiLabelTextClassifier(model).fit(["a", "b"], ["x|y", "y"])
    with pytest.raises(ValueError, match="zero"):
        classifier.fit(["a", "b"], ["x", "y"], sample_weight=[0, 0])
    with refused("pooling", "sum"):
        TextEncoder(model, pooling="sum").fit(TEXTS)
    with refused("no row has the label"):
        MultiLabelTextClassifier(model).fit(["a", "b"], np.array([[1, 0], [0, 0]]))
