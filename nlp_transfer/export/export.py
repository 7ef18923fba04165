"""Export a trained model, and check the export before it is kept."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.bad_rows import SKIP_HINT, check_rows
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.export.onnx_graph import write_onnx
from nlp_transfer.export.quantization import write_graph
from nlp_transfer.export.standalone import write_standalone
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.exported_model import GRAPHS, INSTALL
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.layers import output_logits
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.run.recorded_splits import recorded_splits
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.saved_models.save import record, versions
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.tasks import Arrays, task_name
from nlp_transfer.utils.atomic_files import replacing_folder, write_json
from nlp_transfer.utils.console import percent, say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

REPORT = "export.json"
CHECKED_ROWS, CALIBRATION_ROWS = 2000, 300
DIFFERENCE = {"fp32": 1e-4, "fp16": 2e-2}  # largest relative difference of the logits; int8 is judged by the metric alone
PRECISIONS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "fp16", "int8")}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: Folder of the exported model, which `load_predictor` opens.
        report: The content of `export.json`: what was measured before the export was kept.
    """

    folder: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class _Measured:
    """Predictions of a table by one model: the predictions, the logits of the first batch, the metric, rows per second."""

    predictions: Arrays
    logits: np.ndarray
    metric: float
    rows_per_second: float


def export_model(
    model: str | Path,
    to: str = "onnx",
    precision: str = "fp32",
    output: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    max_loss: float = 0.005,
    overwrite: bool = False,
) -> Export:
    """Export a model to ONNX or OpenVINO.

    The exported model is compared with the trained one on validation rows. If its logits or its metric differ too much, nothing
    is written.

    Args:
        model: a run folder, a model folder, an adapter folder or a hub id of a model with a head.
        to: `onnx` or `openvino`.
        precision: `fp32`; `fp16`, which stores weights in half the space (OpenVINO); `int8`, which also computes in 8 bits.
        output: folder to write. None: `exports/onnx-int8` and so on in the run folder.
        data: settings in `data`; `validation` is a labeled file to check with. None: the validation split of the run.
        max_loss: the largest loss of the task's metric that is accepted.
        overwrite: whether to replace an existing folder.

    Raises:
        UserError: a package is missing, the model cannot be exported, there are no validation rows, or the export differs too
            much from the trained model.
    """
    _check(to, precision)
    folder = _output_folder(model, to, precision, output, overwrite)
    predictor = load_predictor(model, backend="torch")
    if predictor.task.traits.generates:
        raise UserError(
            f"export: {model} is a {task_name(predictor.task)} model, which generates text; {to} is for models with a head, such "
            "as classifiers"
        )
    calibration, validation = _rows(model, dict(data or {}), predictor)
    table = predictor.encode(validation, targets=True)
    say(f"exporting to {to} in {precision}; the export is compared with the trained model on {len(validation):,} rows")
    with replacing_folder(folder) as partial:
        onnx, graph = partial / GRAPHS["onnx"][0], partial / GRAPHS[to][to == "onnx" and precision == "int8"]
        write_onnx(predictor.model, model_inputs(table.batch(np.arange(2))), onnx)
        _write_files(predictor, partial)
        trained = _measure(predictor, table)
        samples = _samples(predictor, calibration) if precision == "int8" else []
        for keep_sensitive in (False, True) if precision == "int8" else (False,):
            write_graph(onnx, graph, precision, samples, keep_sensitive)
            exported = _measure(load_predictor(partial, backend=to), table)
            report = _report(predictor, trained, exported, to, precision, keep_sensitive)
            if report["metric_loss"] <= max_loss:
                break
            say(f"int8: the loss is {report['metric_loss']:.4f}; trying again with the sensitive layers in fp32")
        _judge(report, max_loss, precision)
        if graph != onnx:
            onnx.unlink()
            if to != "onnx":
                onnx.parent.rmdir()
        report["bytes"] = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.stem}.*"))
        write_standalone(predictor, to, partial)
        write_json(partial / REPORT, report)
    return Export(folder, report)


def _check(to: str, precision: str) -> None:
    if to not in PRECISIONS:
        raise UserError(f"--to: found {to!r}; allowed: {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[to]:
        raise UserError(f"--precision: found {precision!r}; allowed with --to {to}: {', '.join(PRECISIONS[to])}")
    for package in (*PACKAGES[to], *(("nncf",) if precision == "int8" else ())):
        if find_spec(package) is None:
            raise UserError(f"export: needs the package {package}, which is not installed; to install it: {INSTALL}")


def _output_folder(model: str | Path, to: str, precision: str, output: str | Path | None, overwrite: bool) -> Path:
    place = expand(model)
    if output is None and not (place / "config.yaml").is_file():
        raise UserError(f"--output: is required, since {model} is not the folder of a run; allowed: a folder")
    folder = place / "exports" / f"{to}-{precision}" if output is None else expand(output)
    if folder.exists() and not overwrite:
        raise UserError(f"--output: {folder} already exists; allowed: another folder, or --overwrite to replace it")
    if folder.exists() and any(folder.iterdir()) and not (folder / REPORT).is_file():
        raise UserError(f"--output: {folder} is not an export, so it is not replaced; allowed: another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _rows(model: str | Path, data: dict[str, Any], predictor: Predictor) -> tuple[Rows, Rows]:
    """Return rows to calibrate int8 with, and labeled rows to check the export with, both drawn at random."""
    task = predictor.task
    if data.get("validation") is None:
        try:
            splits, _ = recorded_splits(expand(model))
        except UserError as error:
            raise UserError(f"--data.validation: is required; the data of the run cannot be used: {error}") from error
        validation = splits.rows.get("validation")
        if validation is None:
            raise UserError(f"--data.validation: is required, since {model} had no validation split; allowed: a labeled file")
        train = splits.train if len(splits.train) else validation
    else:
        problems = Problems("data", row_hint=SKIP_HINT)
        settings = DataConfig(**data)
        columns = [*task.inputs, *task.targets]
        rows = read_rows(settings.validation, "validation", settings, columns, task.traits.readers)
        train = validation = check_rows(rows, "validation", settings, task.check, problems)
        problems.raise_if_any()
    if len(validation) < 2:
        raise UserError(f"--data.validation: found {len(validation)} rows; allowed: at least 2")
    return _sample(train, CALIBRATION_ROWS), _sample(validation, CHECKED_ROWS)


def _sample(rows: Rows, count: int) -> Rows:
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))


def _samples(predictor: Predictor, rows: Rows) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each row, without padding."""
    table = predictor.encode(rows)
    return [
        {name: tensor.numpy() for name, tensor in model_inputs(table.batch(np.array([i]))).items()} for i in range(len(table))
    ]


def _write_files(predictor: Predictor, folder: Path) -> None:
    """Write what a model folder has besides its weights."""
    with quiet():
        predictor.model.config.save_pretrained(folder)
        predictor.tokenizer.save_pretrained(folder)
    write_json(folder / RECORD, record(predictor.task, plain=False))


def _measure(predictor: Predictor, table: TokenTable) -> _Measured:
    import torch

    first = model_inputs(table.batch(np.arange(min(32, len(table)))))
    with torch.inference_mode():
        logits = output_logits(predictor.model(**first)).float().numpy()
    start = time.perf_counter()
    predictions, _ = predict_table(predictor.model, predictor.task, table, predictor.batch_size, predictor.precision)
    seconds = time.perf_counter() - start
    scorer = predictor.task.scorer
    metric = scorer.compute(predictions, table.references).get(scorer.best_metric, float("nan"))
    return _Measured(predictions, logits, metric, len(table) / seconds)


def _report(
    predictor: Predictor, trained: _Measured, exported: _Measured, to: str, precision: str, keep_sensitive: bool
) -> dict[str, Any]:
    scorer = predictor.task.scorer
    sign = 1 if scorer.higher_is_better(scorer.best_metric) else -1
    same = [str(a) == str(b) for a, b in zip(trained.predictions["prediction"], exported.predictions["prediction"], strict=True)]
    return {
        "to": to,
        "precision": precision,
        "fp32_layers": "the projections down from the feed-forward layers" if keep_sensitive else None,
        "rows": len(same),
        "metric": scorer.best_metric,
        "trained": trained.metric,
        "exported": exported.metric,
        "metric_loss": sign * (trained.metric - exported.metric),
        "same_predictions": float(np.mean(same)),
        "logit_difference": float(np.abs(trained.logits - exported.logits).max() / max(1.0, np.abs(trained.logits).max())),
        "rows_per_second": {"trained": trained.rows_per_second, "exported": exported.rows_per_second},
        "versions": versions() | {name: version(name) for name in PACKAGES[to]},
    }


def _judge(report: Mapping[str, Any], max_loss: float, precision: str) -> None:
    """Raise a UserError if an export must not be kept."""
    loss, difference = report["metric_loss"], report["logit_difference"]
    if not loss <= max_loss:
        raise UserError(
            f"export: {report['metric']} on {report['rows']:,} validation rows falls from {report['trained']:.4f} to "
            f"{report['exported']:.4f} in {precision}, a loss of {loss:.4f}; allowed: {max_loss:g}, or more with --max-loss; "
            "nothing was written"
        )
    if difference > DIFFERENCE.get(precision, float("inf")):
        raise UserError(
            f"export: the logits of the exported model differ by {difference:.2g} from those of the trained model; allowed: "
            f"{DIFFERENCE[precision]:g} in {precision}; nothing was written"
        )
    say(
        f"{report['metric']}: {report['trained']:.4f} trained, {report['exported']:.4f} exported; "
        f"{percent(report['same_predictions'])} of the predictions are the same; rows per second: "
        f"{report['rows_per_second']['trained']:,.0f} trained, {report['rows_per_second']['exported']:,.0f} exported"
    )
