"""What a column of labels stands for where no task was named: classes, several labels a row, or quantities."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from nlp_transfer.utils.errors import shorten

MANY_NUMBERS = 20  # different numbers in a column of labels from which on they may be quantities
FEW_MEASURES = 10  # the same where some have decimals; and the number of labels up to which few rows are enough

# Numbers with a sign, a unit of money or a percent sign, decimal commas, fractions, dates and times.
WRITTEN_NUMBER = re.compile(
    r"[<>~+-]?\s*([$€£¥₹]|USD|EUR|GBP|CHF)?\s*[+-]?[.,]?\d[\d\s.,:/'-]*(T[\d:.]+Z?)?\s*([%‰$€£¥₹]|USD|EUR|GBP|CHF)?"
)
LONGEST_NUMBER = 40  # characters of one that is written so
LIST_IN_TEXT = re.compile(r"\s*\[.*\]\s*", re.DOTALL)


class Kind(NamedTuple):
    """The task that a column stands for and why; or, where it is not `clear`, the tasks that it may stand for."""

    names: tuple[str, ...]
    why: str
    clear: bool = True


CLASSES, SEVERAL, NUMBERS = "text_classification", "multi_label", "regression"


def kind_of(column: str, cells: Iterable[Any]) -> Kind:
    """Tell the task that a label column stands for, by all of its cells."""
    counts = Counter(_hashable(cell) for cell in cells if cell is not None and str(cell).strip() not in ("", "nan"))
    rows = counts.total()
    if any(isinstance(cell, tuple) for cell in counts):
        return Kind((SEVERAL,), f"a cell of column {column} is a list")
    lists = sum(counts[cell] for cell in counts if isinstance(cell, str) and LIST_IN_TEXT.fullmatch(cell))
    if lists * 2 > rows:
        return Kind((SEVERAL,), f"cells of column {column} are lists, such as {shorten(next(iter(counts)), 60)}")
    plain = {cell: number for cell in counts if (number := _number(cell)) is not None}
    written = [cell for cell in counts if cell not in plain and _is_written_number(cell)]
    different = len(set(plain.values())) + len(written)
    number_rows = sum(counts[cell] for cell in (*plain, *written))
    has_decimals = bool(written) or any(number != int(number) for number in plain.values())
    if number_rows * 2 > rows and different > (FEW_MEASURES if has_decimals else MANY_NUMBERS):
        example = next(iter([*plain, *written]))
        why = f"column {column!r} holds {different:,} different numbers in {rows:,} rows, such as {example}"
        others = [cell for cell in counts if cell not in plain]
        if others:
            why += (
                f". {rows - sum(counts[cell] for cell in plain):,} of the rows hold no plain number there, such as "
                f"{shorten(others[0], 60)}: for a regression write numbers as 3.7 or 3776, without decimal comma, currency or "
                "percent sign, and remove rows without a number or add --data.on_bad_rows skip"
            )
        return Kind((NUMBERS, CLASSES), f"{why}. Are they quantities or classes?", clear=False)
    labels = len(set(plain.values())) + len(counts) - len(plain)
    if labels > FEW_MEASURES and labels * 2 >= rows:
        example = next(iter(counts))
        why = (
            f"column {column!r} holds {labels:,} different labels in {rows:,} rows, such as {shorten(example, 60)}; from one or "
            "two rows a label little can be learned, and the column may hold ids or texts. For another one: --task.label COLUMN. "
            "Are they classes?"
        )
        return Kind((CLASSES,), why, clear=False)
    if plain and len(plain) == len(counts):
        return Kind((CLASSES,), f"column {column} has {labels} labels; to learn numbers: --task.name regression")
    return Kind((CLASSES,), "the default")


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
