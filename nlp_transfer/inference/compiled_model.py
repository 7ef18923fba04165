"""Compute a trained model with OpenVINO on the CPU. It is converted once, compared with the trained model, and cached."""

import hashlib
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.inference.exported_model import INSTALL, Exported, ExportedModel, backend_precision, import_openvino
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.layers import logit_difference, output_logits, weights_digest
from nlp_transfer.models.onnx_graph import write_onnx
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.cache_entries import locked, prune
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import default_cache
from nlp_transfer.utils.errors import UserError

PACKAGES = ("openvino", "onnx", "onnxscript")
DIFFERENCE = 1e-4  # largest allowed difference of the logits, relative to the largest one
PROBES = 8  # texts on which the two models are compared
VERSION = 1  # of the cached graphs


def compiled_if_possible(predictor: Predictor) -> Predictor:
    """Return a predictor that computes with OpenVINO, or the given one on a GPU, without OpenVINO, or for an unsuitable model."""
    model = predictor.model
    trained = not isinstance(model, Exported) and next(model.parameters()).device.type == "cpu"
    if not trained or predictor.task.traits.generates or _missing_package():
        return predictor
    try:
        faster = compiled(predictor, predictor.precision)
    except UserError as error:
        say(f"computing with torch, not with the faster OpenVINO: {error}")
        return predictor
    say("computing with OpenVINO, which is faster than torch and gives the same predictions; --backend torch switches it off")
    return faster


def _missing_package() -> str | None:
    return next((package for package in PACKAGES if find_spec(package) is None), None)


def compiled(predictor: Predictor, precision: str) -> Predictor:
    """Return a predictor that computes with OpenVINO and returns the same predictions.

    Args:
        predictor: A trained model, as `load_predictor` loads it.
        precision: `fp32`, `bf16`, `fp16` or `auto`.

    Raises:
        UserError: A package is missing, or the model generates text, cannot be converted, or gives other logits in OpenVINO.
    """
    if missing := _missing_package():
        raise UserError(f"--backend openvino: needs the package {missing}, which is not installed; to install it: {INSTALL}")
    if predictor.task.traits.generates:
        raise UserError(
            "--backend openvino: found a model that generates text; allowed: auto, torch, or ctranslate2 after an export"
        )
    precision = backend_precision("openvino", precision)
    model: Any = predictor.model.cpu()
    folder = default_cache() / "openvino" / _fingerprint(model)
    graph = folder / "openvino_model.xml"
    if not graph.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(folder, "another process is converting the same model to OpenVINO; waiting for it"):
            if not graph.is_file():
                say(f"converting the model to OpenVINO, once; the result is kept in {folder}")
                with replacing_folder(folder) as partial:
                    _convert(predictor, partial)
                prune(folder.parent, folder)
    exported: Any = ExportedModel(model.config, "openvino", graph, precision)
    return Predictor(exported, predictor.tokenizer, predictor.task, predictor.batch_size, precision)


def _convert(predictor: Predictor, folder: Path) -> None:
    """Write the graph of a model to a folder, after a comparison of its logits for one row and for several."""
    openvino, model = import_openvino(), predictor.model
    table = predictor.encode(from_columns(dict.fromkeys(predictor.task.inputs, _probes(predictor)), "random tokens"))
    batches = [model_inputs(table.batch(np.arange(rows))) for rows in (PROBES, 1)]
    onnx, graph = folder / "model.onnx", folder / "openvino_model.xml"
    write_onnx(model, batches[0], onnx)
    openvino.save_model(openvino.convert_model(onnx), graph, compress_to_fp16=False)
    onnx.unlink()
    exported = ExportedModel(model.config, "openvino", graph, "fp32")
    with torch.inference_mode():
        for batch in batches:
            expected, actual = (output_logits(either(**batch)).float() for either in (model, exported))
            if expected.shape[:2] == (real := batch["attention_mask"] > 0).shape:  # logits of padding mean nothing
                expected, actual = expected[real], actual[real]
            if not (difference := logit_difference(expected.numpy(), actual.numpy())) <= DIFFERENCE:
                raise UserError(
                    f"--backend openvino: the logits differ by {difference:.2g} from those of the trained model; allowed: "
                    f"{DIFFERENCE:g}; use --backend torch"
                )


def _probes(predictor: Predictor) -> list[str]:
    """Return texts of random tokens, of 1 to 64 tokens."""
    generator, tokenizer = np.random.default_rng(0), cast(Any, predictor.tokenizer)
    ids = [generator.integers(0, len(tokenizer), length).tolist() for length in (1 << np.arange(PROBES)).clip(max=64)]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() or "a" for row in ids]


def _fingerprint(model: Any) -> str:
    """Return a hash of everything that determines the graph."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    versions = [version(package) for package in PACKAGES] + [torch.__version__, transformers.__version__]
    content = [VERSION, type(model).__qualname__, str(model), config, weights_digest(model), versions]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:40]
