"""Read the texts in the `X` of scikit-learn estimators."""

from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.utils.errors import UserError, shorten, with_type

NAMES = ("text", "text_pair")  # of the columns in the tables that the estimators pass on
ALLOWED = "a list, array or Series of texts, or a table with one column of texts, or with two columns for pairs of texts"


def read_texts(estimator: Any, X: Any, reset: bool = False) -> np.ndarray:
    """Return the texts as an array of objects of shape (rows, 1), or (rows, 2) for pairs.

    Args:
        estimator: The estimator, whose `n_features_in_` is the number of columns.
        X: See `ALLOWED`.
        reset: Whether to set `n_features_in_` and `feature_names_in_`. Otherwise `X` must agree with them.

    Raises:
        UserError: A cell is not a text, or `X` has more than two columns.
        ValueError: scikit-learn does not accept the shape of `X`.
    """
    if isinstance(X, (str, bytes)):
        raise UserError(f"X: found {with_type(X)}; allowed: {ALLOWED}")
    cells = check_array(X, dtype=object, ensure_all_finite=False, ensure_2d=False, estimator=estimator, input_name="X")
    cells = cells[:, None] if cells.ndim == 1 else cells
    validate_data(estimator, X if hasattr(X, "columns") else cells, reset=reset, skip_check_array=True)
    if cells.shape[1] > len(NAMES):
        raise UserError(f"X: found {cells.shape[1]} columns; allowed: {ALLOWED}")
    for (row, column), cell in np.ndenumerate(cells):
        if not isinstance(cell, str):
            raise UserError(f"{_place(cells, row, column)}: found {shorten(cell)} ({type(cell).__name__}); allowed: a text")
    return cells


def check_not_empty(texts: np.ndarray) -> None:
    """Raise a UserError for the first empty text in an array of shape (rows, columns)."""
    for (row, column), cell in np.ndenumerate(texts):
        if not cell.strip():
            raise UserError(f"{_place(texts, row, column)}: found an empty text; allowed: a text that is not empty")


def _place(cells: np.ndarray, row: int, column: int) -> str:
    """Return a position as an index from 0, as scikit-learn and pandas count."""
    return f"X[{row}, {column}]" if cells.shape[1] > 1 else f"X[{row}]"


def as_rows(texts: np.ndarray) -> Rows:
    """Return texts of shape (rows, columns) as rows with the columns `NAMES`."""
    return from_columns(as_columns(texts), "X")


def as_columns(texts: np.ndarray) -> dict[str, list[Any]]:
    """Return texts of shape (rows, columns) as lists by column name."""
    return {name: list(map(str, column)) for name, column in zip(NAMES, texts.T, strict=False)}
