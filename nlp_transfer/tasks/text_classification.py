"""Text classification: predict one label for a text or a pair of texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.evaluation.metrics import LABEL_KEYS
from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Arrays, Description, TaskTraits
from nlp_transfer.tasks.common.label_schema import as_list
from nlp_transfer.tasks.common.label_task import LabelTask
from nlp_transfer.tasks.common.labels import (
    balance,
    check_labels,
    configured_labels,
    fit_labels,
    label_fields,
    other_separator,
    similar_labels,
)
from nlp_transfer.tasks.common.objectives import CrossEntropy, smoothing_of
from nlp_transfer.tasks.common.text_task import TEXT_CARD
from nlp_transfer.utils.errors import Problems

MANY_CLASSES = 10  # minimum number of labels for which `label_smoothing: auto` is 0.1


class TextClassification(LabelTask):
    """Classification with exactly one label per row, using a softmax over the labels."""

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="label", metrics=LABEL_KEYS, best_metric="accuracy", has_probabilities=True, classes=True,
        untokenized=frozenset({"head"}), card=TEXT_CARD, fixed=("labels",),
        configured=lambda config: (
            None if config.problem_type in ("regression", "multi_label_classification") or config.num_labels == 1
            else {"labels": configured_labels(config)}
        ),
    )  # fmt: skip

    loss_type = CrossEntropy

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
        return {"prediction": scores.argmax(-1), "scores": scores}

    @property
    def scorer(self) -> LabelScorer:
        return LabelScorer(self.traits.best_metric, tuple(self.labels or ()), tuple(self.label_schema().values()))

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        columns = self.scorer.reference_column(references) | {
            "prediction": self.scorer.typed(predictions["prediction"]),
            "probability": predictions["scores"].max(-1).astype(float).tolist(),
        }
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
