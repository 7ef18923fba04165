"""Base class of classification tasks: settings of the labels, label schema and objective."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import PrivateAttr

from nlp_transfer.data.oversampling import class_repeats
from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics.scorer import Arrays
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.settings.threshold_goals import Goal
from nlp_transfer.tasks.common.calibration import Calibration
from nlp_transfer.tasks.common.label_schema import LabelSchema, LabelType
from nlp_transfer.tasks.common.labels import LabelList, check_type, check_weight_names, named_type, weight_vector
from nlp_transfer.tasks.common.objectives import BinaryCrossEntropy, CrossEntropy, Objective, smoothing_of
from nlp_transfer.tasks.common.text_task import TextTask
from nlp_transfer.utils.errors import Problems


class LabelTask(TextTask):
    """A task that predicts labels with probabilities."""

    loss_type: ClassVar[type[CrossEntropy] | type[BinaryCrossEntropy]]
    """Class of the objective."""

    labels: LabelList | None = None
    """The labels, in the order of the model's outputs. null: the labels of the training data, sorted by value if all are numbers,
    otherwise alphabetically."""
    label_type: Annotated[LabelType | None, UsedBy("predict")] = None
    """Type of predicted labels in Python, JSONL and Parquet. null: the type of the training labels. With `str`, 1.1 and 1.10 are
    two labels."""
    calibrate: bool = False
    """Fit a temperature on the validation split after training, which makes probabilities agree with frequencies. It is folded
    into the saved weights."""

    _keeps_logits: bool = PrivateAttr(default=False)  # whether predictions include the logits, which calibration needs

    def label_schema(self) -> LabelSchema:
        """Return the labels in the order of the logits."""
        return LabelSchema(self.labels or [], self.label_type)

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        task = super().fit(train, problems, training)
        if self.calibrate and self.traits.calibration(self) is None:
            problems.add("task.calibrate: this task does not support it; allowed: false, or traits with LabelTask.calibration")
        if train is not None and len(train):
            task = task.learn_labels(train, problems)
        else:
            check_type(self.labels, self.label_type, problems)
            if train is not None:
                task = task.model_copy(update={"label_type": named_type(self.labels, self.label_type, problems)})
        if training is not None:
            check_weight_names(training, task.labels, task.label_type, problems)
        return task

    @abstractmethod
    def learn_labels(self, train: Rows, problems: Problems) -> Self:
        """Return a copy with the labels of the training rows and their type."""

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        task = super().prepare(checkpoint, train, parts)
        if train is None and task.goal is not None:
            reason = "a goal is for training, which chooses the threshold on the validation split; a saved model takes a number"
            task._unused = {**task._unused, "threshold": reason}
        return task

    @property
    def goal(self) -> Goal | None:
        """The goal for which a threshold is chosen on validation; None: no threshold is chosen."""
        return None

    @property
    def positive_id(self) -> int | None:
        """Index of the label that the threshold applies to; None: all labels."""
        return None

    def calibration(self) -> Calibration | None:
        """Return what is fitted on the validation split after training; None: nothing."""
        if not self.calibrate and self.goal is None:
            return None
        task = self.model_copy()
        task._keeps_logits = self.calibrate
        return Calibration(task, self.calibrate, self.goal, self.positive_id)

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> Objective:
        """Return the loss. `balanced` class weights take oversampling into account, so that classes are not balanced twice."""
        if training is None:
            return self.loss_type()
        weights = None
        if training.class_weights == "balanced" and train is not None:
            labels = train.dense["labels"]
            repeats = class_repeats(labels, training.oversample)
            weights = self.balanced_weights(labels, np.ones(len(train)) if repeats is None else repeats.times())
        elif isinstance(training.class_weights, Mapping):
            weights = weight_vector(training.class_weights, self.labels or [], self.label_type)
        return self.loss_type(self.smoothing(training), weights, training.focal_gamma or 0.0)

    def smoothing(self, training: TrainingConfig) -> float:
        """Return the label smoothing."""
        return smoothing_of(training)

    @abstractmethod
    def balanced_weights(self, labels: np.ndarray, times: np.ndarray) -> torch.Tensor:
        """Return the `balanced` weight of each label, float32 of shape (labels,).

        Args:
            labels: Targets of all rows, in the form that `encode_targets` returns.
            times: Average number of times that each row occurs in an epoch, float64 of shape (rows,).
        """

    def with_logits(self, outputs: Any, predictions: Arrays) -> Arrays:
        """Add the logits, float32 of shape (rows, labels), if calibration needs them."""
        return predictions | ({"logits": outputs.logits.float().cpu().numpy()} if self._keeps_logits else {})

    def probability_columns(self, predictions: Arrays) -> dict[str, list[Any]]:
        """Return a column `probability:LABEL` for each label."""
        scores = predictions["scores"].astype(float)
        return {f"probability:{label}": scores[:, i].tolist() for i, label in enumerate(self.labels or [])}
