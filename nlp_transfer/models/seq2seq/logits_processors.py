"""Logits processors of a search: a length limit for each row, and what is known about those of transformers."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation import logits_process

# Logits processors without per-row state, so finished rows can be removed from the batch.
STATELESS_PROCESSORS = (
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,  # also the base class of NoBadWordsLogitsProcessor
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
)


class LengthLimit(LogitsProcessor):
    """Logits processor that ends each row at a separate maximum length.

    `generate` has a single limit for the batch. Without this processor, a row that does not generate an end token would become
    longer in a batch with longer rows.

    Args:
        limits: int64 of shape (rows,).
        beams: number of beams in each row.
        end: id of the end token.
    """

    def __init__(self, limits: torch.Tensor, beams: int, end: int) -> None:
        self.limits, self.end = limits.repeat_interleave(beams), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Process scores of shape (rows x beams, vocabulary). The start token does not count toward the limit."""
        length = input_ids.shape[1]
        if not self.is_reached(length):
            return scores
        only_end = torch.full_like(scores, -torch.inf)
        only_end[:, self.end] = 0.0
        return torch.where((self.limits <= length)[:, None], only_end, scores)

    def is_reached(self, length: int) -> bool:
        """Return whether a row of this length, which includes the start token, has to end."""
        return bool((self.limits <= length).any())

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep only the limits of these rows x beams (int64 indices)."""
        self.limits = self.limits[rows]


def suppressed_tokens(processors: Iterable[Any]) -> list[int] | None:
    """Return the tokens that processors never allow, if this is all they do after the first token and before the length limits.

    Returns:
        Token ids; None if a processor does something else, so that it needs the log-probabilities of the whole vocabulary.
    """
    tokens: list[int] = []
    for processor in processors:
        if isinstance(processor, logits_process.SuppressTokensLogitsProcessor):
            tokens += torch.as_tensor(processor.suppress_tokens).tolist()
        elif isinstance(processor, logits_process.NoBadWordsLogitsProcessor):
            if any(len(sequence) > 1 for sequence in processor.sequence_bias):
                return None
            tokens += [token for (token,) in processor.sequence_bias]
        # These two act on the first token, and on the last one, which is at the limit of every row.
        elif not isinstance(
            processor, (LengthLimit, logits_process.ForcedBOSTokenLogitsProcessor, logits_process.ForcedEOSTokenLogitsProcessor)
        ):
            return None
    return tokens
