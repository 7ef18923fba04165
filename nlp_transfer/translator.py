"""Texts of any length through a saved translation model: empty ones stay empty, long ones go in pieces, order is kept."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch

from nlp_transfer.applicability import check_used
from nlp_transfer.config import with_type
from nlp_transfer.errors import UserError
from nlp_transfer.inference import Predictor, answering, pick_columns
from nlp_transfer.models import autocast
from nlp_transfer.seq2seq.generate import ROWS
from nlp_transfer.sources.memory import read_inputs
from nlp_transfer.sources.rows import TRANSLATION
from nlp_transfer.sources.tables import Batch

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
WINDOW = 1024  # rows that are read, sorted by length and translated together when a file is streamed


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
        self.in_pieces = 0
        task.sides.check_room(1 << 30, task.longest_piece)

    @overload
    def __call__(self, inputs: str) -> str: ...
    @overload
    def __call__(self, inputs: Any) -> list[str]: ...
    def __call__(self, inputs: Any) -> list[str] | str:
        """Translate texts, or the source column of a table; a text that is empty, or spaces alone, stays as it is.

        `in_pieces` counts the texts so far that were longer than anything in training: those are split, at the end of
        sentences where that is possible, and their pieces translated one by one. A run is scored in the same way.

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
        predictor, device = self.predictor, self.predictor.model.device
        with torch.inference_mode(), answering(predictor.model, device), autocast(device, predictor.precision):
            translations, pieces = self.task.translate(
                predictor.model, [text.strip() for text in texts], rows=predictor.batch_size or ROWS
            )
        self.in_pieces += int((pieces > 1).sum())
        return [translation if text.strip() else text for text, translation in zip(texts, translations, strict=True)]

    def translate_batch(self, batch: Batch, path: Path) -> dict[str, list[Any]]:
        """The translations of one window of a file, as a column `translation`; texts that are empty or missing stay empty.

        Where the source stands inside a column `translation`, as data sets on the hub have it, the new column is `prediction`.

        Raises:
            UserError: a cell is no text, or the file has such a column already.
        """
        name = self.task.source
        column = "translation" if batch.has_column(name) or not batch.has_column(TRANSLATION) else "prediction"
        if batch.has_column(column):
            raise UserError(f"{path}: has a column {column!r} already, which the translation would overwrite; rename it")
        cells = ["" if cell is None else cell for cell in pick_columns(batch, path, [name])[name]]
        for i, cell in enumerate(cells):
            if not isinstance(cell, str):
                raise UserError(f"{path}, row {batch.first + i}, column {name!r}: found {with_type(cell)}; allowed: text")
        return {column: self.translate(cells)}
