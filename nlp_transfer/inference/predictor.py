"""Answers for whole splits, for lists of texts and for files of any size; batches are sorted by length."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, overload
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.data.sources.rows import TRANSLATION, Rows, check_columns, from_columns, name_lines, names_of, unfold
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.data.tokens import TokenTable, encode_rows, to_device
from nlp_transfer.data.windows import inference_batches, token_batches
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.row_errors import OnBadRows, check_finite_predictions, check_on_bad_rows, predict_sound
from nlp_transfer.kernels.first_token import first_token_only, last_layer
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.models.compatibility import split_by_length
from nlp_transfer.models.memory import free_cached_memory, is_out_of_memory, keep_freed_memory
from nlp_transfer.models.preparation import autocast
from nlp_transfer.tasks import Arrays, Items, Task
from nlp_transfer.utils.console import Steps, say
from nlp_transfer.utils.distributed import compute_on_main
from nlp_transfer.utils.errors import Fault, Problems, UserError

WINDOW = 2048  # rows that are read, sorted by length and answered together when a file is streamed
CPU_TOKENS = 512  # padded tokens in a batch for each thread: what a layer makes of more of them leaves the core's caches
GPU_TOKENS = 1 << 15  # enough to keep a GPU busy; a batch that does not fit in its memory is answered in parts
PRECISION = "fp32"  # of predictions and metrics, unless asked otherwise: the same on every machine and in any batch
TINY = 1e-13
ROWS = 32  # in a batch where answers are written word by word
_LIMITS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # padded tokens of a batch, by models for which more did not fit


def batches_of(table: TokenTable, device: torch.device, batch_size: int | None = None) -> list[np.ndarray]:
    """Row indices (int64) in batches of similar length, the longest first.

    Args:
        batch_size: rows in a batch; null: as many as the device computes best at once.
    """
    if batch_size is None and "labels" not in table.ragged:
        return token_batches(table.lengths, CPU_TOKENS * torch.get_num_threads() if device.type == "cpu" else GPU_TOKENS)
    return inference_batches(table.side_lengths, batch_size or ROWS)


def answer(
    model: nn.Module,
    task: Task,
    table: TokenTable,
    batch_size: int | None = None,
    precision: str = "fp32",
    part: tuple[int, int] = (0, 1),
    title: str | None = None,
    chosen: np.ndarray | None = None,
    where: Callable[[int], str] = "row {}".format,
) -> tuple[Arrays, np.ndarray, Items]:
    """Answers for the rows of a table, with the row indices they belong to and the summed plain losses.

    Args:
        batch_size: rows in a batch; null: as many as the device computes best at once.
        part: (process, processes); a process answers every n-th batch, so that each row is answered exactly once.
        title: of the progress that is shown; null: none is.
        chosen: bool of shape (rows,): rows that need a whole answer (`Task.predict_batch`); None: all.
        where: names a row in messages, by its index.

    Raises:
        UserError: a prediction is NaN or infinite.

    Returns:
        Answers by name, in the order of the int64 row indices; losses are sums and counts by term, empty where rows have no
        targets.
    """
    device = next(model.parameters()).device
    sides, limit = table.side_lengths, _LIMITS.get(model, sys.maxsize)
    answers: list[Arrays] = []
    done: list[np.ndarray] = []
    items: Items = {}

    def padded(indices: np.ndarray) -> int:
        return len(indices) * int(sides[indices].max(0).sum())

    def take(indices: np.ndarray) -> None:
        nonlocal limit
        halves = np.array_split(indices, 2)
        if len(indices) > 1 and padded(indices) > limit:
            for half in halves:
                take(half)
            return
        try:
            batch = to_device(table.batch(indices), device)
            with autocast(device, precision):
                texts = {name: column[indices] for name, column in table.texts.items()}
                found, losses = task.predict_batch(model, batch, None if chosen is None else chosen[indices], texts)
        except Exception as error:
            if len(indices) == 1 or not is_out_of_memory(error):
                raise
        else:
            check_finite_predictions(found, indices, where, precision)
            answers.append(found)
            done.append(indices)
            _add(items, losses)
            return
        free_cached_memory()
        limit = _LIMITS[model] = min(limit, max(map(padded, halves)))
        say(
            f"warning: out of memory with {len(indices)} rows ({padded(indices):,} tokens with padding) at a time; from now on "
            f"at most {limit:,} tokens"
        )
        for half in halves:
            take(half)

    was_training = model.training
    model.eval()
    batches = split_by_length(model, batches_of(table, device, batch_size), table.lengths)[part[0] :: part[1]]
    try:
        with torch.inference_mode(), answering(model, device), ExitStack() as stack:
            progress = stack.enter_context(Steps(title, len(batches))) if title else None
            for indices in batches:
                take(indices)
                if progress is not None:
                    progress.advance()
    finally:
        model.train(was_training)
    rows = np.concatenate([*done, np.zeros(0, np.int64)])
    merged = {name: np.concatenate([part[name] for part in answers]) for name in (answers[0] if answers else {})}
    return merged, rows, items


@contextmanager
def answering(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Around forward passes that nothing but answers is wanted from."""
    with ExitStack() as stack:
        if device.type == "cpu":
            keep_freed_memory()
            stack.enter_context(first_token_only(last_layer(model)))
            stack.enter_context(FastFunctions())
        yield


def _add(items: Items, more: Items) -> None:
    for name, (value, count) in more.items():
        before = items.get(name, (0.0, 0.0))
        items[name] = (before[0] + value, before[1] + count)


def gather(parts: list[tuple[Arrays, np.ndarray, Items]], rows: int) -> tuple[Arrays, Items]:
    """What the processes answered, in row order.

    Every row must have been answered exactly once: metrics over padded or lost rows would be wrong without a sign.
    """
    indices = np.concatenate([part[1] for part in parts])
    assert sorted(indices) == list(range(rows)), f"{len(indices)} answers for {rows} rows"
    order = np.argsort(indices)
    filled = [part for part in parts if part[0]]
    answers = {name: np.concatenate([part[0][name] for part in filled])[order] for name in filled[0][0]}
    items: Items = {}
    for _, _, losses in parts:
        _add(items, losses)
    return answers, items


def score(
    model: nn.Module,
    task: Task,
    table: TokenTable,
    accelerator: Any,
    batch_size: int | None = None,
    precision: str = "fp32",
    draft: bool = False,
    own: UserMetrics | None = None,
) -> tuple[dict[str, float], Arrays]:
    """Metrics over a whole table, `loss` among them, and its answers; the same in every process.

    `draft` is for scores while training: where answers are costly, only some rows get one (`Task.draft_rows`). `own` are metrics
    of the user's own; one process computes them for all.
    """
    chosen = task.draft_rows(len(table)) if draft else None
    answers, items = answer_all(model, task, table, accelerator, batch_size, precision, chosen)
    metrics = task.metrics(answers, table.references)
    metrics["loss"] = sum(value / count for value, count in items.values())
    if own:
        metrics |= compute_on_main(accelerator, lambda: own.compute(*for_own_metrics(task, answers, table)))
    return metrics, answers


def for_own_metrics(task: Task, answers: Arrays, table: TokenTable) -> tuple[Any, Any]:
    """Predictions and references of the rows that have a prediction: as the user writes them, and as the task holds them."""
    found, wanted = answers["prediction"], table.references["references" if "references" in table.references else "labels"]
    given = np.array([cell is not None for cell in found], bool)  # a draft translates some of the rows
    found, wanted = found[given], wanted[given]
    return (task.written(found), task.written(wanted)), (found.tolist(), wanted.tolist())


def answer_all(
    model: nn.Module,
    task: Task,
    table: TokenTable,
    accelerator: Any,
    batch_size: int | None = None,
    precision: str = "fp32",
    chosen: np.ndarray | None = None,
) -> tuple[Arrays, Items]:
    """Answers for a whole table in row order and its plain losses, the work shared by all processes; the same in each."""
    from accelerate.utils import gather_object

    part = (accelerator.process_index, accelerator.num_processes)
    title = "evaluating" if accelerator.is_main_process else None
    own = answer(model, task, table, batch_size, precision, part, title, chosen)
    return gather(gather_object([own]) if accelerator.num_processes > 1 else [own], len(table))


def meaningful(name: str, values: np.ndarray, precision: str) -> np.ndarray:
    """Predictions as decimals without digits that mean nothing: float64 of the same shape.

    A float32 becomes the shortest decimal that stands for it, so that different ones stay different. Probabilities (`scores`)
    that were computed in half precision keep a few significant digits, of p or of 1 - p, whichever is smaller.
    """
    values = values.astype(np.float32)
    exact = values.astype(np.float64)
    size = np.abs(exact)
    digits = {"bf16": 4, "fp16": 5}.get(precision)
    if digits is not None and name == "scores":
        return _rounded(exact, digits, np.minimum(size, 1 - size))
    decimals = exact.copy()
    for digits in (9, 8, 7):  # 9 always tell two of them apart, 7 mostly do
        candidates = _rounded(exact, digits, size)
        decimals = np.where(candidates.astype(np.float32) == values, candidates, decimals)
    tiny = size < TINY
    decimals[tiny] = values[tiny].astype(str).astype(np.float64)  # the same, but slower
    return decimals


def _rounded(values: np.ndarray, digits: int, size: np.ndarray) -> np.ndarray:
    """Values to as many decimals as give `digits` significant ones of `size`."""
    scale = 10.0 ** np.clip(digits - 1 - np.floor(np.log10(np.maximum(size, TINY))), 0, 22)  # such powers are exact
    return np.asarray(np.round(values * scale) / scale)


class Predictor:
    """A saved model ready to answer. Made by `load_predictor`.

    >>> predictor = load_predictor("runs/reviews")            # doctest: +SKIP
    >>> predictor(["a gem", "two hours I want back"])         # doctest: +SKIP
    [{'prediction': 'positive', 'probability': 0.98}, {'prediction': 'negative', 'probability': 0.97}]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        batch_size: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self.model, self.tokenizer, self.task = model.eval(), tokenizer, task
        task.connect(model)
        self.batch_size, self.precision = batch_size, precision

    @overload
    def __call__(self, inputs: str, probabilities: bool = False, on_bad_rows: OnBadRows = "refuse") -> dict[str, Any]: ...
    @overload
    def __call__(self, inputs: Any, probabilities: bool = False, on_bad_rows: OnBadRows = "refuse") -> list[dict[str, Any]]: ...
    def __call__(
        self, inputs: Any, probabilities: bool = False, on_bad_rows: OnBadRows = "refuse"
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Predict texts, or the rows of a table.

        Args:
            inputs: a list, a Series or an array of texts (of tuples of texts, for a model of pairs); a DataFrame, a Dataset, an
                Arrow table, a dict of columns or a list of dicts, whose columns are those that the model was trained on; or a
                single text or row.
            probabilities: whether to add `probability:LABEL` for every label.
            on_bad_rows: what happens where a text is empty, missing (None, NaN) or not a text: `refuse` raises, `skip` gives
                the row None for each value, and `note`, the reason.

        Returns:
            A prediction for each row, in order; for a single text or row its prediction alone. Labels have the type of the
            labels of train; those of a multi-label model are lists.

        Raises:
            UserError: the object holds no texts, a column is missing, or a text is empty and `on_bad_rows` is `refuse`.
        """
        check_on_bad_rows(on_bad_rows)
        rows, single = read_inputs(inputs, self.task.input_columns())
        if len(rows) == 0:
            return []
        faults: dict[int, Fault] = {}
        if on_bad_rows == "refuse":
            described = self.answer_columns(rows, probabilities)
        else:
            described, faults = predict_sound(self.task, rows, {}, lambda sound: self.answer_columns(sound, probabilities))
        records = [dict(zip(described, values, strict=True)) for values in zip(*described.values(), strict=True)]
        for index, fault in faults.items():
            records[index]["note"] = str(fault)
        return records[0] if single else records

    def answer_columns(self, rows: Rows, probabilities: bool = False) -> dict[str, list[Any]]:
        """Return the predictions as columns of Python values, in row order."""
        problems = Problems()
        self.task.check(rows, problems, targets=False)
        problems.raise_if_any()
        own = answer(self.model, self.task, self.encode(rows), self.batch_size, self.precision, where=rows.where)
        answers = gather([own], len(rows))[0]
        floats = {name: meaningful(name, array, self.precision) for name, array in answers.items() if array.dtype == np.float32}
        return self.task.describe(answers | floats, probabilities)

    def encode(self, rows: Rows, targets: bool = False) -> TokenTable:
        """Rows that were checked as tokens."""
        return encode_rows(
            rows, lambda columns: self.task.encode(columns, self.tokenizer, targets), self.task.fill(self.tokenizer)
        )

    def answer_batch(
        self, batch: Batch, path: Path, probabilities: bool = False
    ) -> tuple[dict[str, list[Any]], dict[int, Fault]]:
        """The predictions for one window of a file as further columns, and by index the rows that have none.

        Raises:
            UserError: a column is missing, or the file already has a column of the name of a new one.
        """
        rows = from_columns(pick_columns(batch, path, self.task.input_columns()), str(path), batch.first)
        columns, faults = predict_sound(
            self.task, rows, batch.faults, lambda sound: self.task.cells(self.answer_columns(sound, probabilities))
        )
        if clash := [name for name in columns if batch.has_column(name)]:
            raise UserError(f"{path}: has a column {clash[0]!r} already, which the answer would overwrite; rename it")
        return columns, faults


def pick_columns(batch: Batch, path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    """The `wanted` columns of a file's batch.

    Raises:
        UserError: one is missing.
    """
    columns = unfold(name_lines(batch.columns, path, wanted), wanted)
    if TRANSLATION in columns and not any(isinstance(cell, dict) for cell in columns[TRANSLATION]):
        columns = {name: [None] * len(batch) for name in wanted} | columns  # all texts of the window are missing
    check_columns(names_of(columns, batch.names), wanted, str(path))
    return {name: columns[name] for name in wanted}
