"""The task protocol: what a model learns, from the columns of a table to the metrics of its predictions."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Features, TokenTable
from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objectives import Batch, Items, Objective
from nlp_transfer.tasks.common.task_data import TaskData
from nlp_transfer.utils.errors import UserError


class Task(TaskData):
    """What a model learns. A task consists of its settings (frozen and validated) and the methods below.

    `fit` and `prepare` return copies that include learned values, such as the labels. A task loaded from JSON therefore encodes,
    predicts and scores exactly like the saved one.
    """

    def prepare(self, checkpoint: Checkpoint, train: Rows) -> Self:
        """Return a copy with the settings that depend on the checkpoint and its tokenizer, such as the maximum length.

        Raises:
            UserError: If a setting is incompatible with the checkpoint.
        """
        least = checkpoint.tokenizer.num_special_tokens_to_add(pair=len(self.inputs) > 1) + 1
        limit = checkpoint.max_length
        if self.max_length is not None and not least <= self.max_length <= limit:
            raise UserError(
                f"task.max_length: found {self.max_length}; allowed: {least} to {limit}, the limits of {checkpoint.source.name}"
            )
        return self._with_length(checkpoint)

    def restore(self, checkpoint: Checkpoint, parts: ModelSource | None = None) -> Self:
        """Return a prepared copy for a saved model.

        Args:
            parts: Location of the files written by `export`. None: the checkpoint's folder.
        """
        return self._with_length(checkpoint)

    def _with_length(self, checkpoint: Checkpoint) -> Self:
        return self.model_copy(update={"max_length": self.max_length or min(512, checkpoint.max_length)})

    def unused_by_model(self, scored: bool) -> dict[str, str]:
        """Return the settings that have no effect on this restored task, each with the reason.

        Args:
            scored: Whether predictions are scored. If so, settings that affect metrics are not returned.
        """
        return {}

    def prefer_head(self, head: HeadConfig | None) -> Self:
        """Return a copy with this head, unless the task's settings already name one or the task has no choice of heads."""
        return self

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
