"""Texts of any length through a saved translation model: empty ones stay empty, long ones go in pieces, order is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from nlp_transfer.data.sources.file_reading import SURROGATE
from nlp_transfer.data.sources.in_memory import plain_cell, read_inputs
from nlp_transfer.data.sources.rows import EMPTY_TEXT, NO_TEXT, TRANSLATION
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.predictor import Predictor, answering, pick_columns
from nlp_transfer.inference.row_errors import OnBadRows, check_on_bad_rows
from nlp_transfer.models.preparation import autocast
from nlp_transfer.models.seq2seq.generation import ROWS
from nlp_transfer.settings.applicability import check_used
from nlp_transfer.utils.errors import Fault, UserError, with_type

WINDOW = 1024  # rows that are read, sorted by length and translated together when a file is streamed


def translates(task: Any) -> bool:
    """Whether the answers of a task are texts in another language."""
    return hasattr(type(task), "tokenizers")


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
        task.tokenizers.check_room(1 << 30, task.longest_piece)

    @overload
    def __call__(self, inputs: str, on_bad_rows: Literal["refuse"] = "refuse") -> str: ...
    @overload
    def __call__(self, inputs: Any, on_bad_rows: Literal["refuse"] = "refuse") -> list[str]: ...
    @overload
    def __call__(self, inputs: Any, on_bad_rows: OnBadRows) -> list[str | None] | str | None: ...
    def __call__(self, inputs: Any, on_bad_rows: OnBadRows = "refuse") -> list[Any] | str | None:
        """Translate texts, or the source column of a table; a text that is empty, or spaces alone, stays as it is.

        `in_pieces` counts the texts so far that were longer than anything in training: those are split, at the end of
        sentences where that is possible, and their pieces translated one by one. A run is scored in the same way.

        Args:
            inputs: as for `Predictor`.
            on_bad_rows: what happens where a text is missing (None, NaN), not a text or has half of a character: `refuse`
                raises, `skip` gives None.

        Returns:
            A translation for each row, in order; for a single text or row its translation alone.

        Raises:
            UserError: the object holds no texts, or an entry is no text and `on_bad_rows` is `refuse`.
        """
        check_on_bad_rows(on_bad_rows)
        rows, single = read_inputs(inputs, self.task.input_columns())
        texts = list(rows.columns[self.task.source])
        faults = _faults(texts)
        if faults and on_bad_rows == "refuse":
            index, fault = next(iter(faults.items()))
            raise UserError(fault.at(f"texts, row {index + 1}"))
        translations = self._translate_sound(texts, faults)
        return translations[0] if single else translations

    def _translate_sound(self, texts: list[Any], faults: Mapping[int, Fault]) -> list[str | None]:
        """The translations in order, and None in place of entries with a fault."""
        translations = iter(self.translate([text for i, text in enumerate(texts) if i not in faults]))
        return [None if i in faults else next(translations) for i in range(len(texts))]

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translate a list of texts without halves of characters, in order."""
        if not texts:
            return []
        predictor, device = self.predictor, self.predictor.model.device
        with torch.inference_mode(), answering(predictor.model, device), autocast(device, predictor.precision):
            translations, pieces = self.task.translate(
                predictor.model, [text.strip() for text in texts], rows=predictor.batch_size or ROWS
            )
        self.in_pieces += int((pieces > 1).sum())
        return [translation if text.strip() else text for text, translation in zip(texts, translations, strict=True)]

    def translate_batch(self, batch: Batch, path: Path) -> tuple[dict[str, list[Any]], dict[int, Fault]]:
        """The translations of one window of a file as a column `translation`, and by index the rows that have none.

        Empty texts stay empty, and are among those rows. Where the source stands inside a column `translation`, as data sets on
        the hub have it, the new column is `prediction`.

        Raises:
            UserError: the source column is missing, or the file has a column of the new name already.
        """
        name = self.task.source
        column = "translation" if batch.has_column(name) or not batch.has_column(TRANSLATION) else "prediction"
        if batch.has_column(column):
            raise UserError(f"{path}: has a column {column!r} already, which the translation would overwrite; rename it")
        cells = pick_columns(batch, path, [name])[name]
        faults = {**_faults(cells, name), **batch.faults}
        translations = self._translate_sound(cells, faults)
        blank = {
            i: Fault(EMPTY_TEXT, "the cell is empty", name)
            for i, cell in enumerate(cells)
            if i not in faults and not cell.strip()
        }
        return {column: translations}, dict(sorted((faults | blank).items()))


def _faults(texts: Sequence[Any], column: str | None = None) -> dict[int, Fault]:
    """By index, why texts cannot be translated."""
    faults = {}
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            kind = EMPTY_TEXT if plain_cell(text) is None else NO_TEXT
            faults[i] = Fault(kind, f"found {with_type(text)}; allowed: text", column)
        elif half := SURROGATE.search(text):
            reason = f"found {half.group()!a}, half of a character; allowed: both halves or none"
            faults[i] = Fault("with half of a character", reason, column)
    return faults
