"""Learn and check the labels of a column, and the settings that refer to labels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.label_schema import (
    LabelSchema,
    LabelType,
    as_list,
    fits_type,
    infer_type,
    label_text,
    learn_labels,
)
from nlp_transfer.tasks.common.objectives import smoothing_of
from nlp_transfer.utils.console import percent
from nlp_transfer.utils.errors import Problems, did_you_mean
from nlp_transfer.utils.errors import shorten as shorten_value

MISSING, UNREADABLE = "without a label", "with a label that cannot be read"  # kinds of bad rows
JOINED_SHARE = 0.2  # minimum share of labels with a separator that leads to a warning
QUOTE = "(YAML reads an unquoted yes, no, on or off as true or false: put quotes around it)"


def _as_text(labels: Any) -> Any:
    """Convert numbers to text. Booleans are rejected: they are usually an unquoted `yes` or `no` in YAML."""
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list):
        return labels
    labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if booleans := [label for label in labels if isinstance(label, bool)]:
        raise ValueError(f"text, such as '{booleans[0]}' for {booleans[0]} {QUOTE}")
    return [label_text(label) if isinstance(label, (int, float)) else label for label in labels]


def _check_unique(labels: list[str]) -> list[str]:
    if any(not label.strip() for label in labels):
        raise ValueError("labels that are not empty; an empty cell has no label")
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise ValueError(f"each label once; {repeated[0]!r} appears twice")
    return labels


LabelList = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_text), AfterValidator(_check_unique)]


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the unique labels, sorted by value if all are numbers, otherwise alphabetically."""
    unique = set(labels)
    try:
        return sorted(unique, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(unique)


def label_fields(labels: list[str], problem_type: str) -> dict[str, Any]:
    """Return the fields of a transformers configuration that describe the labels."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": problem_type,
    }


def configured_labels(config: Any) -> list[str | None]:
    """Return the label names in a transformers configuration, ordered by id. None: the id has no name."""
    return [None if (name := config.id2label.get(i)) is None else str(name) for i in range(config.num_labels)]


def fit_labels(
    cells: Sequence[Any], train: Rows, column: str, requested: list[str] | None, kind: LabelType | None, problems: Problems
) -> tuple[list[str], LabelType, "Counter[str]"]:
    """Learn the labels of the training data.

    Args:
        cells: Single labels.
        train: The rows that contain the cells, for messages.
        requested: `task.labels`. None means the labels in the cells.
        kind: `task.label_type`. None means the type of the cells.

    Returns:
        The names of the labels, their type and the number of rows of each.
    """
    learned = learn_labels(cells, train.has_types(), kind)
    for first, second in learned.ambiguous:
        problems.add(
            f"train, column {column!r}: the labels {first!r} and {second!r} are the same number; allowed: one spelling, or "
            "task.label_type: str, for two labels"
        )
    counts = learned.counts
    if requested is None:
        # `nan` is usually a missing value. To use it as a class, list it in `task.labels`.
        counts = Counter({label: count for label, count in counts.items() if label.lower() != "nan"})
    names = requested or sort_labels(counts)
    schema = LabelSchema(names, learned.kind)
    by_name: Counter[str] = Counter()
    for label, count in counts.items():
        index = schema.id(label)
        by_name[label if index is None else names[index]] += count
    check_occurrence(names, by_name, train, problems)
    check_type(names, kind, problems)
    return names, learned.kind if fits_type(names, learned.kind) else "str", by_name


def named_type(labels: list[str] | None, kind: LabelType | None, problems: Problems) -> LabelType:
    """Return the type of the labels in the settings, for a run without training data. Fewer than two labels are a problem."""
    if len(labels or []) < 2:
        setting = f"found {shorten_value(labels)}; " if labels else ""
        problems.add(
            f"task.labels: {setting}there is no data.train to learn the labels from; allowed: two labels or more, such as "
            "[positive, negative] (or, for zero_shot, strategy.labels: a description of each)"
        )
    return kind or infer_type(labels or [], typed=False)


def check_type(labels: list[str] | None, kind: LabelType | None, problems: Problems) -> None:
    """Check that the labels can be converted to `task.label_type`."""
    if labels and kind and not fits_type(labels, kind):
        problems.add(
            f"task.label_type: found {kind}; the labels are {shorten(labels)}; allowed: null, or the type of these labels"
        )


def check_labels(rows: Rows, column: str, schema: LabelSchema, problems: Problems) -> None:
    """Report cells without a label, with several labels, or with a label that is not in the schema."""
    for row, cell in enumerate(rows.columns[column]):
        if schema.id(cell) is not None:
            continue
        label = label_text(cell)
        if as_list(cell) is not None:
            fault = f"found the list {shorten_value(cell)}; allowed: one label; several need task.name: multi_label", UNREADABLE
        elif label is None:
            fault = no_label(cell, "a label")
        else:
            fault = unknown_label(label, schema.names)
        problems.add_row(row, rows.bad(row, column, *fault))
        note_labels(column, schema.names, problems)


def note_labels(column: str, labels: list[str], problems: Problems) -> None:
    """Name the allowed labels once, after the messages about rows."""
    if labels:
        problems.note(f"allowed labels in column {column!r}: {shorten(labels)}")


def similar_labels(labels: Iterable[str]) -> list[str]:
    """Return a warning if labels differ only in case."""
    by_folded: dict[str, list[str]] = {}
    for label in labels:
        by_folded.setdefault(label.casefold(), []).append(label)
    return [f"warning: the labels {shorten(names)} differ only in case" for names in by_folded.values() if len(names) > 1]


def other_separator(cells: Sequence[Any], marks: str, setting: str) -> list[str]:
    """Return a warning if many labels contain one of the characters `marks`, as if several labels were joined."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    for mark in marks:
        if (joined := [text for text in texts if mark in text.strip(mark)]) and len(joined) >= JOINED_SHARE * len(cells):
            return [
                f"warning: {len(joined):,} of {len(cells):,} labels contain {mark!r}, such as {joined[0]!r}; each is read as "
                f"one label (for several labels, see {setting})"
            ]
    return []


def check_occurrence(labels: list[str], counts: "Counter[str]", train: Rows, problems: Problems) -> None:
    """Report labels that do not occur in the training data."""
    skipped = ""
    if train.skipped:
        count = "1 row of train was" if len(train.skipped) == 1 else f"{len(train.skipped):,} rows of train were"
        skipped = f"; {count} skipped, and may have had this label: {train.skipped[0]}"
    for label in labels:
        if not counts[label]:
            problems.add(
                f"task.labels: no row of train has the label {label!r}{did_you_mean(label, sorted(counts))}; "
                f"found in train: {shorten(sort_labels(counts))}{skipped}"
            )


def no_label(cell: Any, allowed: str) -> tuple[str, str]:
    """Return the reason and kind of a bad row without a label."""
    if cell is None or cell != cell or not str(cell).strip():
        return f"the label is missing; allowed: {allowed}", MISSING
    return f"found {shorten_value(cell)} ({type(cell).__name__}); allowed: {allowed}", UNREADABLE


def unknown_label(label: str, labels: list[str]) -> tuple[str, str]:
    """Return the reason and kind of a bad row with a label that is not in the schema; `note_labels` names the known ones."""
    if label.lower() == "nan":
        return f"found {label!r}, a missing value; if it is a label, add it to task.labels", MISSING
    return f"the label {label!r} is not known{did_you_mean(label, labels)}", "with an unknown label"


def shorten(labels: list[str], shown: int = 8) -> str:
    """Return the first labels as text, followed by the number of remaining ones."""
    more = f" and {len(labels) - shown} more" if len(labels) > shown else ""
    return ", ".join(map(repr, labels[:shown])) + more


def check_weight_names(training: TrainingConfig, labels: list[str] | None, kind: LabelType | None, problems: Problems) -> None:
    """Check that `training.class_weights` names every label once and nothing else."""
    weights = training.class_weights
    if not isinstance(weights, Mapping) or labels is None:
        return
    schema = LabelSchema(labels, kind)
    for name in weights:
        if schema.id(name) is None:
            problems.add(
                f"training.class_weights: there is no label {name!r}{did_you_mean(name, labels)}; known: {shorten(labels)}"
                + f" {QUOTE}" * (name in ("True", "False"))
            )
    weighted = {schema.id(name) for name in weights}
    if len(weighted) < len(weights):
        problems.add(
            f"training.class_weights: found {shorten(list(weights))}, of which two are the same label; allowed: each label once"
        )
    if missing := [label for i, label in enumerate(labels) if i not in weighted]:
        problems.add(f"training.class_weights: there is no weight for {shorten(missing)}; allowed: one for every label")


def weight_vector(weights: Mapping[str, float], labels: list[str], kind: LabelType | None = None) -> torch.Tensor:
    """Return the class weights, float32 of shape (labels,)."""
    schema = LabelSchema(labels, kind)
    by_label = {schema.id(name): weight for name, weight in weights.items()}
    return torch.tensor([by_label[i] for i in range(len(labels))], dtype=torch.float32)


def check_no_classes(
    training: TrainingConfig, task: str, problems: Problems, has_labels: bool = False, not_augmented: str | None = None
) -> None:
    """Report training settings that have no meaning for a task without classes.

    Args:
        task: The task, for messages.
        has_labels: Whether the task predicts labels, so that its targets can be smoothed.
        not_augmented: Why texts must not be augmented. None: they may be.
    """
    for name in ("class_weights", "focal_gamma", "oversample"):
        if (value := getattr(training, name)) is not None:
            problems.add(f"training.{name}: found {shorten_value(value)}; {task} has no classes; allowed: null")
    if not has_labels and smoothing_of(training):
        problems.add(f"training.label_smoothing: found {training.label_smoothing}; {task} has no labels; allowed: 0")
    if not_augmented is not None and training.augment is not None:
        problems.add(f"training.augment: {not_augmented}; allowed: null")


def balance(counts: "Counter[str]", rows: int) -> list[str]:
    """Describe the distribution of labels, with a warning if the largest class is ten times the smallest."""
    ordered = counts.most_common()
    shown = ", ".join(f"{label} {percent(count, rows)}" for label, count in ordered[:6])
    rest = (
        f", ... {len(ordered) - 6} more, the rarest {ordered[-1][0]} {percent(ordered[-1][1], rows)}" if len(ordered) > 6 else ""
    )
    lines = [f"{len(ordered)} labels: {shown}{rest}"]
    if ordered and ordered[0][1] >= 10 * ordered[-1][1]:
        lines.append(
            f"warning: {ordered[0][0]!r} has {ordered[0][1]:,} rows, {ordered[-1][0]!r} only {ordered[-1][1]:,}; consider "
            "training.class_weights: balanced, and compare by f1_macro"
        )
    return lines
