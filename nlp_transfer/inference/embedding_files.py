"""Embed the rows of a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.sources.table_reader import Batch, read_table, scan_table
from nlp_transfer.inference.command_inputs import FileOptions, check_files, check_not_of_model, data_settings
from nlp_transfer.inference.embedding import Embedder
from nlp_transfer.inference.predictor import CHUNK_ROWS, select_columns
from nlp_transfer.inference.standard_streams import DASH
from nlp_transfer.inference.writers import Writer
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.tasks.common.input_columns import check_texts
from nlp_transfer.utils.atomic_files import replacing
from nlp_transfer.utils.console import Steps, say
from nlp_transfer.utils.errors import Problems, UserError

VECTOR = "vector"  # name of the new column
OUTPUTS = (".parquet", ".npy", ".jsonl", ".csv", ".tsv")


def check_embedding_files(source: Path, output: Path, overwrite: bool, model: str) -> None:
    """Check the files of the command before the model is loaded.

    Raises:
        UserError: the input or the output cannot be used.
    """
    if DASH in (source, output):
        raise UserError(f"--{'input' if source == DASH else 'output'}: found -; allowed: a file")
    if output.suffix.lower() not in OUTPUTS:
        raise UserError(f"--output: found the file extension {output.suffix!r} of {output}; allowed: {', '.join(OUTPUTS)}")
    if output.suffix.lower() != ".npy":
        check_files(FileOptions(source, output, overwrite=overwrite), False)
    else:
        check_files(FileOptions(source, DASH), False)
        if output.exists() and not (overwrite and output.is_file()):
            raise UserError(f"--output: {output} already exists; allowed: another file, or --overwrite to replace a file")
    check_not_of_model(output, model)


def embed_file(embedder: Embedder, source: Path, output: Path, settings: dict[str, Any]) -> None:
    """Write the vectors of the rows of a file, in order.

    Args:
        output: `.npy`: an array of shape (rows, width), float32. `.parquet`: the input columns and `vector`, a list of fixed
            size. `.jsonl`, `.csv`, `.tsv`: the same, with the vector as a list in JSON.
        settings: data settings, for reading the file.

    Raises:
        UserError: a text is missing or empty (all such rows are listed), a column is missing, or a column `vector` exists.
    """
    data = data_settings(settings, source)
    rows, _ = scan_table(source, data)
    problems = Problems("data")
    for chunk in _chunks(embedder, source, data):
        if chunk.has_column(VECTOR) and output.suffix.lower() != ".npy":
            raise UserError(f"{source}: already has a column {VECTOR!r}, which the vectors would overwrite; rename it")
        columns = select_columns(chunk, source, embedder.columns)
        check_texts(from_columns(columns, str(source), chunk.first), embedder.columns, problems)
    problems.raise_if_any()
    truncated, parts = 0, []
    ending = output.suffix.lower()
    writer = None if ending == ".npy" else Writer(output, ending)
    with Steps("embedding", rows) as progress:
        if writer is None:
            for _, vectors, count in _embedded(embedder, source, data, progress):
                parts.append(vectors)
                truncated += count
            with replacing(output) as file:
                np.save(file, np.concatenate(parts))
        else:
            with writer:
                for chunk, vectors, count in _embedded(embedder, source, data, progress):
                    _write(writer, ending, chunk, vectors)
                    truncated += count
    say(f"{rows:,} vectors of {embedder.encoder.config.hidden_size} numbers are in {output}")
    if truncated:
        say(f"{truncated} texts were longer than {embedder.max_length} tokens and were truncated")


def _chunks(embedder: Embedder, source: Path, data: DataConfig, keep_table: bool = False) -> Iterator[Batch]:
    return read_table(source, data, CHUNK_ROWS, embedder.columns, keep_table)


def _embedded(embedder: Embedder, source: Path, data: DataConfig, progress: Steps) -> Iterator[tuple[Batch, np.ndarray, int]]:
    """Yield each chunk of rows, its vectors and its number of truncated texts."""
    for chunk in _chunks(embedder, source, data, keep_table=True):
        columns = select_columns(chunk, source, embedder.columns)
        table = embedder.encode(from_columns(columns, str(source), chunk.first))
        yield chunk, embedder.vectors(table), table.truncated
        progress.advance(len(chunk))


def _write(writer: Writer, ending: str, chunk: Batch, vectors: np.ndarray) -> None:
    if ending != ".parquet":
        columns = {} if chunk.table is not None else chunk.columns
        writer.write(columns | {VECTOR: vectors.tolist()}, chunk.table)
        return
    import pyarrow as pa

    table = pa.table(dict(chunk.columns)) if chunk.table is None else chunk.table
    writer.write({}, table.append_column(VECTOR, pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])))
