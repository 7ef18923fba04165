"""Weights of training rows in the loss, from the column `data.weight`."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.utils.errors import Problems, UserError, shorten

if TYPE_CHECKING:  # loads torch, which processes that only write files do without
    from nlp_transfer.data.tokens import TokenTable

WEIGHT = "target_weight"  # the dense column of a token table


def check_weights(train: Rows, column: str | None, problems: Problems) -> None:
    """Add a problem for each row whose weight is not a finite number of at least 0."""
    weights = [_weight(cell) for cell in train.columns[column]] if column else []
    for row, weight in enumerate(weights):
        if weight is None:
            reason = f"found {shorten(train.columns[str(column)][row])}; allowed: a finite number of at least 0"
            problems.add_row(row, train.bad(row, str(column), reason, "without a weight"))


def without_zero_weights(train: Rows, column: str | None) -> Rows:
    """Remove the rows with weight 0, which would otherwise affect labels, splits and the length of an epoch.

    Raises:
        UserError: Every row has the weight 0.
    """
    if not column:
        return train
    used = np.flatnonzero([_weight(cell) != 0 for cell in train.columns[column]])
    if len(train) and not len(used):
        raise UserError(f"train, column {column!r}: every row has the weight 0; allowed: a positive weight of at least one row")
    return train if len(used) == len(train) else replace(train.select(used), skipped=train.skipped)


def with_weights(table: "TokenTable", rows: Rows, column: str) -> "TokenTable":
    """Return the table with the checked weights of its rows, float32 of shape (rows,), in the dense column `WEIGHT`."""
    weights = np.array([_weight(cell) for cell in rows.columns[column]], np.float32)
    return replace(table, dense=table.dense | {WEIGHT: weights})


def _weight(cell: Any) -> float | None:
    """Return the weight in a cell, or None if it is not a finite number of at least 0."""
    try:
        weight = float(cell)
    except (TypeError, ValueError):
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None
