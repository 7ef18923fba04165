"""The first of two protocols: a task says what is being learned.

A task is its settings (frozen, checked) and the methods below. `fit` gives a copy that also holds what was learned from
train, such as the labels, so a task saved as JSON is complete: it encodes, predicts and scores the same elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer import registry
from nlp_transfer.config import Settings, TrainingConfig, validate
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.errors import Problems, UserError
from nlp_transfer.metrics import higher_is_better
from nlp_transfer.models import Checkpoint
from nlp_transfer.sources.rows import Rows

Batch = Mapping[str, torch.Tensor]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class LossOptions:
    """How training weighs items; the plain loss, with which splits are scored, has neither.

    `class_weights` is float32 of shape (labels,).
    """

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None


PLAIN_LOSS = LossOptions()


class Task(Settings, ABC):
    """What is being learned.

    Losses are sums by named term, never means: only the loop knows the whole window over all processes, and it divides
    each term by `counts` of that window.
    """

    best_metric: ClassVar[str]
    """The validation metric that decides which weights are best, unless the user names another."""

    max_length: int | None = None
    """Longest input in tokens; null: 512, or the checkpoint's limit where that is smaller."""

    @abstractmethod
    def input_columns(self) -> list[str]:
        """Columns that a row to be predicted must have."""

    @abstractmethod
    def target_columns(self) -> list[str]:
        """Columns that hold the answer."""

    def columns(self) -> list[str]:
        """All columns of a row to be learned from or scored."""
        return [*self.input_columns(), *self.target_columns()]

    def metric_names(self) -> list[str]:
        """What `metrics` can give, so that a `training.best_metric` which never comes is refused before training."""
        return [self.best_metric]

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        """Adds what cannot be asked of this task (class weights for a regression, say)."""

    @abstractmethod
    def fit(self, train: Rows, problems: Problems) -> Self:
        """A copy that knows what train teaches (its labels); adds what makes learning impossible."""

    @abstractmethod
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        """Adds every cell that cannot be used, with file, row and column."""

    @abstractmethod
    def keys(self, rows: Rows) -> list[str]:
        """The input of each row as one text: equal keys never stand in two splits."""

    @abstractmethod
    def strata(self, rows: Rows) -> np.ndarray:
        """int64 of shape (rows,): the class of each row for a stratified split."""

    @abstractmethod
    def encode(
        self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True
    ) -> tuple[dict[str, Any], int]:
        """Features of some rows, and how many were truncated: lists of ids are ragged, arrays dense columns."""

    @abstractmethod
    def fill(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """The padding value of each ragged column."""

    @abstractmethod
    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """The checkpoint with a head for this task; its configuration carries the labels."""

    def label_smoothing(self, training: TrainingConfig) -> float:
        """The smoothing that training asks for; auto: none, unless the task knows better."""
        return 0.0 if isinstance(training.label_smoothing, str) else training.label_smoothing

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        """The weights and the smoothing that training asks for."""
        return LossOptions(self.label_smoothing(training))

    @abstractmethod
    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Items by loss term, from the targets alone, so known before any forward pass. `rows` is always among them."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Sums (fp32, shape ()) by named term; the names are those of `counts`."""

    @abstractmethod
    def predict(self, outputs: Any) -> Arrays:
        """Outputs to answers, compact arrays with a row each: enough to score and to describe them, never whole logits of
        a sequence."""

    @abstractmethod
    def describe(self, answers: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        """Answers as the columns that a user reads: `prediction`, `probability` ..."""

    @abstractmethod
    def metrics(self, answers: Arrays, targets: Arrays) -> dict[str, float]:
        """Figures over a whole split; undefined ones are left out."""

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


def task_from(document: Mapping[str, Any]) -> Task:
    """The task that a document names, its settings checked.

    Raises:
        UserError: the name is unknown or settings are wrong; all problems are listed.
    """
    name = document.get("name")
    if not isinstance(name, str):
        found = "is required" if name is None else f"found {name!r}"
        raise UserError(f"task.name: {found}; known: {', '.join(registry.names('task'))}")
    problems = Problems()
    settings = {key: value for key, value in document.items() if key != "name"}
    task: Task | None = validate(registry.load("task", name), settings, problems, "task")
    problems.raise_if_any()
    assert task is not None
    return task
