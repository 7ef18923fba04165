"""Tokens in flat arrays: a column of ragged rows is one array of values and one of offsets, so a batch is a slice away."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nlp_transfer.sources.rows import Rows


@dataclass(frozen=True)
class Ragged:
    """Rows of different length. `values` is int32 of shape (all values,), `offsets` int64 of shape (rows + 1,).

    Cached states are kept so too: `values` is then float32 of shape (all tokens, width).
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, rows: Iterable[list[int]]) -> "Ragged":
        rows = list(rows)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.fromiter((value for row in rows for value in row), np.int32, int(offsets[-1]))
        return cls(values, offsets)

    @classmethod
    def concatenate(cls, parts: "list[Ragged]") -> "Ragged":
        starts = np.cumsum([0] + [len(part.values) for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def padded(self, indices: np.ndarray, fill: int) -> np.ndarray:
        """int64 of shape (len(indices), longest of them), filled up on the right with `fill`; states: float32, (..., width)."""
        places, inside = self._places(indices)
        if self.values.ndim > 1:
            return np.where(inside[..., None], self.values[places], np.float32(fill))
        return np.where(inside, self.values[places] if len(self.values) else fill, fill).astype(np.int64)

    def select(self, indices: np.ndarray) -> "Ragged":
        """The rows at `indices`, in that order."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
        return Ragged(self.values[places], offsets)

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the values of some rows lie, as a padded table, and which of its cells hold one."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        columns = np.arange(int(lengths.max(initial=1)))
        inside = columns < lengths[:, None]
        return np.where(inside, starts[:, None] + columns, 0), inside


@dataclass(frozen=True)
class TokenTable:
    """The encoded rows of a split: ragged token columns and dense columns (labels: int64, or float32 per label;
    `target_...`: what else a loss compares with).

    `fill` names the padding value of each ragged column. `truncated` counts the rows that lost tokens. `texts` are columns
    (objects) that no model sees: what answers are compared with where that is not a number. `cached` is what a fixed part of
    the model makes of each row (`features.py`): an array with a vector a row, or states by token.
    """

    ragged: dict[str, Ragged]
    dense: dict[str, np.ndarray]
    fill: dict[str, int]
    truncated: int = 0
    texts: dict[str, np.ndarray] = field(default_factory=dict)
    cached: dict[str, np.ndarray | Ragged] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ragged["input_ids"])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, of both sides where the target is tokens too, special tokens counted; int64 of shape (rows,)."""
        own = self.ragged["input_ids"].lengths
        return own + self.ragged["labels"].lengths if "labels" in self.ragged else own

    @property
    def order(self) -> np.ndarray:
        """Rows of similar value pad each other little; int64 of shape (rows,). With two sides the longer one decides first."""
        if "labels" not in self.ragged:
            return self.lengths
        longer = np.maximum(self.ragged["input_ids"].lengths, self.ragged["labels"].lengths)
        return longer * (int(self.lengths.max(initial=0)) + 1) + self.lengths

    @property
    def references(self) -> dict[str, np.ndarray]:
        """What answers are scored against, by column."""
        return self.dense | self.texts

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """The rows at `indices`, padded to the longest of them, with their `attention_mask`."""
        batch = {name: torch.from_numpy(column.padded(indices, self.fill[name])) for name, column in self.ragged.items()}
        offsets = self.ragged["input_ids"].offsets
        lengths = torch.from_numpy(offsets[indices + 1] - offsets[indices])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        for name, values in self.cached.items():
            if isinstance(values, Ragged):
                batch[name] = torch.from_numpy(values.padded(indices, 0))
            else:  # the tokens are summed up in one vector, so that is how many tokens the head sees
                batch = {key: value[:, :1] for key, value in batch.items()} | {name: torch.from_numpy(values[indices])}
        return batch | {name: torch.from_numpy(column[indices]) for name, column in self.dense.items()}

    def select(self, indices: np.ndarray) -> "TokenTable":
        """The rows at `indices` (int64), in that order; one may stand there more than once."""
        cached = self.cached.items()
        return TokenTable(
            {name: column.select(indices) for name, column in self.ragged.items()},
            {name: column[indices] for name, column in self.dense.items()},
            self.fill,
            texts={name: column[indices] for name, column in self.texts.items()},
            cached={name: values.select(indices) if isinstance(values, Ragged) else values[indices] for name, values in cached},
        )

    @classmethod
    def concatenate(cls, tables: "list[TokenTable]") -> "TokenTable":
        """The rows of all tables; each must have the columns of the first."""

        def join(columns: list[Any]) -> Any:
            return Ragged.concatenate(columns) if isinstance(columns[0], Ragged) else np.concatenate(columns)

        parts = {
            kind: {name: join([getattr(table, kind)[name] for table in tables]) for name in getattr(tables[0], kind)}
            for kind in ("ragged", "dense", "texts", "cached")
        }
        return cls(fill=tables[0].fill, truncated=sum(table.truncated for table in tables), **parts)

    def targets(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """The labels and dense columns alone: enough to count loss items before any forward pass."""
        targets = {name: torch.from_numpy(column[indices]) for name, column in self.dense.items()}
        if "labels" in self.ragged:
            targets["labels"] = torch.from_numpy(self.ragged["labels"].padded(indices, self.fill["labels"]))
        return targets


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a batch the model is given: all but `labels` and the columns `target_...`, which are for the loss alone."""
    return {name: tensor for name, tensor in batch.items() if name != "labels" and not name.startswith("target_")}


Features = Mapping[str, Any]


def encode_rows(
    rows: Rows, encode: Callable[[dict[str, list[Any]]], tuple[Features, int]], fill: dict[str, int], size: int = 1000
) -> TokenTable:
    """All rows through a task's `encode`, `size` at a time.

    Args:
        encode: columns to features (lists of ints are ragged columns, arrays dense ones, arrays of objects texts) and the
            number of rows truncated.
    """
    ragged: dict[str, list[Ragged]] = {}
    dense: dict[str, list[np.ndarray]] = {}
    texts: dict[str, list[np.ndarray]] = {}
    truncated = 0
    for columns in rows.batches(size):
        features, cut = encode(columns)
        truncated += cut
        for name, values in features.items():
            if isinstance(values, np.ndarray):
                (texts if values.dtype == object else dense).setdefault(name, []).append(values)
            else:
                ragged.setdefault(name, []).append(Ragged.from_lists(values))  # flat at once: lists of ints are large
    return TokenTable(
        {name: Ragged.concatenate(parts) for name, parts in ragged.items()},
        {name: np.concatenate(parts) for name, parts in dense.items()},
        fill,
        truncated,
        {name: np.concatenate(parts) for name, parts in texts.items()},
    )
