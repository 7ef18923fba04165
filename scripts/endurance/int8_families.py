"""Train tiny models of a few families on an easy task, and export them in int8; damaged graphs must be refused.

    python -m scripts.endurance.int8_families [FAMILY ...]                     # about a minute for each on one core

Prints for each family and engine the accuracy of the trained and of the exported model on 400 rows, the share of equal
predictions on 400 other texts, and whether the export is refused if the weights of all layers are shuffled.
Exit status 1 if an export was refused, a damaged one was kept, or less than 98% of the predictions are equal.
"""

import contextlib
import io
import shutil
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.export import exporter
from nlp_transfer.export.quantization import write_graph
from nlp_transfer.inference.exported_model import GRAPHS
from scripts.endurance.export_families import ENGINES, save
from tests.builders import write
from tests.helpers.graphs import copy_graph
from tests.helpers.models import WORDS

FAMILIES = "bert roberta distilbert electra xlm-roberta deberta-v2 modernbert".split()


def weighted_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Return texts of random words, and whether the sum of the words' weights is positive, which is close for many texts."""
    weights, generator = np.random.default_rng(0).normal(size=len(WORDS)), np.random.default_rng(seed)
    drawn = [generator.integers(0, len(WORDS), generator.integers(4, 24)) for _ in range(count)]
    return [(" ".join(WORDS[i] for i in words), "positive" if weights[words].sum() > 0 else "negative") for words in drawn]


def damaged_graph(path: Path, *arguments: Any) -> None:
    """Take the place of `write_graph`: shuffle the weights of all layers but the embeddings."""
    model = onnx.load(path)
    used = {name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    for value in model.graph.initializer:
        if value.name in used and len(value.dims) == 2:
            shuffled = np.random.default_rng(0).permutation(onnx.numpy_helper.to_array(value).ravel()).reshape(value.dims)
            value.raw_data = shuffled.tobytes()
    onnx.save(model, path)
    write_graph(path, *arguments)


def run(family: str, folder: Path, train: Path, validation: Path) -> bool:
    """Print a line for each engine; return whether all is well."""
    rows, good, graph = [text for text, _ in weighted_rows(400, seed=2)], True, folder / family / "graph.onnx"
    with contextlib.redirect_stderr(io.StringIO()):
        done = fine_tune(
            model=str(folder / family), data={"train": str(train), "validation": str(validation)}, output_dir=str(folder / "run"),
            task={"name": "text_classification"}, with_report=False,
            training={"max_steps": 150, "batch_size": 16, "learning_rate": 3e-3, "precision": "fp32"},
        )  # fmt: skip
        exporter.export_model(done.output_dir, "onnx", max_loss=1)
    shutil.copyfile(done.output_dir / "exports/onnx-fp32" / GRAPHS["onnx"][0], graph)
    trained = load_predictor(done.output_dir, backend="torch")
    for engine in ENGINES:
        outcomes = []
        for damage in (nullcontext(), patch.object(exporter, "write_graph", damaged_graph)):
            with patch.object(exporter, "write_onnx", partial(copy_graph, graph)), damage:
                try:
                    with contextlib.redirect_stderr(io.StringIO()):
                        exported = exporter.export_model(
                            done.output_dir, engine, "int8", folder / f"{engine}-{len(outcomes)}", max_loss=0.02
                        )
                    outcomes.append(exported.report)
                except UserError as error:
                    outcomes.append({"refused": str(error)})
        report, damaged = outcomes
        if "refused" in report:
            print(f"{family}, {engine}: REFUSED: {report['refused']}", flush=True)
            good = False
            continue
        pairs = list(
            zip(trained(rows, probabilities=True), load_predictor(folder / f"{engine}-0")(rows, probabilities=True), strict=True)
        )
        same = np.mean([a["prediction"] == b["prediction"] for a, b in pairs])
        apart = np.mean([abs(a["probability:positive"] - b["probability:positive"]) for a, b in pairs])
        print(
            f"{family}, {engine}: accuracy {report['trained']:.4f} trained, {report['exported']:.4f} exported; {same:.4f} of "
            f"other predictions equal, probabilities {apart:.4f} apart on average; layers in fp32: {report['fp32_layers']}; "
            f"damaged: {damaged.get('refused', 'KEPT')}",
            flush=True,
        )
        good &= "refused" in damaged and same >= 0.98
    return good


def main() -> int:
    folder, good = Path(tempfile.mkdtemp()), True
    train = write(folder / "train.csv", weighted_rows(2000, seed=0))
    validation = write(folder / "validation.csv", weighted_rows(400, seed=1))
    for family in sys.argv[1:] or FAMILIES:
        if reason := save(family, folder):
            print(f"{family}: not made: {reason}")
            continue
        good &= run(family, folder, train, validation)
        for place in (family, "run", *(f"{engine}-{i}" for engine in ENGINES for i in range(2))):
            shutil.rmtree(folder / place, ignore_errors=True)
    shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
