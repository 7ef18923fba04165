"""JSON without `NaN` and `Infinity`, which are no JSON: readers elsewhere stop at them."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any


def dumps(value: Any, **how: Any) -> str:
    """Write JSON as `json.dumps` does, with null for numbers that are not finite."""
    try:
        return json.dumps(value, allow_nan=False, **how)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, **how)


def finite(value: Any) -> Any:
    """The value with None for NaN and the infinities, also inside lists, tuples and objects."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
