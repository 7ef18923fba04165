"""Compare labels and infer their type, with the same rules for every file format and Python.

Labels are compared by value: `1`, `1.0`, `Decimal("1.00")`, `"1"` and `"1.0"` are one label, and so are `True`, `"true"` and
`"TRUE"`. Other text is stripped and compared verbatim.

Predictions in Python, JSONL and Parquet have the type of the training labels (`LabelType`), which is saved with the model. For
CSV and TSV files the type is inferred from the column: `int` for integers, `float` for other numbers, `bool` for true and
false, and `str` for everything else.
"""

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np

LabelType = Literal["str", "int", "float", "bool"]
# 007, 1e3 and +1 are treated as text, since they are usually codes. Python and pandas write exponents in the form 1e+16.
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-][0-9]{2})?")
LONGEST_NUMBER = 28  # characters; `Decimal` rounds longer numbers, which would make different labels equal
POSITIONS = re.compile(r"[01]([ ,;\t]*[01])+")  # such as 1,0,1 or 101
BRACKETS = {("[", "]"), ("(", ")"), ("{", "}")}
CONTAINERS = (list, tuple, set, frozenset, dict, bytes, np.ndarray)
MAX_REPEATS = 0.1  # if lists contain names of labels: maximum share of lists with a repeated name, by mistake
TRUTH = {"true": True, "false": False}
ADJACENT_STRINGS = re.compile(r"""['"]\s+['"]""")  # NumPy prints ['a' 'b'], which Python parses as a single string


def label_text(cell: Any) -> str | None:
    """Return the text of the label in a cell, or None if the cell is missing, empty, or a container."""
    cell = cell.item() if isinstance(cell, np.generic) else cell
    if cell is None or isinstance(cell, CONTAINERS) or cell != cell:
        return None
    return _number_text(cell) if isinstance(cell, (float, Decimal)) else str(cell).strip() or None


def _number_text(value: float | Decimal) -> str:
    """Return the shortest notation of a number: `1` for 1.0 and Decimal("1.00"), `0.5` for Decimal("0.50")."""
    if isinstance(value, Decimal) and (not value.is_finite() or abs(value.adjusted()) > LONGEST_NUMBER):
        return str(value)
    if value in (float("inf"), float("-inf")):
        return str(value)
    if value == int(value):
        return str(int(value))
    return format(value.normalize(), "f") if isinstance(value, Decimal) else repr(float(value))


def is_number(text: str) -> bool:
    """Return whether text is a number in plain decimal notation."""
    return len(text) <= LONGEST_NUMBER and NUMBER.fullmatch(text) is not None


def label_value(cell: Any, kind: LabelType | None = None) -> str | None:
    """Return the normalized text of a label, which is the same for all spellings of a value.

    Args:
        kind: The type of the labels. For `bool`, 1 becomes `True`; for numbers, true becomes `1`.
    """
    text = label_text(cell)
    if text is None:
        return None
    if (truth := TRUTH.get(text.lower())) is not None:
        return str(int(truth)) if kind in ("int", "float") else str(truth)
    if is_number(text):
        text = _number_text(Decimal(text))
        return {"1": "True", "0": "False"}.get(text, text) if kind == "bool" else text
    return unicodedata.normalize("NFC", text)


def as_list(cell: Any) -> list[Any] | None:
    """Return the elements of a list, tuple or set, or of text that contains one in JSON or Python syntax.

    Return None for other cells.
    """
    if isinstance(cell, np.ndarray):
        return list(np.atleast_1d(cell).tolist())
    if isinstance(cell, (list, tuple)):
        return list(cell)
    if isinstance(cell, (set, frozenset)):
        return sorted(cell, key=str)
    text = cell.strip() if isinstance(cell, str) else ""
    if (text[:1], text[-1:]) not in BRACKETS or ADJACENT_STRINGS.search(text):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            elements = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(elements, (list, tuple, set)) and not any(isinstance(element, CONTAINERS) for element in elements):
            return as_list(elements)
    return None


def is_unreadable_list(text: str, separator: str) -> bool:
    """Return whether text looks like a list but cannot be parsed, such as NumPy's `[0 1 0]`."""
    text = text.strip().removeprefix("array")
    in_brackets = (text[:1], text[-1:]) in BRACKETS and separator not in text
    return in_brackets and as_list(text) is None and any(mark in text for mark in " ,\n'\"")


def are_words(elements: Sequence[Any]) -> bool:
    """Return whether all elements are labels other than numbers and booleans."""
    return not any((text := label_text(element)) is None or is_number(str(label_value(text, "int"))) for element in elements)


def is_indicator(cell: Any) -> bool:
    """Return whether a cell is 0, 1, false or true, in any spelling."""
    return label_value(cell, "int") in ("0", "1")


def hold_positions(cells: Sequence[list[Any]], labels: Sequence[str] | None = None) -> bool:
    """Return whether most non-empty lists contain a number for each label, rather than names of labels.

    Lists of names differ in length and rarely repeat a name.

    Args:
        labels: The labels, or None. If they are known and none of them is 0 or 1, zeros and ones are not names.
    """
    lists = [[str(label_value(element, "int")) for element in cell] for cell in cells if cell]
    numbers = [cell for cell in lists if all(map(is_number, cell))]
    binary = [cell for cell in numbers if {"0", "1"}.issuperset(cell)]
    if 2 * len(binary) > len(lists):
        if labels is not None and not any(map(is_indicator, labels)):
            return True
    elif 2 * len(numbers) <= len(lists) or 2 * max(Counter(map(len, numbers)).values()) <= len(lists):
        return False
    return sum(len(set(cell)) < len(cell) for cell in numbers) > MAX_REPEATS * len(lists)


def infer_type(cells: Iterable[Any], typed: bool) -> LabelType:
    """Return the type of the labels in a column.

    Args:
        cells: Single labels.
        typed: Whether the cells have types (Python, JSONL, Parquet). Cells of CSV files are always text.
    """
    values = [cell for _, cell in {(type(cell), cell) for cell in cells if label_text(cell) is not None}]
    texts = [str(label_text(cell)) for cell in values]
    if not values or (typed and all(isinstance(cell, str) for cell in values)):
        return "str"
    if all(text.lower() in TRUTH for text in texts):
        return "bool"
    numeric = (bool, int, float, Decimal, np.generic)
    if not all(is_number(text) or isinstance(cell, numeric) for text, cell in zip(texts, values, strict=True)):
        return "str"
    are_integers = all(re.fullmatch("-?[0-9]+", str(label_value(cell, "int"))) for cell in values)
    all_floats = typed and all(isinstance(cell, (float, np.floating)) for cell in values)
    return "int" if are_integers and not all_floats else "float"


@dataclass(frozen=True)
class LearnedLabels:
    """The labels of a column.

    Attributes:
        counts: Number of rows of each label.
        ambiguous: Pairs of spellings of the same number, such as 1.1 and 1.10, that may be intended as two labels.
    """

    kind: LabelType
    counts: "Counter[str]"
    ambiguous: list[tuple[str, str]]


def learn_labels(cells: Sequence[Any], typed: bool, kind: LabelType | None = None) -> LearnedLabels:
    """Collect the labels of a column, and choose one name for each.

    The name is the most frequent spelling for type `str`, and the shortest notation for other types.

    Args:
        kind: The requested type. With `str`, labels are compared verbatim. With None, the type is inferred.
    """
    resolved = kind or infer_type(cells, typed)
    spellings: dict[str, Counter[str]] = {}
    for (_, cell), count in Counter((type(cell), cell) for cell in cells if label_text(cell) is not None).items():
        text = str(label_text(cell))
        key = text if kind == "str" else str(label_value(cell, resolved))
        spellings.setdefault(key, Counter())[text] += count
    names = {key: min(texts, key=lambda text: (-texts[text], text)) for key, texts in spellings.items()}
    counts = Counter({names[key] if resolved == "str" else key: texts.total() for key, texts in spellings.items()})
    ambiguous = [
        (first, second)
        for key, texts in spellings.items()
        if "." in key and is_number(key) and len(texts) > 1
        for first, second in [sorted(texts)[:2]]
    ]
    return LearnedLabels(resolved, counts, ambiguous)


class LabelSchema:
    """The labels of a model in the order of its logits, with lookup of any spelling of a label."""

    def __init__(self, names: Sequence[str], kind: LabelType | None = None) -> None:
        self.names = list(names)
        self.kind: LabelType = kind or "str"
        self._by_text = {name: i for i, name in enumerate(self.names)}
        values = [label_value(name, self.kind) for name in self.names]
        times = Counter(values)
        self._by_value = {value: i for i, value in enumerate(values) if times[value] == 1}
        self._known: dict[tuple[type, Any], int | None] = {}

    def id(self, cell: Any) -> int | None:
        """Return the index of the label in a cell, or None if the cell contains none of the labels."""
        text = label_text(cell)
        if text is None:
            return None
        key = (type(cell), cell)
        if key not in self._known:
            by_text = self._by_text.get(text)
            self._known[key] = self._by_value.get(label_value(cell, self.kind)) if by_text is None else by_text
        return self._known[key]

    def values(self) -> list[Any]:
        """Return the labels converted to their type."""
        return [typed_label(name, self.kind) for name in self.names]


def typed_label(name: str, kind: LabelType) -> Any:
    """Convert a label to its type.

    Raises:
        ValueError, KeyError, ArithmeticError: If the name cannot be converted.
    """
    if kind == "int":
        return int(name) if "." not in name else int(Decimal(str(label_value(name))))
    if kind == "float":
        return float(name)
    if kind == "bool":
        return TRUTH[str(label_value(name, "bool")).lower()]
    return name


def fits_type(names: Iterable[str], kind: LabelType) -> bool:
    """Return whether every name can be converted to the type without changing its value."""
    try:
        return all(label_value(typed_label(name, kind), kind) == label_value(name, kind) for name in names)
    except (ValueError, KeyError, ArithmeticError):
        return False
