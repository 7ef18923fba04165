"""Export an encoder without a head, such as a sentence embedding model: the graph computes the states of the last layer."""

import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources import find_model, read_rows
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.export.export_folder import (
    PRETRAINING,
    calibration_inputs,
    draw,
    graph_bytes,
    graph_paths,
    remove_intermediate,
)
from nlp_transfer.export.measurement import DIFFERENCE
from nlp_transfer.export.quantization import write_graph
from nlp_transfer.inference.embedding import Embedder, load_embedder
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import EncoderHeadConfig
from nlp_transfer.models.onnx_graph import write_onnx
from nlp_transfer.saved_models.load import find_adapter, hub_adapter, quiet
from nlp_transfer.saved_models.save import versions
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

# Files with which sentence-transformers and text-embeddings-inference pool the states.
POOLING_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
PROBES, ROWS = 16, 2000


def is_encoder(model: str | Path) -> bool:
    """Return whether a model is an encoder without a head for a task."""
    if find_adapter(expand(model)) or hub_adapter(str(model)):
        return False
    checkpoint = Checkpoint.open(find_model(str(model)))
    config: Any = checkpoint.config
    has_head = checkpoint.head not in PRETRAINING or isinstance(config, EncoderHeadConfig) or checkpoint.record
    return not has_head and not config.is_encoder_decoder


def write_encoder(
    model: str | Path, folder: Path, to: str, precision: str, data: Mapping[str, Any], max_loss: float, packages: tuple[str, ...]
) -> dict[str, Any]:
    """Export an encoder, compare its vectors with those of the trained model, and return the content of `export.json`.

    Vectors are means over the tokens of a text. They are compared on the texts of `data.validation`, or on random tokens.

    Args:
        max_loss: The largest allowed difference of the mean cosine similarity from 1.

    Raises:
        UserError: The vectors differ too much, or int8 has no texts to calibrate with.
    """
    embedder = load_embedder(model)
    encoder: Any = embedder.encoder
    table = embedder.encode(_texts(embedder, data, precision))
    say(f"exporting the encoder to {to} in {precision}; its vectors are compared with those of the model on {len(table):,} texts")
    onnx, graph = graph_paths(folder, to, precision)
    write_onnx(encoder, model_inputs(table.batch(np.arange(2))), onnx)
    write_graph(onnx, graph, precision, calibration_inputs(table) if precision == "int8" else [])
    remove_intermediate(onnx, graph)
    _write_files(embedder, folder)
    start = time.perf_counter()
    expected = embedder.vectors(table)
    middle = time.perf_counter()
    found = load_embedder(folder).vectors(table)
    end = time.perf_counter()
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    similarity = float(((expected * found).sum(1) / lengths).mean())
    difference = float(np.abs(expected - found).max() / max(1.0, np.abs(expected).max()))
    if not difference <= (allowed := DIFFERENCE.get(precision, np.inf)):
        raise UserError(f"export: in {precision} the vectors of {len(table):,} texts differ by up to {difference:.2g}; allowed: "
                        f"{allowed:g}; nothing was written")  # fmt: skip
    if not 1 - similarity <= max_loss:
        raise UserError(
            f"export: in {precision} the vectors of {len(table):,} texts have a mean cosine similarity of {similarity:.4f} with "
            f"those of the model; allowed: {1 - max_loss:g}, or less with a higher --max-loss; nothing was written"
        )
    say(f"mean cosine similarity of the vectors: {similarity:.4f}")
    return {
        "to": to, "precision": precision, "rows": len(table), "metric": "cosine similarity of the vectors",
        "exported": similarity, "vector_difference": difference,
        "bytes": graph_bytes(graph),
        "rows_per_second": {"trained": len(table) / (middle - start), "exported": len(table) / (end - middle)},
        "versions": versions() | {name: version(name) for name in packages},
    }  # fmt: skip


def _texts(embedder: Embedder, data: Mapping[str, Any], precision: str) -> Rows:
    """Return texts to compare vectors on: random rows of `data.validation`, or random tokens of random lengths."""
    generator, names = np.random.default_rng(0), embedder.columns
    if data.get("validation") is not None:
        settings = DataConfig(**data)
        rows = read_rows(settings.validation, "validation", settings, names)
        return draw(rows, ROWS)
    if precision == "int8":
        raise UserError(f"--data.validation: is required to calibrate int8; allowed: a file with the column {names[0]!r}")
    lengths = generator.integers(1, embedder.max_length, PROBES)
    ids = [generator.integers(0, len(embedder.tokenizer), length).tolist() for length in lengths]
    texts = [embedder.tokenizer.decode(row, skip_special_tokens=True).strip() or "a" for row in ids]
    return from_columns({names[0]: texts}, "random tokens")


def _write_files(embedder: Embedder, folder: Path) -> None:
    with quiet():
        embedder.encoder.config.save_pretrained(folder)
        embedder.tokenizer.save_pretrained(folder)
    source = Path(embedder.encoder.name_or_path)
    for name in POOLING_FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
