"""Predict the chunks of a file with a saved model, in the main process or in worker processes."""

import hashlib
import json
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.data.sources.task_formats import Readers
from nlp_transfer.data.token_cache import tokenizer_fingerprint
from nlp_transfer.data.unused_settings import unused_columns
from nlp_transfer.inference import predictor as text_predictor
from nlp_transfer.inference import translator
from nlp_transfer.inference.compiled_model import compiled_if_possible
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.inference.output_journal import ChunkPredictions
from nlp_transfer.inference.predictor import PRECISION, Predictor
from nlp_transfer.inference.translator import Translator
from nlp_transfer.models.device import inference_device
from nlp_transfer.models.layers import weights_digest
from nlp_transfer.tasks import task_name
from nlp_transfer.tasks.common.text_generation import TextGenerationTask
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

COMPILED_BYTES = 2_000_000  # size of a file; for smaller ones, converting the model takes longer than it saves


def open_predictor(
    model: str, settings: dict[str, Any], batch_size: int | None, precision: str, base: str | None = None,
    backend: str = "auto",
) -> Predictor:  # fmt: skip
    """Load a saved model; if `precision` is `auto`, print the chosen one."""
    predictor = load_predictor(model, batch_size, precision, settings.get("task"), base, backend=backend)
    if precision == "auto":
        exact = "" if predictor.precision == PRECISION else f"; {PRECISION}, the default, is more exact"
        say(f"computing in {predictor.precision}, the fastest on this machine{exact}")
    return predictor


class FilePredictor:
    """A callable that predicts the chunks of one file with a saved model.

    Args:
        model: a run folder, a model folder, an adapter folder or a hub id.
        source: path of the file, for messages.
        settings: data and task settings, which override those of the saved model.
        batch_size: rows per batch. None means the number that is fastest on the device.
        precision: fp32, bf16, fp16 or auto.
        probabilities: whether to add a column with the probability of each label.
        command: name of the command, `predict` or `translate`.
        beams: beam size of a model that generates text; None: the task's.
        processes: number of processes that each load the model.
        base: current location of the base model of an adapter; None: the recorded one.
        backend: `torch`, `onnx`, `openvino`, `ctranslate2` or `auto`; see `load_predictor`. With `auto`, a trained model with a
            head predicts large files on a CPU with OpenVINO, if it is installed.

    Raises:
        UserError: the model cannot be used or has another task, or several processes would share a GPU.
    """

    def __init__(
        self,
        model: str,
        source: Path,
        settings: dict[str, Any],
        batch_size: int | None,
        precision: str,
        probabilities: bool = False,
        command: str = "predict",
        beams: int | None = None,
        processes: int = 1,
        base: str | None = None,
        backend: str = "auto",
    ) -> None:
        if processes > 1 and (device := inference_device()) != "cpu":
            raise UserError(
                f"--processes: found {processes}; this machine computes on a GPU ({device}), which one process keeps busy; "
                "allowed: 1"
            )
        predictor = open_predictor(model, settings, batch_size, precision, base, backend)
        if backend == "auto" and source.is_file() and source.stat().st_size >= COMPILED_BYTES:
            predictor = compiled_if_possible(predictor)
        traits = predictor.task.traits
        if command != traits.command:
            raise UserError(f"{model}: is a {task_name(predictor.task)} model; use nlp-transfer {traits.command}")
        if beams and not traits.generates:
            raise UserError(f"--beams: {model} is a {task_name(predictor.task)} model, which has no beam search; leave it out")
        if beams:
            predictor.task = predictor.task.model_copy(update={"beams": beams})
        if probabilities and not traits.has_probabilities:
            name = task_name(predictor.task)
            raise UserError(f"--probabilities: {model} is a {name} model, which has no probabilities by label; leave it out")
        say(*unused_columns(predictor.task, source))
        self.predictor, self.source, self.probabilities = predictor, source, probabilities
        self.translator = Translator(predictor) if command == "translate" else None

    @property
    def chunk_rows(self) -> int:
        """Number of rows per chunk."""
        return text_predictor.CHUNK_ROWS if self.translator is None else translator.CHUNK_ROWS

    @property
    def columns(self) -> list[str]:
        """Columns that the model reads."""
        return self.predictor.task.inputs

    @property
    def readers(self) -> Readers:
        """Readers of formats of the model's task, by file extension."""
        return self.predictor.task.traits.readers

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the predictions, except the rows, as JSON.

        Equal identities and equal chunks give bitwise equal predictions. `window` is the number of rows per chunk.
        """
        predictor, model = self.predictor, self.predictor.model
        config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        pair = predictor.task.tokenizers if isinstance(predictor.task, TextGenerationTask) else None
        tokenizers_used = [pair.source, pair.target] if pair else [predictor.tokenizer]
        generation = getattr(model, "generation_config", None)
        task = {f"task.{name}": value for name, value in predictor.task.document().items()}
        return {
            "model": _digest([weights_digest(model), config, getattr(model, "peft_config", None)]),
            "generation settings": _digest(generation.to_dict() if generation else None),
            "tokenizer": _digest([_vocabulary(tokenizer) for tokenizer in tokenizers_used]),
            **{name: json.loads(_canonical(value)) for name, value in task.items()},
            "precision": predictor.precision,
            "batch size": predictor.batch_size,
            "probabilities": self.probabilities,
            "window": self.chunk_rows,
            "types": {"prediction": predictor.task.scorer.prediction_type, "translation": "string", "probability": "double"},
            "threads": torch.get_num_threads(),
            "device": _device_name(inference_device()),
            "versions": [version("nlp_transfer"), torch.__version__, transformers.__version__, tokenizers.__version__],
        }

    def __call__(self, chunk: Batch) -> ChunkPredictions:
        """Predict a chunk.

        Raises:
            UserError: a column is missing, or a new column has the name of a column of the file.
        """
        return (self.translator or self.predictor).predict_chunk(chunk, self.source, self.probabilities)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _vocabulary(tokenizer: Any) -> Any:
    if (content := tokenizer_fingerprint(tokenizer)) is not None:
        return content
    return [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]


def _device_name(device: str) -> str:
    """Return the instruction set of a CPU or the model of a GPU. Devices of the same name compute bitwise equal results."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() if device == "cpu" else device
