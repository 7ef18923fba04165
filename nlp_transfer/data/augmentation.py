"""Augment training texts at the token level: randomly drop, swap, mask or replace words at every step.

Random deletion, swap and replacement follow EDA (Wei & Zou 2019, 1901.11196); masking is word dropout (Iyyer et al. 2015; Gal &
Ghahramani 2016, 1512.05287). Replacement words are sampled from the training split in proportion to their frequency. A masked
language model would choose better ones (Kobayashi 2018, 1805.06201), at the cost of a second forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.ragged import Ragged, row_offsets
from nlp_transfer.data.random_numbers import GOLDEN, splitmix64
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import AugmentConfig, TrainingConfig
from nlp_transfer.utils.errors import UserError

KEEP, DROP, MASK, REPLACE = range(4)
# Code points of scripts without spaces between words. Each of their tokens counts as a word, like ideographs in BERT's tokenizer.
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF))


@dataclass(frozen=True)
class WordTable:
    """How the tokens of a vocabulary form words. All attributes are bool arrays of shape (vocabulary,).

    Attributes:
        special: Special tokens, which are never changed.
        continues: Tokens that continue the word of the previous token.
        open: Tokens whose word continues with the next token.
    """

    special: np.ndarray
    continues: np.ndarray
    open: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "WordTable":
        """Build the table from the most frequent word marker in the vocabulary.

        `##` continues a word (WordPiece), `▁` and `Ġ` begin one (SentencePiece, byte-level BPE), `@@` is followed by the rest
        of a word, and `</w>` ends one (other BPE). Without a marker, each token is a word.
        """
        tokens = [str(token or "") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        has_marker = {
            "##": [token.startswith("##") and len(token) > 2 for token in tokens],
            "▁": [token.startswith("▁") for token in tokens],
            "Ġ": [token.startswith(("Ġ", "Ċ", "ĉ")) for token in tokens],
            "@@": [token.endswith("@@") for token in tokens],
            "</w>": [token.endswith("</w>") for token in tokens],
        }
        marker = max(has_marker, key=lambda name: sum(has_marker[name]))
        marked = np.array(has_marker[marker], bool)
        none = np.zeros(len(tokens), bool)
        continues, opens = none, none
        if marker == "##":
            continues = marked
        elif marker in ("▁", "Ġ") and marked.any():
            continues = ~marked & ~np.array([_unspaced(token) for token in tokens], bool)
        elif marker == "@@":
            opens = marked
        elif marked.any():
            opens = ~marked
        special = none.copy()
        special[[id for id in tokenizer.all_special_ids if id < len(tokens)]] = True
        if tokenizer.unk_token_id not in (None, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
            special[tokenizer.unk_token_id] = False  # the unknown token counts as a word
        return cls(special, continues & ~special, opens & ~special)

    def first(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return a mask of tokens that begin a word or are special, bool of shape (tokens,).

        Args:
            ids: Token ids of all rows, int64 of shape (tokens,).
            rows: Row of each token, int64 of shape (tokens,).
        """
        joined = self.continues[ids[1:]] | self.open[ids[:-1]]
        separate = self.special[ids[1:]] | self.special[ids[:-1]] | (rows[1:] != rows[:-1])
        return np.concatenate([np.ones(min(1, len(ids)), bool), separate | ~joined])


def _unspaced(token: str) -> bool:
    """Return whether a token begins with a character of a script without spaces."""
    return bool(token) and any(low <= ord(token[0]) <= high for low, high in UNSPACED)


class Augmenter:
    """Augments the texts of a batch.

    The changes to a row depend only on the seed, the step and the row index, not on micro-batches or processes, so a resumed run
    needs no saved state. All tokens of a word change together. Special tokens stay in place, so the texts of a pair remain
    separate. At least one word of each text is unchanged.

    Args:
        train: Rows from which replacement words are sampled.
        max_length: Maximum number of tokens in a row. If replacements would exceed it, no word of the row is replaced with a
            longer one.

    Raises:
        UserError: `mask` is set, but the tokenizer has no mask token.
    """

    def __init__(
        self, settings: AugmentConfig, tokenizer: PreTrainedTokenizerBase, train: TokenTable, max_length: int, seed: int
    ) -> None:
        if settings.mask and tokenizer.mask_token_id is None:
            raise UserError(
                f"training.augment.mask: found {settings.mask:g}, but the tokenizer of this model has no mask token; allowed: 0"
            )
        self.settings, self.seed, self.max_length = settings, seed, max_length
        self.words = WordTable.of(tokenizer)
        self.fill = train.fill
        self.mask = tokenizer.mask_token_id or 0
        self.pool = _words_of(train.ragged["input_ids"], self.words) if settings.replace else None

    def __call__(self, batch: Mapping[str, torch.Tensor], rows: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        """Return the batch with augmented texts, padded again.

        Args:
            batch: `input_ids` and other token columns, int64 of shape (rows, tokens), and `attention_mask`; other columns are
                returned unchanged.
            rows: Index of each row in its table, int64 of shape (rows,).
            step: Optimizer step.
        """
        inside = batch["attention_mask"].numpy().astype(bool)
        ids, row_of = batch["input_ids"].numpy()[inside], np.nonzero(inside)[0]
        if not len(ids):
            return dict(batch)
        first = self.words.first(ids, row_of)
        starts = np.flatnonzero(first)
        sizes = np.diff(np.append(starts, len(ids)))
        word_row = row_of[starts]
        is_word = ~self.words.special[ids[starts]]
        # The index of a word in its row does not depend on micro-batches.
        position = np.arange(len(starts)) - np.searchsorted(word_row, word_row)
        draw = _Draw(self.seed, step, rows[word_row], position)

        action = self._actions(draw, is_word, word_row)
        replacement = np.zeros(len(starts), np.int64)
        new_sizes = np.where(action == DROP, 0, np.where(action == MASK, 1, sizes))
        if self.pool is not None and len(self.pool):
            replacement = (draw(1) * len(self.pool)).astype(np.int64)
            new_sizes = np.where(action == REPLACE, self.pool.lengths[replacement], new_sizes)
            is_long = np.bincount(word_row, new_sizes, len(inside)) > self.max_length
            action = np.where((action == REPLACE) & is_long[word_row] & (new_sizes > sizes), KEEP, action)
            new_sizes = np.where(action == KEEP, sizes, new_sizes)
        order = self._swapped(draw, is_word & ~self.words.continues[ids[starts]], word_row)
        action, replacement, new_sizes, starts = action[order], replacement[order], new_sizes[order], starts[order]

        begins = np.cumsum(new_sizes) - new_sizes
        offset = np.arange(int(new_sizes.sum())) - np.repeat(begins, new_sizes)  # index of each token in its word
        actions, from_start = np.repeat(action, new_sizes), np.repeat(starts, new_sizes)
        origin = np.where(actions == KEEP, from_start + offset, from_start)  # position of each token in the original text
        lengths = np.bincount(word_row, new_sizes, len(inside)).astype(np.int64)
        offsets = row_offsets(lengths)
        changed = dict(batch)
        for name in self.fill:
            if name not in batch:
                continue
            values = batch[name].numpy()[inside][origin]
            if name == "input_ids":
                values[actions == MASK] = self.mask
                if self.pool is not None and len(self.pool):
                    replaced = actions == REPLACE
                    source = self.pool.offsets[np.repeat(replacement, new_sizes)[replaced]] + offset[replaced]
                    values[replaced] = self.pool.values[source]
            changed[name] = torch.from_numpy(Ragged(values, offsets).padded(np.arange(len(inside)), self.fill[name]))
        width = changed["input_ids"].shape[1]
        changed["attention_mask"] = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        return changed

    def _actions(self, draw: "_Draw", is_word: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return KEEP, DROP, MASK or REPLACE for each word, int64 of shape (words,).

        The word with the highest draw in each text is never changed.
        """
        settings, chance = self.settings, draw(0)
        ends = np.cumsum([settings.drop, settings.mask, settings.replace])
        action = np.array([DROP, MASK, REPLACE, KEEP])[np.searchsorted(ends, chance, side="right")]
        # Texts are separated by special tokens and row ends.
        new_text = np.concatenate([[True], ~is_word[1:] | ~is_word[:-1] | (row[1:] != row[:-1])])
        text = np.cumsum(new_text) - 1
        highest = np.maximum.reduceat(chance, np.flatnonzero(new_text))
        return np.where(is_word & (chance < highest[text]), action, KEEP)

    def _swapped(self, draw: "_Draw", movable: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return the order of words (int64) after swapping neighbors within a text, each word at most once.

        If the first word of a text has no word marker, it stays in place: elsewhere it would continue another word.
        """
        order, share = np.arange(len(row)), self.settings.swap
        if not share:
            return order
        can_swap = movable & np.concatenate([movable[1:] & (row[1:] == row[:-1]), [False]])
        # Of overlapping pairs, every second one is swapped. With this probability, the share of words that move is `swap`.
        selected = can_swap & (draw(2) < share / (2 - share))
        last_unswapped = np.maximum.accumulate(np.where(selected, -1, order))
        left = np.flatnonzero(selected & ((order - last_unswapped) % 2 == 1))
        order[left], order[left + 1] = left + 1, left
        return order


def make_augmenter(
    training: TrainingConfig, tokenizer: PreTrainedTokenizerBase, train: TokenTable, max_length: int | None
) -> Augmenter | None:
    """Return the augmenter for `training.augment`; None if the setting contains no shares of words."""
    settings = training.augment
    if settings is None or isinstance(settings, str) or not settings.shares:
        return None
    return Augmenter(settings, tokenizer, train, max_length or 512, training.seed)


class _Draw:
    """Draws uniform numbers in [0, 1) by hashing seed, step, row, position and channel; float64 of shape (words,)."""

    def __init__(self, seed: int, step: int, rows: np.ndarray, places: np.ndarray) -> None:
        key = np.zeros(1, np.uint64)
        for part in (np.array([seed]), np.array([step]), rows, places):
            key = splitmix64(key + part.astype(np.uint64) * GOLDEN + GOLDEN)
        self.key = key

    def __call__(self, channel: int) -> np.ndarray:
        return (splitmix64(self.key + np.array([channel], np.uint64) * GOLDEN + GOLDEN) >> np.uint64(11)) * 2.0**-53


def _words_of(column: Ragged, words: WordTable) -> Ragged:
    """Return all words of a column, one per row and including repetitions, unless their first token continues a word."""
    ids = column.values
    first = words.first(ids, np.repeat(np.arange(len(column)), column.lengths))
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(ids)))
    usable = ~words.special[ids[starts]] & ~words.continues[ids[starts]]
    chosen = np.repeat(usable, sizes)
    return Ragged(ids[chosen], row_offsets(sizes[usable]))
