"""Translate texts of any length. Empty texts stay empty, and long texts are translated in pieces."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from nlp_transfer.data.sources.file_reading import SURROGATE
from nlp_transfer.data.sources.in_memory import plain_cell, read_inputs
from nlp_transfer.data.sources.rows import EMPTY_TEXT, NO_TEXT, TRANSLATION
from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.output_journal import ChunkPredictions
from nlp_transfer.inference.predictor import OnBadRows, Predictor, check_on_bad_rows, select_columns, with_gaps
from nlp_transfer.kernels import accelerated
from nlp_transfer.models.preparation import autocast
from nlp_transfer.models.seq2seq.generation import ROWS
from nlp_transfer.settings.applicability import check_used
from nlp_transfer.tasks.common.text_generation import TextGenerationTask
from nlp_transfer.utils.errors import Fault, UserError, with_type

CHUNK_ROWS = 1024  # rows of a file that are read at once and sorted by length


class Translator:
    """A saved translation model. Created by `load_translator`.

    >>> translate = load_translator("runs/en-de")             # doctest: +SKIP
    >>> translate(["A dog runs.", ""])                        # doctest: +SKIP
    ['Ein Hund rennt.', '']

    Attributes:
        in_pieces: number of texts so far that were longer than any training text. They are split, if possible between sentences,
            and translated in pieces. The metrics of a run are computed in the same way.

    Raises:
        UserError: the model does not translate, or its maximum length leaves no tokens for a text.
    """

    def __init__(self, predictor: Predictor) -> None:
        task = predictor.task
        if not isinstance(task, TextGenerationTask) or task.traits.command != "translate":
            raise UserError(f"the model's task is {task.document()['name']}; allowed: translation. Use `load_predictor` for it")
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
        """Translate texts, or the source column of a table. Empty and blank texts are returned unchanged.

        Args:
            inputs: see `Predictor`.
            on_bad_rows: what to do with cells that are missing (None, NaN), are not text, or contain a lone surrogate. `refuse`
                raises an error; `skip` returns None for them.

        Returns:
            A list of translations, in order; or one translation for a single text or row.

        Raises:
            UserError: the inputs contain no texts, or a text is bad and `on_bad_rows` is `refuse`.
        """
        check_on_bad_rows(on_bad_rows)
        rows, single = read_inputs(inputs, self.task.inputs)
        texts = list(rows.columns[self.task.inputs[0]])
        faults = text_faults(texts)
        if faults and on_bad_rows == "refuse":
            index, fault = next(iter(faults.items()))
            raise UserError(fault.at(f"texts, row {index + 1}"))
        translations = self._translate_valid(texts, faults)
        return translations[0] if single else translations

    def _translate_valid(self, texts: list[Any], faults: Mapping[int, Fault]) -> list[str | None]:
        """Return the translations in order, with None for the texts in `faults`."""
        return with_gaps(self.translate([text for i, text in enumerate(texts) if i not in faults]), faults, len(texts))

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translate valid texts, in order."""
        if not texts:
            return []
        predictor, device = self.predictor, self.predictor.model.device
        with torch.inference_mode(), accelerated(predictor.model), autocast(device, predictor.precision):
            generated = self.task.generate(predictor.model, [text.strip() for text in texts], rows=predictor.batch_size or ROWS)
        self.in_pieces += int((generated["pieces"] > 1).sum())
        translations = generated["prediction"].tolist()
        return [translation if text.strip() else text for text, translation in zip(texts, translations, strict=True)]

    def predict_chunk(self, chunk: Batch, path: Path, probabilities: bool = False) -> ChunkPredictions:
        """Translate a chunk of the file `path`.

        Args:
            probabilities: has no effect, since translations have no probabilities.

        Returns:
            A column `translation` (`prediction` if the source is nested in a column `translation`, as in hub datasets). Empty
            texts stay empty and count as faults.

        Raises:
            UserError: the source column is missing, or the file already has a column with the new name.
        """
        name, before = self.task.inputs[0], self.in_pieces
        column = self.task.traits.output if chunk.has_column(name) or not chunk.has_column(TRANSLATION) else "prediction"
        if chunk.has_column(column):
            raise UserError(f"{path}: already has a column {column!r}, which the translation would overwrite; rename it")
        cells = select_columns(chunk, path, [name])[name]
        faults = {**text_faults(cells, name), **chunk.faults}
        translations = self._translate_valid(cells, faults)
        blank = {
            i: Fault(EMPTY_TEXT, "the cell is empty", name)
            for i, cell in enumerate(cells)
            if i not in faults and not cell.strip()
        }
        return ChunkPredictions({column: translations}, self.in_pieces - before, dict(sorted((faults | blank).items())))


def text_faults(texts: Sequence[Any], column: str | None = None) -> dict[int, Fault]:
    """Return the faults of texts that cannot be translated, by index."""
    faults = {}
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            kind = EMPTY_TEXT if plain_cell(text) is None else NO_TEXT
            faults[i] = Fault(kind, f"found {with_type(text)}; allowed: text", column)
        elif half := SURROGATE.search(text):
            reason = f"found {half.group()!a}, half of a character; allowed: both halves or none"
            faults[i] = Fault("with half of a character", reason, column)
    return faults
