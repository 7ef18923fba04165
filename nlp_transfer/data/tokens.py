"""Tokenize rows, and keep them in flat arrays."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.growing_columns import GrowingRagged, in_memory
from nlp_transfer.data.oversampling import Repeats
from nlp_transfer.data.ragged import Ragged, row_offsets, share_offsets
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.utils.errors import converted

WINDOWS = "windows"  # name of a ragged column


@dataclass(frozen=True)
class TokenTable:
    """The encoded rows of a split.

    Attributes:
        ragged: Token columns, including `input_ids`. If there is a column `windows`, the tokens of a row are divided into
            several model inputs, the windows. This column contains the lengths of the windows; the other columns contain the
            windows of a row one after the other.
        dense: Numeric columns of shape (rows, ...): `labels` (int64, or one float32 per label), and columns `target_...` for the
            loss.
        fill: The padding value of each ragged column.
        truncated: Number of truncated rows.
        texts: Columns of texts, or other JSON values, for predictions and metrics; not passed to the model.
        cached: Outputs of the frozen layers (`models/cached_features.py`): a vector per row, or hidden states per token.
        sides: Names of the ragged columns that are padded separately, such as input and target. The length of a row is the sum
            of their lengths.
    """

    ragged: dict[str, Ragged]
    dense: dict[str, np.ndarray]
    fill: dict[str, int]
    truncated: int = 0
    texts: dict[str, np.ndarray] = field(default_factory=dict)
    cached: dict[str, np.ndarray | Ragged] = field(default_factory=dict)
    sides: tuple[str, ...] = ("input_ids",)

    def __len__(self) -> int:
        return len(self.ragged["input_ids"])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, including special tokens and a target text; int64 of shape (rows,)."""
        return self.side_lengths.sum(1)

    @property
    def side_lengths(self) -> np.ndarray:
        """Lengths of the sides that are padded separately, such as input and target; int64 of shape (rows, sides)."""
        return np.stack([self.ragged[name].lengths for name in self.sides], axis=1)

    @property
    def references(self) -> dict[str, np.ndarray]:
        """Columns that predictions are compared with: `dense` and `texts`."""
        return self.dense | self.texts

    @property
    def repeats(self) -> Repeats | None:
        """Number of occurrences of each row in an epoch; None: each row occurs once. Subclasses override this."""
        return None

    @cached_property
    def _by_window(self) -> dict[str, Ragged]:
        """The ragged columns with a row for each window."""
        if WINDOWS not in self.ragged:
            return self.ragged
        lengths = self.ragged[WINDOWS].values
        offsets = row_offsets(lengths)
        return {name: Ragged(column.values, offsets) for name, column in self.ragged.items() if name != WINDOWS}

    def _padded(self, indices: np.ndarray, names: Iterable[str]) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        """Return padded ragged columns of the rows at `indices`, and the indices of their windows (int64)."""
        columns, windows = self._by_window, indices
        batch: dict[str, torch.Tensor] = {}
        if WINDOWS in self.ragged:
            column = self.ragged[WINDOWS]
            counts = column.lengths[indices]
            rows = np.repeat(np.arange(len(indices)), counts)
            windows = np.arange(len(rows)) + (column.offsets[indices] - (np.cumsum(counts) - counts))[rows]
            batch["target_row"] = torch.from_numpy(rows)
        padded = {name: columns[name].padded(windows, self.fill[name]) for name in names if name in columns}
        return batch | {name: torch.from_numpy(values) for name, values in padded.items()}, windows

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the rows at `indices`, padded to the longest one, and their `attention_mask`.

        If the table has windows, the batch has a row for each window. For each of them, `target_row` is the position in
        `indices` of the row that contains the window.
        """
        batch, windows = self._padded(indices, self.ragged)
        offsets = self._by_window["input_ids"].offsets
        lengths = torch.from_numpy(offsets[windows + 1] - offsets[windows])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        for name, values in self.cached.items():
            if isinstance(values, Ragged):
                batch[name] = torch.from_numpy(Ragged(values.values, offsets).padded(windows, 0))
            else:  # one vector per row: the head gets a sequence of one token
                batch = {key: value[:, :1] for key, value in batch.items()} | {name: torch.from_numpy(values[indices])}
        return batch | {name: torch.from_numpy(column[indices]) for name, column in self.dense.items()}

    def select(self, indices: np.ndarray) -> "TokenTable":
        """Return the rows at `indices` (int64), in that order; an index may occur more than once."""
        cached = self.cached.items()
        return TokenTable(
            {name: column.select(indices) for name, column in self.ragged.items()},
            {name: column[indices] for name, column in self.dense.items()},
            self.fill,
            texts={name: column[indices] for name, column in self.texts.items()},
            cached={name: values.select(indices) if isinstance(values, Ragged) else values[indices] for name, values in cached},
            sides=self.sides,
        )

    @classmethod
    def concatenate(cls, tables: "list[TokenTable]") -> "TokenTable":
        """Concatenate the rows of tables with the same columns."""

        def join(columns: list[Any]) -> Any:
            return Ragged.concatenate(columns) if isinstance(columns[0], Ragged) else np.concatenate(columns)

        columns = {
            kind: {name: join([getattr(table, kind)[name] for table in tables]) for name in getattr(tables[0], kind)}
            for kind in ("ragged", "dense", "texts", "cached")
        }
        return cls(fill=tables[0].fill, sides=tables[0].sides, truncated=sum(table.truncated for table in tables), **columns)

    def targets(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return only the columns that are needed to count loss terms before the forward pass: targets and dense columns."""
        targets = {name: torch.from_numpy(column[indices]) for name, column in self.dense.items()}
        return targets | self._padded(indices, filter(is_target, self.ragged))[0]


def is_target(name: str) -> bool:
    """Return whether a column is not an input of the model."""
    return name == "labels" or name.startswith("target_")


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the columns for the model: all except `labels` and `target_...`."""
    return {name: tensor for name, tensor in batch.items() if not is_target(name)}


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a batch to `device`; copies to a CUDA GPU are asynchronous.

    If the device is not CUDA, float64 columns (regression targets) stay on the CPU, since MPS has no float64.
    """
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
    unsupported = None if device.type == "cpu" else torch.float64
    return {name: tensor if tensor.dtype == unsupported else tensor.to(device) for name, tensor in batch.items()}


@dataclass(frozen=True)
class Features:
    """Encoded rows.

    Attributes:
        ragged: Columns of token ids, one list for each row (`Ragged`, or lists of ints).
        padding: The padding value of each ragged column.
        dense: Arrays of shape (rows, ...).
        texts: Arrays of objects of shape (rows,): texts, or other JSON values, for predictions and metrics.
        truncated: Number of truncated rows.
        sides: See `TokenTable`.
        key: Everything that determines the features, except the rows, the task's settings and the tokenizer, as JSON. None:
            unknown.
    """

    ragged: Mapping[str, Ragged | list[list[int]]]
    padding: Mapping[str, int]
    dense: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, np.ndarray] = field(default_factory=dict)
    truncated: int = 0
    sides: tuple[str, ...] = ("input_ids",)
    key: Any = ()


Encode = Callable[[dict[str, list[Any]]], Features]
"""A function that encodes rows, given as columns, and returns their features."""


def encoded_blocks(rows: Rows, encode: Encode, size: int = 1000) -> Iterator[tuple[dict[str, Ragged], Features]]:
    """Encode all rows in blocks of `size` rows; yield the ragged columns and the features of each block."""
    for columns in rows.batches(size):
        features = encode(columns)  # lists of ints are converted for each block, since they are large
        lists = features.ragged.items()
        yield {name: ids if isinstance(ids, Ragged) else Ragged.from_lists(ids) for name, ids in lists}, features


def encode_rows(rows: Rows, encode: Encode, size: int = 1000) -> TokenTable:
    """Encode all rows into a table in memory, in blocks of `size` rows."""
    growing: dict[str, GrowingRagged] = {}
    dense: dict[str, list[np.ndarray]] = {}
    texts: dict[str, list[np.ndarray]] = {}
    truncated, features = 0, Features({}, {})
    for ragged, features in encoded_blocks(rows, encode, size):
        truncated += features.truncated
        for name, column in ragged.items():
            growing.setdefault(name, GrowingRagged(io.BytesIO())).add(column.values, column.offsets)
        for blocks, arrays in ((dense, features.dense), (texts, features.texts)):
            for name, values in arrays.items():
                blocks.setdefault(name, []).append(values)
    return TokenTable(
        share_offsets({name: Ragged(in_memory(column), column.offsets()) for name, column in growing.items()}),
        {name: np.concatenate(values) for name, values in dense.items()},
        dict(features.padding),
        truncated,
        {name: np.concatenate(values) for name, values in texts.items()},
        sides=features.sides,
    )


def token_padding(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the padding values of the columns that the tokenizer produces: `input_ids` and perhaps `token_type_ids`."""
    padding = {"input_ids": tokenizer.pad_token_id}
    if "token_type_ids" in tokenizer.model_input_names:
        padding["token_type_ids"] = tokenizer.pad_token_type_id
    return padding


def as_objects(values: Iterable[Any]) -> np.ndarray:
    """Return values of any type as an array of objects of shape (values,), such as a column of `TokenTable.texts`."""
    return np.fromiter(values, object)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], names: Iterable[str], limit: int
) -> tuple[dict[str, Ragged], int]:
    """Tokenize texts or pairs of texts.

    Args:
        texts: One list, or two of the same length.
        names: Columns to return, if the tokenizer produces them.
        limit: Maximum tokens in a row; longer rows are truncated.

    Returns:
        The columns, and the number of truncated rows.
    """
    with converted(f"model: the tokenizer {getattr(tokenizer, 'name_or_path', '')} cannot encode the rows"):
        return (_by_backend if _is_plain(tokenizer) else _by_call)(tokenizer, texts, names, limit)


def _by_call(tokenizer: Any, texts: Sequence[list[str]], names: Iterable[str], limit: int) -> tuple[dict[str, Ragged], int]:
    encoded = tokenizer(*texts, truncation=False, padding=False, return_attention_mask=False, verbose=False)
    long = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) > limit]
    columns = {name: list(encoded[name]) for name in names if name in encoded}
    if long:  # encode only the long rows again, with truncation
        shorter = [[cells[row] for row in long] for cells in texts]
        again = tokenizer(*shorter, truncation=True, max_length=limit, padding=False, return_attention_mask=False)
        for name, values in columns.items():
            for row, ids in zip(long, again[name], strict=True):
                values[row] = ids
    return {name: Ragged.from_lists(values) for name, values in columns.items()}, len(long)


def _is_plain(tokenizer: Any) -> bool:
    """Return whether calling the tokenizer does no more than calling its backend."""
    from transformers import TokenizersBackend

    kind = type(tokenizer)
    has_modes = any(hasattr(tokenizer, name) for name in ("_switch_to_input_mode", "_switch_to_target_mode"))
    return isinstance(tokenizer, TokenizersBackend) and kind._encode_plus is TokenizersBackend._encode_plus and not has_modes


def _by_backend(tokenizer: Any, texts: Sequence[list[str]], names: Iterable[str], limit: int) -> tuple[dict[str, Ragged], int]:
    """Tokenize with the Rust backend, which is faster than calling the tokenizer.

    It creates no dictionary per row and computes no character offsets. Overflowing tokens show which rows were truncated, so no
    row is encoded twice.
    """
    from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, TruncationStrategy.LONGEST_FIRST, limit, 0, None, None)
    backend = tokenizer.backend_tokenizer
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    rows = backend.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    truncated = sum(1 for row in rows if len(row) >= limit and row.overflowing)
    offsets = row_offsets([len(row) for row in rows])
    columns = {}
    for name in names:
        if name == "input_ids":
            values = chain.from_iterable(row.ids for row in rows)
        elif name == "token_type_ids" and name in tokenizer.model_input_names:
            values = chain.from_iterable(row.type_ids for row in rows)
        else:
            continue
        columns[name] = Ragged(np.fromiter(values, np.int32, int(offsets[-1])), offsets)
    return columns, truncated
