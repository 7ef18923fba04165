"""Text augmentation on tokens: words of training texts are left out, swapped, masked or replaced, anew at every step.

Leaving out, swapping and replacing at random are of EDA (Wei & Zou 2019, 1901.11196); masking is word dropout (Iyyer et al.
2015; Gal & Ghahramani 2016, 1512.05287). Replacements come from the words of train, as often as they stand there; a masked
language model would choose better ones (Kobayashi 2018, 1805.06201), at the cost of a second forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from nlp_transfer.data.tokens import Ragged, TokenTable
from nlp_transfer.settings.schema import AugmentConfig, TrainingConfig
from nlp_transfer.utils.errors import UserError

KEEP, DROP, MASK, REPLACE = range(4)
# Scripts that are written without spaces: each piece of them is taken for a word, as BERT's tokenizer takes ideographs.
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF))


@dataclass(frozen=True)
class WordTable:
    """What each id of a vocabulary is in a text; bool arrays of shape (vocabulary,).

    `special`: no word, never touched. `continues`: belongs to the word before it. `open`: what follows belongs to its word.
    """

    special: np.ndarray
    continues: np.ndarray
    open: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "WordTable":
        """Read off the vocabulary's own mark, which is the one that most of its tokens bear: `##` continues a word
        (WordPiece), `▁` and `Ġ` begin one (sentencepiece, byte-level BPE), `@@` is followed by more of it and `</w>` ends it
        (other BPE). Without any mark each token is a word."""
        tokens = [str(token or "") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        bears = {
            "##": [token.startswith("##") and len(token) > 2 for token in tokens],
            "▁": [token.startswith("▁") for token in tokens],
            "Ġ": [token.startswith(("Ġ", "Ċ", "ĉ")) for token in tokens],
            "@@": [token.endswith("@@") for token in tokens],
            "</w>": [token.endswith("</w>") for token in tokens],
        }
        mark = max(bears, key=lambda name: sum(bears[name]))
        marked = np.array(bears[mark], bool)
        nothing = np.zeros(len(tokens), bool)
        continues, opens = nothing, nothing
        if mark == "##":
            continues = marked
        elif mark in ("▁", "Ġ") and marked.any():
            continues = ~marked & ~np.array([_unspaced(token) for token in tokens], bool)
        elif mark == "@@":
            opens = marked
        elif marked.any():
            opens = ~marked
        special = nothing.copy()
        special[[id for id in tokenizer.all_special_ids if id < len(tokens)]] = True
        if tokenizer.unk_token_id not in (None, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
            special[tokenizer.unk_token_id] = False  # an unknown word is a word
        return cls(special, continues & ~special, opens & ~special)

    def first(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Where a word or special token begins, bool of shape (tokens,), in flat ids and the row of each."""
        glued = self.continues[ids[1:]] | self.open[ids[:-1]]
        alone = self.special[ids[1:]] | self.special[ids[:-1]] | (rows[1:] != rows[:-1])
        return np.concatenate([np.ones(min(1, len(ids)), bool), alone | ~glued])


def _unspaced(token: str) -> bool:
    return bool(token) and any(low <= ord(token[0]) <= high for low, high in UNSPACED)


class Augmenter:
    """Changes the words of a batch; called as `augmenter(batch, rows, step)`.

    What happens to a row depends on the seed, the step and the row's index alone: neither on how the window was cut nor on the
    process, and nothing has to be saved for a run to go on. A row that stands twice in a window is changed alike. All pieces
    of a word share its fate. Special tokens stay where they are, so the two texts of a pair stay apart, and at least one word
    of each text stays as it is, for which rows of a single word are never changed.

    Args:
        train: the rows from which replacing words are drawn.
        max_length: longest row in tokens; a row that replacing words would make longer keeps its own long words.

    Raises:
        UserError: words are to be masked, and the tokenizer has no mask token.
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
        """The batch with its texts changed and padded again.

        Args:
            batch: `input_ids` and other columns of tokens (int64, (rows, tokens)), `attention_mask`; the rest is passed on.
            rows: the index of each row in its table.
            step: the optimiser step.
        """
        inside = batch["attention_mask"].numpy().astype(bool)
        ids, row_of = batch["input_ids"].numpy()[inside], np.nonzero(inside)[0]
        if not len(ids):
            return dict(batch)
        first = self.words.first(ids, row_of)
        starts = np.flatnonzero(first)
        sizes = np.diff(np.append(starts, len(ids)))
        row = row_of[starts]
        word = ~self.words.special[ids[starts]]
        place = np.arange(len(starts)) - np.searchsorted(row, row)  # in its row: the same however the window is cut
        draw = _Draw(self.seed, step, rows[row], place)

        fate = self._fates(draw, word, row)
        drawn = np.zeros(len(starts), np.int64)
        new = np.where(fate == DROP, 0, np.where(fate == MASK, 1, sizes))
        if self.pool is not None and len(self.pool):
            drawn = (draw(1) * len(self.pool)).astype(np.int64)
            new = np.where(fate == REPLACE, self.pool.lengths[drawn], new)
            long = np.bincount(row, new, len(inside)) > self.max_length
            fate = np.where((fate == REPLACE) & long[row] & (new > sizes), KEEP, fate)
            new = np.where(fate == KEEP, sizes, new)
        order = self._swapped(draw, word & ~self.words.continues[ids[starts]], row)
        fate, drawn, new, starts = fate[order], drawn[order], new[order], starts[order]

        begins = np.cumsum(new) - new
        inner = np.arange(int(new.sum())) - np.repeat(begins, new)  # the place of each new token in its word
        fates, from_start = np.repeat(fate, new), np.repeat(starts, new)
        own = np.where(fates == KEEP, from_start + inner, from_start)
        lengths = np.bincount(row, new, len(inside)).astype(np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        changed = dict(batch)
        for name in self.fill:
            if name not in batch:
                continue
            values = batch[name].numpy()[inside][own]
            if name == "input_ids":
                values[fates == MASK] = self.mask
                if self.pool is not None and len(self.pool):
                    other = fates == REPLACE
                    values[other] = self.pool.values[self.pool.offsets[np.repeat(drawn, new)[other]] + inner[other]]
            changed[name] = torch.from_numpy(Ragged(values, offsets).padded(np.arange(len(inside)), self.fill[name]))
        width = changed["input_ids"].shape[1]
        changed["attention_mask"] = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        return changed

    def _fates(self, draw: "_Draw", word: np.ndarray, row: np.ndarray) -> np.ndarray:
        """KEEP, DROP, MASK or REPLACE for each word; of each text the word with the highest draw is kept."""
        settings, chance = self.settings, draw(0)
        ends = np.cumsum([settings.drop, settings.mask, settings.replace])
        fate = np.array([DROP, MASK, REPLACE, KEEP])[np.searchsorted(ends, chance, side="right")]
        # Texts: runs of words that no special token and no end of a row interrupts.
        new_text = np.concatenate([[True], ~word[1:] | ~word[:-1] | (row[1:] != row[:-1])])
        text = np.cumsum(new_text) - 1
        highest = np.maximum.reduceat(chance, np.flatnonzero(new_text))
        return np.where(word & (chance < highest[text]), fate, KEEP)

    def _swapped(self, draw: "_Draw", movable: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The order of words after neighbours of one text have changed places, no word more than once.

        A first word that does not bear its vocabulary's mark stays: elsewhere it would read as the end of another word.
        """
        order, share = np.arange(len(row)), self.settings.swap
        if not share:
            return order
        able = movable & np.concatenate([movable[1:] & (row[1:] == row[:-1]), [False]])
        # Of overlapping pairs every other one is taken: these odds make the share of words that move `swap`.
        wanted = able & (draw(2) < share / (2 - share))
        last_not = np.maximum.accumulate(np.where(wanted, -1, order))
        left = np.flatnonzero(wanted & ((order - last_not) % 2 == 1))
        order[left], order[left + 1] = left + 1, left
        return order


def make_augmenter(
    training: TrainingConfig, tokenizer: PreTrainedTokenizerBase, train: TokenTable, max_length: int | None
) -> Augmenter | None:
    """What `training.augment` asks for; None where that is nothing."""
    settings = training.augment
    if settings is None or not any(settings.model_dump().values()):
        return None
    return Augmenter(settings, tokenizer, train, max_length or 512, training.seed)


class _Draw:
    """Uniform numbers in [0, 1), each a hash (splitmix64) of seed, step, row, place and channel; float64 of shape (words,)."""

    def __init__(self, seed: int, step: int, rows: np.ndarray, places: np.ndarray) -> None:
        key = np.zeros(1, np.uint64)
        for part in (np.array([seed]), np.array([step]), rows, places):
            key = _mix(key + part.astype(np.uint64) * GOLDEN + GOLDEN)
        self.key = key

    def __call__(self, channel: int) -> np.ndarray:
        return (_mix(self.key + np.array([channel], np.uint64) * GOLDEN + GOLDEN) >> np.uint64(11)) * 2.0**-53


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(key: np.ndarray) -> np.ndarray:
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def _words_of(column: Ragged, words: WordTable) -> Ragged:
    """Every word of a column, one a row, as often as it stands there; those without their vocabulary's mark left out."""
    ids = column.values
    first = words.first(ids, np.repeat(np.arange(len(column)), column.lengths))
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(ids)))
    good = ~words.special[ids[starts]] & ~words.continues[ids[starts]]
    chosen = np.repeat(good, sizes)
    return Ragged(ids[chosen], np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[good])]))
