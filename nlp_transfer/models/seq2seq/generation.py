"""Generation: greedy or beam search in which every row has its own longest length, so that no row depends on its batch.

`translate` is how texts of any length become translations, wherever that happens: for users, and where a model is scored.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import EncoderDecoderCache, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

from nlp_transfer.data.tokens import Ragged
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.seq2seq.beam_search import search
from nlp_transfer.models.seq2seq.long_texts import join_pieces, split_text
from nlp_transfer.models.seq2seq.tokenizer_pair import TokenizerPair
from nlp_transfer.utils.errors import UserError, shorten

ROWS = 64  # texts in a batch, if not said otherwise: those that are finished leave it
PADDED = 1 << 14  # source tokens times beams in a batch, about: of long texts there are few in one
ENCODED = 1 << 18  # characters whose tokens are counted together, and a thousandth of it for each text

# Values at which settings for sampling say nothing; None would be filled in again from the model's own.
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | dict.fromkeys(
    ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
)

# Processors of scores that look at each row by itself: the batch may shrink below them.
ROW_BY_ROW = (
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,  # that of words that are never written is one of these
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
)


class LengthLimit(LogitsProcessor):
    """Ends a row when it reaches its own limit.

    `generate` has one limit for a whole batch: a row that would not stop by itself would come out longer beside a long
    neighbour than alone.
    """

    def __init__(self, limits: torch.Tensor, beams: int, end: int) -> None:
        self.limits, self.end = limits.repeat_interleave(beams), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of shape (rows x beams, tokens); the decoder's first token counts as none."""
        over = input_ids.shape[1] >= self.limits
        if not bool(over.any()):
            return scores
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.end] = 0.0
        return torch.where(over[:, None], ended, scores)

    def keep(self, rows: torch.Tensor) -> None:
        """Only these of the rows x beams (int64) are left."""
        self.limits = self.limits[rows]


def configure_search(settings: Any, beams: int, length_penalty: float) -> None:
    """Makes generation settings those of a greedy or a beam search, whatever a checkpoint brought.

    What belongs to sampling goes, and with one beam what belongs to several: transformers refuses to save such a mixture. The
    stop that counts on a batch's longest length goes as well.
    """
    settings.num_beams, settings.do_sample = beams, False
    settings.length_penalty = length_penalty if beams > 1 else 1.0
    settings.early_stopping = beams > 1 and settings.early_stopping is True
    for name, neutral in SAMPLING.items():
        setattr(settings, name, neutral)


def generate(
    model: Any,
    tokenizers: TokenizerPair,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    limits: torch.Tensor,
    beams: int,
    length_penalty: float,
) -> torch.Tensor:
    """Target ids, int64 of shape (rows, longest), from the decoder's start on, filled up with padding or with ends.

    Args:
        tokenizers: knows the target's language, which may be another one than the model was saved with.
        input_ids, attention_mask: int64 of shape (rows, tokens).
        limits: int64 of shape (rows,), the most tokens of each row, the end among them.
        beams: 1 is greedy.
    """
    settings = copy.deepcopy(model.generation_config)
    configure_search(settings, beams, length_penalty)
    settings.max_length, settings.max_new_tokens = None, int(limits.max())
    settings.use_cache, settings.cache_implementation = True, None  # what `search` works with, whatever a checkpoint says
    model.generation_config.max_length = None  # transformers would fill it in again, and say at each batch that there are two
    if tokenizers.shared_format:
        settings.decoder_start_token_id, settings.forced_bos_token_id = tokenizers.start, tokenizers.forced
    limit = LengthLimit(limits, beams, tokenizers.end)
    found: torch.Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings,
        logits_processor=LogitsProcessorList([limit]), custom_generate=partial(_search, limit=limit, fill=tokenizers.pad),
    )  # fmt: skip
    return found


def _search(model: Any, input_ids: torch.Tensor, limit: LengthLimit, fill: int, **given: Any) -> torch.Tensor:
    """Called by `generate` in place of its own loops, with what it prepared for them."""
    assert isinstance(given["past_key_values"], EncoderDecoderCache), "the kind of cache that every translation model gets"
    alone = all(processor is limit or isinstance(processor, ROW_BY_ROW) for processor in given["logits_processor"])
    return search(model, input_ids, keep=limit.keep if alone else None, fill=fill, **given)


def translate(
    model: Any,
    tokenizers: TokenizerPair,
    texts: Sequence[str],
    longest: int,
    limit: Callable[[int], int],
    beams: int,
    length_penalty: float,
    rows: int = ROWS,
) -> tuple[list[str], np.ndarray]:
    """Translate texts of any length; an empty one has an empty translation.

    A text of more than `longest` tokens is split (`split_text`), its pieces are translated one by one, and their translations
    joined with the spacing of their language.

    Args:
        texts: without white space at their ends.
        longest: source tokens of a piece, special ones among them.
        limit: source tokens of a piece to the most tokens of its translation.
        rows: pieces in a batch; fewer where they are long, since beams multiply what is in memory.

    Returns:
        The translations, and int64 of shape (texts,): in how many pieces each text was translated.
    """
    lengths = partial(_lengths, tokenizers)
    split = [
        split_text(text, longest, lengths) if tokens > longest else [(text, "")] * bool(text)
        for text, tokens in zip(texts, lengths(texts), strict=True)
    ]
    answers = iter(_answers(model, tokenizers, [piece for pieces in split for piece, _ in pieces], longest, limit, beams,
                            length_penalty, rows))  # fmt: skip
    joined = [join_pieces(pieces, [next(answers) for _ in pieces]) if pieces else "" for pieces in split]
    return joined, np.array([len(pieces) for pieces in split], np.int64)


def _answers(
    model: Any, tokenizers: TokenizerPair, texts: list[str], longest: int, limit: Callable[[int], int], beams: int, length_penalty: float,
    rows: int,
) -> list[str]:  # fmt: skip
    """The translations of texts of at most the longest length, in batches of similar length."""
    answers = [""] * len(texts)
    ids = Ragged.from_lists(
        tokens for start, end in _blocks(texts) for tokens in tokenizers.source_ids(texts[start:end], longest)[0]
    )
    for alike in inference_batches(ids.lengths[:, None], rows) if texts else []:
        size = max(1, PADDED // (int(ids.lengths[alike].max()) * beams))
        for batch in np.split(alike, range(size, len(alike), size)):
            padded = torch.from_numpy(ids.padded(batch, int(tokenizers.source.pad_token_id or 0)))
            lengths = torch.from_numpy(ids.lengths[batch])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            limits = torch.tensor([limit(tokens) for tokens in lengths.tolist()])
            ids_here, mask, limits = (tensor.to(model.device) for tensor in (padded, mask, limits))
            try:
                written = tokenizers.decode(generate(model, tokenizers, ids_here, mask, limits, beams, length_penalty))
            except FloatingPointError as error:
                raise UserError(
                    f"the translation of {shorten(texts[batch[0]])}, or of one of {len(batch) - 1} texts beside it: {error}; "
                    "allowed: finite numbers; --precision fp32, or where it was that, a new copy of the model"
                ) from error
            for row, text in zip(batch.tolist(), written, strict=True):
                answers[row] = text
    return answers


def _lengths(tokenizers: TokenizerPair, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, as the model sees it."""
    return [len(ids) for start, end in _blocks(texts) for ids in tokenizers.source_ids(list(texts[start:end]), 1 << 30)[0]]


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where one call of the tokenizer begins and ends: it should see many texts, but not all of a large file."""
    start = size = 0
    for i, text in enumerate(texts, start=1):
        size += len(text) + ENCODED // 1000
        if size >= ENCODED or i == len(texts):
            yield start, i
            start, size = i, 0
