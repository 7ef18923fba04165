"""Check that the standalone program of an export predicts as the export does in this package."""

import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.utils.errors import first_line
from nlp_transfer.utils.interrupts import keep_signal_stack

ROWS = 16


def script_fault(script: Path, predictor: Predictor, rows: Rows, lengths: np.ndarray) -> str | None:
    """Return why the program of an export cannot be used; None if its predictions are those of the predictor.

    Args:
        predictor: The exported model.
        lengths: Tokens in each row; int64 of shape (rows,). The longest and the first rows are compared.
    """
    chosen = sorted({*np.argsort(-lengths, kind="stable")[: ROWS // 4].tolist(), *range(min(ROWS, len(rows)))})
    try:
        predict = _load(script).predict
        for i in chosen:
            cells = {name: rows.columns[name][i] for name in predictor.task.inputs}
            expected = predictor({name: [cell] for name, cell in cells.items()})[0]
            found = predict(next(iter(cells.values())) if len(cells) == 1 else tuple(cells.values()))
            if different := [name for name, value in found.items() if not is_close(value, expected.get(name))]:
                return f"its {different[0]} of {rows.where(i)} differs"
    except Exception as error:  # a user-defined task may have a record that the program cannot read
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _load(script: Path) -> Any:
    spec = spec_from_file_location("exported_program", script)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with keep_signal_stack():  # the program may load OpenVINO
        spec.loader.exec_module(module)
    return module


def is_close(one: Any, other: Any) -> bool:
    """Return whether values are equal, apart from the rounding of numbers."""
    if isinstance(one, float) and isinstance(other, (float, int)):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(is_close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(value, other[name]) for name, value in one.items())
    return str(one) == str(other)
