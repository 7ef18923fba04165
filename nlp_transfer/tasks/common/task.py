"""The task protocol: what a model learns, from the columns of a table to the metrics of its predictions."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.token_cache import CachePolicy, cached_table, is_cached
from nlp_transfer.data.tokens import TokenTable, model_inputs
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
            parts: Location of the files written by `save_parts`. None: the checkpoint's folder.
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

    def save_parts(self, folder: Path) -> None:
        """Save the parts of the task that are not JSON, such as a tokenizer."""

    def prefer_head(self, head: HeadConfig | None) -> Self:
        """Return a copy with this head, unless the task's settings already name one or the task has no choice of heads."""
        return self

    @abstractmethod
    def encode(
        self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True
    ) -> tuple[dict[str, Any], int]:
        """Return the features of a batch of rows and the number of truncated rows.

        Token ids are lists of different lengths (ragged columns). All other features are arrays of shape (rows, ...) (dense
        columns).
        """

    @abstractmethod
    def fill(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """Return the padding value of each ragged column."""

    def encoding(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
        """Return the cache key of `encode` as JSON: all its inputs except the rows and the code of this package.

        Returns:
            None if there is no such key. Tokens are then not cached on disk.
        """
        return None

    def table(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, policy: CachePolicy, targets: bool = True, name: str = "rows"
    ) -> TokenTable:
        """Tokenize checked rows, or load their tokens from the cache."""
        # Tasks defined in user code are not cached: the key does not cover changes to that code.
        in_package = type(self).__module__.partition(".")[0] == __package__.partition(".")[0]
        encode = partial(self.encode, tokenizer=tokenizer, targets=targets)
        key = self.encoding(tokenizer) if in_package and is_cached(rows, policy) else None
        return cached_table(rows, encode, self.fill(tokenizer), key and key | {"targets": targets}, policy, name)

    @abstractmethod
    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """Return the checkpoint's model with a head for this task. Its configuration includes the labels."""

    def export(self, model: PreTrainedModel) -> Self:
        """Fold parameters of the task into the weights, so that transformers alone computes the same predictions.

        Idempotent.

        Returns:
            The task to save with the model.
        """
        return self

    def connect(self, model: PreTrainedModel) -> None:
        """Prepare a loaded model for prediction, whether this toolkit or another program saved it."""

    def computing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context manager for forward passes whose outputs go to `loss` or `predict`."""
        return nullcontext()

    @abstractmethod
    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> Objective:
        """Return the training loss with the options of the settings, such as label smoothing.

        Args:
            training: None: the plain loss, with which metrics are computed.
            train: The training rows, for `balanced` class weights. None: without these weights.
        """

    def predict(self, outputs: Any) -> Arrays:
        """Convert model outputs to predictions: compact arrays of shape (rows, ...), not logits of all tokens.

        A task that needs more than one forward pass per prediction overrides `predict_batch` instead.
        """
        raise NotImplementedError

    def predict_batch(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Predict a batch. If it has labels, also return its losses and their counts.

        Args:
            chosen: bool of shape (rows,): rows to predict, in draft quality, during training. None: all rows, in the best
                quality. Losses are always computed for all rows.
            texts: Text columns of these rows, which are not inputs of the model (`TokenTable.texts`).
        """
        with self.computing(model):
            outputs = model(**model_inputs(batch))
        return self.predict(outputs), self.objective().items(outputs, batch) if "labels" in batch else {}

    @abstractmethod
    def describe(self, predictions: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        """Return predictions as named output columns, such as `prediction` and `probability`."""

    def cells(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Format the columns of `describe`, and an optional column `reference`, as cells of a CSV file."""
        return columns

    @property
    @abstractmethod
    def scorer(self) -> Scorer:
        """Scores predictions in the form that `predict` returns."""
