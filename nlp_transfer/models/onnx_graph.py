"""Convert a model to ONNX, with any number of rows and tokens."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nlp_transfer.models.layers import encoder_type
from nlp_transfer.models.sdpa import attention_for_fp32, attention_of
from nlp_transfer.utils.errors import UserError, first_line


class _ExportableCalls(TorchFunctionMode):
    """Replaces calls whose graph would be wrong, or cannot be written, with equal ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute the function."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        tensor: Any = args[0] if args else None
        if name == "squeeze" and len(args) == 1 and not kwargs:
            # Without axes, the graph of mBART would also remove the axis of the rows in a batch of one row.
            return tensor.squeeze([axis for axis, size in enumerate(tensor.shape) if size == 1])
        if name == "__rsub__" and isinstance(args[1], float) and not tensor.is_floating_point():
            args = (tensor.float(), args[1])  # `1.0 - attention_mask` of XLNet has no operator in ONNX
        return func(*args, **kwargs)


class _Logits(nn.Module):
    """A model with positional inputs whose outputs are a tuple of all logits, as `torch.export` requires."""

    def __init__(self, model: nn.Module, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _ExportableCalls():
            outputs = self.model(**dict(zip(self.inputs, inputs, strict=True)))
        return tuple(outputs[name].float() for name in self.outputs)


def write_onnx(model: Any, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write the graph of a model, from token ids to logits, or to `last_hidden_state` of an encoder without a head, in fp32.

    Args:
        inputs: Inputs of a batch, int64 of shape (rows, tokens), with at least 2 rows and 2 tokens.

    Raises:
        UserError: The model cannot be converted.
    """
    with torch.inference_mode():
        computed = model(**inputs)
    logits = [name for name in computed.keys() if name.endswith("logits")]  # noqa: SIM118 (not a dictionary)
    outputs = logits or ["last_hidden_state"]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _convert(model, inputs, outputs, path)
    except Exception:
        # The views of some attention outputs, such as T5's, cannot be converted from PyTorch's kernels.
        try:
            with attention_of(model, "eager"):
                _convert(model, inputs, outputs, path)
        except Exception as error:  # torch raises errors of many types for operators that it cannot convert
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise UserError(
                f"export: the {encoder_type(model.config)} model cannot be converted to ONNX ({type(cause).__name__}: "
                f"{first_line(cause)}); allowed: another model family, or prediction without an export; nothing was written"
            ) from error
    _check_shapes(model, path)


def _convert(model: Any, inputs: Mapping[str, torch.Tensor], outputs: list[str], path: Path) -> None:
    names, axes = list(inputs), {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    # dynamo=True: the older exporter traces the attention masks of transformers 5 wrongly; its logits are off by up to 0.03.
    with _quiet(), attention_for_fp32(model):
        torch.onnx.export(
            _Logits(model, names, outputs).eval(), tuple(inputs.values()), str(path), input_names=names, output_names=outputs,
            dynamic_shapes={"inputs": (axes,) * len(names)}, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


def _check_shapes(model: Any, path: Path) -> None:
    """Raise a UserError if a graph accepts only as many rows and tokens as the batch from which it was made."""
    from onnx import load

    shapes = {i.name: [axis.dim_param or axis.dim_value for axis in i.type.tensor_type.shape.dim] for i in load(path).graph.input}
    if fixed := {name: shape for name, shape in shapes.items() if any(isinstance(axis, int) for axis in shape)}:
        name, shape = next(iter(fixed.items()))
        raise UserError(
            f"export: the graph of this {encoder_type(model.config)} model accepts {name} of shape {tuple(shape)} only, not any "
            "number of rows and tokens; allowed: another model family, or prediction without an export; nothing was written"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of the exporter about its stages and about packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
