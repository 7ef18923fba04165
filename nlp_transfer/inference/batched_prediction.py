"""Predict all rows of a token table in batches of similar length; batches that do not fit in memory are split."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from nlp_transfer.data.tokens import TokenTable, to_device
from nlp_transfer.data.windows import inference_batches, token_batches
from nlp_transfer.inference.exported_model import ExportedModel
from nlp_transfer.kernels import accelerated
from nlp_transfer.models.compatibility import split_by_length
from nlp_transfer.models.memory import free_cached_memory, is_out_of_memory
from nlp_transfer.models.preparation import autocast
from nlp_transfer.tasks import Arrays, Items, Task
from nlp_transfer.utils.console import Steps, say
from nlp_transfer.utils.errors import UserError

CPU_TOKENS = 512  # padded tokens per batch and thread; activations of larger batches exceed the CPU caches
GPU_TOKENS = 1 << 15  # padded tokens per batch that keep a GPU busy
PARALLEL_BATCHES = 4  # from which an exported model computes several batches at a time
GENERATION_ROWS = 32  # rows per batch for tasks that generate text
_LIMITS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # model that ran out of memory -> most padded tokens per batch


def batches_of(
    table: TokenTable, device: torch.device, batch_size: int | None = None, generates: bool = False
) -> list[np.ndarray]:
    """Group rows of similar length into batches, the longest first; return the row indices (int64) of each batch.

    Args:
        batch_size: rows per batch. None means the number that is fastest on the device.
        generates: whether the model generates text.
    """
    if batch_size is None and not generates:
        return token_batches(table.lengths, CPU_TOKENS * torch.get_num_threads() if device.type == "cpu" else GPU_TOKENS)
    return inference_batches(table.side_lengths, batch_size or GENERATION_ROWS)


def predict_table(
    model: nn.Module,
    task: Task,
    table: TokenTable,
    batch_size: int | None = None,
    precision: str = "fp32",
    accelerator: Any = None,
    selected: np.ndarray | None = None,
    where: Callable[[int], str] = "row {}".format,
) -> tuple[Arrays, Items]:
    """Predict every row of a table.

    Args:
        batch_size: rows per batch. None means the number that is fastest on the device.
        accelerator: distributes the batches over its processes, which all return the same result, and shows progress. None means
            that this process predicts all rows.
        selected: bool of shape (rows,), True for rows that need a complete prediction (see `Task.predict`). None means all rows.
        where: returns the name of a row for messages, given its index.

    Returns:
        The predictions, arrays of shape (rows, ...) by name, in row order; and the sum and the count of each loss term. Rows
        without targets have no loss terms.

    Raises:
        UserError: a prediction is NaN or infinite.
    """
    device = next(model.parameters()).device
    predictor = _BatchPredictor(model, task, table, precision, selected, where)
    batches = split_by_length(model, batches_of(table, device, batch_size, task.traits.generates), table.lengths)
    if accelerator is not None:
        batches = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    if any(module.training for module in model.modules()):  # setting it again would take longer than some predictions
        model.eval()
    try:
        with torch.inference_mode(), accelerated(model), ExitStack() as stack:
            progress = None
            if accelerator is not None and accelerator.is_main_process:
                progress = stack.enter_context(Steps("evaluating", len(batches)))
            prepared: Iterator[Any] = ((indices, predictor.batch(indices)) for indices in batches)
            if isinstance(model, ExportedModel) and len(batches) >= PARALLEL_BATCHES and torch.get_num_threads() > 1:
                prepared = model.compute_ahead(prepared)
            for indices, batch in prepared:
                predictor.predict(indices, batch)
                if progress is not None:
                    progress.advance()
    finally:
        if was_training:
            model.train()
    results = [(predictor.predictions, predictor.indices, predictor.losses)]
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        results = gather_object(results)
    return _merge(results, len(table))


class _BatchPredictor:
    """Predicts batches of one table and splits those that do not fit in memory.

    Attributes:
        predictions: predictions of each batch, by name.
        indices: int64 row indices of each batch.
        losses: the sum and the count of each loss term so far.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        table: TokenTable,
        precision: str,
        selected: np.ndarray | None,
        where: Callable[[int], str],
    ) -> None:
        self.model, self.task, self.table, self.precision = model, task, table, precision
        self.selected, self.where = selected, where
        self.device, self.side_lengths = next(model.parameters()).device, table.side_lengths
        self.predictions: list[Arrays] = []
        self.indices: list[np.ndarray] = []
        self.losses: Items = {}

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the rows at `indices`, on the device."""
        return to_device(self.table.batch(indices), self.device)

    def predict(self, indices: np.ndarray, batch: dict[str, torch.Tensor] | None = None) -> None:
        """Predict the rows at `indices`; if memory runs out, predict each half separately.

        Args:
            batch: the rows, if they have been prepared.
        """
        halves = np.array_split(indices, 2)
        limit = _LIMITS.get(self.model, sys.maxsize)
        if len(indices) > 1 and self._padded_tokens(indices) > limit:
            for half in halves:
                self.predict(half)
            return
        try:
            batch = self.batch(indices) if batch is None else batch
            texts = {name: column[indices] for name, column in self.table.texts.items()}
            selected = None if self.selected is None else self.selected[indices]
            with autocast(self.device, self.precision):
                predictions, losses = self.task.predict(self.model, batch, selected, texts)
        except Exception as error:
            if len(indices) == 1 or not is_out_of_memory(error):
                raise
        else:
            check_finite_predictions(predictions, indices, self.where, self.precision)
            self.predictions.append(predictions)
            self.indices.append(indices)
            _add(self.losses, losses)
            return
        free_cached_memory()  # after the except block, which keeps the tensors of the failed pass in memory
        limit = _LIMITS[self.model] = min(limit, max(map(self._padded_tokens, halves)))
        say(
            f"warning: out of memory with {len(indices)} rows ({self._padded_tokens(indices):,} tokens with padding) at a time; "
            f"continuing with at most {limit:,} tokens"
        )
        for half in halves:
            self.predict(half)

    def _padded_tokens(self, indices: np.ndarray) -> int:
        return len(indices) * int(self.side_lengths[indices].max(0).sum())


def check_finite_predictions(
    predictions: Mapping[str, np.ndarray], indices: np.ndarray, where: Callable[[int], str], precision: str
) -> None:
    """Raise a UserError if a row of a batch has a prediction that is NaN or infinite.

    Args:
        predictions: arrays of shape (rows, ...) by name; only float arrays are checked.
        indices: int64 of shape (rows,), the indices of the batch's rows.
        where: returns the name of a row for the message, given its index.
        precision: precision of the computation.
    """
    for name, values in predictions.items():
        if values.dtype.kind != "f":
            continue
        broken = indices[~np.isfinite(values).reshape(len(values), -1).all(1)]
        if len(broken):
            advice = "use a new copy of the model, or train it again" if precision == "fp32" else "use --precision fp32"
            raise UserError(
                f"{where(int(broken.min()))}: the model's {name} are NaN or infinite, in {len(broken)} of {len(indices)} rows "
                f"that were computed together in {precision}; allowed: finite numbers; {advice}"
            )


def _add(losses: Items, more: Items) -> None:
    for name, (value, count) in more.items():
        before = losses.get(name, (0.0, 0.0))
        losses[name] = (before[0] + value, before[1] + count)


def _merge(results: list[tuple[list[Arrays], list[np.ndarray], Items]], rows: int) -> tuple[Arrays, Items]:
    """Merge the predictions of all processes in row order. Each row must have been predicted exactly once."""
    batches = [batch for predictions, _, _ in results for batch in predictions]
    indices = np.concatenate([*(batch for _, batches, _ in results for batch in batches), np.zeros(0, np.int64)])
    assert sorted(indices) == list(range(rows)), f"{len(indices)} predictions for {rows} rows"
    order = np.argsort(indices)
    predictions = {name: np.concatenate([batch[name] for batch in batches])[order] for name in batches[0]}
    losses: Items = {}
    for _, _, more in results:
        _add(losses, more)
    return predictions, losses
