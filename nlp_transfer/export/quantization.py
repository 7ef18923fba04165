"""Convert an ONNX graph to the requested engine and precision."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.inference.exported_model import import_openvino

Inputs = Mapping[str, np.ndarray]


def write_graph(onnx: Path, graph: Path, precision: str, samples: Sequence[Inputs], keep_sensitive: bool = False) -> None:
    """Write the graph of an engine.

    Args:
        onnx: The fp32 graph.
        graph: File to write; `.xml` for OpenVINO. May be `onnx` itself.
        precision: `fp32`, `fp16` or `int8`.
        samples: Inputs for the calibration of int8, each int64 of shape (rows, tokens) by name.
        keep_sensitive: Whether the most sensitive layers stay in fp32.
    """
    excluded = sensitive_layers(onnx) if keep_sensitive else []
    graph.parent.mkdir(exist_ok=True)
    if graph.suffix == ".xml":
        openvino = import_openvino()
        model = openvino.convert_model(onnx)
        if precision == "int8":
            model = _calibrated(model, samples, excluded)
        openvino.save_model(model, graph, compress_to_fp16=precision == "fp16")
    elif precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx, graph, per_channel=True, weight_type=QuantType.QInt8, nodes_to_exclude=excluded)
    elif precision == "fp16":
        from onnx import load, save
        from onnxruntime.transformers.float16 import convert_float_to_float16

        save(convert_float_to_float16(load(onnx), keep_io_types=True), graph)


def sensitive_layers(onnx: Path) -> list[str]:
    """Return the names of the layers that reduce the width, which are the projections down from feed-forward layers.

    They lose most in 8 bits, because their inputs have outliers (Bondarenko et al. 2021, 2109.12948).
    """
    from onnx import load

    graph = load(onnx, load_external_data=False).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    layers = [(node.name, shapes.get(node.input[1], ())) for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    return [name for name, shape in layers if len(shape) == 2 and shape[0] > shape[1]]


def _single_embeddings(model: Any) -> list[str]:
    """Return the names of the lookups in tables of one row, such as the token types of RoBERTa.

    OpenVINO replaces these lookups by a constant, and cannot load the graph if the row is quantized.
    """
    lookups = [node for node in model.get_ops() if node.get_type_name() == "Gather"]
    shapes = [node.input(0).get_partial_shape() for node in lookups]
    return [
        node.get_friendly_name()
        for node, shape in zip(lookups, shapes, strict=True)
        if shape.is_static and len(shape) == 2 and shape.to_shape()[0] == 1
    ]


def _calibrated(model: Any, samples: Sequence[Inputs], excluded: list[str]) -> Any:
    """Return an OpenVINO model with static quantization: a scale per channel of the weights, and calibrated activations."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    excluded = excluded + _single_embeddings(model)
    return nncf.quantize(
        model,
        nncf.Dataset(list(samples)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=excluded, validate=False) if excluded else None,
    )
