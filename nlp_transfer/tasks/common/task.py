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

    `fit` and `prepare` return copies that also hold what they learned, such as the labels. A task saved as JSON is therefore
    complete: it encodes, predicts and scores the same elsewhere.

    Losses are sums by named term, never means. Only the training loop knows all rows of an optimizer step over all processes; it
    divides each term by the `counts` of those rows.
    """

    best_metric: ClassVar[str]
    """Validation metric by which the best weights are selected, unless `training.best_metric` names another one."""

    prediction_kind: ClassVar[Literal["label", "labels", "number", "text"]] = "label"
    """What is predicted for a row. Only `label` and `labels` come with probabilities."""

    def metric_names(self) -> list[str]:
        """Return the names of all metrics, so that an unknown `training.best_metric` is refused before training."""
        return [self.best_metric]

    def prepare(self, checkpoint: Checkpoint, train: Rows) -> Self:
        """Return a copy adapted to the checkpoint: with its maximum length and everything that depends on its tokenizer.

        Raises:
            UserError: If a setting does not suit the checkpoint.
        """
        least = checkpoint.tokenizer.num_special_tokens_to_add(pair=len(self.input_columns()) > 1) + 1
        limit = checkpoint.max_length
        if self.max_length is not None and not least <= self.max_length <= limit:
            raise UserError(
                f"task.max_length: found {self.max_length}; allowed: {least} to {limit}, the limits of {checkpoint.source.name}"
            )
        return self._with_length(checkpoint)

    def restore(self, checkpoint: Checkpoint, parts: ModelSource | None = None) -> Self:
        """Return the prepared copy for a saved model.

        Args:
            parts: Where `save_parts` wrote its files. None: beside the checkpoint.
        """
        return self._with_length(checkpoint)

    def _with_length(self, checkpoint: Checkpoint) -> Self:
        return self.model_copy(update={"max_length": self.max_length or min(512, checkpoint.max_length)})

    def unused_by_model(self, scored: bool) -> dict[str, str]:
        """Return the settings, with the reason, that cannot change a prediction of this restored model.

        Args:
            scored: Also leave out settings that only affect how predictions are scored.
        """
        return {}

    def save_parts(self, folder: Path) -> None:
        """Save the parts of the task that are not JSON, such as a tokenizer."""

    def prefer_head(self, head: HeadConfig | None) -> Self:
        """Return a copy with this head, if the task has a choice of heads and its settings do not name one."""
        return self

    @abstractmethod
    def encode(
        self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True
    ) -> tuple[dict[str, Any], int]:
        """Return the features of some rows and the number of truncated rows.

        Token ids are lists of different lengths (ragged columns), everything else arrays with one row each (dense columns).
        """

    @abstractmethod
    def fill(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """Return the padding value of each ragged column."""

    def encoding(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
        """Return the cache key of `encode` as JSON: everything it depends on besides the rows and the code of this package.

        Returns:
            None if the key cannot be computed. The tokens are then not cached on disk.
        """
        return None

    def table(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, keep: CachePolicy, targets: bool = True, name: str = "rows"
    ) -> TokenTable:
        """Tokenize checked rows, or read them from the token cache (`keep` as in `cached_table`)."""
        in_package = type(self).__module__.partition(".")[0] == __package__.partition(".")[0]  # a user's code may change any time
        encode = partial(self.encode, tokenizer=tokenizer, targets=targets)
        key = self.encoding(tokenizer) if in_package and is_cached(rows, keep) else None
        return cached_table(rows, encode, self.fill(tokenizer), key and key | {"targets": targets}, keep, name)

    def auto_class(self) -> Any:
        """Return the Auto class that loads the models of `build_model`."""
        return AutoModelForSequenceClassification

    @abstractmethod
    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """Return the checkpoint with a head for this task. Its configuration holds the labels."""

    def export(self, model: PreTrainedModel) -> Self:
        """Fold parameters of the task into the weights, so that plain transformers gives the same predictions.

        Idempotent. Returns the task as it is saved with the model.
        """
        return self

    def connect(self, model: PreTrainedModel) -> None:
        """Prepare a loaded model, exported by this task or saved elsewhere, for prediction in this process."""

    def computing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which the model's outputs are what `loss` and `predict` expect."""
        return nullcontext()

    def label_smoothing(self, training: TrainingConfig) -> float:
        """Return the label smoothing; `auto` is 0 unless a task overrides it."""
        return 0.0 if isinstance(training.label_smoothing, str) else training.label_smoothing

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        """Return the class weights and the label smoothing of the training loss."""
        return LossOptions(self.label_smoothing(training))

    def classes(self, table: TokenTable) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what `training.oversample` balances.

        Returns:
            The class of each row (int64, shape (rows,), -1 for none) and the number of rows of each class (int64, shape
            (classes,)). None if rows have no classes.
        """
        return None

    def repeats(self, training: TrainingConfig, table: TokenTable) -> Repeats | None:
        """Return how often each row is repeated per epoch, if oversampling is on and rows have classes."""
        classes = self.classes(table) if training.oversample else None
        power = 1.0 if isinstance(training.oversample, str) else training.oversample
        return Repeats(*classes, power) if classes and power else None

    @abstractmethod
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Return the number of items of each loss term, and of `rows`. Needs the targets alone, so no forward pass."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Return the summed loss of each term (fp32, shape ()), by the names that `counts` uses."""

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """Return more metrics of a training step for the log: each a sum (shape ()) and the loss term whose count divides it."""
        return {}

    def predict(self, outputs: Any) -> Arrays:
        """Convert model outputs to predictions: compact arrays with one row each, never the logits of whole sequences.

        A task whose predictions take more than one forward pass overrides `predict_batch` instead.
        """
        raise NotImplementedError

    def predict_batch(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Predict a batch; if it has labels, also return the plain losses with their counts.

        Args:
            chosen: bool of shape (rows,): the rows that need a full prediction, as a draft during training. None: all rows, at
                the best quality.
            texts: The columns of these rows that no model reads (`TokenTable.texts`).
        """
        with self.computing(model):
            outputs = model(**model_inputs(batch))
        return self.predict(outputs), self.items(outputs, batch) if "labels" in batch else {}

    def items(self, outputs: Any, batch: Batch) -> Items:
        """Return the plain losses of a batch with their counts."""
        counts = self.counts(batch)
        return {name: (float(value), counts[name]) for name, value in self.loss(outputs, batch).items()}

    def draft_rows(self, rows: int) -> np.ndarray | None:
        """Return which rows of a split get a full prediction during training, bool of shape (rows,). None: all.

        Overridden by tasks whose predictions are expensive.
        """
        return None

    def draft_settings(self, rows: int) -> dict[str, float]:
        """Return how predictions during training (`draft_rows`) differ from the final ones, as numbers by the setting's name.

        They are logged and printed beside the validation metrics, which then are not those of the finished model.
        """
        return {}

    @abstractmethod
    def describe(self, predictions: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        """Return predictions as the columns that a user reads: `prediction`, `probability`, ..."""

    def cells(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Format the columns of `describe`, and an optional column `reference`, as cells of a CSV file."""
        return columns

    @abstractmethod
    def metrics(self, predictions: Arrays, targets: Arrays) -> dict[str, float]:
        """Compute the metrics of a whole split. Undefined metrics are left out."""

    def written(self, cells: np.ndarray) -> list[Any]:
        """Convert predictions or targets, as `metrics` gets them, to the user's types: typed labels, numbers or texts."""
        values: list[Any] = cells.tolist()
        return values

    def metric_to_compare(self, asked: str | None) -> str:
        """Return the metric by which finished models are compared.

        Args:
            asked: `training.best_metric`. Losses are not comparable, since label smoothing and the like change them.
        """
        return self.best_metric if asked in (None, "loss") else str(asked)

    def sums(
        self, metric: str, predictions: Arrays, targets: Arrays
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
        """Write a metric as a function of sums over rows, so that thousands of resamples are cheap.

        Returns:
            What is summed, float64 of shape (rows, sums), and the function from sums (draws, sums) to values (draws,). None:
            resamples are scored by `metrics`.
        """
        return None

    def example_lines(self, predictions: Arrays, targets: Arrays) -> list[str]:
        """Return lines for the console after a split has been scored: a few examples, and notes."""
        return []

    def signatures(self) -> dict[str, str]:
        """Return how metrics were computed, by metric, where conventions differ. Part of `result.json`."""
        return {}

    def higher_is_better(self, metric: str) -> bool:
        """Return whether higher values of a metric are better. A task with its own metrics overrides this."""
        return higher_is_better(metric)
