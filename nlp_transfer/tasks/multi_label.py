"""Multi-label classification: predict any number of labels, including none, for a text or a pair of texts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from nlp_transfer.data.oversampling import rarest_labels
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.evaluation.metrics import MULTILABEL_KEYS
from nlp_transfer.evaluation.metrics.calibration_metrics import PROBABILITY_KEYS
from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.settings.threshold_goals import Goal, Probability, goal_of
from nlp_transfer.tasks import Arrays, Description, TaskTraits
from nlp_transfer.tasks.common.label_schema import (
    POSITIONS,
    LabelSchema,
    are_words,
    as_list,
    hold_positions,
    is_indicator,
    is_unreadable_list,
    label_text,
    label_value,
)
from nlp_transfer.tasks.common.label_task import LabelTask
from nlp_transfer.tasks.common.labels import (
    balance,
    check_occurrence,
    configured_labels,
    fit_labels,
    label_fields,
    no_label,
    note_labels,
    other_separator,
    shorten,
    similar_labels,
    unknown_label,
)
from nlp_transfer.tasks.common.objectives import BinaryCrossEntropy
from nlp_transfer.tasks.common.text_task import TEXT_CARD
from nlp_transfer.utils.errors import Problems, UserError
from nlp_transfer.utils.errors import shorten as shorten_value


class MultiLabel(LabelTask):
    """Classification with any number of labels per row, using a sigmoid and a threshold for each label."""

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="labels", metrics=(*MULTILABEL_KEYS, *PROBABILITY_KEYS), best_metric="f1_macro",
        has_probabilities=True, classes=True,
        untokenized=frozenset({"head"}), card=TEXT_CARD, fixed=("labels",), calibration=LabelTask.calibration,
        configured=lambda config: (
            {"labels": configured_labels(config)} if config.problem_type == "multi_label_classification" else None
        ),
    )  # fmt: skip

    loss_type = BinaryCrossEntropy

    label: Annotated[str | Annotated[list[str], Field(min_length=1)], UsedBy("evaluate")] = "label"  # type: ignore[assignment]
    """The column with the labels of a row, as a list or joined by `separator`; or a list of columns of 0 and 1, one per label and
    named after it."""
    separator: Annotated[str, Field(min_length=1), UsedBy("evaluate", "predict")] = "|"
    """Separator between labels in a cell that is not a list."""
    threshold: Annotated[Probability | list[Probability] | Goal, UsedBy("evaluate", "predict")] = 0.5
    """Minimum probability of a predicted label: one number, or a list with one for each of `labels`. Or a goal, for which numbers
    are chosen on the validation split after training: `f1` (one threshold with the highest macro F1), `f1_per_label` (for each
    label that with the highest F1), `{cost: {false_positive: 1, false_negative: 5}}` (one with the lowest total cost of all
    errors) or `{recall_at_precision: 0.9}` (one with the highest micro recall at a micro precision of at least 0.9). Until then
    it is 0.5."""
    label_format: Annotated[Literal["names", "indicators"] | None, UsedBy("evaluate")] = None
    """Content of a list in a cell. `names`: the labels of the row. `indicators`: 0 or 1 for each of `labels`, in that order.
    null: inferred from the training data."""

    @property
    def targets(self) -> list[str]:
        return list(self.label) if isinstance(self.label, list) else [self.label]

    def elements(self, cell: Any) -> list[Any]:
        """Return the elements of a cell that contains a list, joined labels or a single label."""
        if (elements := as_list(cell)) is not None:
            return elements
        elements = cell.split(self.separator) if isinstance(cell, str) else [cell]
        return [element for element in elements if label_text(element) is not None]

    def labels_of(self, cell: Any) -> list[Any]:
        """Return the labels in a cell. Empty cells and invalid indicators contain none."""
        elements = self.elements(cell)
        if self.label_format != "indicators":
            return [element for element in elements if label_text(element) is not None]
        if not self._has_positions(elements):
            return elements if are_words(elements) else []
        return [name for name, element in zip(self.labels or [], elements, strict=True) if label_value(element, "int") == "1"]

    def _has_positions(self, elements: Sequence[Any]) -> bool:
        """Return whether the elements consist of 0 or 1 for each label."""
        return len(elements) == len(self.labels or []) and all(map(is_indicator, elements))

    def target_cells(self, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        if not isinstance(self.label, list):
            return columns[self.label]
        rows = zip(*(columns[name] for name in self.label), strict=True)
        return [[name for name, cell in zip(self.label, row, strict=True) if label_value(cell, "int") == "1"] for row in rows]

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        if isinstance(self.label, list):
            for name, value in (("label_type", "str"), ("label_format", "names")):
                if getattr(self, name) not in (None, value):
                    problems.add(
                        f"task.{name}: has no effect: columns of 0 and 1 in task.label are named after their labels; leave it out"
                    )
            if self.labels is not None and self.labels != self.label:
                problems.add(
                    f"task.labels: found {shorten(self.labels)}, which differ from the columns {shorten(self.label)} in "
                    "task.label; allowed: null, or the names of these columns in the same order"
                )
        task = super().fit(train, problems, training)
        if isinstance(self.threshold, list) and task.labels is not None and len(self.threshold) != len(task.labels):
            problems.add(
                f"task.threshold: found a list of {len(self.threshold)} numbers; allowed: a list of {len(task.labels)}, one for "
                f"each label in the order {shorten(task.labels)}; or a single number"
            )
        return task

    def learn_labels(self, train: Rows, problems: Problems) -> Self:
        if isinstance(self.label, list):
            task = self.model_copy(update={"labels": list(self.label), "label_type": "str", "label_format": "names"})
            counts = Counter(label for row in task.target_cells(train.columns) for label in row)
            check_occurrence(self.label, counts, train, problems)
        else:
            cells = [self.elements(cell) for cell in train.columns[self.label]]
            form = self.label_format or ("indicators" if hold_positions(cells, self.labels) else "names")
            task = self.model_copy(update={"label_format": form})
            if form == "indicators" and not self._names_match(cells, problems):
                return task
            single = [element for cell in train.columns[self.label] for element in task.labels_of(cell)]
            labels, kind, counts = fit_labels(single, train, self.label, self.labels, self.label_type, problems)
            task = task.model_copy(update={"labels": labels, "label_type": kind})
        task._check_labels(counts, train, problems)
        return task

    def _names_match(self, cells: Sequence[list[Any]], problems: Problems) -> bool:
        """Return whether most lists of numbers contain a 0 or 1 for each label. If not, report a problem.

        If `label_format` is set, one valid list is enough, and the others are reported later as bad rows.
        """
        filled = [cell for cell in cells if cell]
        valid = sum(map(self._has_positions, filled))
        if not filled or (self.labels and valid and (self.label_format is not None or 2 * valid > len(filled))):
            return True  # data without any labels are reported by `_check_labels`
        length = Counter(map(len, filled)).most_common(1)[0][0]
        examples = [cell for cell in filled if len(cell) == length]
        label_count = f"it has {len(self.labels)}" if self.labels else "it is not set"
        example = shorten_value(next((cell for cell in examples if not all(map(is_indicator, cell))), examples[0]))
        problems.add(
            f"train, column {self.label!r}: found lists of {length} numbers such as {example}, one for each label. Allowed: 0 "
            f"and 1, with task.labels naming the {length} positions in their order ({label_count}); or task.label: a list of "
            "columns of 0 and 1; or the names of a row's labels in each cell (if numbers are names, set task.label_format: names)"
        )
        return False

    def _check_labels(self, counts: "Counter[str]", train: Rows, problems: Problems) -> None:
        labels = self.labels or []
        column = f"train, column {', '.join(map(repr, self.targets))}"
        if not labels:
            problems.add(f"{column}: no row has a label; allowed: labels joined by {self.separator!r} or in a list")
        problems.extend(f"{column}: {fault}" for fault in self._separator_faults())
        if self.label_type == "float" and (fractions := [label for label in labels if "." in label]):
            problems.add(
                f"{column}: found the labels {shorten(fractions)}, which look like probabilities; allowed: names of labels (set "
                "task.label_type: str if they are names)"
            )
        for label in labels:
            if 0 < counts[label] == len(train):
                problems.add(f"{column}: every row has the label {label!r}; there is nothing to tell apart")
        if labels and all(map(POSITIONS.fullmatch, labels)) and any(not label.isdigit() or label[0] == "0" for label in labels):
            problems.add(
                f"{column}: found {shorten(labels)}, which look like a 0 or 1 for each label; allowed: lists as in JSON, such as "
                "[1, 0, 1], with task.labels naming their positions; or task.label: a list of columns of 0 and 1"
            )
        if labels and not isinstance(self.label, list) and self.label_format == "names" and all(map(is_indicator, labels)):
            problems.add(
                f"{column}: its labels are {shorten(labels)}; allowed: names of labels. A column of zeros and ones is read as "
                f"one label with task.label: [{self.label}]; for one label of two in each row use task.name: text_classification"
            )

    def _separator_faults(self) -> list[str]:
        """Return a message if a label contains the separator, which makes joined labels ambiguous."""
        join = self.separator.join
        inside = [label for label in self.labels or [] if join([label, label]).split(self.separator) != [label, label]]
        return inside and [
            f"the label {inside[0]!r} contains the separator {self.separator!r} or a part of it, so that joined labels would be "
            "ambiguous; allowed: task.separator: a text that occurs in no label"
        ]

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        if isinstance(self.label, list):
            for name in self.label:
                for row, cell in enumerate(rows.columns[name]):
                    if not is_indicator(cell):
                        problems.add_row(row, rows.bad(row, name, *no_label(cell, "0 or 1")))
            return
        if not self.labels:  # reported by `fit`
            return
        schema = self.label_schema()
        for row, cell in enumerate(rows.columns[self.label]):
            for fault in self._cell_faults(cell, schema):
                problems.add_row(row, rows.bad(row, self.label, *fault))
                note_labels(self.label, schema.names, problems)

    def _cell_faults(self, cell: Any, schema: LabelSchema) -> Iterator[tuple[str, str]]:
        """Yield the reason and kind of each problem in a cell."""
        allowed = f"a list of labels or text joined by {self.separator!r}"
        if isinstance(cell, (dict, bytes)) or (isinstance(cell, str) and is_unreadable_list(cell, self.separator)):
            yield no_label(cell, f"{allowed}; a list in a cell is written as in JSON, with commas")
            return
        elements = self.elements(cell)
        if self.label_format == "indicators":
            if self._has_positions(elements):
                return
            if not are_words(elements):
                yield no_label(cell, f"a list of {len(schema.names)} zeros and ones, one for each label")
                return
        elif all(map(is_indicator, elements)) and len({label_value(element, "int") for element in elements}) < len(elements):
            yield no_label(
                cell,
                f"{allowed}, each once; train contains names of labels, and this looks like a 0 or 1 for each label",
            )
            return
        for element in elements:
            if label_text(element) is None:
                yield no_label(element, allowed)
            elif schema.id(element) is None:
                yield unknown_label(str(label_text(element)), schema.names)

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """Return float32 of shape (rows, labels): 1 where a row has the label, else 0."""
        schema = self.label_schema()
        hot = np.zeros((len(cells), len(schema.names)), np.float32)
        for row, cell in enumerate(cells):
            hot[row, [i for label in self.labels_of(cell) if (i := schema.id(label)) is not None]] = 1
        return hot

    def head_fields(self) -> dict[str, Any]:
        return label_fields(self.labels or [], "multi_label_classification")

    def balanced_weights(self, labels: np.ndarray, times: np.ndarray) -> torch.Tensor:
        """Return the weight of positive rows of each label: the ratio of rows without to rows with the label, at least 1."""
        positive = times @ labels
        return torch.tensor((times.sum() - positive) / np.maximum(positive, 1), dtype=torch.float32).clamp(min=1)

    def predictions(self, outputs: Any) -> Arrays:
        """Return `scores`, the probabilities, float32 of shape (rows, labels), and `prediction`, bool of the same shape."""
        scores = outputs.logits.float().sigmoid().cpu().numpy()
        threshold = np.asarray(0.5 if self.goal is not None else self.threshold, np.float64)
        return self.with_logits(outputs, {"prediction": scores.astype(np.float64) >= threshold, "scores": scores})

    @property
    def goal(self) -> Goal | None:
        return goal_of(self.threshold)

    @property
    def scorer(self) -> LabelScorer:
        values = tuple(self.label_schema().values())
        return LabelScorer(self.traits.best_metric, tuple(self.labels or ()), values, True, separator=self.separator)

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        """Return `prediction`, a list of labels per row, and `probability`, the list of their probabilities.

        If `cells` is true, each list is joined to text by the separator.

        Raises:
            UserError: If a label contains the separator.
        """
        predicted, scores = predictions["prediction"], predictions["scores"].astype(float)
        columns = self.scorer.reference_column(references) | {
            "prediction": self.scorer.typed(predicted),
            "probability": [row_scores[np.flatnonzero(row)].tolist() for row, row_scores in zip(predicted, scores, strict=True)],
        }
        if cells:
            if faults := self._separator_faults():
                raise UserError(f"--task.separator: {faults[0]}")
            columns = {name: [self.separator.join(map(str, row)) for row in rows] for name, rows in columns.items()}
        return columns | (self.probability_columns(predictions) if probabilities else {})

    def describe(self, train: Rows) -> Description:
        """Describe training rows. Their stratum is the rarest label, the one most likely to be missing from a split."""
        hot = self.encode_targets(self.target_cells(train.columns))
        counts: Counter[str] = Counter(dict(zip(self.labels or [], hot.sum(0).astype(int).tolist(), strict=True)))
        lines = balance(counts, len(train))
        if self.label_format == "indicators":
            lines.append(f"{self.label}: zeros and ones for {shorten(self.labels or [])}, in this order")
        if single := sorted(label for label, count in counts.items() if count == 1):
            lines.append(f"warning: only one row has {shorten(single)}")
        if isinstance(self.label, str) and hot.sum(1).max(initial=0) <= 1:
            lines += other_separator(train.columns[self.label], ",;/|".replace(self.separator, ""), "task.separator")
        lines += [*similar_labels(self.labels or []), f"{hot.sum(1).mean():.2f} labels per row"]
        return Description(rarest_labels(hot), lines, self.labels or [])
