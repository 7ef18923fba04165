"""Train a tiny model of every family with a sequence classifier for two steps and load it again, or expect a message.

    python -m scripts.endurance.families [FAMILY ...] [--cases fp32 bf16 ...]        # about 20 minutes on one core

Prints one line for each family and case, with the messages of the run. Exit status 1 if any run crashed.
"""

import argparse
import contextlib
import io
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModel

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.training.preflight import describe
from tests.builders import sentiment_rows, write
from tests.helpers.families import CLASSIFIERS, family_config, family_tokenizer

MOST = 5_000_000  # parameters: a family with more of them cannot be made tiny by its configuration
CASES = {
    "fp32": {"training": {"precision": "fp32"}},
    "fp32 plain": {"training": {"precision": "fp32", "kernels": "plain"}},
    "bf16": {"training": {"precision": "bf16"}},
    "bf16 plain": {"training": {"precision": "bf16", "kernels": "plain"}},
    "lora": {"training": {"precision": "bf16"}, "strategy": {"name": "lora", "r": 2}},
    "partial": {"training": {"precision": "fp32"}, "strategy": {"name": "partial", "frozen_layers": 1}},
    "features": {"training": {"precision": "fp32"}, "strategy": "features"},
}
TELLING = ("falls back", "pad token", "padding", "cannot", "instead", "embedding", "positions")


def run(family: str, case: str, folder: Path, train: Path) -> str:
    """Return the outcome of one run in one line."""
    checkpoint, output = folder / family, folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    settings = CASES[case]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            done = fine_tune(
                model=str(checkpoint), data={"train": str(train), "validation_share": 0.2}, task={"name": "text_classification"},
                strategy=settings.get("strategy", "full"), output_dir=str(output),
                training={"max_steps": 2, "batch_size": 4, **settings["training"]},
            )  # fmt: skip
            predictor = load_predictor(output)
            texts = ["a good film", "the plot was awful and dull and the music was very cold"]
            together, alone = predictor(texts), [predictor(text) for text in texts]
        apart = max(abs(a["probability"] - b["probability"]) for a, b in zip(together, alone, strict=True))
        lines = [line for line in said.getvalue().splitlines() if any(word in line for word in TELLING)]
        seconds = done.result["train"]["step_seconds"]
        verdict = "works" if apart < 1e-5 else f"WRONG: alone and in a batch {apart:.2g} apart"
        verdict = verdict if math.isfinite(done.metrics["validation"]["loss"]) else "WRONG: the loss is not finite"
        return " | ".join([f"{verdict} ({seconds:.2f} s)", *lines])
    except UserError as error:
        return f"refused: {' '.join(str(error).split())}"
    except Exception as error:
        return f"CRASHED: {describe(error)}"


def save(family: str, folder: Path) -> str | None:
    """Save a tiny checkpoint; return the reason if it cannot be made."""
    try:
        torch.manual_seed(0)
        config = family_config(family)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if size > MOST:
            return f"{size:,} parameters"
        AutoModel.from_config(config).save_pretrained(folder / family)
        family_tokenizer(config).save_pretrained(folder / family)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return None


def run_cases(
    description: str | None, families: Sequence[str], cases: Sequence[str], failures: tuple[str, ...],
    make: Callable[[str, Path], str | None], prepare: Callable[[Path], Callable[[str, str], str]],
) -> int:  # fmt: skip
    """Run the cases of the families that the command line names, print a line for each, and return the exit status.

    Args:
        failures: beginnings of the results that are failures.
        make: saves a checkpoint of a family in a folder; returns the reason if it cannot be made.
        prepare: writes the data into a folder; returns a function that runs a case for a family and returns its result.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=families)
    parser.add_argument("--cases", nargs="+", default=list(cases), choices=list(cases))
    asked = parser.parse_args()
    folder, failed = Path(tempfile.mkdtemp()), 0
    run_case = prepare(folder)
    for family in asked.families:
        if reason := make(family, folder):
            print(f"{family}: not made: {reason}", flush=True)
            continue
        for case in asked.cases:
            result = run_case(family, case)
            failed += result.startswith(failures)
            print(f"{family}, {case}: {result}", flush=True)
        shutil.rmtree(folder / family)
    shutil.rmtree(folder)
    return 1 if failed else 0


def main() -> int:
    def prepare(folder: Path) -> Callable[[str, str], str]:
        train = write(folder / "train.csv", sentiment_rows(40))
        return lambda family, case: run(family, case, folder, train)

    return run_cases(__doc__, CLASSIFIERS, list(CASES), ("CRASHED", "WRONG"), save, prepare)


if __name__ == "__main__":
    sys.exit(main())
