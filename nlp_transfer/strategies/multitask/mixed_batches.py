"""Training on several tasks at once: a table of the rows of all tasks, and an objective with the losses of all tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nlp_transfer.data.oversampling import Repeats
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.tasks import Batch, Objective

UNUSED = "unused"


@dataclass(frozen=True)
class MixedTable(TokenTable):
    """The rows of several tables.

    With a `temperature` above 1, rows of smaller tables are repeated in an epoch: a table with n rows is sampled in proportion to
    n ** (1 / temperature). Each epoch draws different rows to repeat.

    A batch contains the columns of each table that has rows in the batch, under names of the form `TASK/COLUMN`.

    Attributes:
        owner: Index of the table that contains each row, int64 of shape (rows,).
        row: Index of each row within its table, int64 of shape (rows,).
    """

    tables: dict[str, TokenTable] = field(default_factory=dict)
    owner: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    temperature: float = 1.0

    @classmethod
    def of(cls, tables: dict[str, TokenTable], temperature: float = 1.0) -> "MixedTable":
        """Concatenate tables."""
        counts = [len(table) for table in tables.values()]
        owner = np.repeat(np.arange(len(tables)), counts)
        row = np.concatenate([np.arange(count) for count in counts])
        first = next(iter(tables.values()))
        return cls(first.ragged, {}, first.fill, tables=tables, owner=owner, row=row, temperature=temperature)

    @property
    def repeats(self) -> Repeats | None:
        """How rows of smaller tables are repeated. None: the temperature is 1."""
        power = 1 - 1 / self.temperature  # a row is sampled in proportion to n ** (1 / temperature - 1)
        return Repeats(self.owner, np.array([len(table) for table in self.tables.values()]), power) if power else None

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def side_lengths(self) -> np.ndarray:
        """Lengths as in `TokenTable`, int64 of shape (rows, sides); 0 for sides that a task does not have."""
        by_table = [table.side_lengths for table in self.tables.values()]
        sides = np.zeros((len(self), max(lengths.shape[1] for lengths in by_table)), np.int64)
        for number, lengths in enumerate(by_table):
            rows = self.owner == number
            sides[rows, : lengths.shape[1]] = lengths[self.row[rows]]
        return sides

    def _rows_by_task(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Convert `indices` to row numbers within the table of each task, in the same order."""
        owner = self.owner[indices]
        return {name: self.row[indices[owner == number]] for number, name in enumerate(self.tables) if (owner == number).any()}

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        by_task = self._rows_by_task(indices)
        return {f"{name}/{key}": value for name, rows in by_task.items() for key, value in self.tables[name].batch(rows).items()}

    def targets(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        by_task = self._rows_by_task(indices)
        return {
            f"{name}/{key}": value for name, rows in by_task.items() for key, value in self.tables[name].targets(rows).items()
        }


def split_batch(batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split a mixed batch into one batch for each task, by name of the task."""
    by_task: dict[str, dict[str, Any]] = {}
    for path, value in batch.items():
        name, _, key = path.partition("/")
        by_task.setdefault(name, {})[key] = value
    return by_task


@dataclass(frozen=True)
class MixedObjective(Objective):
    """The losses of several tasks on batches of a `MixedTable`.

    Terms are named `TASK/TERM`. Their counts are scaled so that the loss of an optimizer step is the mean over all rows of the
    step, where the loss of each row is multiplied by the weight of its task.
    """

    objectives: dict[str, Objective]
    weights: dict[str, float]

    def count(self, batch: Batch) -> dict[str, float]:
        by_task = {name: self.objectives[name].count(columns) for name, columns in split_batch(batch).items()}
        rows = sum(counts["rows"] for counts in by_task.values())
        shares = {name: counts["rows"] / rows * self.weights.get(name, 1.0) for name, counts in by_task.items()}
        terms = {f"{name}/{term}": count / shares[name] for name, counts in by_task.items() for term, count in counts.items()}
        return terms | {"rows": rows}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the summed losses.

        Args:
            outputs: Model outputs by task, as returned by `MultitaskModel`.
        """
        losses = {UNUSED: outputs[UNUSED]}
        for name, columns in split_batch(batch).items():
            terms = self.objectives[name].loss(outputs[name], columns)
            losses |= {f"{name}/{term}": value for term, value in terms.items()}
        return losses
