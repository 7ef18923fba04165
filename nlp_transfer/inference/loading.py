"""Load a saved model, ready to predict or translate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import find_model
from nlp_transfer.inference.compiled_model import compiled
from nlp_transfer.inference.exported_generator import ExportedGenerator
from nlp_transfer.inference.exported_model import GRAPHS, ExportedModel, backend_precision, find_graph
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.inference.translator import Translator
from nlp_transfer.models.checkpoint import Checkpoint, check_head
from nlp_transfer.models.device import inference_device, resolve_precision
from nlp_transfer.models.layers import encoder_type
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.models.verification.model_files import read_settings
from nlp_transfer.saved_models.custom_models import check_built
from nlp_transfer.saved_models.load import (
    check_record,
    find_adapter,
    hub_adapter,
    load_checkpoint,
    open_adapter,
    with_changed_settings,
)
from nlp_transfer.settings.applicability import check_used
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.tasks.common.saved_labels import check_schema, task_for_config
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

BACKENDS = ("auto", "torch", *GRAPHS)


def load_predictor(
    model: str | Path,
    batch_size: int | None = None,
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
    task: type[Task] | Task | None = None,
    backend: str = "auto",
) -> Predictor:
    """Load a saved model for prediction. Its parameters are frozen.

    Models that other programs saved can be loaded too. Labels are read from their configuration; columns have their default
    names, such as `text` for a classifier. Models that generate text are taken for translation models unless `settings` has
    another `name`, such as `summarization`.

    Args:
        model: a run folder, a model folder, an adapter folder or a hub id.
        batch_size: rows per batch. None means the number that is fastest on the device.
        precision: `fp32` gives the same predictions as plain transformers. `bf16` and `fp16` are faster; bf16 changes a
            probability by 0.0008 on average and 0.02 at most (Banking77, MiniLM). `auto` means bf16 on GPUs and on CPUs with bf16
            instructions (avx512_bf16, amx), fp16 on older GPUs, and fp32 elsewhere.
        settings: task settings, such as column names or languages, which override the saved ones. Settings without effect on
            a saved model raise an error.
        base: current location of the base model that an adapter was trained on. None means the recorded location.
        task: the task or its class. Needed if the class cannot be imported by name, such as a class defined in a notebook.
        backend: `torch`; `openvino` for an exported folder or for a trained model with a head, which is then converted once (see
            `compiled`); `onnx` or `ctranslate2` for an exported folder; `auto`: what the folder contains.

    Raises:
        UserError: the model or the base of an adapter is missing or damaged, the precision or back end is not supported, or a
            setting is invalid.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend: found {backend!r}; allowed: {', '.join(BACKENDS)}")
    path = expand(model)
    kind = task if task is None or isinstance(task, type) else type(task)
    loaded: Any
    graph = None
    if adapter := find_adapter(path) or hub_adapter(str(model)):
        loaded, checkpoint, saved = open_adapter(adapter, settings, base=base, kind=kind)
    else:
        if base is not None:
            raise UserError(f"base: found {base}; {model} is not an adapter and needs no base; allowed: None")
        checkpoint = Checkpoint.open(find_model(str(model)))
        record = check_record(read_settings(checkpoint.source, RECORD), checkpoint.source.name)
        named = (settings or {}).get("name")
        before = task_from(record["settings"], kind) if record else task_for_config(checkpoint, named, kind)
        check_head(checkpoint, before.traits.architecture)
        saved = with_changed_settings(before, settings, checkpoint.max_length).prepare(checkpoint)
        check_schema(saved, checkpoint)
        graph = find_graph(Path(checkpoint.source.path), backend)
        if graph:
            precision = backend_precision(graph[0], precision)
            kind_of_export = ExportedGenerator if saved.traits.generates else ExportedModel
            loaded = kind_of_export(checkpoint.config, *graph, precision)
        else:
            loaded = load_checkpoint(checkpoint, saved.traits.load_auto_class(), saved)
            check_built(loaded, saved, record, checkpoint.source.name)
    check_used(saved, scored=True)
    if graph:
        return Predictor(loaded, checkpoint.tokenizer, saved, batch_size, precision)
    if backend == "openvino":
        return compiled(Predictor(loaded, checkpoint.tokenizer, saved, batch_size), precision)
    if backend not in ("auto", "torch"):
        raise UserError(
            f"--backend {backend}: found an adapter; allowed: auto, torch or openvino; to use {backend}, export it first: "
            f"nlp-transfer export {model} --to {backend}"
        )
    precision, _ = resolve_precision(precision, encoder_type(checkpoint.config), "--precision")
    frozen = loaded.to(inference_device()).requires_grad_(False)  # copies of frozen weights are kept between calls
    return Predictor(frozen, checkpoint.tokenizer, saved, batch_size, precision)


def load_translator(
    model: str | Path,
    batch_size: int | None = None,
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
    task: type[Task] | Task | None = None,
    backend: str = "auto",
) -> Translator:
    """Load a saved model for translation. See `load_predictor` for the arguments.

    Raises:
        UserError: as for `load_predictor`, or the model does not translate.
    """
    return Translator(load_predictor(model, batch_size, precision, settings, base, task, backend))
