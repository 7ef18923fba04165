"""Rows that cannot be predicted, beside others that can."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.utils.errors import BadRow, Fault, Problems, UserError

OnBadRows = Literal["refuse", "skip"]


def predict_sound(
    task: Any, rows: Rows, broken: Mapping[int, Fault], predict: Callable[[Rows], dict[str, list[Any]]]
) -> tuple[dict[str, list[Any]], dict[int, Fault]]:
    """Predict the rows that can be predicted.

    Args:
        broken: rows that are known to be of no use.
        predict: gives the columns of predictions for rows that were checked.

    Returns:
        The columns, with None in the other rows, and by row index why those have no prediction.
    """
    faults = dict(broken)
    sound = [i for i in range(len(rows)) if i not in faults]
    wrong = _row_faults(task, rows.select(np.array(sound, np.int64)) if faults else rows)
    faults |= {sound[i]: fault for i, fault in wrong.items()}
    if not faults:
        return predict(rows), faults
    sound = [i for i in sound if i not in faults]
    if sound:
        columns = predict(rows.select(np.array(sound, np.int64)))
    else:  # the columns are the same where no row can be predicted
        columns = predict(from_columns({name: ["a"] for name in rows.columns}, "placeholder"))
    spread = {name: [None] * len(rows) for name in columns}
    for name, cells in columns.items():
        for i, cell in zip(sound, cells, strict=False):
            spread[name][i] = cell
    return spread, dict(sorted(faults.items()))


def check_on_bad_rows(value: str) -> None:
    """Raises a UserError for a value that is not one of `OnBadRows`."""
    if value not in get_args(OnBadRows):
        raise UserError(f"on_bad_rows: found {value!r}; allowed: {', '.join(get_args(OnBadRows))}")


def check_finite_predictions(
    predictions: Mapping[str, np.ndarray], indices: np.ndarray, where: Callable[[int], str], precision: str
) -> None:
    """Raise a UserError where a row of a batch has predictions that are NaN or infinite.

    Args:
        predictions: arrays of shape (rows, ...) by name; those of numbers are checked.
        indices: int64 of shape (rows,), of the batch's rows.
        where: names a row by its index.
        precision: in which they were computed.
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
    """Return by index why rows cannot be predicted."""
    bad: dict[int, BadRow] = {}
    task.check(rows, problems := Problems(skipped=bad), targets=False)
    problems.raise_if_any()
    return {index: row.fault for index, row in bad.items()}
