"""Make predictions for lists of texts, tables in memory and chunks of a file with a saved model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.data.sources.rows import TRANSLATION, Rows, check_columns, from_columns, name_lines, names_of, unfold
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.output_journal import ChunkPredictions
from nlp_transfer.inference.rounding import rounded
from nlp_transfer.tasks import Task, encode_table
from nlp_transfer.utils.errors import BadRow, Fault, Problems, UserError

OnBadRows = Literal["refuse", "skip"]
CHUNK_ROWS = 2048  # rows of a file that are read at once and sorted by length
PRECISION = "fp32"  # default of predictions and metrics: equal results on every machine and in every batch


class Predictor:
    """A saved model, ready for prediction. Created by `load_predictor`.

    >>> predictor = load_predictor("runs/reviews")            # doctest: +SKIP
    >>> predictor(["a gem", "two hours I want back"])         # doctest: +SKIP
    [{'prediction': 'positive', 'probability': 0.98}, {'prediction': 'negative', 'probability': 0.97}]

    Attributes:
        truncated: number of rows so far that were truncated to the maximum length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        batch_size: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self.model, self.tokenizer, self.task = model.eval(), tokenizer, task
        task.connect(model)
        self.batch_size, self.precision = batch_size, precision
        self.truncated = 0

    @overload
    def __call__(self, inputs: str, probabilities: bool = False, on_bad_rows: OnBadRows = "refuse") -> dict[str, Any]: ...
    @overload
    def __call__(self, inputs: Any, probabilities: bool = False, on_bad_rows: OnBadRows = "refuse") -> list[dict[str, Any]]: ...
    def __call__(
        self, inputs: Any, probabilities: bool = False, on_bad_rows: OnBadRows = "refuse"
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Return predictions for texts, or for the rows of a table.

        Args:
            inputs: a list, Series or array of texts (or of tuples of texts, if the model takes text pairs; or of lists of words,
                if it takes words); a DataFrame, Dataset, Arrow table, dict of columns or list of dicts with the columns that the
                model was trained on; or a single text or row.
            probabilities: whether to add `probability:LABEL` for every label.
            on_bad_rows: what happens if an input is empty, missing (None, NaN) or not a text: `refuse` raises an error, `skip`
                sets the row's values to None and gives the reason as `note`.

        Returns:
            A list with one dict for each row, in order, or one dict for a single text or row. Labels have the type of the
            training labels; the predictions of a multi-label model are lists.

        Raises:
            UserError: `inputs` is none of the above, a column is missing, or a text is bad and `on_bad_rows` is `refuse`.
        """
        check_on_bad_rows(on_bad_rows)
        rows, single = read_inputs(inputs, self.task.inputs, self.task.traits.word_lists)
        if len(rows) == 0:
            return []
        faults: dict[int, Fault] = {}
        if on_bad_rows == "refuse":
            columns = self.predict_columns(rows, probabilities)
        else:
            columns, faults = predict_valid_rows(self.task, rows, {}, lambda valid: self.predict_columns(valid, probabilities))
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for index, fault in faults.items():
            records[index]["note"] = str(fault)
        return records[0] if single else records

    def predict_columns(self, rows: Rows, probabilities: bool = False, cells: bool = False) -> dict[str, list[Any]]:
        """Return the predictions in row order, as columns of Python values or, if `cells` is true, of CSV cells.

        Raises:
            UserError: a row cannot be predicted.
        """
        problems = Problems()
        self.task.check(rows, problems, targets=False)
        problems.raise_if_any()
        table = self.encode(rows)
        self.truncated += table.truncated
        predictions, _ = predict_table(self.model, self.task, table, self.batch_size, self.precision, where=rows.where)
        return self.task.columns(rounded(predictions, self.precision), probabilities=probabilities, cells=cells)

    def encode(self, rows: Rows, targets: bool = False) -> TokenTable:
        """Tokenize rows that have been checked (`Task.check`)."""
        return encode_table(self.task, rows, self.tokenizer, targets=targets)

    def predict_chunk(self, chunk: Batch, path: Path, probabilities: bool = False) -> ChunkPredictions:
        """Predict a chunk of the file `path`.

        Raises:
            UserError: a column is missing, or the file already has a column with the name of a new one.
        """
        rows, before = from_columns(select_columns(chunk, path, self.task.inputs), str(path), chunk.first), self.truncated
        columns, faults = predict_valid_rows(
            self.task, rows, chunk.faults, lambda valid: self.predict_columns(valid, probabilities, cells=True)
        )
        if clash := [name for name in columns if chunk.has_column(name)]:
            raise UserError(f"{path}: already has a column {clash[0]!r}, which the prediction would overwrite; rename it")
        return ChunkPredictions(columns, self.truncated - before, faults)


def select_columns(chunk: Batch, path: Path, names: list[str]) -> dict[str, list[Any]]:
    """Return the columns `names` of a chunk of the file `path`.

    Raises:
        UserError: a column is missing.
    """
    columns = unfold(name_lines(chunk.columns, path, names), names)
    if TRANSLATION in columns and not any(isinstance(cell, dict) for cell in columns[TRANSLATION]):
        columns = {name: [None] * len(chunk) for name in names} | columns  # all texts of the chunk are missing
    check_columns(names_of(columns, chunk.names), names, str(path))
    return {name: columns[name] for name in names}


def predict_valid_rows(
    task: Any, rows: Rows, known_faults: Mapping[int, Fault], predict: Callable[[Rows], dict[str, list[Any]]]
) -> tuple[dict[str, list[Any]], dict[int, Fault]]:
    """Predict the valid rows of a table.

    Args:
        known_faults: faults of rows that are known to be bad, by row index.
        predict: returns columns of predictions for valid rows.

    Returns:
        Columns for all rows, with None in bad rows; and the faults of bad rows, by row index.
    """
    bad: dict[int, BadRow] = {}
    task.check(rows, problems := Problems(skipped=bad), targets=False)
    problems.raise_if_any()
    faults = dict(sorted(({i: row.fault for i, row in bad.items()} | dict(known_faults)).items()))
    if not faults:
        return predict(rows), faults
    valid = [i for i in range(len(rows)) if i not in faults]
    # Without a valid row, a placeholder gives the names of the columns.
    placeholder = from_columns({name: ["a"] for name in rows.columns}, "placeholder")
    columns = predict(rows.select(np.array(valid, np.int64)) if valid else placeholder)
    return {name: with_gaps(cells, faults, len(rows)) for name, cells in columns.items()}, faults


def with_gaps(cells: list[Any], faults: Mapping[int, Fault], rows: int) -> list[Any]:
    """Return the cells of valid rows as a column of all rows, with None in the rows that have a fault."""
    valid = iter(cells)
    return [None if i in faults else next(valid) for i in range(rows)]


def check_on_bad_rows(value: str) -> None:
    """Raise a UserError if a value is not one of `OnBadRows`."""
    if value not in get_args(OnBadRows):
        raise UserError(f"on_bad_rows: found {value!r}; allowed: {', '.join(get_args(OnBadRows))}")
