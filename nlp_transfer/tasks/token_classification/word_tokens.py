"""Tokenize words in windows, and find the token that stands for each word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.ragged import Ragged, row_offsets
from nlp_transfer.data.tokens import WINDOWS
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED
from nlp_transfer.utils.errors import converted

Units = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class AlignedWords:
    """Rows in windows of tokens.

    Attributes:
        columns: `input_ids`, perhaps `token_type_ids`, `windows` (the lengths of a row's windows) and `target_word`: the
            position of a word at the token that stands for it, otherwise -1.
        units: Start and end of the words of each row, in characters.
    """

    columns: Mapping[str, Ragged]
    units: list[list[tuple[int, int]]]

    def labels(self, ids: Sequence[Sequence[int]]) -> Ragged:
        """Return the label of each token, for the labels of the words of each row."""
        words = self.columns["target_word"]
        starts = np.cumsum([0, *map(len, ids)])[:-1]
        flat = np.array([label for row in ids for label in row] or [IGNORED], np.int32)
        positions = words.values + np.repeat(starts, words.lengths)
        return Ragged(np.where(words.values >= 0, flat[np.maximum(positions, 0)], IGNORED).astype(np.int32), words.offsets)


def align_words(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], words: Sequence[Units], limit: int, stride: int,
    names: Mapping[str, int], merge: bool,
) -> AlignedWords:  # fmt: skip
    """Tokenize texts in windows of up to `limit` tokens, of which two have `stride` tokens in common.

    A token belongs to the first word that it overlaps, and the first token of a word stands for it. If that token is in several
    windows, the one counts in which it is farthest from a border inside of the text.

    Args:
        words: Start and end of the words of each text, in characters.
        names: Names of the columns to return, if the tokenizer produces them.
        merge: Whether to join words that share a token.
    """
    if not texts:
        empty = Ragged.from_lists([])
        return AlignedWords({name: empty for name in names if name != "labels"}, [])
    with converted(f"model: the tokenizer {getattr(tokenizer, 'name_or_path', '')} cannot encode the rows"):
        side, tokenizer.truncation_side = tokenizer.truncation_side, "right"  # so that windows are in the order of the text
        try:
            encoded = tokenizer(
                list(texts), truncation=True, max_length=limit, stride=stride, return_overflowing_tokens=True,
                return_offsets_mapping=True, return_attention_mask=False, padding=False, verbose=False,
            )  # fmt: skip
        finally:
            tokenizer.truncation_side = side
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
    row_of_window = np.asarray(encoded["overflow_to_sample_mapping"], np.int64)
    window = np.repeat(np.arange(len(lengths)), lengths)
    row = row_of_window[window]
    # Positions in all texts, one after the other, with a gap between two texts.
    begin = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
    spans = np.array([span for offsets in encoded["offset_mapping"] for span in offsets], np.int64).reshape(-1, 2)
    is_real = spans[:, 1] > spans[:, 0]  # special tokens have no characters
    start, end = (spans + begin[row][:, None]).T
    counts = np.array([len(units) for units in words], np.int64)
    flat = np.array([unit for units in words for unit in units], np.int64).reshape(-1, 2)
    flat = flat + np.repeat(begin, counts)[:, None]
    first = np.searchsorted(flat[:, 1], start, "right")
    last = np.searchsorted(flat[:, 0], end, "left") - 1
    has_word = is_real & (first <= last)
    unit_of = np.arange(len(flat))
    if merge:
        joined = np.zeros(len(flat) + 1, np.int64)  # whether a word is joined to the one before
        for i in np.flatnonzero(has_word & (first < last)):
            joined[first[i] + 1 : last[i] + 1] = 1
        unit_of = np.cumsum(joined[:-1] == 0) - 1
    unit_starts = np.flatnonzero(np.diff(unit_of, prepend=-1))
    unit_ends = np.append(unit_starts[1:], len(flat)) - 1
    unit_row = np.repeat(np.arange(len(texts)), counts)[unit_starts]
    first_unit = np.searchsorted(unit_row, np.arange(len(texts)))
    unit = np.where(has_word, unit_of[np.minimum(first, len(flat) - 1)] if len(flat) else -1, -1)
    target = np.full(len(unit), -1, np.int32)
    chosen = _stand_ins(unit, window, row_of_window, is_real)
    target[chosen] = unit[chosen] - first_unit[row[chosen]]
    local = np.stack([flat[unit_starts, 0], flat[unit_ends, 1]], 1) - begin[unit_row][:, None] if len(flat) else flat
    units = [[(int(a), int(b)) for a, b in part] for part in np.split(local, first_unit[1:])]
    by_row = np.bincount(row_of_window, minlength=len(texts))
    offsets = row_offsets(np.bincount(row, minlength=len(texts)))
    columns = {
        name: Ragged(np.array([value for values in encoded[name] for value in values], np.int32), offsets)
        for name in names if name in encoded
    }  # fmt: skip
    windows = Ragged(lengths.astype(np.int32), row_offsets(by_row))
    return AlignedWords(columns | {"target_word": Ragged(target, offsets), WINDOWS: windows}, units)


def _stand_ins(unit: np.ndarray, window: np.ndarray, row_of_window: np.ndarray, is_real: np.ndarray) -> np.ndarray:
    """Return the positions (int64) of the tokens that stand for a word.

    Args:
        unit: The word of each token, -1 for none; int64 of shape (tokens,).
        window: The window of each token.
        row_of_window: The row of each window, ascending.
        is_real: Whether a token is not a special token.
    """
    # The first token inside a window may continue a word. It is then at the border, where another window is preferred.
    key = window * (int(unit.max(initial=-1)) + 2) + unit + 1  # ascending in the words of a window, and in windows
    candidates = np.flatnonzero((unit >= 0) & (key > np.concatenate([[-1], np.maximum.accumulate(key)[:-1]])))
    position = np.arange(len(unit))
    far = len(unit)
    left, right = np.full(len(row_of_window), far), np.full(len(row_of_window), -1)
    np.minimum.at(left, window[is_real], position[is_real])
    np.maximum.at(right, window[is_real], position[is_real])
    continues = np.diff(row_of_window, prepend=-1) == 0
    is_continued = np.append(continues[1:], False)
    distance = np.minimum(
        np.where(continues[window], position - left[window], far),
        np.where(is_continued[window], right[window] - position, far),
    )
    order = candidates[np.lexsort((candidates, -distance[candidates], unit[candidates]))]
    return order[np.diff(unit[order], prepend=-1) != 0]
