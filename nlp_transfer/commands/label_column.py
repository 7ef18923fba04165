"""Infer the task from the label column: classification, multi-label classification or regression."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from nlp_transfer.utils.errors import shorten

MANY_NUMBERS = 20  # a column with more different integers may contain quantities
FEW_DECIMALS = 10  # the limit if some numbers have decimals; also the number of labels that is plausible for few rows

# Numbers with a sign, a currency or a percent sign, decimal commas, fractions, dates and times.
WRITTEN_NUMBER = re.compile(
    r"[<>~+-]?\s*([$€£¥₹]|USD|EUR|GBP|CHF)?\s*[+-]?[.,]?\d[\d\s.,:/'-]*(T[\d:.]+Z?)?\s*([%‰$€£¥₹]|USD|EUR|GBP|CHF)?"
)
LONGEST_NUMBER = 40  # characters
LIST_IN_TEXT = re.compile(r"\s*\[.*\]\s*", re.DOTALL)


class InferredTask(NamedTuple):
    """The task of a label column and the reason; several candidate tasks if the column is ambiguous."""

    tasks: tuple[str, ...]
    reason: str
    is_clear: bool = True


CLASSES, SEVERAL, NUMBERS = "text_classification", "multi_label", "regression"


def infer_task(column: str, cells: Iterable[Any]) -> InferredTask:
    """Infer the task from all cells of a label column."""
    counts = Counter(_hashable(cell) for cell in cells if cell is not None and str(cell).strip() not in ("", "nan"))
    rows = counts.total()
    if any(isinstance(cell, tuple) for cell in counts):
        return InferredTask((SEVERAL,), f"a cell of column {column} is a list")
    lists = sum(counts[cell] for cell in counts if isinstance(cell, str) and LIST_IN_TEXT.fullmatch(cell))
    if lists * 2 > rows:
        return InferredTask((SEVERAL,), f"cells of column {column} are lists, such as {shorten(next(iter(counts)), 60)}")
    plain = {cell: number for cell in counts if (number := _number(cell)) is not None}
    written = [cell for cell in counts if cell not in plain and _is_written_number(cell)]
    different = len(set(plain.values())) + len(written)
    number_rows = sum(counts[cell] for cell in (*plain, *written))
    has_decimals = bool(written) or any(number != int(number) for number in plain.values())
    if number_rows * 2 > rows and different > (FEW_DECIMALS if has_decimals else MANY_NUMBERS):
        example = next(iter([*plain, *written]))
        reason = f"column {column!r} contains {different:,} different numbers in {rows:,} rows, such as {example}"
        others = [cell for cell in counts if cell not in plain]
        if others:
            unusable = rows - sum(counts[cell] for cell in plain)
            reason += (
                f". {unusable:,} rows contain no plain number, such as {shorten(others[0], 60)}. "
                "For regression, write numbers as 3.7 or 3776, without a decimal comma, currency or percent sign; remove rows "
                "without a number, or add --data.on_bad_rows skip"
            )
        return InferredTask((NUMBERS, CLASSES), f"{reason}. Are these quantities or classes?", is_clear=False)
    labels = len(set(plain.values())) + len(counts) - len(plain)
    if labels > FEW_DECIMALS and labels * 2 >= rows:
        example = next(iter(counts))
        reason = (
            f"column {column!r} contains {labels:,} different labels in {rows:,} rows, such as {shorten(example, 60)}. It may "
            "contain ids or texts instead of labels (to use another column: --task.label COLUMN). Are these classes?"
        )
        return InferredTask((CLASSES,), reason, is_clear=False)
    if plain and len(plain) == len(counts):
        return InferredTask((CLASSES,), f"column {column} has {labels} labels; to predict numbers: --task.name regression")
    return InferredTask((CLASSES,), "the default")


def _hashable(cell: Any) -> Hashable:
    if isinstance(cell, (list, tuple)):
        return ("a list",)
    return cell if isinstance(cell, Hashable) else repr(cell)


def _is_written_number(cell: Any) -> bool:
    return isinstance(cell, str) and len(cell) <= LONGEST_NUMBER and WRITTEN_NUMBER.fullmatch(cell.strip()) is not None


def _number(cell: Any) -> float | None:
    try:
        value = float(cell) if not isinstance(cell, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None
    return value if value is not None and abs(value) < float("inf") else None
