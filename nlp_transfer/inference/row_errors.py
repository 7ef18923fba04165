"""Predict the valid rows of a table and report the bad ones."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.utils.errors import BadRow, Fault, Problems, UserError

OnBadRows = Literal["refuse", "skip"]


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
    faults = dict(known_faults)
    valid = [i for i in range(len(rows)) if i not in faults]
    bad = _row_faults(task, rows.select(np.array(valid, np.int64)) if faults else rows)
    faults |= {valid[i]: fault for i, fault in bad.items()}
    if not faults:
        return predict(rows), faults
    valid = [i for i in valid if i not in faults]
    if valid:
        columns = predict(rows.select(np.array(valid, np.int64)))
    else:  # predict a placeholder row for the names of the columns
        columns = predict(from_columns({name: ["a"] for name in rows.columns}, "placeholder"))
    all_cells = {name: [None] * len(rows) for name in columns}
    for name, cells in columns.items():
        for i, cell in zip(valid, cells, strict=False):
            all_cells[name][i] = cell
    return all_cells, dict(sorted(faults.items()))


def check_on_bad_rows(value: str) -> None:
    """Raise a UserError if a value is not one of `OnBadRows`."""
    if value not in get_args(OnBadRows):
        raise UserError(f"on_bad_rows: found {value!r}; allowed: {', '.join(get_args(OnBadRows))}")


def check_finite_predictions(
    predictions: Mapping[str, np.ndarray], indices: np.ndarray, where: Callable[[int], str], precision: str
) -> None:
    """Raise a UserError if a row of a batch has a prediction that is NaN or infinite.

    Args:
        predictions: arrays of shape (rows, ...) by name; only float arrays are checked.
        indices: int64 of shape (rows,), the indices of the batch's rows.
        where: names a row in the message, given its index.
        precision: precision of the computation.
    """
    for name, values in predictions.items():
        if values.dtype.kind != "f":
            continue
        broken = indices[~np.isfinite(values).reshape(len(values), -1).all(1)]
        if len(broken):
            advice = "a new copy of the model, or train it again" if precision == "fp32" else "--precision fp32"
            raise UserError(
                f"{where(int(broken.min()))}: the model's {name} are NaN or infinite, in {len(broken)} of {len(indices)} rows "
                f"that were computed together in {precision}; allowed: finite numbers; {advice}"
            )


def _row_faults(task: Any, rows: Rows) -> dict[int, Fault]:
    """Return the faults of bad rows, by row index."""
    bad: dict[int, BadRow] = {}
    task.check(rows, problems := Problems(skipped=bad), targets=False)
    problems.raise_if_any()
    return {index: row.fault for index, row in bad.items()}
