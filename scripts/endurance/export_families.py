"""Export a tiny model of every family with every task and head, and compare its logits with those of torch.

    python -m scripts.endurance.export_families [FAMILY ...] [--cases labels ...]   # about 6 seconds for each on one core

Texts have one token, emoji, and more tokens than the model reads (512, or the limit of the family); batches have 1 and 64 rows.
Prints one line for each family and case with the largest difference of the logits, relative to the largest logit, for onnxruntime
and OpenVINO. Exit status 1 if a difference exceeds 1e-4, a prediction differs, or an export crashed.
"""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModel

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.export import exporter
from nlp_transfer.export.script_check import is_close
from nlp_transfer.inference.exported_model import GRAPHS
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.layers import logit_difference
from nlp_transfer.training.preflight import describe
from scripts.endurance.families import run_cases
from tests.builders import columns, sentiment_rows, write
from tests.helpers.families import OWN, family_config, family_tokenizer
from tests.helpers.graphs import copy_graph
from tests.helpers.models import POSITIONS
from tests.helpers.strategies import TASKS

# The families with a text encoder, those with an encoder and a decoder, and decoders, the most frequent first.
FAMILIES = (
    "bert roberta distilbert electra xlm-roberta deberta-v2 mpnet modernbert albert camembert deberta bart t5 longformer "
    "mt5 umt5 mbart plbart xlnet big_bird rembert convbert ernie roformer nomic_bert gte jina_embeddings_v3 eurobert "
    "data2vec-text megatron-bert mobilebert squeezebert funnel flaubert xlm xmod xlm-roberta-xl roberta-prelayernorm esm "
    "ibert nystromformer canine fnet perceiver gpt2 opt llama qwen2 qwen3 gemma mistral"
).split()
MOST = 5_000_000  # parameters: a family with more of them cannot be made tiny by its configuration
CASES: dict[str, dict[str, Any]] = {
    "labels": TASKS["single"],
    "multi_label": TASKS["multi_label"],
    "regression": TASKS["regression"],
    "entities": TASKS["entities"] | {"max_length": 32},
    "answers": TASKS["question_answering"],
    "pairs": TASKS["pair"],
    "mean head": TASKS["single"] | {"head": {"pooling": "mean"}},
    "hidden head": TASKS["single"] | {"head": {"pooling": "cls", "hidden": [16]}},
    "mixed layers": TASKS["single"] | {"head": {"layers": "mix"}},
    "normalized": TASKS["single"] | {"head": {"normalize": True}},
    "temperature": TASKS["single"] | {"calibrate": True},
}
ENGINES = ("onnx", "openvino")
ROWS = 64
DIFFERENCE = 1e-4


def save(family: str, folder: Path) -> str | None:
    """Save a tiny checkpoint that reads 512 tokens if its family allows; return the reason if it cannot be made."""
    longer = {"max_position_embeddings": (OWN.get(family, {}).get("max_position_embeddings") or POSITIONS) - POSITIONS + 512}
    try:
        torch.manual_seed(0)
        changes = {} if family in ("reformer", "perceiver", "xlnet") or "n_positions" in vars(family_config(family)) else longer
        config = family_config(family, **changes)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if size > MOST:
            return f"{size:,} parameters"
        AutoModel.from_config(config).save_pretrained(folder / family)
        tokenizer = family_tokenizer(config)
        tokenizer.model_max_length = 512
        tokenizer.save_pretrained(folder / family)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return None


def run(family: str, case: str, folder: Path, train: Path, validation: Path) -> str:
    """Return the outcome of one export in one line."""
    output = folder / "run"
    for place in (output, *(folder / name for name in ENGINES)):
        shutil.rmtree(place, ignore_errors=True)
    task, start = CASES[case], time.perf_counter()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            fine_tune(
                {"model": str(folder / family), "data": {"train": str(train), "validation": str(validation)}, "task": task,
                 "strategy": "full", "output_dir": str(output),
                 "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"}},
                with_report=False,
            )  # fmt: skip
    except UserError as error:
        return f"not trained: {' '.join(str(error).split())[:400]}"
    except Exception as error:
        return f"NOT TRAINED: {describe(error)}"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            trained = load_predictor(output, backend="torch")
            expected, listed, good = predictions(trained), [], True
            for name in ENGINES:
                # The graph is written once, since this takes most of the time.
                once = partial(copy_graph, folder / "onnx" / GRAPHS["onnx"][0])
                with patch.object(exporter, "write_onnx", once) if listed else nullcontext():
                    try:
                        engine = load_predictor(exporter.export_model(output, name, output=folder / name, max_loss=1).folder)
                    except UserError as error:
                        if not listed:
                            raise
                        listed.append(f"{name} refused: {' '.join(str(error).split())}")
                        continue
                found, same = difference(trained, engine), is_close(expected, predictions(engine))
                listed.append(f"{name} {found:.1e}" + ("" if same else ", DIFFERENT PREDICTIONS"))
                good &= same and found <= DIFFERENCE
    except UserError as error:
        return f"refused: {' '.join(str(error).split())}"
    except Exception as error:
        return f"CRASHED: {describe(error)}"
    listed.append(f"up to {int(trained.encode(texts(trained)).lengths.max())} tokens")
    return f"{'works' if good else 'WRONG'}: {', '.join(listed)} ({time.perf_counter() - start:.0f} s)"


def texts(predictor: Predictor) -> Any:
    """Return 64 rows of very different lengths for the task of a model."""
    long = " ".join(text for text, _ in sentiment_rows(120))
    inputs = [long, "good", "🙂", "🙂 " * 9, *(text for text, _ in sentiment_rows(ROWS - 4, seed=5))]
    others = inputs[::-1]
    return from_columns(dict(zip(predictor.task.inputs, (inputs, others), strict=False)), "rows")


def difference(trained: Predictor, exported: Predictor) -> float:
    """Return the largest difference of the logits, relative to the largest logit, over batches of 64 rows and of 1 row."""
    table = trained.encode(texts(trained))
    largest = 0.0
    for indices in (np.arange(ROWS), *(np.array([i]) for i in range(8))):
        inputs = model_inputs(table.batch(indices))
        with torch.inference_mode():
            expected, found = trained.model(**inputs), exported.model(**inputs)
        real = inputs["attention_mask"] > 0
        for name in (name for name in expected.keys() if name.endswith("logits")):  # noqa: SIM118 (not a dictionary)
            one, other = expected[name].float(), getattr(found, name)
            if one.shape != other.shape:
                return float("inf")
            if one.shape[:2] == real.shape:  # logits of padding mean nothing
                one, other = one[real], other[real]
            largest = max(largest, logit_difference(one.numpy(), other.numpy(), smallest=1e-6))
    return largest


def predictions(predictor: Predictor) -> list[Any]:
    return predictor.predict_columns(texts(predictor))["prediction"]


def main() -> int:
    def prepare(folder: Path) -> Callable[[str, str], str]:
        data = columns(60)
        train = write(folder / "train.csv", {name: cells[:40] for name, cells in data.items()})
        validation = write(folder / "validation.csv", {name: cells[40:] for name, cells in data.items()})
        return lambda family, case: run(family, case, folder, train, validation)

    return run_cases(__doc__, FAMILIES, list(CASES), ("WRONG", "CRASHED", "NOT"), save, prepare)


if __name__ == "__main__":
    sys.exit(main())
