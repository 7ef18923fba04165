"""The data structures that the training loop and strategies exchange: jobs, phases, views, states and parameter groups."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Objective, Task, encode_table
from nlp_transfer.utils.errors import BadRow

SAMPLE_TEXTS = ["a text", "and another one that is longer"]

Tables = dict[str, TokenTable]
Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """A task with its data, checkpoint and training settings.

    `Strategy.prepare_data` returns a changed copy. It can change the tables, add objectives, replace `auto` settings by values,
    or set another module to train.

    Attributes:
        tables: Tokenized rows of each split.
        rows: Rows of each split as read from the data source.
        precision: `fp32`, `bf16` or `fp16`.
        objectives: Losses that a phase can use instead of the loss of the task. `Phase.objective` contains the name of one of
        them.
        skipped: Bad rows that were skipped, each with the name of its split.
        model: The module to train. None: the model from `prepare_model`.
    """

    task: Task
    tables: Tables
    rows: dict[str, Rows]
    checkpoint: Checkpoint
    training: TrainingConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    objectives: dict[str, Objective] = field(default_factory=dict)
    skipped: list[tuple[str, BadRow]] = field(default_factory=list)
    model: nn.Module | None = None

    def encode(self, rows: Rows, targets: bool = True) -> TokenTable:
        """Tokenize checked rows."""
        return encode_table(self.task, rows, self.checkpoint.tokenizer, targets=targets)

    def sample(self, rows: int = 4) -> dict[str, torch.Tensor]:
        """Return a batch for testing a model: at most `rows` rows of the first split, or sample texts if there is no split."""
        table = next(iter(self.tables.values()), None)
        if table is None:
            texts = from_columns(dict.fromkeys(self.task.inputs, SAMPLE_TEXTS), "sample texts")
            table = self.encode(texts, targets=False)
        return table.batch(np.arange(min(rows, len(table))))


@dataclass(frozen=True)
class Phase:
    """One phase of training, as plain data that is saved in checkpoints.

    The model is prepared for distributed training at the start of each phase. With a single preparation, parameters that become
    trainable later would not be synchronized.

    Attributes:
        split: Name of the table to train on.
        trainable: Names of the parameters to train. None: all parameters with `requires_grad`.
        epochs: Number of epochs. None: as in the training settings.
        following: Number of phases after this one. The remaining steps of `training.max_steps` are divided evenly among this
        phase and those.
        learning_rate_scale: Factor on the learning rate.
        keep_optimizer: Whether to keep the optimizer state of parameters that earlier phases trained.
        patience: Number of evaluations without improvement after which the phase ends. None: as in the training settings.
        evaluate: Whether to evaluate during the phase. Evaluation is not useful while the head is untrained.
        objective: A name in `Job.objectives`. None: the loss of the task.
        also: Additional training rows with labels assigned by the strategy: `{split, rows, labels}` as JSON.
    """

    name: str = "train"
    split: str = "train"
    trainable: tuple[str, ...] | None = None
    epochs: float | None = None
    following: int = 0
    learning_rate_scale: float = 1.0
    keep_optimizer: bool = True
    patience: int | None = None
    evaluate: bool = True
    objective: str | None = None
    also: dict[str, Any] | None = None


@dataclass(frozen=True)
class View:
    """Read-only state of the run, for `Strategy.next_phase`.

    Attributes:
        history: Validation metrics so far, oldest first.
        predict: Predicts all rows of a table, in order, with the best weights so far; without validation, with the current
        weights or their moving average.
        epochs: Number of epochs in the training settings, or the number that corresponds to `max_steps`.
        windows_in_epoch: Number of optimizer steps in one epoch.
        max_steps: `training.max_steps`, which overrides the epochs.
        steps_left: How many of the `max_steps` remain. None: `max_steps` is not set.
    """

    model: nn.Module
    tables: Tables
    history: list[dict[str, Any]]
    predict: Callable[[TokenTable], dict[str, Any]]
    epochs: float = 0.0
    windows_in_epoch: int = 0
    max_steps: int | None = None
    steps_left: int | None = None


@dataclass
class Group:
    """A parameter group of the optimizer: parameter names, their weight decay, and a factor on the learning rate."""

    names: list[str]
    weight_decay: float
    learning_rate_scale: float = 1.0


@dataclass
class State:
    """What a strategy remembers between phases; saved in checkpoints as JSON.

    Attributes:
        finished: Names of the finished phases.
        memory: Values stored by the strategy.
    """

    finished: list[str] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
