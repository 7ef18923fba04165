"""The first of two protocols: a task says what is being learned.

A task is its settings (frozen, checked) and the methods below. `fit` gives a copy that also holds what was learned from
train, such as the labels, so a task saved as JSON is complete: it encodes, predicts and scores the same elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import PrivateAttr
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
from nlp_transfer.settings import registry
from nlp_transfer.settings.extensions import FORM
from nlp_transfer.settings.schema import Settings, TrainingConfig
from nlp_transfer.settings.validation import validate
from nlp_transfer.utils.errors import BadRow, Problems, UserError

Batch = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]
Items = dict[str, tuple[float, float]]  # by loss term: its sum, and the items it is a sum over


@dataclass(frozen=True)
class LossOptions:
    """How training weighs items; the plain loss, with which splits are scored, does not.

    `class_weights` is float32 of shape (labels,). `focal_gamma` above 0 makes it the focal loss (Lin et al. 2017, 1708.02002);
    items are counted as for the plain one.
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    focal_gamma: float = 0.0


PLAIN_LOSS = LossOptions()
LEAST_VALIDATION, LEAST_IN_CLASS = 20, 3  # rows: in all, and on average for each class


class Objective(Protocol):
    """What the loop needs of anything that is learned; a task is more than that."""

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions: ...
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]: ...
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]: ...
    def watch(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]: ...


class Task(Settings, ABC):
    """What is being learned.

    Losses are sums by named term, never means: only the loop knows the whole window over all processes, and it divides
    each term by `counts` of that window.
    """

    best_metric: ClassVar[str]
    """The validation metric that decides which weights are best, unless the user names another."""

    aligned: ClassVar[bool] = False
    """Whether two line-aligned files, a source and a target, can be its data."""

    answer_kind: ClassVar[Literal["label", "labels", "number", "text"]] = "label"
    """What a model answers for a row; labels come with probabilities."""

    filters: ClassVar[tuple[str, ...]] = ()
    """What `data.filter` may hold."""

    while_training: ClassVar[tuple[str, ...]] = ()
    """Settings that have an effect only where there is a validation split to score while training."""

    max_length: int | None = None
    """Longest input in tokens; null: 512, or the checkpoint's limit where that is smaller."""

    _changed: set[str] = PrivateAttr(default_factory=set)

    @property
    def changed(self) -> set[str]:
        """Names of the settings that were given another value at loading than the saved one."""
        return self._changed

    @abstractmethod
    def input_columns(self) -> list[str]:
        """Columns that a row to be predicted must have."""

    @abstractmethod
    def target_columns(self) -> list[str]:
        """Columns that hold the answer."""

    def columns(self) -> list[str]:
        """All columns of a row to be learned from or scored."""
        return [*self.input_columns(), *self.target_columns()]

    def models(self) -> dict[str, list[str]]:
        """Models that settings of the task name, by setting: what a run is compared by when it is resumed."""
        return {}

    def metric_names(self) -> list[str]:
        """What `metrics` can give, so that a `training.best_metric` which never comes is refused before training."""
        return [self.best_metric]

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        """Adds what cannot be asked of this task (class weights for a regression, say)."""

    @abstractmethod
    def fit(self, train: Rows, problems: Problems) -> Self:
        """A copy that knows what train teaches (its labels); adds what makes learning impossible."""

    def fit_settings(self, problems: Problems) -> Self:
        """The same for a run without train: what its settings alone say must suffice."""
        problems.add("data.train: is required and was not given; this task learns from its rows what answers there are")
        return self

    @abstractmethod
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        """Adds every cell that cannot be used, by `problems.add_row`, and what is wrong with the rows as a whole, by
        `problems.add`: rows that were added can be skipped, anything else is always refused."""

    def filter(self, train: Rows, names: Sequence[str]) -> dict[int, BadRow]:
        """Rows of train that the `filters` called `names` leave out, by index; cells are not checked yet."""
        return {}

    def check_split(self, train: Rows, problems: Problems) -> None:
        """Adds what makes it impossible to hold some rows of train out."""

    def least_validation(self) -> int:
        """Rows of validation, below which its metrics are too uncertain to choose among weights."""
        return max(LEAST_VALIDATION, LEAST_IN_CLASS * len(getattr(self, "labels", None) or []))

    @abstractmethod
    def keys(self, rows: Rows) -> Iterable[str]:
        """The input of each row as one text; rows whose keys are near copies (`normalized`) never stand in two splits. Several
        texts are joined by a separator with spaces around it, so that spaces at their ends are ignored as well."""

    @abstractmethod
    def strata(self, rows: Rows) -> np.ndarray:
        """int64 of shape (rows,): the class of each row for a stratified split."""

    def prepare(self, checkpoint: Checkpoint, train: Rows) -> Self:
        """A copy that fits the checkpoint: the longest input is settled, and what else depends on its tokenizer.

        Raises:
            UserError: a setting does not go with the checkpoint.
        """
        least = checkpoint.tokenizer.num_special_tokens_to_add(pair=len(self.input_columns()) > 1) + 1
        limit = checkpoint.max_length
        if self.max_length is not None and not least <= self.max_length <= limit:
            raise UserError(
                f"task.max_length: found {self.max_length}; allowed: {least} to {limit}, the limits of {checkpoint.source.name}"
            )
        return self._with_length(checkpoint)

    def restore(self, checkpoint: Checkpoint, parts: ModelSource | None = None) -> Self:
        """A copy as `prepare` left it, for a model that was saved; `save_parts` wrote into `parts`, or beside the checkpoint."""
        return self._with_length(checkpoint)

    def _with_length(self, checkpoint: Checkpoint) -> Self:
        return self.model_copy(update={"max_length": self.max_length or min(512, checkpoint.max_length)})

    def unused_by_model(self, scored: bool) -> dict[str, str]:
        """Settings that change no answer of this model once it is trained (nor, if `scored`, how answers are scored): by name,
        the reason. The task is as `restore` left it."""
        return {}

    def save_parts(self, folder: Path) -> None:
        """Writes into a model's folder what of the task is no JSON."""

    def prefer_head(self, head: HeadConfig | None) -> Self:
        """A copy with this head, where the task has a choice of heads and its settings name none."""
        return self

    @abstractmethod
    def encode(
        self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True
    ) -> tuple[dict[str, Any], int]:
        """Features of some rows, and how many were truncated: lists of ids are ragged, arrays dense columns."""

    @abstractmethod
    def fill(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """The padding value of each ragged column."""

    def encoding(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
        """All that `encode` depends on beside the rows and this package's code, as JSON: with equal ones equal rows give equal
        features. None: it cannot be told, and tokens are not kept on disk."""
        return None

    def table(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, keep: CachePolicy, targets: bool = True, name: str = "rows"
    ) -> TokenTable:
        """Rows that were checked as the model's tokens; with `keep` as in `cached_table`, perhaps read where they were kept."""
        ours = type(self).__module__.partition(".")[0] == __package__.partition(".")[0]  # other code may change any time
        encode = partial(self.encode, tokenizer=tokenizer, targets=targets)
        decides = self.encoding(tokenizer) if ours and is_cached(rows, keep) else None
        return cached_table(rows, encode, self.fill(tokenizer), decides and decides | {"targets": targets}, keep, name)

    def auto_class(self) -> Any:
        """The Auto class that loads what `build_model` gives."""
        return AutoModelForSequenceClassification

    @abstractmethod
    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """The checkpoint with a head for this task; its configuration carries the labels."""

    def export(self, model: PreTrainedModel) -> Self:
        """Puts into a trained model's weights what the task keeps beside them, so that plain transformers gives the same
        predictions. Returns the task as it is saved with the model. Calling it again changes nothing."""
        return self

    def connect(self, model: PreTrainedModel) -> None:
        """Prepares a model that was loaded, by `export`'s task or from elsewhere, for predicting in this process."""

    def computing(self, model: nn.Module) -> AbstractContextManager[None]:
        """The context in which a model's outputs are what `loss` and `predict` expect."""
        return nullcontext()

    def label_smoothing(self, training: TrainingConfig) -> float:
        """The smoothing that training asks for; auto: none, unless the task knows better."""
        return 0.0 if isinstance(training.label_smoothing, str) else training.label_smoothing

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        """The weights and the smoothing that training asks for."""
        return LossOptions(self.label_smoothing(training))

    def classes(self, table: TokenTable) -> tuple[np.ndarray, np.ndarray] | None:
        """What `training.oversample` evens out: the class of each row (int64, (rows,), -1 for none) and how many rows there are
        of each class (int64, (classes,)); None: rows have no classes."""
        return None

    def repeats(self, training: TrainingConfig, table: TokenTable) -> Repeats | None:
        """How often each row stands in an epoch, where training asks for that and rows have classes."""
        found = self.classes(table) if training.oversample else None
        power = 1.0 if isinstance(training.oversample, str) else training.oversample
        return Repeats(*found, power) if found and power else None

    @abstractmethod
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Items by loss term, from the targets alone, so known before any forward pass. `rows` is always among them."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Sums (fp32, shape ()) by named term; the names are those of `counts`."""

    def watch(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """Further figures of a training step for the log: sums (shape ()), each with the loss term whose count divides it."""
        return {}

    def predict(self, outputs: Any) -> Arrays:
        """Outputs to answers, compact arrays with a row each: enough to score and to describe them, never whole logits of
        a sequence. A task whose answers take more than one forward pass overrides `answer` instead."""
        raise NotImplementedError

    def answer(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Answers for a batch, and where it has labels its plain losses with their counts.

        Args:
            chosen: bool of shape (rows,): the rows that need a whole answer, in drafts while training; None: all, at its best.
            texts: the columns of these rows that no model sees (`TokenTable.texts`).
        """
        with self.computing(model):
            outputs = model(**model_inputs(batch))
        return self.predict(outputs), self.items(outputs, batch) if "labels" in batch else {}

    def items(self, outputs: Any, batch: Batch) -> Items:
        """The plain losses of a batch with their counts."""
        counts = self.counts(batch)
        return {name: (float(value), counts[name]) for name, value in self.loss(outputs, batch).items()}

    def partly(self, rows: int) -> np.ndarray | None:
        """bool of shape (rows,): those of a split that get a whole answer while training, where one is costly; None: all."""
        return None

    def draft_settings(self, rows: int) -> dict[str, float]:
        """Return how predictions during training (`partly`) differ from the final ones, as numbers by the setting's name.

        They are logged and printed beside the metrics of validation, which are then not those of the finished model.
        """
        return {}

    @abstractmethod
    def describe(self, answers: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        """Answers as the columns that a user reads: `prediction`, `probability` ..."""

    def cells(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the columns of `describe`, and perhaps a column `reference`, as the cells of a file hold them."""
        return columns

    @abstractmethod
    def metrics(self, answers: Arrays, targets: Arrays) -> dict[str, float]:
        """Figures over a whole split; undefined ones are left out."""

    def written(self, cells: np.ndarray) -> list[Any]:
        """Predictions or targets, as `answers` and `targets` of `metrics` hold them, as the user writes them: labels in their
        type, numbers, texts."""
        values: list[Any] = cells.tolist()
        return values

    def metric_to_compare(self, asked: str | None) -> str:
        """Return the metric by which finished models are compared.

        Args:
            asked: `training.best_metric`. A loss compares nothing, since label smoothing and the like change it.
        """
        return self.best_metric if asked in (None, "loss") else str(asked)

    def sums(self, metric: str, answers: Arrays, targets: Arrays) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
        """Write a metric as a function of sums over rows, so that it can be computed on thousands of resamples.

        Returns:
            What is summed, float64 of shape (rows, sums), and the function from sums (draws, sums) to values (draws,). None:
            resamples are scored by `metrics`.
        """
        return None

    def remarks(self, answers: Arrays, targets: Arrays) -> list[str]:
        """Lines for the user about a split that was scored whole."""
        return []

    def signatures(self) -> dict[str, str]:
        """How figures were computed, by metric, for those where conventions differ: part of `result.json`."""
        return {}

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of a figure is better; a task with figures of its own says so for them."""
        return higher_is_better(metric)

    @abstractmethod
    def report(self, train: Rows) -> list[str]:
        """What a user wants to know about train before it starts (class balance, range)."""

    def document(self) -> dict[str, Any]:
        """The task as JSON, its name among the settings; `task_from` reads it back."""
        return {"name": task_name(self), **self.model_dump(mode="json")}


def task_name(task: Task) -> str:
    """The name in a run's document: the file that implements the task."""
    return registry.name_of(type(task))


def task_from(document: Mapping[str, Any], kind: type[Task] | None = None) -> Task:
    """The task that a document names, its settings checked.

    Args:
        kind: its class, which is then not looked for by the name.

    Raises:
        UserError: the name is unknown or settings are wrong; all problems are listed.
    """
    name = document.get("name")
    if not isinstance(name, str):
        found = "is required" if name is None else f"found {name!r}"
        raise UserError(f"task.name: {found}; known: {', '.join(registry.names('task'))}, and other code as {FORM}")
    problems = Problems()
    settings = {key: value for key, value in document.items() if key != "name"}
    task: Task | None = validate(kind or registry.load("task", name), settings, problems, "task")
    problems.raise_if_any()
    assert task is not None
    return task
