"""Texts of any length through a saved translation model: empty ones stay empty, long ones go in pieces, order is kept."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from nlp_transfer.applicability import check_used
from nlp_transfer.config import with_type
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.errors import UserError
from nlp_transfer.inference import Predictor, pick_columns
from nlp_transfer.models import autocast
from nlp_transfer.seq2seq.pieces import join, pieces_of
from nlp_transfer.sources.memory import read_inputs
from nlp_transfer.sources.rows import from_columns
from nlp_transfer.sources.tables import Batch

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
WINDOW = 1024  # rows that are read, sorted by length and translated together when a file is streamed
ENCODED = 1 << 18  # characters whose tokens are counted together, and a thousandth of it for each text
ROWS = 64  # in a batch, if not said otherwise: those that are finished leave it
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
        """Raises a UserError where the model does something else than to translate, or has no room for a text."""
        task: Any = predictor.task
        if not translates(task):
            raise UserError(f"the model's task is {task.document()['name']}; allowed: translation. Use `predict` for it")
        check_used(task, scored=False)
        self.predictor, self.task = predictor, task
        self.longest = min(task.longest_source or task.max_length, task.max_length)
        self.in_pieces = 0
        task.sides.check_room(1 << 30, self.longest)

    @overload
    def __call__(self, inputs: str) -> str: ...
    @overload
    def __call__(self, inputs: Any) -> list[str]: ...
    def __call__(self, inputs: Any) -> list[str] | str:
        """Translate texts, or the source column of a table; a text that is empty, or spaces alone, stays as it is.

        `in_pieces` counts the texts so far that were longer than anything in training: those are split, at the end of
        sentences where that is possible, and their pieces translated one by one.

        Args:
            inputs: as for `Predictor`.

        Returns:
            A translation for each row, in order; for a single text or row its translation alone.

        Raises:
            UserError: an entry is no text, or has half of a character.
        """
        rows, single = read_inputs(inputs, self.task.input_columns())
        texts = list(rows.columns[self.task.source])
        for i, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise UserError(f"texts, row {i}: found {with_type(text)}; allowed: text")
        translations = self.translate(texts)
        return translations[0] if single else translations

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translate a list of texts, in order.

        Raises:
            UserError: a text has half of a character.
        """
        for i, text in enumerate(texts, start=1):
            if half := HALF_CHARACTER.search(text):
                raise UserError(f"texts, row {i}: found {half.group()!a}, half of a character; allowed: both halves or none")
        plain = [text.strip() for text in texts]
        cut = [
            pieces_of(text, self.longest, self._lengths) if tokens > self.longest else [(text, "")] * bool(text)
            for text, tokens in zip(plain, self._lengths(plain), strict=True)
        ]
        self.in_pieces += sum(len(pieces) > 1 for pieces in cut)
        answers = iter(self._translate([piece for pieces in cut for piece, _ in pieces]))
        return [
            join(pieces, [next(answers) for _ in pieces]) if pieces else text for text, pieces in zip(texts, cut, strict=True)
        ]

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as the model sees it."""
        counts: list[int] = []
        start = 0
        for end in self._ends(texts):
            counts += [len(ids) for ids in self.task.sides.source_ids(list(texts[start:end]), 1 << 30)[0]]
            start = end
        return counts

    @staticmethod
    def _ends(texts: Sequence[str]) -> Iterator[int]:
        """Where to end one call of the tokenizer and to begin the next."""
        size = 0
        for i, text in enumerate(texts, start=1):
            size += len(text) + ENCODED // 1000
            if size >= ENCODED or i == len(texts):
                yield i
                size = 0

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
        for indices in inference_batches(lengths[:, None], self.predictor.batch_size or ROWS):
            rows = max(1, PADDED // (int(lengths[indices].max()) * self.task.beams))
            for start in range(0, len(indices), rows):
                yield indices[start : start + rows]

    def translate_batch(self, batch: Batch, path: Path) -> dict[str, list[Any]]:
        """The column `translation` of one window of a file; texts that are empty or missing stay empty.

        Raises:
            UserError: a cell is no text, or the file has such a column already.
        """
        name = self.task.source
        if batch.has_column("translation"):
            raise UserError(f"{path}: has a column 'translation' already, which the answer would overwrite; rename it")
        cells = ["" if cell is None else cell for cell in pick_columns(batch, path, [name])[name]]
        for i, cell in enumerate(cells):
            if not isinstance(cell, str):
                raise UserError(f"{path}, row {batch.first + i}, column {name!r}: found {with_type(cell)}; allowed: text")
        return {"translation": self.translate(cells)}
