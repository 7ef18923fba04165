"""Generation: greedy or beam search in which every row has its own longest length, so that no row depends on its batch."""

import copy
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList


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


def generate(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, limits: torch.Tensor, beams: int, length_penalty: float
) -> torch.Tensor:
    """Target ids, int64 of shape (rows, longest), filled up with the padding token.

    Args:
        input_ids, attention_mask: int64 of shape (rows, tokens).
        limits: int64 of shape (rows,), the most tokens of each row, the end among them.
        beams: 1 is greedy.
    """
    settings = copy.deepcopy(model.generation_config)
    settings.max_length, settings.max_new_tokens = None, int(limits.max())
    settings.num_beams, settings.do_sample = beams, False
    settings.length_penalty = length_penalty if beams > 1 else None
    settings.early_stopping = None if beams == 1 else settings.early_stopping
    end = settings.eos_token_id[0] if isinstance(settings.eos_token_id, list) else settings.eos_token_id
    found: torch.Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings,
        logits_processor=LogitsProcessorList([LengthLimit(limits, beams, end)]),
    )  # fmt: skip
    return found
