"""The task protocol: what a model learns, from the columns of a table to the metrics of its predictions."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.oversampling import Repeats
from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.token_cache import CachePolicy, cached_table, is_cached
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.evaluation.metrics import higher_is_better
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objective import PLAIN_LOSS, Arrays, Batch, Items, LossOptions
from nlp_transfer.tasks.common.task_data import TaskData
from nlp_transfer.utils.errors import UserError


class Task(TaskData):
    """What a model learns. A task consists of its settings (frozen and validated) and the methods below.

    `fit` and `prepare` return copies that include learned values, such as the labels. A task loaded from JSON therefore encodes,
    predicts and scores exactly like the saved one.

    Losses are sums by named term, never means. The training loop divides each term by its `counts`, which it sums over all rows
    of an optimizer step and all processes.
    """

    best_metric: ClassVar[str]
    """Validation metric by which the best weights are selected, unless `training.best_metric` names another one."""

    prediction_kind: ClassVar[Literal["label", "labels", "number", "text"]] = "label"
    """Kind of prediction for a row. Only `label` and `labels` have probabilities."""

    def metric_names(self) -> list[str]:
        """Return the names of all metrics, any of which can be `training.best_metric`."""
        return [self.best_metric]

    def prepare(self, checkpoint: Checkpoint, train: Rows) -> Self:
        """Return a copy with the settings that depend on the checkpoint and its tokenizer, such as the maximum length.

        Raises:
            UserError: If a setting is incompatible with the checkpoint.
        """
        least = checkpoint.tokenizer.num_special_tokens_to_add(pair=len(self.input_columns()) > 1) + 1
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

    def auto_class(self) -> Any:
        """Return the transformers Auto class that loads the models of this task."""
        return AutoModelForSequenceClassification

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

    def label_smoothing(self, training: TrainingConfig) -> float:
        """Return the label smoothing; `auto` is 0 unless a task overrides it."""
        return 0.0 if isinstance(training.label_smoothing, str) else training.label_smoothing

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        """Return the options of the training loss, such as class weights and label smoothing."""
        return LossOptions(self.label_smoothing(training))

    def classes(self, table: TokenTable) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the classes that `training.oversample` balances.

        Returns:
            The class of each row, int64 of shape (rows,), -1 for none; and the rows per class, int64 of shape (classes,). None if
            the task has no classes.
        """
        return None

    def repeats(self, training: TrainingConfig, table: TokenTable) -> Repeats | None:
        """Return the oversampling of the training rows. None: oversampling is off, or the task has no classes."""
        classes = self.classes(table) if training.oversample else None
        power = 1.0 if isinstance(training.oversample, str) else training.oversample
        return Repeats(*classes, power) if classes and power else None

    @abstractmethod
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Return the number of rows as `rows`, and the number of items in each loss term. Needs only the targets of the batch."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Return the summed loss of each term, fp32 of shape (), under the same names as in `counts`."""

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """Return additional metrics of a training step: each a sum of shape () and the loss term whose count divides it."""
        return {}

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
        return self.predict(outputs), self.items(outputs, batch) if "labels" in batch else {}

    def items(self, outputs: Any, batch: Batch) -> Items:
        """Return the losses of a batch, computed with `PLAIN_LOSS`, and their counts."""
        counts = self.counts(batch)
        return {name: (float(value), counts[name]) for name, value in self.loss(outputs, batch).items()}

    def draft_rows(self, rows: int) -> np.ndarray | None:
        """Return the rows of a split to predict during training (`predict_batch`), bool of shape (rows,). None: all rows.

        Override it if predictions are expensive.
        """
        return None

    def draft_settings(self, rows: int) -> dict[str, float]:
        """Return the settings, all numeric, that make predictions during training cheaper than final ones.

        They are logged and printed with the validation metrics.
        """
        return {}

    @abstractmethod
    def describe(self, predictions: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        """Return predictions as named output columns, such as `prediction` and `probability`."""

    def cells(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Format the columns of `describe`, and an optional column `reference`, as cells of a CSV file."""
        return columns

    @abstractmethod
    def metrics(self, predictions: Arrays, targets: Arrays) -> dict[str, float]:
        """Compute the metrics of a complete split. Undefined metrics are omitted."""

    def written(self, cells: np.ndarray) -> list[Any]:
        """Convert predictions or targets, in the form passed to `metrics`, to typed labels, numbers or texts."""
        values: list[Any] = cells.tolist()
        return values

    def metric_to_compare(self, best_metric: str | None) -> str:
        """Return the metric by which finished models are compared, given `training.best_metric`.

        It is never the loss, which depends on settings such as label smoothing.
        """
        return self.best_metric if best_metric in (None, "loss") else str(best_metric)

    def sums(
        self, metric: str, predictions: Arrays, targets: Arrays
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
        """Return per-row statistics of a metric, and the function that computes the metric from their sums.

        They make bootstrap resampling cheap.

        Returns:
            The statistics, float64 of shape (rows, statistics), and the function from their sums, of shape (samples, statistics),
            to values, of shape (samples,). None: `metrics` scores each sample instead.
        """
        return None

    def example_lines(self, predictions: Arrays, targets: Arrays) -> list[str]:
        """Return examples and notes to print after a split has been scored."""
        return []

    def signatures(self) -> dict[str, str]:
        """Return the signature of each metric that has several conventions, such as BLEU. Saved in `result.json`."""
        return {}

    def higher_is_better(self, metric: str) -> bool:
        """Return whether higher values of a metric are better. Override it for metrics that the toolkit does not know."""
        return higher_is_better(metric)
