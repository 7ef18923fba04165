"""Write `predict.py` into an export: a short program that predicts with the engine and the package tokenizers alone."""

from importlib.resources import files
from pathlib import Path

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.export.script_check import script_fault
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say

SCRIPT = "predict.py"
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
import openvino

# Without the hint, CPUs with bf16 instructions compute in bf16.
model = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
names = [value.any_name for value in model.inputs]


def run(inputs):
    return list(model(inputs).values())
""",
}


def write_standalone(predictor: Predictor, exported: Predictor, to: str, folder: Path, rows: Rows, lengths: np.ndarray) -> None:
    """Write the program, and keep it if it predicts the given rows as the exported model does."""
    kind = TEMPLATES.get(predictor.task.traits.architecture)
    if kind is None or not (folder / "tokenizer.json").is_file():
        say(f"note: no {SCRIPT} is written, because the tokenizer or the task needs more than the package tokenizers")
        return
    template = files("nlp_transfer.export").joinpath(f"scripts/{kind}.py.template").read_text(encoding="utf-8")
    write_bytes(folder / SCRIPT, template.replace("# SESSION\n", SESSION[to]).encode())
    if fault := script_fault(folder / SCRIPT, exported, rows, lengths):
        (folder / SCRIPT).unlink()
        say(f"note: no {SCRIPT} is written, because this model needs more than the package tokenizers ({fault})")
