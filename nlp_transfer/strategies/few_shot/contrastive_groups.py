"""Contrastive training on groups of rows: a table that draws the rows of each group on demand, and the loss.

All pairs of texts in a group are compared, but each text is encoded only once. The loss of a group does not depend on the other
groups in the batch, so it does not depend on the batch size or the number of processes either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from nlp_transfer.data.random_numbers import GOLDEN, splitmix64
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.tasks import Batch, Objective

NEARBY_ROWS = 5  # each label contributes rows drawn from this many rows of similar length, to limit padding
Loss = Literal["contrastive", "cosine"]


@dataclass(frozen=True)
class RowsByLabel:
    """The rows of each label, sorted by length, in flat arrays.

    Attributes:
        rows: Row indices. The rows with label i are `rows[starts[i]:starts[i + 1]]`, shortest text first.
        starts: int64 of shape (labels + 1,).
        lengths: Length of each row in tokens, in the order of `rows`.
        targets: Targets of all rows in the order of the table: label ids of shape (rows,), or 0 and 1 of shape (rows, labels).
    """

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray, lengths: np.ndarray) -> "RowsByLabel":
        """Sort the rows of a table by label and length.

        Args:
            targets: Label ids of shape (rows,), or 0 and 1 of shape (rows, labels).
            lengths: Lengths in tokens, of shape (rows,).
        """
        order = np.argsort(lengths, kind="stable")
        place, label = (np.arange(len(order)), targets[order]) if targets.ndim == 1 else np.nonzero(targets[order])
        count = int(targets.max(initial=0)) + 1 if targets.ndim == 1 else targets.shape[1]
        rows = order[place[np.argsort(label, kind="stable")]]
        starts = np.concatenate([[0], np.cumsum(np.bincount(label, minlength=count))])
        return cls(rows, starts, lengths[rows], targets)

    @cached_property
    def filled(self) -> np.ndarray:
        """Ids of the labels with at least one row, int64."""
        return np.flatnonzero(np.diff(self.starts))

    def labels_of(self, row: int) -> np.ndarray:
        """Return the ids of the labels of a row."""
        return np.flatnonzero(self.targets[row]) if self.targets.ndim == 2 else self.targets[row : row + 1]

    def similar_length(self, label: int, length: int, count: int) -> np.ndarray:
        """Return up to `count` rows of a label, those whose length is closest to `length`."""
        first, last = int(self.starts[label]), int(self.starts[label + 1])
        middle = first + int(np.searchsorted(self.lengths[first:last], length))
        begin = max(first, min(middle - count // 2, last - count))
        return self.rows[begin : min(last, begin + count)]


@dataclass(frozen=True)
class GroupTable(TokenTable):
    """A table whose rows are groups of rows of another table.

    The members of a group are determined by the seed and the index of the group, and are computed on demand. A group starts
    with an anchor row, drawn uniformly. It contains pairs of rows that share a label, from as many labels as possible. In a
    regression, rows with similar targets form the pairs.

    A batch contains each text once. For each text of a group, `labels`, float32 of shape (groups, size, 1 + size), contains the
    index of the text in the batch, followed by the similarity of its target to the target of each text in the group, from 0 to
    1.

    Attributes:
        groups: Number of groups.
        size: Number of distinct rows in a group.
    """

    groups: int = 0
    size: int = 2
    seed: int = 0
    by_label: RowsByLabel | None = None

    @classmethod
    def over(cls, table: TokenTable, groups: int, size: int, seed: int) -> "GroupTable":
        """Create groups from the rows of a table. Each group has `size` rows, or fewer if the table is smaller."""
        labels = table.dense["labels"]
        if labels.dtype.kind == "f" and labels.ndim == 1:  # quantiles become labels
            ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
            labels = ranks * max(2, round(len(labels) ** 0.5)) // max(1, len(labels))
        by_label = RowsByLabel.of(labels, table.ragged["input_ids"].lengths)
        return cls(
            table.ragged, table.dense, table.fill, groups=groups, size=min(size, len(table)), seed=seed, by_label=by_label,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.groups

    @property
    def side_lengths(self) -> np.ndarray:
        """Approximate number of tokens in each group, int64 of shape (groups, 1): length of the anchor times group size."""
        return self.ragged["input_ids"].lengths[self.anchors(np.arange(self.groups)), None] * self.size

    def anchors(self, groups: np.ndarray) -> np.ndarray:
        """Return the anchor row of each group, int64 of shape (groups,)."""
        state = groups.astype(np.uint64) + np.uint64((self.seed + 1) * int(GOLDEN) % 2**64)
        return (splitmix64(state) % np.uint64(len(self.ragged["input_ids"]))).astype(np.int64)

    def members(self, groups: np.ndarray) -> np.ndarray:
        """Return the rows of each group, int64 of shape (groups, size)."""
        members = np.empty((len(groups), self.size), np.int64)
        for place, (group, anchor) in enumerate(zip(groups.tolist(), self.anchors(groups).tolist(), strict=True)):
            rows = self._draw(np.random.default_rng([self.seed, group]), anchor)
            members[place] = [next(rows) for _ in range(self.size)]
        return members

    def _draw(self, generator: np.random.Generator, anchor: int) -> Iterator[int]:
        """Yield the anchor, rows that share a label with it, and then the same number of rows of each further label."""
        assert self.by_label is not None
        offsets, filled, pairs = self.ragged["input_ids"].offsets, self.by_label.filled, self.size // 2
        length = int(offsets[anchor + 1] - offsets[anchor])
        share = max(2, -(-self.size // max(1, min(pairs, len(filled)))))  # rows per label
        anchor_labels = self.by_label.labels_of(anchor)
        labels = generator.choice(anchor_labels, min(1, len(anchor_labels))).tolist()
        labels += [label for label in generator.permutation(filled).tolist()[: pairs + 1] if label not in labels]
        taken = {anchor}
        yield anchor
        for i, label in enumerate(labels):
            missing = share - (i == 0 and len(anchor_labels) > 0)
            for row in generator.permutation(self.by_label.similar_length(label, length, max(NEARBY_ROWS, share) + 1)).tolist():
                if missing and row not in taken:
                    taken.add(row)
                    missing -= 1
                    yield row
        while True:  # if the labels have too few rows, add random rows
            row = int(generator.integers(len(offsets) - 1))
            if row not in taken:
                taken.add(row)
                yield row

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        members = self.members(indices)
        rows, places = np.unique(members, return_inverse=True)
        batch = super().batch(rows)
        labels = similarity(self.dense["labels"], members)
        batch["labels"] = torch.from_numpy(np.concatenate([places.reshape(*members.shape, 1).astype(np.float32), labels], -1))
        return batch

    def targets(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return placeholders of shape (groups, size, 1), which are enough for `ContrastiveObjective.count`."""
        return {"labels": torch.zeros(len(indices), self.size, 1)}


def similarity(labels: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the similarity of the targets of each pair in each group, from 0 to 1, float32 of shape (groups, size, size).

    For single labels, it is 1 if they are equal, else 0. For sets of labels, it is the Jaccard index, which is 1 for two empty
    sets. For numbers, it is exp(-distance), where the distance is in units of half a standard deviation.
    """
    targets = labels[members]
    if labels.ndim == 2:
        common = targets @ targets.transpose(0, 2, 1)
        union = targets.sum(-1)[:, :, None] + targets.sum(-1)[:, None, :] - common
        return np.where(union > 0, common / np.maximum(union, 1), 1).astype(np.float32)
    if labels.dtype.kind == "f":
        unit = float(labels.std()) / 2 or 1.0
        return np.exp(-np.abs(targets[:, :, None] - targets[:, None, :]) / unit).astype(np.float32)
    return (targets[:, :, None] == targets[:, None, :]).astype(np.float32)


@dataclass(frozen=True)
class ContrastiveObjective(Objective):
    """A loss, averaged over texts, that moves the vectors of texts with similar targets closer together.

    Attributes:
        how: The loss. `contrastive` is the cross-entropy of a softmax over the other texts of the group (Khosla et al. 2020,
            "Supervised Contrastive Learning", 2004.11362). `cosine` is the squared error between cosines and similarities, in
            which similar texts and all other texts have the same total weight, as in SetFit.
        temperature: Number by which the cosines are divided before the softmax.
    """

    how: Loss = "contrastive"
    temperature: float = 0.07

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of groups and of texts."""
        groups, size = batch["labels"].shape[:2]
        return {"rows": float(groups), self.how: float(groups * size)}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        labels = batch["labels"]
        vectors = F.normalize(outputs.embedding.float(), dim=-1)[labels[..., 0].long()]
        cosines = vectors @ vectors.transpose(1, 2)
        itself = torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
        similar = labels[..., 1:].masked_fill(itself, 0)
        if self.how == "cosine":
            alike = similar >= 0.5
            rest = ~alike & ~itself
            weights = alike / alike.sum(-1, keepdim=True).clamp(min=1) + rest / rest.sum(-1, keepdim=True).clamp(min=1)
            return {self.how: (weights * (cosines - similar).square()).sum()}
        likelihoods = (cosines / self.temperature).masked_fill(itself, -1e4).log_softmax(-1)
        targets = similar / similar.sum(-1, keepdim=True).clamp(min=1e-6)  # 0 for a text without a similar one
        return {self.how: -(targets * likelihoods).sum()}
