"""Texts of any length through a saved translation model: empty ones stay empty, long ones go in pieces, order is kept."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from nlp_transfer.config import DataConfig, shorten
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.errors import UserError
from nlp_transfer.inference import Predictor, autocast, pick_columns
from nlp_transfer.seq2seq.pieces import pieces_of
from nlp_transfer.sources.rows import from_columns
from nlp_transfer.sources.tables import read_table

WINDOW = 1024  # rows that are read, sorted by length and translated together when a file is streamed
PADDED = 1 << 14  # source tokens times beams in a batch, about: long texts go few at a time


def translates(task: Any) -> bool:
    """Whether the answers of a task are texts in another language."""
    return hasattr(type(task), "sides")


class Translator:
    """A translation model ready for use. Made by `load_translator`.

    >>> translate = load_translator("runs/en-de")             # doctest: +SKIP
    >>> translate(["A dog runs.", ""])                        # doctest: +SKIP
    ['Ein Hund rennt.', '']
    """

    def __init__(self, predictor: Predictor) -> None:
        """Raises a UserError where the model does something else than to translate."""
        task: Any = predictor.task
        if not translates(task):
            raise UserError(f"the model's task is {task.document()['name']}; allowed: translation. Use `predict` for it")
        self.predictor, self.task = predictor, task
        self.in_pieces = 0

    def __call__(self, texts: Iterable[str]) -> list[str]:
        """A translation a text, in order; one that is empty, or spaces alone, stays as it is.

        `in_pieces` counts the texts so far that were longer than anything in training: those are cut, at the end of
        sentences where that is possible, and their pieces translated one by one.

        Raises:
            UserError: an entry is no text.
        """
        if isinstance(texts, str):
            raise UserError(f"found one text, {texts[:40]!r}; allowed: a list of texts")
        texts = list(texts)
        for i, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise UserError(f"texts, row {i}: found {shorten(text)} ({type(text).__name__}); allowed: text")
        cut = [self._cut(text) for text in texts]
        self.in_pieces += sum(len(pieces) > 1 for pieces in cut)
        answers = iter(self._translate([piece for pieces in cut for piece, _ in pieces]))
        return [
            "".join(next(answers) + gap for _, gap in pieces) if pieces else text for text, pieces in zip(texts, cut, strict=True)
        ]

    def _cut(self, text: str) -> list[tuple[str, str]]:
        limit = self.task.longest_source or self.task.max_length
        plain = text.strip()
        # A token is a byte at least, nearly always: short texts need no tokenizer to know that they fit.
        if len(plain.encode("utf-8", "replace")) + 8 <= limit:
            return [(plain, "")] if plain else []
        return pieces_of(plain, limit, self._length)

    def _length(self, text: str) -> int:
        return len(self.task.sides.source_ids([text], 1 << 30)[0][0])

    def _translate(self, texts: list[str]) -> list[str]:
        """Texts of at most the longest length, in batches of similar length."""
        if not texts:
            return []
        predictor = self.predictor
        table = predictor.encode(from_columns({self.task.source: texts}, "texts"))
        found: list[str] = [""] * len(texts)
        device = next(predictor.model.parameters()).device
        for indices in self._batches(table.lengths):
            batch = {name: tensor.to(device) for name, tensor in table.batch(indices).items()}
            with torch.inference_mode(), autocast(device, predictor.precision):
                answers, _ = self.task.answer(predictor.model, batch)
            for row, text in zip(indices, answers["prediction"], strict=True):
                found[row] = text
        return found

    def _batches(self, lengths: Any) -> Iterable[Any]:
        """At most `batch_size` rows, fewer of long ones: beams multiply what is in memory."""
        for indices in inference_batches(lengths, self.predictor.batch_size):
            rows = max(1, PADDED // (int(lengths[indices].max()) * self.task.beams))
            for start in range(0, len(indices), rows):
                yield indices[start : start + rows]

    def translate_batches(self, path: Path, data: DataConfig) -> Iterator[dict[str, list[Any]]]:
        """The file's rows in windows, each with its `translation`; a cell that is missing is taken as an empty text. Memory
        does not grow with the file.

        Raises:
            UserError: a cell is no text, or the file has such a column already.
        """
        name = self.task.source
        for batch in read_table(path, data, WINDOW):
            if "translation" in batch.columns:
                raise UserError(f"{path}: has a column 'translation' already, which the answer would overwrite; rename it")
            cells = ["" if cell is None else cell for cell in pick_columns(batch, path, [name])[name]]
            for i, cell in enumerate(cells):
                if not isinstance(cell, str):
                    raise UserError(
                        f"{path}, row {batch.first + i}, column {name!r}: found {shorten(cell)} ({type(cell).__name__}); "
                        "allowed: text"
                    )
            yield batch.columns | {"translation": self(cells)}
