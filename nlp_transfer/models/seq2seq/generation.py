"""Generate texts with greedy or beam search.

Each row has a separate length limit, so its text does not depend on the other rows of the batch.

`translate` handles texts of any length, and `generate_texts` truncates them. Predictions for users and the evaluation of a model
use the same function.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import EncoderDecoderCache, LogitsProcessorList

from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.seq2seq.beam_search import search
from nlp_transfer.models.seq2seq.logits_processors import STATELESS_PROCESSORS, LengthLimit
from nlp_transfer.models.seq2seq.long_texts import join_pieces, split_text
from nlp_transfer.models.seq2seq.tokenizer_pair import TokenizerPair
from nlp_transfer.utils.errors import UserError, shorten

ROWS = 64  # default batch size
MAX_BATCH_TOKENS = 1 << 14  # approximate limit of source tokens times beams in a batch
TOKENIZED_CHARACTERS = 1 << 18  # maximum characters in one call of the tokenizer; each text counts 262 extra

# Neutral values of sampling settings. `generate` would replace None with the model's values.
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | dict.fromkeys(
    ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
)


def configure_search(settings: Any, beams: int, length_penalty: float) -> None:
    """Configure generation settings for greedy search (one beam) or beam search.

    Sampling settings are reset. With one beam, beam search settings are reset as well, because transformers does not save
    contradictory settings. `early_stopping: never` is also reset, since it depends on the longest limit in a batch.
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
    """Generate target ids.

    Args:
        tokenizers: the source and target tokenizers. Their target language may differ from the one in the saved model.
        input_ids, attention_mask: int64 of shape (rows, tokens).
        limits: maximum length of each target including its end token, int64 of shape (rows,).
        beams: 1 means greedy search.
        length_penalty: beam search divides scores by length ** length_penalty.

    Returns:
        Target ids, int64 of shape (rows, longest), including the start token. Shorter rows are filled with padding or end tokens.
    """
    settings = copy.deepcopy(model.generation_config)
    configure_search(settings, beams, length_penalty)
    settings.max_length, settings.max_new_tokens = None, int(limits.max())
    settings.use_cache, settings.cache_implementation = True, None  # `search` requires the default cache
    model.generation_config.max_length = None  # else `generate` warns for each batch that there are two limits
    if tokenizers.shared_format:
        settings.decoder_start_token_id, settings.forced_bos_token_id = tokenizers.start, tokenizers.forced
    limit = LengthLimit(limits, beams, tokenizers.end)
    targets: torch.Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings,
        logits_processor=LogitsProcessorList([limit]), custom_generate=partial(_search, limit=limit, padding=tokenizers.pad),
    )  # fmt: skip
    return targets


def _search(model: Any, input_ids: torch.Tensor, limit: LengthLimit, padding: int, **inputs: Any) -> torch.Tensor:
    """Decode with `search`; transformers' `generate` calls this after preparing the inputs."""
    assert isinstance(inputs["past_key_values"], EncoderDecoderCache), "the cache of encoder-decoders"
    stateless = all(processor is limit or isinstance(processor, STATELESS_PROCESSORS) for processor in inputs["logits_processor"])
    return search(model, input_ids, select_rows=limit.select_rows if stateless else None, padding=padding, **inputs)


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
    """Translate texts of any length.

    Texts of more than `longest` tokens are split into pieces (`split_text`). The translations of the pieces are joined with the
    spacing of the target language. The translation of an empty text is empty.

    Args:
        texts: texts without leading or trailing white space.
        longest: maximum source tokens of a piece, including special tokens.
        limit: a function that takes the number of source tokens in a piece, and returns the maximum number of target tokens.
        beams, length_penalty: as for `generate`.
        rows: maximum pieces in a batch; batches of long pieces are smaller.

    Returns:
        The translations, and the number of pieces of each text, int64 of shape (texts,).

    Raises:
        UserError: the model's scores are NaN or infinite.
    """
    lengths = partial(_token_counts, tokenizers)
    split = [
        split_text(text, longest, lengths) if tokens > longest else [(text, "")] * bool(text)
        for text, tokens in zip(texts, lengths(texts), strict=True)
    ]
    flat = [piece for pieces in split for piece, _ in pieces]
    translations = iter(generate_texts(model, tokenizers, flat, longest, limit, beams, length_penalty, rows)[0])
    joined = [join_pieces(pieces, [next(translations) for _ in pieces]) if pieces else "" for pieces in split]
    return joined, np.array([len(pieces) for pieces in split], np.int64)


def generate_texts(
    model: Any, tokenizers: TokenizerPair, texts: list[str], longest: int, limit: Callable[[int], int], beams: int,
    length_penalty: float, rows: int,
) -> tuple[list[str], np.ndarray]:  # fmt: skip
    """Generate the targets of texts, in batches of similar length.

    Args:
        longest: maximum source tokens; longer texts are truncated.
        limit, beams, length_penalty, rows: as for `translate`.

    Returns:
        The targets, and whether each text was truncated, bool of shape (texts,).

    Raises:
        UserError: the model's scores are NaN or infinite.
    """
    targets, truncated = [""] * len(texts), np.zeros(len(texts), bool)

    def tokenize() -> Iterator[list[int]]:
        for start, end in _chunks(texts):
            chunk, shortened = tokenizers.source_ids(texts[start:end], longest)
            truncated[[start + row for row in shortened]] = True
            yield from chunk

    ids = Ragged.from_lists(tokenize())
    for similar in inference_batches(ids.lengths[:, None], rows) if texts else []:
        size = max(1, MAX_BATCH_TOKENS // (int(ids.lengths[similar].max()) * beams))
        for batch in np.split(similar, range(size, len(similar), size)):
            padded = torch.from_numpy(ids.padded(batch, int(tokenizers.source.pad_token_id or 0)))
            lengths = torch.from_numpy(ids.lengths[batch])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            limits = torch.tensor([limit(tokens) for tokens in lengths.tolist()])
            input_ids, mask, limits = (tensor.to(model.device) for tensor in (padded, mask, limits))
            try:
                decoded = tokenizers.decode(generate(model, tokenizers, input_ids, mask, limits, beams, length_penalty))
            except FloatingPointError as error:
                raise UserError(
                    f"the text generated for {shorten(texts[batch[0]])}, or of one of {len(batch) - 1} texts in the same batch: "
                    f"{error}; allowed: finite numbers; use --precision fp32, or, if it was fp32, a new copy of the model"
                ) from error
            for row, text in zip(batch.tolist(), decoded, strict=True):
                targets[row] = text
    return targets, truncated


def _token_counts(tokenizers: TokenizerPair, texts: Sequence[str]) -> list[int]:
    """Return the number of source tokens of each text, including special tokens."""
    return [len(ids) for start, end in _chunks(texts) for ids in tokenizers.source_ids(list(texts[start:end]), 1 << 30)[0]]


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the start and end index of each group of texts to tokenize together. Small groups save memory with large files."""
    start = size = 0
    for i, text in enumerate(texts, start=1):
        size += len(text) + TOKENIZED_CHARACTERS // 1000
        if size >= TOKENIZED_CHARACTERS or i == len(texts):
            yield start, i
            start, size = i, 0
