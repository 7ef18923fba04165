"""Models that were exported for another engine, and are called like the trained model."""

import contextlib
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import nn

from nlp_transfer.models.device import resolve_precision
from nlp_transfer.models.layers import encoder_type
from nlp_transfer.models.memory import is_out_of_memory
from nlp_transfer.models.verification.allowed import WEIGHTS
from nlp_transfer.utils.errors import UserError, first_line
from nlp_transfer.utils.interrupts import keep_signal_stack

T = TypeVar("T")

# Files of each back end, the most exact first, where optimum, transformers.js and text-embeddings-inference look for them.
GRAPHS = {
    "onnx": ("onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"), "openvino": ("openvino_model.xml",),
    "ctranslate2": ("ctranslate2/model.bin",),
}  # fmt: skip
PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "bf16", "fp16"), "ctranslate2": ("fp32",)}
INSTALL = 'pip install "nlp_transfer[export]"'


class Engine(Protocol):
    """A loaded graph, with the names of its inputs and outputs.

    With `streams` = 1, all threads compute one batch. Otherwise that many threads call `run`, and each computes another batch,
    which is faster for many batches.
    """

    inputs: list[str]
    outputs: list[str]

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for int64 inputs of shape (rows, tokens)."""


def import_openvino() -> Any:
    """Import openvino without its telemetry, which reports each import and conversion to an analytics service.

    The tools of OpenVINO do without the package `openvino_telemetry` if it cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OnnxEngine:
    """A graph in onnxruntime, on the CPU. For `streams`, see `Engine`."""

    def __init__(self, path: Path, precision: str, streams: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if streams == 1 else 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(self.outputs, dict(arrays))
        return outputs


class OpenVinoEngine:
    """A graph in OpenVINO, on the CPU. For `streams`, see `Engine`."""

    def __init__(self, path: Path, precision: str, streams: int) -> None:
        openvino = import_openvino()
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "CACHE_DIR": os.environ.get("OPENVINO_CACHE", ""),  # a folder for compiled models, which are then loaded faster
        }
        with keep_signal_stack():
            self.model = openvino.Core().compile_model(str(path), "CPU", settings)
        self.inputs = [value.any_name for value in self.model.inputs]
        self.outputs = [value.any_name for value in self.model.outputs]
        self.requests: SimpleQueue[Any] = SimpleQueue()  # a request computes one batch at a time
        for _ in range(streams):
            self.requests.put(self.model.create_infer_request())

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        request = self.requests.get()
        try:
            outputs = request.infer(dict(arrays))
            return [np.array(outputs[name]) for name in self.outputs]
        finally:
            self.requests.put(request)


ENGINES: dict[str, Callable[[Path, str, int], Engine]] = {"onnx": OnnxEngine, "openvino": OpenVinoEngine}


@contextlib.contextmanager
def opening(backend: str, graph: Path) -> Iterator[None]:
    """Turn the errors of a back end that cannot load a graph into a UserError."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--backend {backend}: needs the package {error.name}, which is not installed; to install it: {INSTALL}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # the engines raise errors of many types
        raise UserError(
            f"{graph}: cannot be loaded: {_reason(error)}; allowed: a new export, or one for another engine"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error that is no place in the source of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0] if lines else first_line(error)


class Exported(nn.Module):
    """A model that another engine computes, on the CPU.

    Attributes:
        config: Configuration of the trained model.
        backend: A key of `GRAPHS`.
    """

    base_model_prefix = ""  # the graph includes the encoder

    def __init__(self, config: Any, backend: str, graph: Path) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        # The digest takes the place of the weights where a model is identified by its state.
        digest = hashlib.sha256()
        for path in sorted(graph.parent.glob(f"{graph.stem}.*")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        self.register_buffer("digest", torch.tensor(list(digest.digest()), dtype=torch.uint8))
        self.empty = nn.Parameter(torch.zeros(0), requires_grad=False)  # its device is taken for the model's

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return self  # the engines compute on the CPU, so the model cannot be moved


class ExportedModel(Exported):
    """An exported model with a head. Its inputs and outputs are tensors with the same names as those of the trained model."""

    def __init__(self, config: Any, backend: str, graph: Path, precision: str) -> None:
        super().__init__(config, backend, graph)
        self._load = partial(ENGINES[backend], graph, precision)
        with opening(backend, graph):
            self.engine = self._load(1)
        self._ahead: dict[int, tuple[torch.Tensor, Future[list[np.ndarray]]]] = {}  # by the identity of the token ids
        # An identity for models with one output, whose units a regression task changes in its last layer.
        self.output = nn.Linear(1, 1) if config.num_labels == 1 else nn.Identity()
        for parameter, value in zip(self.output.parameters(), (1.0, 0.0), strict=False):
            nn.init.constant_(parameter, value)

    @cached_property
    def _streams(self) -> Engine:
        """The engine for several batches at a time."""
        return self._load(torch.get_num_threads())

    def compute_ahead(self, batches: Iterable[tuple[T, Mapping[str, torch.Tensor]]]) -> Iterator[tuple[T, Any]]:
        """Yield batches whose outputs several threads compute ahead of `forward`.

        Args:
            batches: Batches, each with a value that is yielded with it.
        """
        threads, waiting = torch.get_num_threads(), deque[tuple[T, Any]]()
        pool = ThreadPoolExecutor(threads)
        try:
            for value, batch in batches:
                ids = batch["input_ids"]
                self._ahead[id(ids)] = ids, pool.submit(self._streams.run, self._arrays(batch))
                waiting.append((value, batch))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)
            self._ahead.clear()

    def _arrays(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return {name: inputs[name].long().numpy() for name in self.engine.inputs}

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        """Return the outputs by name, fp32 tensors; for classifiers, these are `logits`."""
        arrays = self._arrays(inputs)
        _, ahead = self._ahead.pop(id(inputs["input_ids"]), (None, None))
        try:
            computed = ahead.result() if ahead else self.engine.run(arrays)
        except Exception as error:  # the engines raise errors of many types
            if is_out_of_memory(error):
                raise
            family, shape = encoder_type(self.config), tuple(next(iter(arrays.values())).shape)
            raise UserError(
                f"export: {self.backend} cannot compute a batch of shape {shape} with the graph of this {family} model: "
                f"{_reason(error)}; allowed: another engine, another model family, or prediction without an export"
            ) from error
        tensors = (torch.from_numpy(array).float() for array in computed)
        outputs = dict(zip(self.engine.outputs, tensors, strict=True))
        return SimpleNamespace(**{name: self.output(tensor) if name == "logits" else tensor for name, tensor in outputs.items()})


def find_graph(folder: Path, backend: str = "auto") -> tuple[str, Path] | None:
    """Return the back end and the graph of an exported model; None for a model whose weights transformers loads.

    Args:
        backend: `auto`: the graph that the folder contains, unless the weights are there too.

    Raises:
        UserError: The folder has no graph for the requested back end.
    """
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    if backend == "torch" or (backend == "auto" and has_weights):
        return None
    wanted = GRAPHS if backend == "auto" else {backend: GRAPHS[backend]}
    for name, graphs in wanted.items():
        for graph in graphs:
            if (folder / graph).is_file():
                return name, folder / graph
    if backend != "auto" and not (backend == "openvino" and has_weights):  # which is converted to OpenVINO when it is loaded
        raise UserError(
            f"--backend {backend}: {folder} has no {' or '.join(GRAPHS[backend])}; allowed: a folder that "
            f"`nlp-transfer export RUN --to {backend}` wrote, or --backend auto"
        )
    return None


def backend_precision(backend: str, precision: str) -> str:
    """Return the precision in which a back end computes; for `auto`, the fastest one that it and the CPU support.

    Raises:
        UserError: The back end does not support it.
    """
    allowed = PRECISIONS[backend]
    if precision == "auto":
        fastest, _ = resolve_precision("auto", "", "--precision")
        return fastest if fastest in allowed else "fp32"
    if precision not in allowed:
        raise UserError(
            f"--precision: found {precision}; {backend} computes in {' or '.join(allowed)}; the precision of an int8 model, and "
            "of every ctranslate2 model, is a part of the export"
        )
    return precision
