"""Labels: one schema for training, serving and every file that names them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, Field

from nlp_transfer.config import TrainingConfig
from nlp_transfer.config import shorten as shorten_value
from nlp_transfer.errors import Problems, did_you_mean
from nlp_transfer.sources.rows import Rows


def label_text(cell: Any) -> str | None:
    """A label as text, or None where the cell holds none. 1, 1.0 and "1" are the same label; text is stripped."""
    if cell is None or isinstance(cell, (list, tuple, dict, bytes)) or (isinstance(cell, float) and cell != cell):
        return None
    if isinstance(cell, float) and cell.is_integer():  # an integer column with a gap in it arrives as floats
        return str(int(cell))
    return str(cell).strip() or None


def _from_yaml(labels: Any) -> Any:
    """Numbers as the text that cells with them have; what YAML made of an unquoted `no` is refused."""
    if not isinstance(labels, list):
        return labels
    if truth := [label for label in labels if isinstance(label, bool)]:
        raise ValueError(f"text, and {truth[0]} is none: YAML reads yes, no, on and off so, put quotes around them")
    return [label_text(label) if isinstance(label, (int, float)) else label for label in labels]


def _each_once(labels: list[str]) -> list[str]:
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"each label once, and {twice[0]!r} is given twice")
    return labels


LabelList = Annotated[list[str], Field(min_length=1), BeforeValidator(_from_yaml), AfterValidator(_each_once)]


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Numbers by value when all are numbers, else by alphabet: an order that does not depend on the rows' order."""
    unique = set(labels)
    try:
        return sorted(unique, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(unique)


def label_ids(labels: list[str]) -> dict[str | None, int]:
    return {label: i for i, label in enumerate(labels)}


def label_fields(labels: list[str], problem_type: str) -> dict[str, Any]:
    """What a configuration says about labels; `num_labels` follows from `id2label`."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": problem_type,
    }


def check_labels(rows: Rows, column: str, labels: list[str], problems: Problems) -> None:
    """Adds empty cells and labels that are not in the schema."""
    known = set(labels)
    for row, cell in enumerate(rows.columns[column]):
        label = label_text(cell)
        where = f"{rows.where(row)}, column {column!r}"
        if label is None:
            problems.add(no_label(where, cell, f"one of {shorten(labels)}" if labels else "a label"))
        elif label not in known:
            problems.add(unknown_label(where, label, labels))


def check_taught(labels: list[str], found: "Counter[str]", problems: Problems) -> None:
    """Adds labels of the schema that no row of train has: nothing would teach the model to give them."""
    for label in labels:
        if not found[label]:
            problems.add(
                f"task.labels: no row of train has the label {label!r}{did_you_mean(label, sorted(found))}; "
                f"found in train: {shorten(sort_labels(found))}"
            )


def no_label(where: str, cell: Any, allowed: str) -> str:
    """The message about a cell that holds no label."""
    if cell is None or cell != cell or not str(cell).strip():
        return f"{where}: the label is missing; allowed: {allowed}"
    return f"{where}: found {shorten_value(cell)} ({type(cell).__name__}); allowed: {allowed}"


def unknown_label(where: str, label: str, labels: list[str]) -> str:
    """The message about a label that is not in the schema."""
    if label.lower() == "nan":
        return (
            f"{where}: found {label!r}, a lost value; allowed: {shorten(labels)} (if it is meant as a label, name it in "
            "task.labels)"
        )
    return f"{where}: the label {label!r} is not known{did_you_mean(label, labels)}; allowed: {shorten(labels)}"


def shorten(labels: list[str], shown: int = 8) -> str:
    more = f" and {len(labels) - shown} more" if len(labels) > shown else ""
    return ", ".join(map(repr, labels[:shown])) + more


def check_weight_names(training: TrainingConfig, labels: list[str] | None, problems: Problems) -> None:
    """Adds labels in `training.class_weights` that are not in the schema, and labels of the schema without a weight."""
    weights = training.class_weights
    if not isinstance(weights, Mapping) or labels is None:
        return
    for name in weights:
        if name not in labels:
            problems.add(
                f"training.class_weights: there is no label {name!r}{did_you_mean(name, labels)}; known: {shorten(labels)}"
            )
    if missing := [label for label in labels if label not in weights]:
        problems.add(f"training.class_weights: no weight is given for {shorten(missing)}; give one for every label")


def weight_vector(weights: Mapping[str, float], labels: list[str]) -> torch.Tensor:
    """float32 of shape (labels,)."""
    return torch.tensor([weights[label] for label in labels], dtype=torch.float32)


def check_no_classes(training: TrainingConfig, what: str, problems: Problems) -> None:
    """Adds settings that are about classes, for a task that has none."""
    for name in ("class_weights", "focal_gamma", "oversample"):
        if (value := getattr(training, name)) is not None:
            problems.add(f"training.{name}: found {shorten_value(value)}; {what} has no classes; allowed: null")


def focal_factor(log_probability: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 - p) ** gamma for log p of any shape: little where p is near 1.

    Below gamma 1 its slope has no bound there, so what rounds to 0 is held constant.
    """
    return (-torch.expm1(log_probability)).clamp(min=torch.finfo(log_probability.dtype).tiny) ** gamma


def balance(counts: "Counter[str | None]", rows: int) -> list[str]:
    """The distribution of labels in a line, with a warning when the largest is ten times the smallest."""
    ordered = counts.most_common()
    shown = ", ".join(f"{label} {count / rows:.1%}" for label, count in ordered[:6])
    rest = f", ... {len(ordered) - 6} more, the rarest {ordered[-1][0]} {ordered[-1][1] / rows:.1%}" if len(ordered) > 6 else ""
    lines = [f"{len(ordered)} labels: {shown}{rest}"]
    if ordered and ordered[0][1] >= 10 * ordered[-1][1]:
        lines.append(
            f"warning: {ordered[0][0]!r} has {ordered[0][1]} rows, {ordered[-1][0]!r} only {ordered[-1][1]}; consider "
            "training.class_weights: balanced, and look at f1_macro"
        )
    return lines
