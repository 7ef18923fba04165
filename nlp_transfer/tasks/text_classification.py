"""Text classification: predict one label for a text or a pair of texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BeforeValidator

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.evaluation.metrics import LABEL_KEYS
from nlp_transfer.evaluation.metrics.calibration_metrics import PROBABILITY_KEYS
from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.settings.threshold_goals import Goal, Probability, goal_of
from nlp_transfer.tasks import Arrays, Description, TaskTraits
from nlp_transfer.tasks.common.label_schema import as_list, label_text
from nlp_transfer.tasks.common.label_task import LabelTask
from nlp_transfer.tasks.common.labels import (
    balance,
    check_labels,
    configured_labels,
    fit_labels,
    label_fields,
    other_separator,
    shorten,
    similar_labels,
)
from nlp_transfer.tasks.common.objectives import CrossEntropy, smoothing_of
from nlp_transfer.tasks.common.text_task import TEXT_CARD
from nlp_transfer.utils.errors import Problems

MANY_CLASSES = 10  # minimum number of labels for which `label_smoothing: auto` is 0.1


class TextClassification(LabelTask):
    """Classification with exactly one label per row, using a softmax over the labels."""

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="label", metrics=(*LABEL_KEYS, *PROBABILITY_KEYS), best_metric="accuracy",
        has_probabilities=True, classes=True,
        untokenized=frozenset({"head"}), card=TEXT_CARD, fixed=("labels",), calibration=LabelTask.calibration,
        configured=lambda config: (
            None if config.problem_type in ("regression", "multi_label_classification") or config.num_labels == 1
            else {"labels": configured_labels(config)}
        ),
    )  # fmt: skip

    loss_type = CrossEntropy

    positive: Annotated[Annotated[str, BeforeValidator(label_text)] | None, UsedBy("evaluate", "predict")] = None
    """One of two labels: `threshold` applies to it, and its precision, recall and F1 are added to the metrics."""
    threshold: Annotated[Probability | Goal | None, UsedBy("evaluate", "predict")] = None
    """Minimum probability for which `positive` is predicted, or a goal for which it is chosen on the validation split after
    training: `f1` (the highest F1 of `positive`), `{cost: {false_positive: 1, false_negative: 5}}` (the lowest total cost of
    errors) or `{recall_at_precision: 0.9}` (the highest recall at a precision of at least 0.9). null: 0.5, and until then too."""
    abstain: Annotated[Probability | None, UsedBy("evaluate", "predict")] = None
    """Minimum probability of a predicted label. Rows below it get no prediction (null) and a note that says so. The metrics are
    still those of all rows, and `coverage` and `accuracy_covered` are added. null: every row gets a prediction."""

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        task = super().fit(train, problems, training)
        if self.threshold is not None and self.positive is None:
            problems.add(
                "task.threshold: needs task.positive, the one of two labels that it applies to; set it, or leave this out"
            )
        if self.threshold == "f1_per_label":
            problems.add("task.threshold: found 'f1_per_label', which is for task.name multi_label; allowed: f1")
        if self.positive is not None and task.labels is not None and (len(task.labels) != 2 or task.positive_id is None):
            problems.add(
                f"task.positive: found {self.positive!r}, with the labels {shorten(task.labels)}; allowed: one of two labels"
            )
        return task

    def learn_labels(self, train: Rows, problems: Problems) -> Self:
        column = train.columns[self.label]
        single = [cell for cell in column if as_list(cell) is None]
        labels, kind, _ = fit_labels(single, train, self.label, self.labels, self.label_type, problems)
        if len(labels) == 1:
            problems.add(
                f"train, column {self.label!r}: every row has the label {labels[0]!r}; allowed: at least two different labels"
            )
        return self.model_copy(update={"labels": labels, "label_type": kind})

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        check_labels(rows, self.label, self.label_schema(), problems)

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """Return label ids, int64 of shape (rows,)."""
        schema = self.label_schema()
        return np.array([schema.id(cell) for cell in cells], np.int64)

    def head_fields(self) -> dict[str, Any]:
        return label_fields(self.labels or [], "single_label_classification")

    def smoothing(self, training: TrainingConfig) -> float:
        """For `auto`, return 0.1 with many classes, since these usually have few rows each, which leads to overconfidence.

        Müller et al. 2019, "When Does Label Smoothing Help?", 1906.02629.
        """
        many = len(self.labels or []) >= MANY_CLASSES
        return smoothing_of(training, 0.1 if many else 0.0)

    def balanced_weights(self, labels: np.ndarray, times: np.ndarray) -> torch.Tensor:
        """Return rows / (labels * rows of the label) for each label, as scikit-learn does."""
        frequency = np.rint(np.bincount(labels, times, minlength=len(self.labels or [])))
        return torch.tensor(frequency.sum() / (len(frequency) * np.maximum(frequency, 1)), dtype=torch.float32)

    def predictions(self, outputs: Any) -> Arrays:
        """Return `prediction`, label ids int64 of shape (rows,), and `scores`, probabilities float32 of shape (rows, labels)."""
        scores = outputs.logits.float().softmax(-1).cpu().numpy()
        predicted, positive = scores.argmax(-1), self.positive_id
        if positive is not None and isinstance(self.threshold, float):
            is_positive = scores[:, positive].astype(np.float64) >= self.threshold
            predicted = np.where(is_positive, positive, 1 - positive)
        return self.with_logits(outputs, {"prediction": predicted, "scores": scores})

    @property
    def goal(self) -> Goal | None:
        return goal_of(self.threshold)

    @property
    def positive_id(self) -> int | None:
        return None if self.positive is None else self.label_schema().id(self.positive)

    @property
    def scorer(self) -> LabelScorer:
        labels, values = tuple(self.labels or ()), tuple(self.label_schema().values())
        return LabelScorer(self.traits.best_metric, labels, values, abstain=self.abstain, positive=self.positive_id)

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        scores = predictions["scores"].astype(float)
        probability = scores[np.arange(len(scores)), predictions["prediction"]].tolist()
        columns = self.scorer.reference_column(references) | {
            "prediction": self.scorer.typed(predictions["prediction"]),
            "probability": probability,
        }
        if self.abstain is not None:
            reason = "no prediction: the probability of {} is below task.abstain {:g}".format
            is_given = [value >= self.abstain for value in probability]
            predicted = list(zip(columns["prediction"], is_given, strict=True))
            columns["prediction"] = [label if given else None for label, given in predicted]
            columns["note"] = [None if given else reason(label, self.abstain) for label, given in predicted]
        return columns | (self.probability_columns(predictions) if probabilities else {})

    def describe(self, train: Rows) -> Description:
        labels, ids = self.labels or [], self.encode_targets(train.columns[self.label])
        rows = np.bincount(ids, minlength=len(labels))
        obstacles = [
            f"{train.where(int(np.flatnonzero(ids == label)[0]))}, column {self.label!r}: the only row with the label "
            f"{labels[label]!r}; allowed: two rows or more of each label if rows of train are held out (a single row cannot be "
            "both trained on and held out)"
            for label in np.flatnonzero(rows == 1)
        ]
        joined = other_separator(train.columns[self.label], "|;", "task.name: multi_label")
        counts = Counter(labels[i] for i in ids)
        return Description(ids, [*balance(counts, len(train)), *similar_labels(labels), *joined], labels, obstacles)
