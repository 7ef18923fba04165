"""The losses of a tiny run, step by step. Recorded anew, after a change that is meant to change them, with

python -m tests.golden.record
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from nlp_transfer import fine_tune
from nlp_transfer.saved_models.save import versions
from tests.builders import sentiment_rows, write
from tests.helpers.models import save_tiny

FILE = Path(__file__).with_name("losses.json")
TOLERANCE = 2e-3  # losses fall from 0.7 to 0.1; another number of threads moves them by less than 1e-5


def losses(folder: Path) -> list[float]:
    """fp32, with dropout, accumulation, warm-up and a short last window."""
    training: dict[str, Any] = {
        "max_steps": 40, "batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "precision": "fp32",
        "dropout": 0.1, "logging_steps": 1, "seed": 3,
    }  # fmt: skip
    run = fine_tune(
        model=str(save_tiny("modernbert", folder / "modernbert")),
        data={"train": str(write(folder / "train.csv", sentiment_rows(41))), "validation_share": 0},
        task="text_classification",
        training=training,
        output_dir=str(folder / "run"),
    )
    return [json.loads(line)["loss"] for line in (run.output_dir / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = {"versions": versions(), "device": "cpu, fp32", "tolerance": TOLERANCE, "losses": losses(Path(folder))}
    FILE.write_text(json.dumps(golden, indent=1) + "\n")
