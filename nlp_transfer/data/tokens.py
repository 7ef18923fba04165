"""Tokens in flat arrays: a column of ragged rows is one array of values and one of offsets, so a batch is a slice away."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nlp_transfer.sources.rows import Rows


@dataclass(frozen=True)
class Ragged:
    """Rows of different length. `values` is int32 of shape (all values,), `offsets` int64 of shape (rows + 1,)."""

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
        """int64 of shape (len(indices), longest of them), filled up on the right with `fill`."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        columns = np.arange(int(lengths.max(initial=1)))
        inside = columns < lengths[:, None]
        places = np.where(inside, starts[:, None] + columns, 0)
        return np.where(inside, self.values[places] if len(self.values) else fill, fill).astype(np.int64)


@dataclass(frozen=True)
class TokenTable:
    """The encoded rows of a split: ragged token columns and dense columns (labels: int64, or float32 per label).

    `fill` names the padding value of each ragged column. `truncated` counts the rows that lost tokens. `texts` are columns
    (objects) that no model sees: what answers are compared with where that is not a number.
    """

    ragged: dict[str, Ragged]
    dense: dict[str, np.ndarray]
    fill: dict[str, int]
    truncated: int = 0
    texts: dict[str, np.ndarray] = field(default_factory=dict)

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
        return batch | {name: torch.from_numpy(column[indices]) for name, column in self.dense.items()}

    def targets(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """The labels and dense columns alone: enough to count loss items before any forward pass."""
        targets = {name: torch.from_numpy(column[indices]) for name, column in self.dense.items()}
        if "labels" in self.ragged:
            targets["labels"] = torch.from_numpy(self.ragged["labels"].padded(indices, self.fill["labels"]))
        return targets


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
