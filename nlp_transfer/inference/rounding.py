"""Round predictions to meaningful digits."""

import numpy as np

from nlp_transfer.tasks import Arrays

SMALLEST = 1e-13  # for smaller numbers, rounding would need powers of ten that are not exact


def rounded(predictions: Arrays, precision: str) -> Arrays:
    """Return predictions with the float32 arrays rounded (`round_predictions`)."""
    floats = {name: array for name, array in predictions.items() if array.dtype == np.float32}
    return predictions | {name: round_predictions(name, array, precision) for name, array in floats.items()}


def round_predictions(name: str, values: np.ndarray, precision: str) -> np.ndarray:
    """Round predictions to meaningful digits; return float64 of the same shape.

    A float32 becomes the shortest decimal that identifies it, so different values remain different. Probabilities computed in
    half precision are rounded to a few significant digits of p or 1 - p, whichever is smaller.

    Args:
        name: name of the values; `scores` are probabilities.
        values: float array of any shape.
        precision: precision of the computation, which is fp32, bf16 or fp16.
    """
    values = values.astype(np.float32)
    exact = values.astype(np.float64)
    size = np.abs(exact)
    digits = {"bf16": 4, "fp16": 5}.get(precision)
    if digits is not None and name == "scores":
        return _round(exact, digits, np.minimum(size, 1 - size))
    decimals = exact.copy()
    for digits in (9, 8, 7):  # 9 digits always identify a float32, 7 usually do
        candidates = _round(exact, digits, size)
        decimals = np.where(candidates.astype(np.float32) == values, candidates, decimals)
    tiny = size < SMALLEST
    decimals[tiny] = values[tiny].astype(str).astype(np.float64)  # exact but slow
    return decimals


def _round(values: np.ndarray, digits: int, size: np.ndarray) -> np.ndarray:
    """Round each value to the decimal place at which `digits` significant digits of the same element of `size` end."""
    scale = 10.0 ** np.clip(digits - 1 - np.floor(np.log10(np.maximum(size, SMALLEST))), 0, 22)  # exact powers of ten
    return np.asarray(np.round(values * scale) / scale)
