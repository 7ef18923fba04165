"""Export a trained model, and check the export before it is kept."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.bad_rows import SKIP_HINT, check_rows
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.export.ctranslate2_model import write_ctranslate2
from nlp_transfer.export.encoder_graph import is_encoder, write_encoder
from nlp_transfer.export.export_folder import (
    CALIBRATION_ROWS,
    calibration_inputs,
    draw,
    graph_bytes,
    graph_paths,
    new_folder,
    output_folder,
    remove_intermediate,
)
from nlp_transfer.export.measurement import Check, is_accepted, judge
from nlp_transfer.export.quantization import write_graph
from nlp_transfer.export.standalone import write_standalone
from nlp_transfer.inference.exported_generator import tokenizers_of
from nlp_transfer.inference.exported_model import GRAPHS, INSTALL
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.onnx_graph import write_onnx
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.run.recorded_splits import recorded_splits
from nlp_transfer.saved_models.custom_models import is_built
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.saved_models.save import record
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.tasks import task_name
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

REPORT = "export.json"
CHECKED_ROWS, GENERATED_ROWS = 2000, 200
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "int8"), "ctranslate2": ("fp32", "bf16", "int8")}
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "ctranslate2": ("ctranslate2",),
}


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: Folder of the exported model, which `load_predictor` opens.
        report: The content of `export.json`: what was measured before the export was kept.
    """

    folder: Path
    report: dict[str, Any]


def export_model(
    model: str | Path,
    to: str = "onnx",
    precision: str = "fp32",
    output: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    max_loss: float = 0.005,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Export:
    """Export a model to ONNX or OpenVINO, or to CTranslate2 if it generates text.

    The exported model is compared with the trained one on validation rows. If its logits or its metric differ too much, nothing
    is written.

    Args:
        model: a run folder, a model folder, an adapter folder or a hub id.
        to: `onnx` or `openvino` for models with a head; `ctranslate2` for translation and summarization.
        precision: `fp32`; `fp16` (ONNX, OpenVINO) or `bf16` (CTranslate2), which store weights in half the space; `int8`, which
            also computes in 8 bits.
        output: folder to write. None: `exports/onnx-int8` and so on in the run folder.
        data: settings in `data`; `validation` is a labeled file to check with. None: the validation split of the run.
        max_loss: the largest loss of the task's metric that is accepted, as a share of its largest value: 0.005 are 0.5 points
            of BLEU or ROUGE, which go up to 100.
        overwrite: whether to replace an existing folder.
        settings: task settings, such as column names or languages, which override the saved ones in the export, too.

    Raises:
        UserError: a package is missing, the model cannot be exported, there are no validation rows, or the export differs too
            much from the trained model.
    """
    _check(to, precision)
    folder = output_folder(model, f"{to}-{precision}", REPORT, output, overwrite)
    if to != "ctranslate2" and is_encoder(model):
        with new_folder(folder) as partial:
            report = write_encoder(model, partial, to, precision, data or {}, max_loss, PACKAGES[to])
            write_json(partial / REPORT, report)
        return Export(folder, report)
    predictor = load_predictor(model, backend="torch", settings=settings)
    if predictor.task.traits.generates != (to == "ctranslate2"):
        fitting = "ctranslate2" if predictor.task.traits.generates else "onnx, openvino"
        raise UserError(f"--to: found {to}; {model} is a {task_name(predictor.task)} model; allowed: {fitting}")
    calibration, validation = _rows(model, dict(data or {}), predictor)
    check = Check.of(predictor, validation, max_loss)
    say(f"exporting to {to} in {precision}; the export is compared with the trained model on {len(validation):,} rows")
    with new_folder(folder) as partial:
        _write_files(predictor, partial)
        if to == "ctranslate2":
            graph, trained = partial / GRAPHS[to][0], check.measure(predictor)
            write_ctranslate2(predictor.model, tokenizers_of(predictor), graph.parent, precision)
            exported = check.measure(load_predictor(partial, backend=to))
            report = check.report(predictor, trained, exported, to, precision, PACKAGES[to])
        else:
            graph, report = _write_head_model(predictor, check, partial, to, precision, calibration, validation)
        judge(report)
        report["bytes"] = graph_bytes(graph)
        write_json(partial / REPORT, report)
    return Export(folder, report)


def _write_head_model(
    predictor: Predictor, check: Check, folder: Path, to: str, precision: str, calibration: Rows, validation: Rows
) -> tuple[Path, dict[str, Any]]:
    """Write the graph of a model with a head, and the program that predicts with it; return the graph and the report."""
    onnx, graph = graph_paths(folder, to, precision)
    write_onnx(predictor.model, model_inputs(check.table.batch(np.arange(2))), onnx)
    trained = check.measure(predictor)
    samples = calibration_inputs(predictor.encode(calibration)) if precision == "int8" else []
    for keep_sensitive in (False, True) if precision == "int8" else (False,):
        write_graph(onnx, graph, precision, samples, keep_sensitive)
        exported = load_predictor(folder, backend=to)
        report = check.report(predictor, trained, check.measure(exported), to, precision, PACKAGES[to])
        report["fp32_layers"] = "the projections down from the feed-forward layers" if keep_sensitive else None
        if is_accepted(report) or precision != "int8" or keep_sensitive:
            break
        say(f"int8: the loss is {report['metric_loss']:.4f}; trying again with the sensitive layers in fp32")
    remove_intermediate(onnx, graph)
    write_standalone(predictor, exported, to, folder, validation, check.table.lengths)
    return graph, report


def _check(to: str, precision: str) -> None:
    if to not in PRECISIONS:
        raise UserError(f"--to: found {to!r}; allowed: {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[to]:
        raise UserError(f"--precision: found {precision!r}; allowed with --to {to}: {', '.join(PRECISIONS[to])}")
    for package in (*PACKAGES[to], *(("nncf",) if precision == "int8" and to != "ctranslate2" else ())):
        if find_spec(package) is None:
            raise UserError(f"export: needs the package {package}, which is not installed; to install it: {INSTALL}")


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
    return draw(train, CALIBRATION_ROWS), draw(validation, GENERATED_ROWS if task.traits.generates else CHECKED_ROWS)


def _write_files(predictor: Predictor, folder: Path) -> None:
    """Write what a model folder has besides its weights."""
    config = copy.deepcopy(predictor.model.config)
    if is_built(predictor.model) and (labels := predictor.task.scorer.labels):  # the task may have used another configuration
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    with quiet():
        config.save_pretrained(folder)
        predictor.tokenizer.save_pretrained(folder)
        if predictor.task.traits.generates:
            predictor.model.generation_config.save_pretrained(folder)
            predictor.task.export(predictor.model, folder)
    write_json(folder / RECORD, record(predictor.task, plain=False))
