"""Groups of rows to compare with each other: a table of which no row is stored, and what is learned from them.

A row of the table is a group of texts, in which all pairs are compared. Its loss depends on nothing outside the group, so it
does not matter how a batch is cut or which process computes it; a text is encoded once for all its pairs.
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
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import PLAIN_LOSS, Batch, LossOptions

NEAR = 5  # rows of similar length from which one is drawn: texts of one batch that differ in length are mostly padding
Loss = Literal["contrastive", "cosine"]


@dataclass(frozen=True)
class Lists:
    """Rows by label, flat: those of label i are `rows[starts[i]:starts[i + 1]]`, the shortest text first; `lengths` are theirs.

    `marks` says which labels a row has: ids of shape (rows,), or (rows, labels).
    """

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    marks: np.ndarray

    @classmethod
    def of(cls, marks: np.ndarray, lengths: np.ndarray) -> "Lists":
        order = np.argsort(lengths, kind="stable")
        place, label = (np.arange(len(order)), marks[order]) if marks.ndim == 1 else np.nonzero(marks[order])
        count = int(marks.max(initial=0)) + 1 if marks.ndim == 1 else marks.shape[1]
        rows = order[place[np.argsort(label, kind="stable")]]
        starts = np.concatenate([[0], np.cumsum(np.bincount(label, minlength=count))])
        return cls(rows, starts, lengths[rows], marks)

    @cached_property
    def filled(self) -> np.ndarray:
        """The labels that any row has."""
        return np.flatnonzero(np.diff(self.starts))

    def labels_of(self, row: int) -> np.ndarray:
        return np.flatnonzero(self.marks[row]) if self.marks.ndim == 2 else self.marks[row : row + 1]

    def near(self, label: int, length: int, many: int) -> np.ndarray:
        """Up to `many` rows of a label whose texts are about as long."""
        first, last = int(self.starts[label]), int(self.starts[label + 1])
        middle = first + int(np.searchsorted(self.lengths[first:last], length))
        begin = max(first, min(middle - many // 2, last - many))
        return self.rows[begin : min(last, begin + many)]


@dataclass(frozen=True)
class GroupTable(TokenTable):
    """`groups` groups of `size` different rows of a table each, drawn from the seed and the group's number when they are asked
    for: nothing is kept for a group.

    A group starts from a row, so that each is as likely, and has pairs of rows that share a label: as many labels as there are
    pairs, or all there are. Rows whose answer is a number are paired with one that has a similar number.

    A batch holds each text once. Its `labels`, float32 of shape (groups, size, 1 + size), say for each text of a group where it
    stands in the batch, and how similar its answer is to that of each of the group, from 0 to 1.
    """

    groups: int = 0
    size: int = 2
    seed: int = 0
    lists: Lists | None = None

    @classmethod
    def over(cls, table: TokenTable, groups: int, size: int, seed: int) -> "GroupTable":
        """Groups of the rows of a table, of `size` rows at most."""
        labels = table.dense["labels"]
        if labels.dtype.kind == "f" and labels.ndim == 1:  # neighbours by value share a list
            ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
            labels = ranks * max(2, round(len(labels) ** 0.5)) // max(1, len(labels))
        lists = Lists.of(labels, table.ragged["input_ids"].lengths)
        return cls(
            table.ragged, table.dense, table.fill, groups=groups, size=min(size, len(table)), seed=seed, lists=lists,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.groups

    @property
    def side_lengths(self) -> np.ndarray:
        """Tokens of each group, about: its first row's, as often as it has rows; int64 of shape (groups, 1)."""
        return self.ragged["input_ids"].lengths[self.anchors(np.arange(self.groups)), None] * self.size

    def anchors(self, groups: np.ndarray) -> np.ndarray:
        """The row that each group starts from."""
        state = groups.astype(np.uint64) + np.uint64((self.seed + 1) * int(GOLDEN) % 2**64)
        return (splitmix64(state) % np.uint64(len(self.ragged["input_ids"]))).astype(np.int64)

    def members(self, groups: np.ndarray) -> np.ndarray:
        """int64 of shape (groups, size): the rows of each group, all of them different."""
        found = np.empty((len(groups), self.size), np.int64)
        for place, (group, anchor) in enumerate(zip(groups.tolist(), self.anchors(groups).tolist(), strict=True)):
            rows = self._draw(np.random.default_rng([self.seed, group]), anchor)
            found[place] = [next(rows) for _ in range(self.size)]
        return found

    def _draw(self, generator: np.random.Generator, anchor: int) -> Iterator[int]:
        """The anchor, rows that share a label with it, then rows of other labels, as many of each."""
        assert self.lists is not None
        offsets, filled, pairs = self.ragged["input_ids"].offsets, self.lists.filled, self.size // 2
        length = int(offsets[anchor + 1] - offsets[anchor])
        share = max(2, -(-self.size // max(1, min(pairs, len(filled)))))  # rows of a label
        own = self.lists.labels_of(anchor)
        labels = generator.choice(own, min(1, len(own))).tolist()
        labels += [label for label in generator.permutation(filled).tolist()[: pairs + 1] if label not in labels]
        taken = {anchor}
        yield anchor
        for i, label in enumerate(labels):
            wanted = share - (i == 0 and len(own) > 0)
            for row in generator.permutation(self.lists.near(label, length, max(NEAR, share) + 1)).tolist():
                if wanted and row not in taken:
                    taken.add(row)
                    wanted -= 1
                    yield row
        while True:  # few labels with few rows each: any others
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
        """As many labels as there are texts to compare; which ones is not needed for counting."""
        return {"labels": torch.zeros(len(indices), self.size, 1)}


def similarity(labels: np.ndarray, members: np.ndarray) -> np.ndarray:
    """float32 of shape (groups, size, size): how similar the answers of the rows of a group are, from 0 to 1.

    Label ids: 1 if they are the same. Sets of labels: the share of their labels that is common (Jaccard; two empty sets are the
    same). Numbers: exp(-distance), in half standard deviations of all.
    """
    own = labels[members]
    if labels.ndim == 2:
        common = own @ own.transpose(0, 2, 1)
        either = own.sum(-1)[:, :, None] + own.sum(-1)[:, None, :] - common
        return np.where(either > 0, common / np.maximum(either, 1), 1).astype(np.float32)
    if labels.dtype.kind == "f":
        unit = float(labels.std()) / 2 or 1.0
        return np.exp(-np.abs(own[:, :, None] - own[:, None, :]) / unit).astype(np.float32)
    return (own[:, :, None] == own[:, None, :]).astype(np.float32)


@dataclass(frozen=True)
class Comparison:
    """What is learned from groups: that vectors of rows with similar answers lie near each other. Counted by text.

    contrastive: each text picks its likes out of its group, by cosines over a temperature (Khosla et al. 2020, "Supervised
    Contrastive Learning", 2004.11362). cosine: cosines are to be the similarities, squared errors of likes and of others
    weighing the same (as in SetFit).
    """

    how: Loss = "contrastive"
    temperature: float = 0.07

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        return PLAIN_LOSS

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Groups, and texts."""
        groups, size = batch["labels"].shape[:2]
        return {"rows": float(groups), self.how: float(groups * size)}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
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
        wanted = similar / similar.sum(-1, keepdim=True).clamp(min=1e-6)  # a text without its like says nothing
        return {self.how: -(wanted * likelihoods).sum()}

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        return {}
