"""Explain predictions of a run: the words that they depend on, and the most similar training rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.inference.embedding import Embedder, predictor_embedder
from nlp_transfer.inference.explanation import Explanation, Neighbor, explain_texts
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.report.explanation_page import write_explanations
from nlp_transfer.run.recorded_splits import recorded_splits
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

VECTORS = Path("explanations") / "train_vectors.safetensors"


def explain(
    model: str | Path | Predictor,
    texts: Any,
    *,
    label: Any = None,
    neighbors: int = 0,
    output: str | Path | None = None,
    seed: int = 0,
) -> list[Explanation]:
    """Explain predictions: integrated gradients by word, a deletion test, and the most similar training rows.

    Args:
        model: a run folder, a model folder, an adapter folder or a hub id of a model that predicts from one vector per text; or a
            loaded `Predictor`.
        texts: as for a `Predictor`: a text, a list of texts or of pairs of texts, or a table.
        label: the label to explain. None: the one with the highest probability.
        neighbors: number of training rows to list. They are read again as `config.yaml` of the run describes; if that is not
            possible, a message gives the reason, and they are left out. Needs a run folder.
        output: an HTML file to write.
        seed: seed of the random words of the deletion test.

    Raises:
        UserError: captum is not installed, or the model or a text cannot be explained.
    """
    predictor = model if isinstance(model, Predictor) else load_predictor(model)
    explanations = explain_texts(predictor, texts, label, seed)
    if neighbors > 0:
        if isinstance(model, Predictor):
            raise UserError("neighbors: need the folder of a run instead of a Predictor; allowed: 0")
        explanations = _with_neighbors(explanations, predictor, expand(model), neighbors)
    if output is not None:
        write_explanations(Path(output), explanations, "" if isinstance(model, Predictor) else str(model))
    return explanations


def _with_neighbors(explanations: Sequence[Explanation], predictor: Predictor, folder: Path, count: int) -> list[Explanation]:
    try:
        train, targets = training_rows(folder)
    except UserError as error:
        say(f"note: the most similar training rows are left out: {error}")
        return list(explanations)
    embedder = predictor_embedder(predictor, normalize=True)
    vectors = _training_vectors(embedder, train, folder)
    columns = {name: [explanation.texts[name] for explanation in explanations] for name in embedder.columns}
    similarities = embedder.vectors(embedder.encode(from_columns(columns, "texts"))) @ vectors.T
    names = [*embedder.columns, *targets]
    found = []
    for explanation, row in zip(explanations, similarities, strict=True):
        best = np.argsort(-row, kind="stable")[:count]
        listed = tuple(
            Neighbor(float(row[i]), train.where(int(i)), {name: train.columns[name][i] for name in names}) for i in best
        )
        found.append(replace(explanation, neighbors=listed))
    return found


def training_rows(folder: Path) -> tuple[Rows, list[str]]:
    """Read the training rows of a run again, and return them with the names of the columns with targets.

    Raises:
        UserError: the folder is not the folder of a run, or its data is gone or has changed.
    """
    splits, task = recorded_splits(folder)
    if not len(splits.train):
        raise UserError(f"{folder}: the run had no training rows")
    return splits.train, task.targets


def _training_vectors(embedder: Embedder, train: Rows, folder: Path) -> np.ndarray:
    """Return the vectors of the training rows, float32 of shape (rows, width), from the file of an earlier call if possible."""
    path, table = folder / VECTORS, embedder.encode(train)
    digest = hashlib.sha256(f"{embedder.pooling} {embedder.precision} {embedder.encoder.config.to_json_string()}".encode())
    for column in table.ragged.values():
        digest.update(np.ascontiguousarray(column.values).tobytes() + column.offsets.tobytes())
    for tensor in embedder.encoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    key = digest.hexdigest()
    try:
        saved = load_file(path)
        if key in saved and len(saved[key]) == len(table):
            return saved[key]
    except Exception:  # missing, or not a file of this function
        pass
    say(f"computing the vectors of {len(train):,} training rows, which are then kept in {path}")
    vectors = embedder.vectors(table)
    try:
        write_bytes(path, save({key: vectors}))
    except OSError as error:
        say(f"warning: {path} cannot be written: {error.strerror}; the vectors are computed again next time")
    return vectors
