"""Read the texts that a trimmed vocabulary must cover, and tokenize them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.file_reading import has_lines
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.inference.command_inputs import data_settings
from nlp_transfer.run.recorded_splits import recorded_splits
from nlp_transfer.tasks import Task
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

BLOCK = 1000  # texts tokenized at once


@dataclass(frozen=True)
class TextReader:
    """Reads texts as the input columns of a model.

    Attributes:
        task: The task of the model, or None for a pretrained encoder, whose input column is `text`.
        columns: The columns of the files. Empty: the input columns of the model.
        settings: Settings in `data`, for reading files.
    """

    task: Task | None
    columns: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def inputs(self) -> list[str]:
        """Names of the input columns of the model."""
        return self.task.inputs if self.task else ["text"]

    @property
    def words(self) -> bool:
        """Whether an input is a list of words."""
        return self.task is not None and self.task.traits.word_lists

    def read(self, model: str | Path, texts: Sequence[str | Path]) -> tuple[list[Rows], Rows | None]:
        """Return the texts that the vocabulary must cover, and other texts of the same kind, if there are any.

        Raises:
            UserError: a file cannot be read; or no texts are given, and the training rows of the run cannot be read.
        """
        validation, splits = self.settings.get("validation"), None
        if not texts or validation is None:
            try:
                splits = recorded_splits(expand(model))[0]
            except UserError as error:
                if not texts:
                    raise UserError(f"--texts: is required; the data of the run cannot be used: {error}") from error
        given = [self._file(source, "texts") for source in texts]
        if splits is not None and not texts:
            given = [self._inputs_of(splits.train)]
        if validation is not None:
            return given, self._file(validation, "validation")
        held_out = splits.rows.get("validation") if splits else None
        return given, None if held_out is None else self._inputs_of(held_out)

    def _inputs_of(self, rows: Rows) -> Rows:
        return from_columns({name: rows.columns[name] for name in self.inputs if name in rows.columns}, "data")

    def _file(self, source: str | Path, role: str) -> Rows:
        path = expand(source)
        data = data_settings({"data": {**self.settings, "validation": None}}, path)
        wanted = ["text"] if has_lines(path) else list(self.columns) or self.inputs
        try:
            rows = read_rows(str(source), role, data, wanted, self.task.traits.readers if self.task else {})
        except UserError as error:
            raise UserError(str(error).replace("data.texts", "--texts")) from error
        # A single text serves as each input of a model that takes several; all columns are read if there are more than inputs.
        inputs = {name: rows.columns[wanted[min(i, len(wanted) - 1)]] for i, name in enumerate(self.inputs)}
        return from_columns(inputs | {name: rows.columns[name] for name in wanted[len(inputs) :]}, str(source))

    def sample(self, given: Sequence[Rows], count: int) -> Rows:
        """Return about `count` rows without missing or empty inputs, drawn at random.

        Raises:
            UserError: there is no such row.
        """
        cells: dict[str, list[Any]] = {name: [] for name in self.inputs}
        for rows in given:
            order = np.random.default_rng(0).permutation(len(rows))
            drawn = ({name: rows.columns[name][int(i)] for name in cells} for i in order)
            valid = (row for row in drawn if all(cell.strip() if isinstance(cell, str) else cell for cell in row.values()))
            for row, _ in zip(valid, range(-(-count // len(given))), strict=False):
                for name, cell in row.items():
                    cells[name].append(cell)
        if not all(cells.values()):
            raise UserError("--texts: found no row without missing or empty texts; allowed: at least one")
        return from_columns(cells, "TEXTS")

    def blocks(self, rows: Rows) -> Iterator[tuple[slice, list[Any], bool]]:
        """Yield all inputs column by column, in blocks of rows.

        Yields:
            The rows, their inputs, and whether these are lists of words. Texts of a model that takes words are yielded in both
            forms, since its task decides whether it splits them.
        """
        for column in rows.columns.values():
            for start in range(0, len(rows), BLOCK):
                cells = column[start : start + BLOCK]
                place = slice(start, start + len(cells))
                yield place, [cell if isinstance(cell, str) else "" for cell in cells], False
                if self.words:
                    yield place, [cell.split() if isinstance(cell, str) else list(map(str, cell or [])) for cell in cells], True

    def changed(self, old: Tokenizer, new: Tokenizer, rows: Rows, numbers: np.ndarray) -> int:
        """Return the number of rows with other tokens.

        Args:
            numbers: the new id of each old id, or -1; int64 of shape (old vocabulary,).
        """
        flags = np.zeros(len(rows), bool)
        for place, texts, words in self.blocks(rows):
            pairs = zip(token_ids(old, texts, words), token_ids(new, texts, words), strict=True)
            flags[place] |= [numbers[before].tolist() != after for before, after in pairs]
        return int(flags.sum())


def token_ids(tokenizer: Tokenizer, texts: list[Any], words: bool) -> list[list[int]]:
    """Return the token ids of texts, or of lists of words."""
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, is_pretokenized=words)]
