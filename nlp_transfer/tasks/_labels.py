"""Labels: one schema for training, serving and every file that names them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nlp_transfer.config import TrainingConfig
from nlp_transfer.errors import Problems, did_you_mean
from nlp_transfer.sources.rows import Rows


def label_text(cell: Any) -> str | None:
    """A label as text, or None where the cell holds none. 1, 1.0 and "1" are the same label; text is stripped."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return None
    if isinstance(cell, float) and cell.is_integer():  # an integer column with a gap in it arrives as floats
        return str(int(cell))
    return str(cell).strip() or None


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
        if label is None:
            problems.add(f"{rows.where(row)}, column {column!r}: the label is missing; allowed: one of {shorten(labels)}")
        elif label not in known:
            problems.add(
                f"{rows.where(row)}, column {column!r}: the label {label!r} does not occur in train"
                f"{did_you_mean(label, labels)}; allowed: {shorten(labels)}"
                if label.lower() != "nan"
                else f"{rows.where(row)}, column {column!r}: found {label!r}, a lost value; allowed: one of {shorten(labels)} "
                "(if it is meant as a label, name it in task.labels)"
            )


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
