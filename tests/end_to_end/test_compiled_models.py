"""Trained models that are computed by OpenVINO: converted once, equal, and only where this is faster."""

from pathlib import Path
from typing import Any

import pytest

from nlp_transfer import load_predictor
from nlp_transfer.inference import compiled_model, file_predictor
from tests.builders import columns, read_table, refused, run, succeed, write
from tests.helpers.strategies import HEADER, TASKS, rows_of

TEXTS = ["a good film", "an awful film", "good " * 60, "🙂"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLP_TRANSFER_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
        yield folder / "openvino"


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    table = write(folder / "train.csv", list(zip(*columns(40, "text", "label").values(), strict=True)))
    run(model=tiny["bert"], data={"train": table}, output_dir=folder / "run", training={"max_steps": 10, "learning_rate": 5e-3})
    return folder / "run"


@pytest.fixture(scope="module")
def predictor(trained: Path, cache: Path) -> Any:
    """The first one to be loaded, so that its model is converted."""
    return load_predictor(trained, backend="openvino")


def test_predictions_are_equal(trained: Path, predictor: Any) -> None:
    assert predictor.model.backend == "openvino"
    for before, after in zip(
        load_predictor(trained)(TEXTS, probabilities=True), predictor(TEXTS, probabilities=True), strict=True
    ):
        assert before.keys() == after.keys()
        assert before["prediction"] == after["prediction"]
        assert before["probability"] == pytest.approx(after["probability"], abs=1e-5)


def test_conversion_happens_once_for_the_same_weights(
    trained: Path, predictor: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(compiled_model, "write_onnx", fail)
    assert load_predictor(trained, backend="openvino")("good")["prediction"]
    assert [path.name for path in next(cache.iterdir()).iterdir() if path.suffix == ".onnx"] == []
    changed = load_predictor(trained)
    next(changed.model.parameters()).data += 1
    with pytest.raises(AssertionError, match="converted again"):
        compiled_model.compiled(changed, "fp32")


def test_another_graph_is_refused(trained: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, real = load_predictor(trained), compiled_model.write_onnx
    bias = changed.model.classifier.bias
    bias.data += 1

    def damaged(model: Any, *arguments: Any) -> None:
        bias.data -= 1
        real(model, *arguments)
        bias.data += 1

    monkeypatch.setattr(compiled_model, "write_onnx", damaged)
    before = {path.name for path in cache.iterdir() if path.is_dir()}
    with refused("--backend openvino", "0.0001", "--backend torch"):
        compiled_model.compiled(changed, "fp32")
    assert {path.name for path in cache.iterdir() if path.is_dir()} == before


def test_large_files_are_predicted_with_openvino(
    trained: Path, predictor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write(tmp_path / "in.csv", [(text, "positive") for text in TEXTS])
    outputs = {}
    for name, size, flags in (("small", 10**6, []), ("large", 1, []), ("torch", 1, ["--backend", "torch"])):
        monkeypatch.setattr(file_predictor, "COMPILED_BYTES", size)
        said = succeed("predict", trained, "--input", table, "--output", tmp_path / f"{name}.csv", *flags)[1]
        assert ("--backend torch" in said) == (name == "large")
        outputs[name] = [row["prediction"] for row in read_table(tmp_path / f"{name}.csv")]
    assert outputs["small"] == outputs["large"] == outputs["torch"]


def test_models_that_cannot_be_converted_are_computed_by_torch(
    trained: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlp_transfer.utils.errors import UserError

    def refuse(*_: Any) -> None:
        raise UserError("this family cannot be converted")

    monkeypatch.setattr(file_predictor, "COMPILED_BYTES", 1)
    monkeypatch.setattr(compiled_model, "compiled", refuse)
    table = write(tmp_path / "in.csv", [("a good film", "positive")])
    said = succeed("predict", trained, "--input", table, "--output", tmp_path / "out.csv")[1]
    assert "this family cannot be converted" in said
    assert len(read_table(tmp_path / "out.csv")) == 1


@pytest.mark.parametrize("name", ["entities", "regression", "question_answering"])
def test_other_tasks_are_equal(tiny: dict[str, Path], cache: Path, tmp_path: Path, name: str) -> None:
    table = write(tmp_path / "train.csv", rows_of(16), header=HEADER)
    task, training = TASKS[name], {"max_steps": 2, "learning_rate": 1e-2}
    folder = run(model=tiny["bert"], data={"train": table}, task=task, training=training, output_dir=tmp_path / "run").output_dir
    texts = [(text, "bad") for text in TEXTS] if name == "question_answering" else TEXTS
    expected, found = (load_predictor(folder, backend=backend)(texts) for backend in ("torch", "openvino"))
    for before, after in zip(expected, found, strict=True):
        for key, value in before.items():
            assert after[key] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value)
