"""Vectors of texts: equal to plain transformers, for any kind of model and file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.inference.embedding import load_embedder
from tests.builders import command, read_table, run, sentiment_rows, succeed, write

pytestmark = pytest.mark.model
TEXTS = [text for text, _ in sentiment_rows(30)]


def expected(folder: Path, texts: Any = TEXTS, pooling: str = "mean", normalize: bool = False) -> np.ndarray:
    """The vectors of sentence-transformers' modules Transformer, Pooling and Normalize, computed with plain transformers."""
    encoder, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).expand(states.size()).float()
    if pooling == "mean":
        vectors = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    elif pooling == "cls":
        vectors = states[:, 0]
    else:
        states[mask == 0] = -1e9
        vectors = states.max(1)[0]
    return (torch.nn.functional.normalize(vectors, p=2, dim=1) if normalize else vectors).numpy()


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "deberta-v2", "mpnet"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_vectors_equal_plain_transformers(tiny: dict[str, Path], family: str, pooling: Any) -> None:
    embedder = load_embedder(tiny[family], pooling)
    vectors = embedder.vectors(embedder.encode(from_columns({"text": TEXTS}, "texts")))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(tiny[family], TEXTS, pooling), atol=2e-6)


@pytest.mark.parametrize("strategy", ["full", "features", "lora"])
def test_runs_embed_with_their_encoder(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path, strategy: str) -> None:
    settings: Any = {"strategy": {"name": strategy}, "training": {"learning_rate": 1e-2}}
    folder = run(model=tiny["bert"], data=sentiment, output_dir=tmp_path / "run", **settings).output_dir
    embedder = load_embedder(folder, normalize=True)
    vectors = embedder.vectors(embedder.encode(from_columns({"text": TEXTS}, "texts")))
    encoder = folder / "model" / "encoder"
    plain = encoder if encoder.is_dir() else folder / "model"
    np.testing.assert_allclose(vectors, expected(plain, normalize=True), atol=2e-6)


@pytest.mark.parametrize("source", ["in.csv", "in.jsonl", "in.parquet", "in.txt"])
@pytest.mark.parametrize("target", ["out.parquet", "out.npy", "out.jsonl", "out.csv"])
def test_files_keep_their_rows_and_columns(tiny: dict[str, Path], tmp_path: Path, source: str, target: str) -> None:
    columns = ["text"] if source == "in.txt" else ["id", "text"]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    path = write(tmp_path / source, TEXTS if source == "in.txt" else rows)
    output = tmp_path / target
    succeed("embed", tiny["bert"], "--input", path, "--output", output)
    if target == "out.npy":
        vectors = np.load(output)
    else:
        read = read_table(output)
        assert [{name: row[name] for name in columns} for row in read] == [{name: row[name] for name in columns} for row in rows]
        assert list(read[0]) == [*columns, "vector"]
        vectors = np.array([json.loads(row["vector"]) if isinstance(row["vector"], str) else row["vector"] for row in read])
    np.testing.assert_allclose(vectors, expected(tiny["bert"]), atol=2e-6)
    if target == "out.parquet":
        assert str(pq.read_schema(output).field("vector").type) == "fixed_size_list<element: float>[32]"


def test_pairs_are_embedded_together(tiny: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", list(zip(TEXTS, TEXTS[::-1], strict=True)), ("a", "b"))
    succeed("embed", tiny["bert"], "--input", path, "--output", tmp_path / "out.npy", "--column", "a", "--column", "b")
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected(tiny["bert"], pairs), atol=2e-6)


@pytest.mark.parametrize(
    ("content", "output", "fact"),
    [
        ([("a good film", "x"), ("", "y")], "out.parquet", "row 3"),
        ([("a", "x")], "out.xlsx", ".npy"),
        ([("a", "x")], "in.csv", "in.csv"),
    ],
)
def test_bad_files_are_refused(tiny: dict[str, Path], tmp_path: Path, content: Any, output: str, fact: str) -> None:
    path = write(tmp_path / "in.csv", content)
    status, _, message = command("embed", tiny["bert"], "--input", path, "--output", tmp_path / output)
    assert status == 2
    assert fact in message
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.csv"]


def test_a_column_vector_is_not_overwritten(tiny: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", [("a", "1")], ("text", "vector"))
    status, _, message = command("embed", tiny["bert"], "--input", path, "--output", tmp_path / "out.csv")
    assert status == 2
    assert "'vector'" in message
