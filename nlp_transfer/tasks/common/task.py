"""The task protocol: what a model learns, from the columns of a table to the metrics of its predictions."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import PrivateAttr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Features, TokenTable
from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.named_settings import NamedSettings
from nlp_transfer.settings.schema import Count, TrainingConfig
from nlp_transfer.tasks.common.objectives import Batch, Items, Objective
from nlp_transfer.tasks.common.traits import TaskTraits
from nlp_transfer.utils.errors import Problems, UserError


@dataclass(frozen=True)
class Description:
    """What is known about training rows.

    Attributes:
        strata: Stratum of each row for a stratified split, int64 of shape (rows,).
        lines: Lines to print, such as the class balance or the range of values. May be a generator, since they can be costly.
        classes: Names of the classes. A validation split needs a few rows of each.
        obstacles: Reasons why no rows can be held out.
    """

    strata: np.ndarray
    lines: Iterable[str] = ()
    classes: Sequence[str] = ()
    obstacles: Sequence[str] = ()


class Task(NamedSettings, ABC):
    """What a model learns. A task consists of its settings (frozen and validated) and the methods below.

    `fit` and `prepare` return copies that include learned values, such as the labels. A task loaded from JSON therefore encodes,
    predicts and scores exactly like the saved one.
    """

    traits: ClassVar[TaskTraits]
    """Facts about the task that do not depend on its settings."""

    max_length: Annotated[Count | None, UsedBy("evaluate", "predict", "translate")] = None
    """Maximum input length in tokens. null: 512, or the limit of the checkpoint if that is lower."""

    _changed: set[str] = PrivateAttr(default_factory=set)  # settings that were overridden when the saved task was loaded
    _unused: dict[str, str] = PrivateAttr(default_factory=dict)  # settings without effect on a saved model, with the reason

    @property
    @abstractmethod
    def inputs(self) -> list[str]:
        """The columns required for prediction."""

    @property
    @abstractmethod
    def targets(self) -> list[str]:
        """The columns that contain the target, required in addition for training and evaluation."""

    @abstractmethod
    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        """Check the settings, and return a copy with values learned from the training rows, such as the labels.

        Report data that cannot be trained on.

        Args:
            train: None: only check the settings. Without rows: the run has no training data, so the settings must name
                everything that would be learned.
            training: Settings that must be compatible with the task. None: they are not checked.
        """

    @abstractmethod
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        """Check every cell.

        Report bad rows, which can be skipped, with `problems.add_row`. Report problems that must end the run with `problems.add`.
        """

    @abstractmethod
    def describe(self, train: Rows) -> Description:
        """Describe training rows, for their split and for the user."""

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        """Return a copy with the settings that depend on the checkpoint and its tokenizer, such as the maximum length.

        Args:
            train: The training rows. None: the checkpoint is the saved model of the task.
            parts: Location of the files written by `export`. None: the checkpoint's folder.

        Raises:
            UserError: If a setting is incompatible with the checkpoint.
        """
        limit = checkpoint.max_length
        if train is not None and self.max_length is not None:
            least = checkpoint.tokenizer.num_special_tokens_to_add(pair=len(self.inputs) > 1) + 1
            if not least <= self.max_length <= limit:
                raise UserError(
                    f"task.max_length: found {self.max_length}; allowed: {least} to {limit}, the limits of "
                    f"{checkpoint.source.name}"
                )
        return self.model_copy(update={"max_length": self.max_length or min(512, limit)})

    @abstractmethod
    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        """Return the features of a batch of rows, with or without targets."""

    @abstractmethod
    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """Return the checkpoint's model with a head for this task. Its configuration includes the labels."""

    @abstractmethod
    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> Objective:
        """Return the training loss with the options of the settings, such as label smoothing.

        Args:
            training: None: the plain loss, with which metrics are computed.
            train: The training rows, for `balanced` class weights. None: without these weights.
        """

    @abstractmethod
    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Predict a batch.

        Args:
            chosen: bool of shape (rows,): rows to predict, in draft quality, during training (`Scorer.draft`). None: all rows, in
                the best quality. Losses are always computed for all rows.
            texts: Text columns of these rows, which are not inputs of the model (`TokenTable.texts`).

        Returns:
            Compact arrays of shape (rows, ...), not logits of all tokens, with a column `prediction`. And if the batch has
            targets, the plain loss and its count by term.
        """

    @abstractmethod
    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        """Return predictions as named output columns, such as `prediction` and `probability`.

        Args:
            references: Targets in the form of `prediction`, for a first column `reference`. Numbers are then exact, so that the
                metrics can be reproduced.
            probabilities: Whether to add a column `probability:LABEL` for each label.
            cells: Whether to format values as cells of a CSV file.
        """

    def export(self, model: PreTrainedModel, folder: Path) -> Self:
        """Fold parameters of the task into the weights, so that transformers alone computes the same predictions.

        Also save the parts of the task that are not JSON, such as a tokenizer, in the folder. Idempotent.

        Returns:
            The task to save with the model.
        """
        return self

    def connect(self, model: PreTrainedModel) -> None:
        """Prepare a loaded model for prediction, whether this toolkit or another program saved it."""

    @property
    @abstractmethod
    def scorer(self) -> Scorer:
        """Scores predictions in the form that `predict` returns."""


def check_has_rows(train: Rows | None, problems: Problems) -> None:
    """Report that there is no training data, for a task that cannot do without."""
    if train is not None and not len(train):
        problems.add("data.train: is required and was not given; this task learns its possible predictions from these rows")
