"""Exports for onnxruntime and OpenVINO: equal to the trained model, usable by every command, and without torch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlp_transfer import UserError, load_predictor
from nlp_transfer.export.exporter import export_model
from nlp_transfer.inference.embedding import load_embedder
from tests.builders import columns, printed, read_table, refused, run, sentiment_rows, succeed, write

TEXTS = ["a good film", "an awful film", "good " * 60, "🙂", "bright dull"]
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'nlp_transfer'))); "


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with a validation split, whose data stays in place."""
    folder = tmp_path_factory.mktemp("exports")
    table = write(folder / "train.csv", list(zip(*columns(80, "text", "label").values(), strict=True)))
    return run(
        model=tiny["bert"], data={"train": table, "validation_share": 0.25}, output_dir=folder / "run",
        training={"max_steps": 30, "learning_rate": 5e-3},
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def converted_once() -> Iterator[None]:
    """Convert the trained model to ONNX once, since this takes most of the time of an export."""
    from nlp_transfer.export import exporter as module

    real, graphs = module.write_onnx, []

    def write_onnx(model: Any, inputs: Any, path: Path) -> None:
        if not graphs:
            real(model, inputs, path)
            graphs.append(path.read_bytes())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(graphs[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_onnx", write_onnx)
        yield


@pytest.fixture(scope="module")
def exports(trained: Any) -> dict[str, Any]:
    return {f"{to}-{precision}": export_model(trained.output_dir, to, precision, max_loss=0.2)
            for to, precision in (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"))}  # fmt: skip


@pytest.mark.parametrize("name", ["onnx-fp32", "openvino-fp32"])
def test_fp32_exports_predict_like_the_model(trained: Any, exports: dict[str, Any], name: str) -> None:
    expected = load_predictor(trained.output_dir)(TEXTS, probabilities=True)
    predicted = load_predictor(exports[name].folder)(TEXTS, probabilities=True)
    for before, after in zip(expected, predicted, strict=True):
        assert before.keys() == after.keys()
        assert before["prediction"] == after["prediction"]
        assert before["probability"] == pytest.approx(after["probability"], abs=1e-5)


def test_report_states_what_was_measured(exports: dict[str, Any]) -> None:
    for name, export in exports.items():
        report = json.loads((export.folder / "export.json").read_text())
        assert f"{report['to']}-{report['precision']}" == name
        assert report["rows"] == 20
        assert report["metric_loss"] == pytest.approx(report["trained"] - report["exported"])
        assert report["bytes"] > 0
        assert 0 <= report["same_predictions"] <= 1
    sizes = {name: sum(path.stat().st_size for path in export.folder.rglob("*.bin")) for name, export in exports.items()}
    assert sizes["openvino-int8"] < sizes["openvino-fp32"] / 2


@pytest.mark.parametrize("name", ["onnx-int8", "openvino-int8"])
def test_int8_itself_is_measured(trained: Any, exports: dict[str, Any], name: str) -> None:
    """Beside an fp32 graph in the same folder, that one would be loaded."""
    export = exports[name]
    assert not list(export.folder.rglob("*model.onnx"))
    assert (export.folder / "predict.py").is_file()
    expected, found = (load_predictor(folder)(TEXTS, probabilities=True) for folder in (trained.output_dir, export.folder))
    pairs = zip(expected, found, strict=True)
    assert max(abs(one["probability:positive"] - other["probability:positive"]) for one, other in pairs) > 1e-5
    assert export.report["logit_difference"] > 1e-4


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_fp16_exports_are_smaller(trained: Any, exports: dict[str, Any], to: str, tmp_path: Path) -> None:
    export, whole = export_model(trained.output_dir, to, "fp16", output=tmp_path / "export"), exports[f"{to}-fp32"].report
    weights = sum(parameter.nbytes for parameter in load_predictor(trained.output_dir, backend="torch").model.parameters())
    # Casts make the graph larger, which counts in so small a model.
    assert 0.1 * weights < whole["bytes"] - export.report["bytes"] <= 0.5 * weights
    assert whole["logit_difference"] < export.report["logit_difference"] < 2e-2
    expected, found = (load_predictor(folder)(TEXTS) for folder in (trained.output_dir, export.folder))
    for before, after in zip(expected, found, strict=True):
        assert after["prediction"] == before["prediction"]
        assert after["probability"] == pytest.approx(before["probability"], abs=1e-2)


def test_commands_accept_an_export(exports: dict[str, Any], tmp_path: Path) -> None:
    folder, table = exports["onnx-fp32"].folder, write(tmp_path / "in.csv", [("a good film", "positive")])
    succeed("predict", folder, "--input", table, "--output", tmp_path / "out.csv")
    assert {"prediction", "probability"} < set(read_table(tmp_path / "out.csv")[0])
    assert printed("evaluate", folder, "--data.test", table)["rows"] == 1


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8", "openvino-fp32"])
def test_script_predicts_without_torch(trained: Any, exports: dict[str, Any], name: str) -> None:
    script = exports[name].folder / "predict.py"
    code = WITHOUT_TORCH + f"sys.argv[1:] = {TEXTS!r}; import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    alone = load_predictor(exports[name].folder)  # dynamic quantization depends on the batch
    expected = [alone(text) for text in TEXTS] if name == "onnx-int8" else load_predictor(trained.output_dir)(TEXTS)
    for before, line in zip(expected, lines, strict=True):
        after = json.loads(line)
        assert after["prediction"] == before["prediction"]
        np.testing.assert_allclose(after["probability"], before["probability"], atol=1e-5)


def test_compiled_models_are_loaded_from_a_cache(
    exports: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, str(exports["openvino-int8"].folder / "predict.py"), *TEXTS]
    printed_by: list[str] = []
    for cache in ("", str(tmp_path), str(tmp_path)):
        environment = os.environ | {"OPENVINO_CACHE": cache}
        printed_by.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(printed_by[0].splitlines()) == len(TEXTS)
    assert printed_by == printed_by[:1] * 3
    expected = load_predictor(exports["openvino-int8"].folder)(TEXTS)
    monkeypatch.setenv("OPENVINO_CACHE", str(tmp_path))
    assert load_predictor(exports["openvino-int8"].folder)(TEXTS) == expected
    assert len(list(tmp_path.glob("*.blob"))) == 1


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from nlp_transfer import load_predictor
from nlp_transfer.export.script_check import _load

folder = Path(sys.argv[1])
predictors = [load_predictor(folder), _load(folder / "predict.py"), load_predictor(folder), _load(folder / "predict.py")]
while predictors:
    del predictors[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_are_handled_after_predictors_are_freed(exports: dict[str, Any]) -> None:
    """OpenVINO frees the stack that it installs for signals with each model, whether or not the stack is in use."""
    command = [sys.executable, "-c", SIGNALLED, str(exports["openvino-fp32"].folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["handled"]), done.stderr


def test_telemetry_of_openvino_is_not_imported(exports: dict[str, Any]) -> None:
    assert load_predictor(exports["openvino-int8"].folder)(TEXTS)
    assert sys.modules["openvino_telemetry"] is None
    assert "openvino_telemetry" in (exports["openvino-int8"].folder / "predict.py").read_text()


def test_lossy_export_is_refused(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlp_transfer.export import exporter as module

    real = module.write_graph

    def damaged(onnx: Path, graph: Path, *arguments: Any) -> None:
        import onnx as package

        model = package.load(onnx)
        weights = max(model.graph.initializer, key=lambda value: len(value.raw_data))
        weights.raw_data = bytes(len(weights.raw_data))
        package.save(model, onnx)
        real(onnx, graph, *arguments)

    monkeypatch.setattr(module, "write_graph", damaged)
    with refused("validation rows", "--max-loss"):
        export_model(trained.output_dir, "onnx", output=tmp_path / "exports" / "export", max_loss=0)
    assert list(tmp_path.iterdir()) == []


def test_refusals_name_what_is_allowed(trained: Any, exports: dict[str, Any], tmp_path: Path) -> None:
    with refused("--output", "already exists", "--overwrite"):
        export_model(trained.output_dir, "onnx")
    with refused("--precision", "bf16", "int8"):
        export_model(trained.output_dir, "onnx", "bf16")
    with refused("--data.validation", "is required"):
        export_model(trained.output_dir / "model", "onnx", output=tmp_path / "export")
    with refused("--backend openvino", "openvino_model.xml"):
        load_predictor(exports["onnx-fp32"].folder, backend="openvino")
    with refused("--precision", "bf16", "onnx"):
        load_predictor(exports["onnx-fp32"].folder, precision="bf16")


def test_exported_encoder_has_the_same_vectors(tiny: dict[str, Path], exports: dict[str, Any], tmp_path: Path) -> None:
    write(tiny["bert"] / "modules.json", "[]")
    folder = export_model(tiny["bert"], "onnx", output=tmp_path / "encoder").folder
    (tiny["bert"] / "modules.json").unlink()
    assert (folder / "modules.json").is_file(), "what other programs pool with is copied"
    for settings in ({}, {"pooling": "cls", "normalize": True}):
        expected, found = (load_embedder(place, **settings)(TEXTS) for place in (tiny["bert"], folder))
        assert expected.std() > 0.01
        np.testing.assert_allclose(found, expected, atol=1e-4)
    for odd in (["x", "🙂" * 300, "good " * 5000, "e\u0301"], [], "a single text", [""], ["a", " "], [None], [3]):
        vectors: list[Any] = []
        for place in (tiny["bert"], folder):
            try:
                vectors.append(load_embedder(place)(odd))
            except UserError as error:
                vectors.append(str(error))
        if isinstance(vectors[0], str):
            assert vectors[1] == vectors[0]
        else:
            np.testing.assert_allclose(*vectors, atol=1e-4)
    table = write(tmp_path / "in.csv", [(text, "positive") for text in TEXTS])
    succeed("embed", folder, "--input", table, "--output", tmp_path / "vectors.npy")
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), load_embedder(tiny["bert"])(TEXTS), atol=1e-4)
    with refused("--data.validation", "int8"):
        export_model(tiny["bert"], "openvino", "int8", tmp_path / "other")
    with refused("embed", "without a head"):
        load_embedder(exports["onnx-fp32"].folder)


def test_exported_regression_predicts_numbers(tiny: dict[str, Path], tmp_path: Path) -> None:
    scores = {"negative": "1", "positive": "4"}
    table = write(tmp_path / "train.csv", [(text, scores[label]) for text, label in sentiment_rows(40)])
    done = run(
        model=tiny["bert"], data={"train": table, "validation": table}, output_dir=tmp_path / "run",
        task={"name": "regression"}, training={"max_steps": 40, "batch_size": 8, "learning_rate": 5e-3},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        from nlp_transfer.export import exporter as module
        from nlp_transfer.models.onnx_graph import write_onnx

        patch.setattr(module, "write_onnx", write_onnx)
        folder = export_model(done.output_dir, "openvino").folder
    expected, found = ([row["prediction"] for row in load_predictor(place)(TEXTS)] for place in (done.output_dir, folder))
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.1
    assert json.loads((folder / "export.json").read_text())["same_predictions"] == 1
