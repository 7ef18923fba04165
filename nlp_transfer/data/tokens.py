"""Tokens in flat arrays: a column of ragged rows is one array of values and one of offsets, so a batch is a slice away."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.growing_columns import GrowingRagged, in_memory
from nlp_transfer.data.oversampling import Repeats
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.utils.errors import converted


@dataclass(frozen=True)
class Ragged:
    """Rows of different length. `values` is int32 of shape (all values,), `offsets` int64 of shape (rows + 1,).

    Cached states are kept so too: `values` is then float32 of shape (all tokens, width). Both arrays may be read-only: values
    that are all the same take the room of one, and those of a table that was kept on disk lie in a file.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, rows: Iterable[list[int]]) -> "Ragged":
        rows = list(rows)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets)

    @classmethod
    def concatenate(cls, parts: "list[Ragged]") -> "Ragged":
        starts = np.cumsum([0] + [len(part.values) for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> list[int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        found: list[int] = self.values[self.offsets[row] : self.offsets[row + 1]].tolist()
        return found

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
        return self.sides.sum(1)

    @property
    def sides(self) -> np.ndarray:
        """The lengths of what is padded for itself: of the input, and of the target where that is tokens too; int64 of shape
        (rows, sides)."""
        return np.stack([self.ragged[name].lengths for name in ("input_ids", "labels") if name in self.ragged], axis=1)

    @property
    def references(self) -> dict[str, np.ndarray]:
        """What answers are scored against, by column."""
        return self.dense | self.texts

    @property
    def repeats(self) -> Repeats | None:
        """How often its rows stand in an epoch, where the table itself asks for that; None: once."""
        return None

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


def on_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch where the model is. To a GPU it is copied while that still computes what it was given before. MPS has no float64,
    so on all devices but the CPU and CUDA GPUs columns of that type (targets of a regression) stay on the CPU."""
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
    stays = None if device.type == "cpu" else torch.float64
    return {name: tensor if tensor.dtype == stays else tensor.to(device) for name, tensor in batch.items()}


Features = Mapping[str, Any]
Encode = Callable[[dict[str, list[Any]]], tuple[Features, int]]


def blocks_of(rows: Rows, encode: Encode, size: int = 1000) -> Iterator[tuple[dict[str, Ragged], dict[str, np.ndarray], int]]:
    """All rows through a task's `encode`, `size` at a time: ragged columns, arrays, and the number of rows truncated.

    Args:
        encode: columns to features (lists of ints, or `Ragged`, are ragged columns, arrays dense ones, arrays of objects texts)
            and the number of rows truncated.
    """
    for columns in rows.batches(size):
        features, cut = encode(columns)
        arrays = {name: values for name, values in features.items() if isinstance(values, np.ndarray)}
        lists = {name: values for name, values in features.items() if name not in arrays}  # flat at once: lists of ints are large
        yield {name: v if isinstance(v, Ragged) else Ragged.from_lists(v) for name, v in lists.items()}, arrays, cut


def encode_rows(rows: Rows, encode: Encode, fill: dict[str, int], size: int = 1000) -> TokenTable:
    """The table of all rows, in memory; the arguments are those of `blocks_of`, and the padding values of the table."""
    growing: dict[str, GrowingRagged] = {}
    found: dict[str, list[np.ndarray]] = {}
    truncated = 0
    for ragged, arrays, cut in blocks_of(rows, encode, size):
        truncated += cut
        for name, column in ragged.items():
            growing.setdefault(name, GrowingRagged(io.BytesIO())).add(column.values, column.offsets)
        for name, values in arrays.items():
            found.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    return TokenTable(
        share_offsets({name: Ragged(in_memory(column), column.offsets()) for name, column in growing.items()}),
        {name: values for name, values in arrays.items() if values.dtype != object},
        fill,
        truncated,
        {name: values for name, values in arrays.items() if values.dtype == object},
    )


def share_offsets(columns: dict[str, Ragged]) -> dict[str, Ragged]:
    """The columns; those whose rows are as long as the first one's take its offsets, which are then kept once."""
    first = next(iter(columns.values()), None)
    if first is None:
        return columns
    same = {name: np.array_equal(column.offsets, first.offsets) for name, column in columns.items()}
    return {name: Ragged(column.values, first.offsets) if same[name] else column for name, column in columns.items()}


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], names: Iterable[str], limit: int
) -> tuple[dict[str, Ragged], int]:
    """What a tokenizer makes of texts, or of pairs of texts, at most `limit` tokens a row, and how many rows were cut.

    Args:
        texts: one list, or two of the same length.
        names: the columns wanted; those that the tokenizer does not give are left out.
    """
    with converted(f"model: the tokenizer {getattr(tokenizer, 'name_or_path', '')} cannot encode the rows"):
        return (_by_backend if _plain_backend(tokenizer) else _by_call)(tokenizer, texts, names, limit)


def _by_call(tokenizer: Any, texts: Sequence[list[str]], names: Iterable[str], limit: int) -> tuple[dict[str, Ragged], int]:
    encoded = tokenizer(*texts, truncation=False, padding=False, return_attention_mask=False, verbose=False)
    long = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) > limit]
    columns = {name: list(encoded[name]) for name in names if name in encoded}
    if long:  # only these are encoded again: the share truncated is known, and short rows cost nothing
        shorter = [[cells[row] for row in long] for cells in texts]
        again = tokenizer(*shorter, truncation=True, max_length=limit, padding=False, return_attention_mask=False)
        for name, values in columns.items():
            for row, ids in zip(long, again[name], strict=True):
                values[row] = ids
    return {name: Ragged.from_lists(values) for name, values in columns.items()}, len(long)


def _plain_backend(tokenizer: Any) -> bool:
    """Whether a call of the tokenizer is a call of its backend, with nothing of a family's own before or after it."""
    from transformers import TokenizersBackend

    kind = type(tokenizer)
    own = any(hasattr(tokenizer, name) for name in ("_switch_to_input_mode", "_switch_to_target_mode"))
    return isinstance(tokenizer, TokenizersBackend) and kind._encode_plus is TokenizersBackend._encode_plus and not own


def _by_backend(tokenizer: Any, texts: Sequence[list[str]], names: Iterable[str], limit: int) -> tuple[dict[str, Ragged], int]:
    """The same by the backend alone: its ids become flat arrays with no dictionary a row in between, and no offsets into the
    texts are worked out. What is beyond `limit` tells which rows were cut, so that none is encoded twice."""
    from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, TruncationStrategy.LONGEST_FIRST, limit, 0, None, None)
    backend = tokenizer.backend_tokenizer
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    rows = backend.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    cut = sum(1 for row in rows if len(row) >= limit and row.overflowing)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    columns = {}
    for name in names:
        if name == "input_ids":
            values = chain.from_iterable(row.ids for row in rows)
        elif name == "token_type_ids" and name in tokenizer.model_input_names:
            values = chain.from_iterable(row.type_ids for row in rows)
        else:
            continue
        columns[name] = Ragged(np.fromiter(values, np.int32, int(offsets[-1])), offsets)
    return columns, cut
