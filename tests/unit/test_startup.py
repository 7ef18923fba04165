"""Imports before help is shown and before training starts; each of these libraries takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import sentiment_rows, write
from tests.helpers.models import save_tiny

pytestmark = pytest.mark.process

HELP = {"torch", "transformers", "numpy", "pydantic", "accelerate", "datasets", "evaluate", "peft", "sklearn", "scipy", "pandas"}
TRAINING = {
    "aiohttp", "datasets", "evaluate", "matplotlib", "multiprocess", "pandas", "peft", "pyarrow", "sacrebleu",
    "sklearn", "tensorboard", "torchvision",
}  # fmt: skip
PROGRAM = """
import json, os, sys, torch

def first_pass(*_):
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), flush=True)
    os._exit(0)

torch.nn.modules.module.register_module_forward_pre_hook(first_pass)
sys.argv = ["nlp-transfer", "train", sys.argv[1]]
from nlp_transfer.cli import main
main()
"""


def run(program: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    program = """
import json, sys
sys.argv = ["nlp-transfer", "--help"]
from nlp_transfer.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    *shown, loaded = run(program).splitlines()
    assert any("Fine-tune BERT-family models" in line for line in shown)
    found = set(json.loads(loaded))
    assert {"click", "nlp_transfer"} <= found
    assert found & HELP == set()


def test_training_starts_without_unneeded_imports(tmp_path: Path) -> None:
    """A text classification up to its first forward pass."""
    document = {
        "model": str(save_tiny("bert", tmp_path / "tiny")),
        "data": {"train": str(write(tmp_path / "train.csv", sentiment_rows(40)))},
        "task": {"name": "text_classification"},
        "training": {"max_steps": 2},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(document))
    found = set(json.loads(run(PROGRAM, tmp_path / "run.yaml").splitlines()[-1]))
    assert {"torch", "transformers", "accelerate"} <= found
    assert found & TRAINING == set()
