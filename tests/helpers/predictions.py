"""Comparison of predictions of different batches, whose last digit may differ."""

from collections.abc import Sequence
from typing import Any

import pytest


def near(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> bool:
    """Whether predictions are equal, and their numbers up to 1e-6."""
    return len(found) == len(expected) and all(a == pytest.approx(b, abs=1e-6) for a, b in zip(found, expected, strict=True))
