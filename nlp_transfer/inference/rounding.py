"""Predictions as decimal numbers without meaningless digits."""

import numpy as np

SMALLEST = 1e-13  # below, powers of ten in the rounding are no longer exact


def round_predictions(name: str, values: np.ndarray, precision: str) -> np.ndarray:
    """Return predictions as decimals without meaningless digits: float64 of the same shape.

    A float32 becomes the shortest decimal that identifies it, so that different values stay different. Probabilities that were
    computed in half precision keep a few significant digits of p or 1 - p, whichever is smaller.

    Args:
        name: `scores` for probabilities.
        values: float array of any shape.
        precision: in which the values were computed: fp32, bf16 or fp16.
    """
    values = values.astype(np.float32)
    exact = values.astype(np.float64)
    size = np.abs(exact)
    digits = {"bf16": 4, "fp16": 5}.get(precision)
    if digits is not None and name == "scores":
        return _round(exact, digits, np.minimum(size, 1 - size))
    decimals = exact.copy()
    for digits in (9, 8, 7):  # 9 digits always identify a float32, 7 mostly do
        candidates = _round(exact, digits, size)
        decimals = np.where(candidates.astype(np.float32) == values, candidates, decimals)
    tiny = size < SMALLEST
    decimals[tiny] = values[tiny].astype(str).astype(np.float64)  # exact but slow
    return decimals


def _round(values: np.ndarray, digits: int, size: np.ndarray) -> np.ndarray:
    """Round to as many decimals as give `digits` significant digits of `size`."""
    scale = 10.0 ** np.clip(digits - 1 - np.floor(np.log10(np.maximum(size, SMALLEST))), 0, 22)  # exact powers of ten
    return np.asarray(np.round(values * scale) / scale)
