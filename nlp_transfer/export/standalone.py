"""Write programs into an export that need the engine and the package tokenizers, but no torch.

`predict.py` predicts texts, `serve.py` does so over HTTP, and `Dockerfile` and `requirements.txt` make an image of the server.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.export.script_check import script_fault
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say

SCRIPT, SERVER, DOCKERFILE, REQUIREMENTS = "predict.py", "serve.py", "Dockerfile", "requirements.txt"
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
# The program for each kind of head.
TEMPLATES = {"SequenceClassification": "classify", "TokenClassification": "tag", "QuestionAnswering": "answer"}
SESSION = {
    "onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession(str(next(folder.glob("onnx/*.onnx"))))
names = [value.name for value in session.get_inputs()]


def run(inputs):
    return session.run(None, inputs)
""",
    "openvino": """\
sys.modules["openvino_telemetry"] = None  # otherwise OpenVINO reports each import to an analytics service
import os

import openvino

settings = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise CPUs with bf16 instructions compute in bf16
settings["CACHE_DIR"] = os.environ.get("OPENVINO_CACHE", "")  # a folder for the compiled model, which is then loaded faster
model = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", settings)
names = [value.any_name for value in model.inputs]


def run(inputs):
    return list(model(inputs).values())
""",
}


def write_standalone(predictor: Predictor, exported: Predictor, to: str, folder: Path, rows: Rows, lengths: np.ndarray) -> None:
    """Write the programs, and keep them if they predict the given rows as the exported model does."""
    kind = TEMPLATES.get(predictor.task.traits.architecture)
    if kind is None or not (folder / "tokenizer.json").is_file():
        say(f"note: no {SCRIPT} is written, because the tokenizer or the task needs more than the package tokenizers")
        return
    write_bytes(folder / SCRIPT, _template(f"{kind}.py").replace("# SESSION\n", SESSION[to]).encode())
    if fault := script_fault(folder / SCRIPT, exported, rows, lengths):
        (folder / SCRIPT).unlink()
        say(f"note: no {SCRIPT} is written, because this model needs more than the package tokenizers ({fault})")
        return
    if not predictor.task.traits.pools:
        return
    packages = (PACKAGES[to], "tokenizers", "numpy", "fastapi", "uvicorn")
    texts = {
        SERVER: _template("serve.py"),
        DOCKERFILE: _template("Dockerfile").replace("PYTHON", ".".join(map(str, sys.version_info[:2]))),
        REQUIREMENTS: "".join(map(_requirement, packages)),
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())


def _template(name: str) -> str:
    return files("nlp_transfer.export").joinpath(f"scripts/{name}.template").read_text(encoding="utf-8")


def _requirement(name: str) -> str:
    """Return a line with the installed version, with which the export was checked; any version if it is not installed."""
    try:
        return f"{name}=={version(name)}\n"
    except PackageNotFoundError:
        return f"{name}\n"
