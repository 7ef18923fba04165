"""Worker of `prediction` for onnxruntime and OpenVINO, set up by hand: the tokenizers library, and rows sorted by length."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Channel
from tokenizers import Tokenizer
from workers.plain import texts_of

channel = Channel()
settings = channel.settings
folder, batch_size = Path(settings["folder_of_export"]), settings.get("batch_size", 32)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(settings["max_length"])
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
texts = texts_of(settings["test"], settings.get("rows"))


def load() -> tuple[Any, list[str]]:
    """Return a function that computes the logits of a batch, and the names of its inputs."""
    if settings["engine"] == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        session = onnxruntime.InferenceSession(str(folder / settings["graph"]), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)[0], [value.name for value in session.get_inputs()]
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report the import to a server
    import openvino

    options = {"INFERENCE_NUM_THREADS": settings["threads"], "INFERENCE_PRECISION_HINT": settings.get("precision", "f32")}
    model = openvino.Core().compile_model(folder / settings["graph"], "CPU", {"PERFORMANCE_HINT": "LATENCY", **options})
    return lambda inputs: model(inputs)[0], [value.any_name for value in model.inputs]


compute, names = load()


def predict(rows: list[str]) -> np.ndarray:
    """Return probabilities, float32 of shape (rows, labels)."""
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch(rows)
    order = np.argsort([len(row.ids) for row in encoded])
    probabilities = np.zeros((len(rows), len(labels)), np.float32)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = [encoded[i] for i in chosen]
        longest = max(len(row.ids) for row in batch)
        for row in batch:
            row.pad(longest)
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        logits = compute({name: np.array([getattr(row, columns[name]) for row in batch], np.int64) for name in names})
        weights = np.exp(logits - logits.max(1, keepdims=True))
        probabilities[chosen] = weights / weights.sum(1, keepdims=True)
    return probabilities


predict(texts[:64])


def turn(request: dict[str, Any]) -> dict[str, Any]:
    if request.get("probabilities"):
        order = [list(labels.values()).index(label) for label in request["labels"]]
        return {"probabilities": predict(texts)[:, order].tolist()}
    began = time.perf_counter()
    probabilities = predict(texts)
    answers = [{"label": labels[str(best)]} for best in probabilities.argmax(1)]
    seconds = time.perf_counter() - began
    assert len(answers) == len(texts)
    return {"seconds": seconds, "rows_per_second": len(texts) / seconds}


channel.serve(turn)
