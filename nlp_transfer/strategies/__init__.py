"""The second of two protocols: a strategy says how the knowledge in a checkpoint moves to the task.

Every hook does nothing by default, so a strategy is the few hooks in which it differs from full fine-tuning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.tokens import TokenTable, encode_rows
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import find_layers, has_decoder, width
from nlp_transfer.settings import registry
from nlp_transfer.settings.extensions import FORM
from nlp_transfer.settings.schema import DataConfig, Settings, TrainingConfig
from nlp_transfer.settings.validation import validate
from nlp_transfer.tasks import Objective, Task
from nlp_transfer.utils.errors import BadRow, Problems, UserError

DECODER_SCALE = 3.0  # a new decoder is a deep network with much to learn: faster than pretrained layers, slower than a head

SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # a small encoder of whole sentences

TRIED = ["a text", "and another one that is longer"]

Tables = dict[str, TokenTable]
Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """What there is to learn: a task, its rows as tokens by split, and what they were made from.

    A strategy's `prepare_data` gives back another one: with other tables, further objectives, training settings whose `auto`
    it knows better.
    """

    task: Task
    tables: Tables
    rows: dict[str, Rows]
    checkpoint: Checkpoint
    training: TrainingConfig
    device: torch.device
    precision: str = "fp32"
    objectives: dict[str, Objective] = field(default_factory=dict)
    """What a phase can name as its `objective` in place of the task."""
    skipped: list[tuple[str, BadRow]] = field(default_factory=list)
    """The rows of the files that were left out, each with its split."""

    def encode(self, rows: Rows, targets: bool = True) -> TokenTable:
        """Rows that were checked, as the model's tokens."""
        tokenizer = self.checkpoint.tokenizer
        return encode_rows(rows, lambda columns: self.task.encode(columns, tokenizer, targets), self.task.fill(tokenizer))

    def sample(self, rows: int = 4) -> dict[str, torch.Tensor]:
        """A batch of at most `rows` rows to try a model on: of train, else of another split, and where there are none (a run
        that is made from names of labels alone) of made-up texts."""
        table = next(iter(self.tables.values()), None)
        if table is None:
            table = self.encode(from_columns(dict.fromkeys(self.task.input_columns(), TRIED), "texts to try"), targets=False)
        return table.batch(np.arange(min(rows, len(table))))


@dataclass(frozen=True)
class Phase:
    """A stretch of training: data, so that it can be written into a checkpoint and gone on with.

    Each phase prepares the model anew for several processes, since parameters that are set free after that would not be
    synchronised.
    """

    name: str = "train"
    split: str = "train"
    """The table whose rows are trained on."""
    trainable: tuple[str, ...] | None = None
    """Names of the parameters that are trained; None: those that are set free already."""
    epochs: float | None = None
    """Passes over the rows; None: what the training settings say."""
    following: int = 0
    """Phases that come after this one. The steps that are left of `training.max_steps` are divided evenly among this phase and
    them."""
    learning_rate_scale: float = 1.0
    """Factor on the learning rate."""
    keep_optimizer: bool = True
    """Whether the optimiser's moments of parameters trained before are carried over, by name."""
    patience: int | None = None
    """Evaluations without improvement after which the phase ends; None: what the training settings say."""
    evaluate: bool = True
    """Whether validation is scored while this is trained; where the head is not trained yet that would mean nothing."""
    objective: str | None = None
    """What is learned: a name in `Job.objectives`; None: the task."""
    also: dict[str, Any] | None = None
    """Rows of another table that join in with answers of the strategy's own: `{split, rows, labels}`, all of them JSON."""


@dataclass(frozen=True)
class View:
    """What a strategy may look at when it decides about the next phase."""

    model: nn.Module
    tables: Tables
    history: list[dict[str, Any]]
    """Validation metrics so far, the oldest first."""
    predict: Callable[[TokenTable], dict[str, Any]]
    """Predictions for a whole table, in its row order, by the best weights so far; without validation by the last ones."""
    epochs: float = 0.0
    """Passes over train that the training settings ask for; of a fixed number of steps, as many as these make."""
    windows_in_epoch: int = 0
    """Optimiser steps in one pass over train."""
    max_steps: int | None = None
    """The fixed number of steps that the settings ask for in the whole run; it overrides passes."""
    steps_left: int | None = None
    """How many of these are left; None: the settings fix no number."""


@dataclass
class Group:
    """Parameters that share a rate; `learning_rate_scale` is a factor on the run's learning rate."""

    names: list[str]
    weight_decay: float
    learning_rate_scale: float = 1.0


@dataclass
class State:
    """What a strategy knows between phases. JSON, so that a checkpoint holds it."""

    finished: list[str] = field(default_factory=list)
    """Names of the phases that are done."""
    memory: dict[str, Any] = field(default_factory=dict)
    """The strategy's own notes."""


class Strategy(Settings):
    """How the knowledge moves. Full fine-tuning is what remains when no hook is changed."""

    chooses_parameters: ClassVar[bool] = False
    """Whether `wrap` decides which parameters are trained; of a list of strategies at most one may."""

    only_trains: ClassVar[bool] = False
    """Whether all that it changes are rates, decay and the loss of optimizer steps: in a list it may have nothing to change."""

    def learning_rate(self, model: nn.Module) -> float:
        """A good peak rate for `learning_rate: auto`.

        Wide models want small steps: the rates that published recipes settle on for encoders of width 384, 768 and 1024
        fall roughly with the square of the width.
        """
        return float(f"{min(5e-4, 5e-5 * (768 / width(model)) ** 2.5):.1e}")

    def default_model(self) -> str | None:
        """A small model that the strategy works with, for a command line that names none; None: there is no such model."""
        return "distilbert/distilbert-base-uncased"

    def preferred_head(self) -> HeadConfig | None:
        """The head used where the task's settings name none; None: the family's own."""
        return None

    def takes_steps(self) -> bool:
        """Whether anything is trained by gradients."""
        return True

    def needs_validation(self) -> bool:
        """Whether a validation split is made however small it is."""
        return False

    def uses_unlabelled(self) -> bool:
        """Whether rows of `data.unlabelled` are learned from."""
        return False

    def check_data(self, data: DataConfig, task: Task, problems: Problems) -> None:
        """Adds sources of rows that it lacks: every strategy but one that needs no labelled rows lacks train."""
        if data.train is None:
            name, labels = registry.name_of(type(self)), "label" in task.answer_kind
            instead = "; without such rows, strategy.name: zero_shot needs task.labels alone" if labels else ""
            problems.add(f"data.train: is required and was not given; {name} learns from rows with their labels{instead}")

    def name_labels(self, task: Task) -> Task:
        """A copy of the task with the labels that the strategy's settings name, for a run without train; else the task itself."""
        return task

    def unused(self, task: Task) -> dict[str, str]:
        """Settings of `data` and `training`, and own ones (`strategy.NAME`), that have no effect with this strategy and task: by
        dotted name, the reason. Those of training where no steps are taken, and `data.unlabelled`, need not be among them."""
        return {}

    def always_used(self) -> set[str]:
        """Dotted names of settings that have an effect here, although others usually take their place."""
        return set()

    def nested(self) -> dict[str, tuple[DataConfig, Task]]:
        """Data and tasks among the strategy's own settings, by their dotted name below `strategy`."""
        return {}

    def models(self) -> dict[str, list[str]]:
        """Models that own settings name, by setting: what a run is compared by when it is resumed."""
        return {}

    def place(self) -> Literal["any", "first", "alone"]:
        """Where it may stand in a list of strategies: one that makes another model comes before those that look at it."""
        return "any"

    def owns_phases(self) -> bool:
        """Whether `next_phase` is this strategy's own; of a list of strategies at most one may have such a one."""
        return type(self).next_phase is not Strategy.next_phase

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze, adapt, add modules. Runs once, before anything is trained."""
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Encode once, sample, mix. Runs once, after `wrap`. What is saved in the end is scored on the tables as they were."""
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """The groups for the optimiser; given are one with weight decay and one without."""
        return groups

    def next_phase(self, state: State, view: View) -> Phase | None:
        """The phase after those in `state.finished`, or None when training is done. No phase at all is allowed."""
        return None if state.finished else Phase()

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        """The task's summed losses by term, and perhaps more; a term the task does not count is divided by rows."""
        return losses

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """A model that anyone can load. What is the strategy's own (an adapter) is written into `folder`."""
        return model

    def further_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        """What is learned beside the run's own task, by name, with the model for it: each is scored and saved by itself."""
        return {}

    def document(self) -> Any:
        """The strategy as JSON, its name among the settings; `strategy_from` reads it back."""
        settings = self.model_dump(mode="json", fallback=lambda value: f"<{type(value).__name__} of {len(value)} rows in memory>")
        return {"name": registry.name_of(type(self)), **settings}


class Combined(Strategy):
    """Several strategies as one: `wrap` from left to right, `unwrap` from right to left. One may own the phases."""

    parts: tuple[Strategy, ...]

    def learning_rate(self, model: nn.Module) -> float:
        own = [part for part in self.parts if type(part).learning_rate is not Strategy.learning_rate]
        return (own or self.parts)[0].learning_rate(model)

    def preferred_head(self) -> HeadConfig | None:
        return next((head for head in (part.preferred_head() for part in self.parts) if head), None)

    def default_model(self) -> str | None:
        return self.parts[0].default_model()

    def takes_steps(self) -> bool:
        return all(part.takes_steps() for part in self.parts)

    def needs_validation(self) -> bool:
        return any(part.needs_validation() for part in self.parts)

    def uses_unlabelled(self) -> bool:
        return any(part.uses_unlabelled() for part in self.parts)

    def check_data(self, data: DataConfig, task: Task, problems: Problems) -> None:
        for part in self.parts:
            part.check_data(data, task, problems)

    def name_labels(self, task: Task) -> Task:
        for part in self.parts:
            task = part.name_labels(task)
        return task

    def unused(self, task: Task) -> dict[str, str]:
        return {
            name.replace("strategy.", f"strategy.{i}.", 1): reason
            for i, part in enumerate(self.parts)
            for name, reason in part.unused(task).items()
        }

    def always_used(self) -> set[str]:
        return {name for part in self.parts for name in part.always_used()}

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        for part in self.parts:
            model = part.wrap(model)
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        for part in self.parts:
            job = part.prepare_data(job, model)
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        for part in self.parts:
            groups = part.param_groups(model, groups)
        return groups

    def next_phase(self, state: State, view: View) -> Phase | None:
        owners = [part for part in self.parts if part.owns_phases()]
        return (owners or self.parts)[0].next_phase(state, view)

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        for part in self.parts:
            losses = part.loss(losses, outputs, batch, model)
        return losses

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        for part in reversed(self.parts):
            model = part.unwrap(model, folder)
        return model

    def further_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        return {name: further for part in self.parts for name, further in part.further_jobs(model).items()}

    def document(self) -> Any:
        return [part.document() for part in self.parts]


def scale_head(model: nn.Module, groups: list[Group], factor: float) -> list[Group]:
    """The groups with the pooler and the head, which no pretraining has fitted to the task, set apart at another rate.

    Of an encoder-decoder that is a decoder with new parts, at `DECODER_SCALE` at most; one that came trained learns as all
    the rest does.
    """
    try:
        layers = find_layers(model)
    except UserError:  # an unknown family: it still trains, at one rate
        return groups
    if has_decoder(model):
        factor = 1.0 if layers.decoder else min(factor, DECODER_SCALE)
    split = []
    for group in groups:
        head = [name for name in group.names if layers.depth_of(name) > layers.depth]
        body = [name for name in group.names if layers.depth_of(name) <= layers.depth]
        split += [replace(group, names=body), replace(group, names=head, learning_rate_scale=factor)]
    return split


def strategy_from(document: Mapping[str, Any] | Sequence[Mapping[str, Any] | Strategy]) -> Strategy:
    """The strategy that a document names; a list, which may also hold strategies themselves, is folded into one.

    Raises:
        UserError: a name is unknown or stands twice, a setting is wrong, or two of a list would both decide about phases.
    """
    if isinstance(document, Mapping):
        return _single(document, "strategy")
    parts = tuple(_single(part, f"strategy.{i}") for i, part in enumerate(document))
    if not parts:
        raise UserError(f"strategy: the list is empty; known: {', '.join(registry.names('strategy'))}")
    names = [registry.name_of(type(part)) for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"strategy: {twice[0]} stands twice; allowed: each once")
    choosers = [part.document()["name"] for part in parts if part.chooses_parameters]
    if len(choosers) > 1:
        raise UserError(f"strategy: {' and '.join(choosers)} both decide which parameters are trained; allowed: one of them")
    for i, part in enumerate(parts):
        if part.place() == "alone" and len(parts) > 1:
            raise UserError(f"strategy.{i}: {part.document()['name']} cannot be combined with others; allowed: it alone")
        if part.place() == "first" and i > 0:
            raise UserError(
                f"strategy.{i}: {part.document()['name']} with these settings makes another model, which those before it would "
                "not know; allowed: as the first of the list"
            )
    owners = [part.document()["name"] for part in parts if part.owns_phases()]
    if len(owners) > 1:
        raise UserError(f"strategy: {' and '.join(owners)} both decide what is trained when; allowed: one of them")
    return parts[0] if len(parts) == 1 else Combined(parts=parts)


def _single(document: Mapping[str, Any] | Strategy, place: str) -> Strategy:
    if isinstance(document, Strategy):
        return document
    name = document.get("name")
    if not isinstance(name, str):
        found = "is required" if name is None else f"found {name!r}"
        raise UserError(f"{place}.name: {found}; known: {', '.join(registry.names('strategy'))}, and other code as {FORM}")
    problems = Problems()
    settings = {key: value for key, value in document.items() if key != "name"}
    strategy = validate(registry.load("strategy", name), settings, problems, place)
    problems.raise_if_any()
    assert strategy is not None
    return strategy
