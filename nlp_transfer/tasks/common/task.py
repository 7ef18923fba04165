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
from nlp_transfer.settings.base_settings import Count
from nlp_transfer.settings.named_settings import NamedSettings
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objectives import Batch, Items, Objective
from nlp_transfer.tasks.common.traits import TaskTraits
from nlp_transfer.utils.errors import Problems, UserError

DEFAULT_LENGTH = 512  # maximum tokens of an input, unless the settings or the checkpoint have another limit


@dataclass(frozen=True)
class Description:
    """What is known about training rows.

    Attributes:
        strata: Stratum of each row for a stratified split, int64 of shape (rows,).
        lines: Lines to print, such as the class balance or the range of values. May be a generator, since they can be costly to
            compute.
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
        """The columns that contain the target; training and evaluation require them too."""

    @abstractmethod
    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        """Check the settings, and return a copy with values learned from the training rows, such as the labels.

        Report data that cannot be trained on.

        Args:
            train: The training rows. None: only check the settings. Empty: the run has no training data, so the settings must
                name everything that would otherwise be learned.
            training: Settings that must be compatible with the task. None: they are not checked.
        """

    @abstractmethod
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        """Check every cell.

        Report bad rows, which can be skipped, with `problems.add_row`. Report problems that must end the run with `problems.add`.
        """

    @abstractmethod
    def describe(self, train: Rows) -> Description:
        """Describe the training rows: what is needed to split them, and what to tell the user."""

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        """Return a copy with values for the settings that depend on the checkpoint and its tokenizer, such as the maximum length.

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
        return self.model_copy(update={"max_length": self.max_length or min(DEFAULT_LENGTH, limit)})

    @abstractmethod
    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        """Return the features of a batch of rows, with or without targets."""

    @abstractmethod
    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """Return the checkpoint's model with a head for this task. Its configuration includes the labels."""

    @abstractmethod
    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> Objective:
        """Return the training loss, with the options that the training settings specify, such as label smoothing.

        Args:
            training: The training settings. None: the plain loss, as used for metrics.
            train: The training rows, for `balanced` class weights. None: without these weights.
        """

    @abstractmethod
    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Predict a batch.

        Args:
            chosen: Which rows to predict, bool of shape (rows,). Used during training, for predictions in draft quality
                (`Scorer.draft`). None: predict all rows, in the best quality. Losses are always computed for all rows.
            texts: Text columns of all rows of the batch, which are not inputs of the model (`TokenTable.texts`).

        Returns:
            Compact arrays of shape (rows, ...), including `prediction` but never the logits of all tokens. If the batch has
            targets, also the sum and the item count of each term of the plain loss.
        """

    @abstractmethod
    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        """Return predictions as named output columns, such as `prediction` and `probability`.

        Args:
            references: Targets in the form of `prediction`; they become the first column, `reference`. Numbers are then not
                rounded, so that the metrics can be reproduced.
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


def token_limit(task: Task) -> int:
    """Return the maximum length of an input in tokens, also for a task that is not prepared for a checkpoint."""
    return task.max_length or DEFAULT_LENGTH


def check_knows_characters(checkpoint: Checkpoint) -> None:
    """Check that the tokenizer returns the characters of its tokens, for a task that finds parts of texts.

    Raises:
        UserError: If it does not.
    """
    if not checkpoint.tokenizer.is_fast:
        raise UserError(
            f"model: {checkpoint.source.name} has a {type(checkpoint.tokenizer).__name__}, which does not return the characters "
            "of its tokens; allowed: a checkpoint with a fast tokenizer (tokenizer.json)"
        )


def check_has_rows(train: Rows | None, problems: Problems) -> None:
    """Report that there is no training data, for a task that cannot do without it."""
    if train is not None and not len(train):
        problems.add("data.train: is required and was not given; this task learns its possible predictions from these rows")
