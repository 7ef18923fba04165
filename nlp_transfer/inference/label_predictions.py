"""Read tables of held-out predictions with the probability of every label."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.saved_models.layout import OUT_OF_FOLD, PREDICTIONS
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import Problems, UserError, shorten

PREFIX = "probability:"
MADE = ("reference", "prediction", "probability")
COPIES = ("strategy", "repeat")
"""Columns of a cross-validation, which predicts each row once for each combination of their values; also `fold`."""


@dataclass(frozen=True)
class LabelPredictions:
    """Predictions of rows that the model was not trained on.

    Attributes:
        path: The table.
        columns: Cells of the input columns and of `file` and `row`, by column.
        labels: Names of the labels.
        given: The label of each row in the data, as an index into `labels`, int64 of shape (rows,).
        probabilities: float64 of shape (rows, labels).
    """

    path: Path
    columns: dict[str, list[Any]]
    labels: list[str]
    given: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.given)

    def describe(self, row: int) -> str:
        """Return the texts of a row on one line."""
        cells = [cells[row] for name, cells in self.columns.items() if name not in ("file", "row", "source_file", "source_row")]
        return " ".join(" | ".join(str(cell) for cell in cells if cell is not None).split())


def read_label_predictions(source: Path) -> LabelPredictions:
    """Read the predictions for the validation split of a run, or a table of predictions, such as out-of-fold predictions.

    The table has the columns `reference` and `probability:LABEL`. If a cross-validation predicted each row
    with several strategies or in several repeats, the probabilities are averaged.

    Args:
        source: The folder of a run or of a cross-validation, or a table.

    Raises:
        UserError: There is no such table, or it has no probabilities of single labels.
    """
    path = source
    if source.is_dir():
        held_out = [source / OUT_OF_FOLD, source / PREDICTIONS / "validation.parquet"]
        if not (found := [path for path in held_out if path.exists()]):
            raise UserError(
                f"{source}: contains no {PREDICTIONS}/validation.parquet or {OUT_OF_FOLD}; allowed: a finished run with a "
                "validation split (data.validation or data.validation_share), a finished cross-validation, or a table of "
                "held-out predictions"
            )
        path = found[0]
    columns: dict[str, list[Any]] = {}
    for batch in read_table(path, DataConfig()):
        for name, cells in batch.columns.items():
            columns.setdefault(name, []).extend(cells)
    names = [name for name in columns if name.startswith(PREFIX)]
    missing = ["reference"] * ("reference" not in columns) + [f"{PREFIX}LABEL for each label"] * (len(names) < 2)
    if missing:
        raise UserError(
            f"{path}: found the columns {shorten(list(columns))}, not {' and '.join(missing)}; allowed: predictions of a task "
            "with one label for each text and at most 200 labels"
        )
    labels = [name.removeprefix(PREFIX) for name in names]
    index = {label: i for i, label in enumerate(labels)}
    problems = Problems(f"{path}")
    given = np.array([index.get(str(cell), -1) for cell in columns["reference"]])
    for row in np.flatnonzero(given < 0)[:1]:
        problems.add(
            f"{path}, row {row + 1}, column 'reference': found {shorten(columns['reference'][row])}, which is not one of the "
            f"labels; allowed: {shorten(labels)}; texts with several labels or none are not supported"
        )
    try:
        probabilities = np.array([columns[name] for name in names], np.float64).T
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the columns {PREFIX}LABEL contain values that are not numbers ({error})") from None
    for row in np.flatnonzero(~(np.abs(probabilities.sum(1) - 1) < 0.01))[:1]:  # also NaN
        problems.add(
            f"{path}, row {row + 1}: the probabilities of all labels sum to {probabilities[row].sum():.4g}; allowed: 1, as in "
            "tasks with one label for each text"
        )
    problems.raise_if_any()
    added = {*MADE, *names, *((*COPIES, "fold") if "fold" in columns else ())}
    inputs = {name: cells for name, cells in columns.items() if name not in added}
    predictions = LabelPredictions(path, inputs, labels, given, probabilities)
    copies = list(zip(*(columns[name] for name in COPIES if name in added & columns.keys()), strict=True))
    return _averaged(predictions, copies) if len(set(copies)) > 1 else predictions


def _averaged(table: LabelPredictions, repeats: list[Any]) -> LabelPredictions:
    """Return a table with each row once, and with the mean of its probabilities over all repeats.

    Rows of repeats are matched by their cells, and equal rows by their order.

    Raises:
        UserError: The repeats do not contain the same rows.
    """
    seen, first = Counter[Any](), dict[Any, int]()
    rows_of = np.zeros(len(table), np.int64)
    for i, cells in enumerate(zip(repeats, table.given.tolist(), *table.columns.values(), strict=True)):
        seen[cells] += 1
        rows_of[i] = first.setdefault((*cells[1:], seen[cells]), len(first))
    counts = np.bincount(rows_of)
    if (counts != len(set(repeats))).any():
        raise UserError(f"{table.path}: the repeats contain different rows; allowed: the same rows in each repeat")
    sums = np.zeros((len(first), len(table.labels)))
    np.add.at(sums, rows_of, table.probabilities)
    _, kept = np.unique(rows_of, return_index=True)
    columns = {name: [cells[i] for i in kept] for name, cells in table.columns.items()}
    return replace(table, columns=columns, given=table.given[kept], probabilities=sums / counts[:, None])
