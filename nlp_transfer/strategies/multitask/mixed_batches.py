"""Several tasks at once: a table whose rows belong to one or another, and an objective that keeps them apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nlp_transfer.data.oversampling import Repeats
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import PLAIN_LOSS, Batch, LossOptions, Task

UNUSED = "unused"


@dataclass(frozen=True)
class MixedTable(TokenTable):
    """Rows of several tables, each once. Row i is row `row[i]` of table number `owner[i]`; both int64 of shape (rows,).

    In an epoch the rows of smaller tables stand more often where `temperature` is above 1: those of a table with n rows
    n ** (1 / temperature) times together, in proportion. Which of them are repeated is drawn anew in every epoch.

    A batch holds the columns of each table that has rows in it, as `TASK/COLUMN`, in the order of the indices.
    """

    tables: dict[str, TokenTable] = field(default_factory=dict)
    owner: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    temperature: float = 1.0

    @classmethod
    def of(cls, tables: dict[str, TokenTable], temperature: float = 1.0) -> "MixedTable":
        """All rows of the tables."""
        counts = [len(table) for table in tables.values()]
        owner = np.repeat(np.arange(len(tables)), counts)
        row = np.concatenate([np.arange(count) for count in counts])
        first = next(iter(tables.values()))
        return cls(first.ragged, {}, first.fill, tables=tables, owner=owner, row=row, temperature=temperature)

    @property
    def repeats(self) -> Repeats | None:
        power = 1 - 1 / self.temperature  # n ** (1 / temperature) rows in all, so n ** (1 / temperature - 1) times each
        return Repeats(self.owner, np.array([len(table) for table in self.tables.values()]), power) if power else None

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def side_lengths(self) -> np.ndarray:
        """As for any table; rows of a task with fewer sides than another have none there."""
        sides = [table.side_lengths for table in self.tables.values()]
        found = np.zeros((len(self), max(part.shape[1] for part in sides)), np.int64)
        for number, part in enumerate(sides):
            own = self.owner == number
            found[own, : part.shape[1]] = part[self.row[own]]
        return found

    def _parts(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """For each task the rows of its own table that stand at `indices`, in that order."""
        owner = self.owner[indices]
        return {name: self.row[indices[owner == number]] for number, name in enumerate(self.tables) if (owner == number).any()}

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        parts = self._parts(indices)
        return {f"{name}/{key}": value for name, rows in parts.items() for key, value in self.tables[name].batch(rows).items()}

    def targets(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        parts = self._parts(indices)
        return {f"{name}/{key}": value for name, rows in parts.items() for key, value in self.tables[name].targets(rows).items()}


def split_batch(batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The columns of each task, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path, value in batch.items():
        name, _, key = path.partition("/")
        found.setdefault(name, {})[key] = value
    return found


@dataclass(frozen=True)
class MixedOptions(LossOptions):
    """The options of each task."""

    by_task: dict[str, LossOptions] = field(default_factory=dict)


@dataclass(frozen=True)
class MixedObjective:
    """The losses of several tasks at once, over batches of a `MixedTable`.

    Terms are `TASK/TERM`. They are counted so that a task weighs in a window by its share of the rows, as if all rows were of
    one task, times its weight.
    """

    tasks: dict[str, Task]
    weights: dict[str, float]

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        assert isinstance(train, MixedTable)
        return MixedOptions(by_task={name: task.loss_options(training, train.tables[name]) for name, task in self.tasks.items()})

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        found = {name: self.tasks[name].counts(part, _of(options, name)) for name, part in split_batch(batch).items()}
        rows = sum(counts["rows"] for counts in found.values())
        shares = {name: counts["rows"] / rows * self.weights.get(name, 1.0) for name, counts in found.items()}
        terms = {f"{name}/{term}": count / shares[name] for name, counts in found.items() for term, count in counts.items()}
        return terms | {"rows": rows}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Summed losses; `outputs` are those of each task that has rows in the batch, by name."""
        found = {UNUSED: outputs[UNUSED]}
        for name, part in split_batch(batch).items():
            terms = self.tasks[name].loss(outputs[name], part, _of(options, name))
            found |= {f"{name}/{term}": value for term, value in terms.items()}
        return found

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        return {}


def _of(options: LossOptions, name: str) -> LossOptions:
    return options.by_task[name] if isinstance(options, MixedOptions) else PLAIN_LOSS


def route(models: dict[str, Any]) -> Callable[..., Any]:
    """A forward pass over a mixed batch: each task's rows through its own model; outputs by task.

    Parameters of tasks without rows get a gradient of zero, as several processes need it: each must have one for all.
    """

    def forward(*arguments: Any, **named: Any) -> Any:
        parts = split_batch({path: value for path, value in named.items() if "/" in path})
        if not parts:
            return live(*arguments, **named)
        found: dict[str, Any] = {}
        for name, part in parts.items():
            run = live if models[name] is first else models[name]
            found[name] = run(**model_inputs(part))
        idle = [p for name, model in models.items() if name not in parts for p in model.parameters() if p.requires_grad]
        found[UNUSED] = sum((0 * p.sum() for p in idle), start=torch.zeros((), device=first.device))
        return found

    first = next(iter(models.values()))
    live = first.forward
    return forward
