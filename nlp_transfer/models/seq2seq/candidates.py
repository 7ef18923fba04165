"""Choose the best continuations of beams without computing the log-probabilities of the whole vocabulary."""

import torch

BLOCK = 64  # tokens of the vocabulary whose largest logit is computed first
CHUNK = 1 << 18  # logits that are exponentiated at once, so that they stay in the CPU's cache


def best_candidates(
    logits: torch.Tensor, open_scores: torch.Tensor, count: int, suppressed: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best continuations of each row, the best first.

    The score of a continuation is the score of its beam plus the log-probability of its token. The best tokens of a beam are in
    the blocks of the vocabulary with the largest maxima, so only these blocks are sorted.

    Args:
        logits: logits of the next token, of shape (rows x beams, vocabulary). Those of suppressed tokens are overwritten.
        open_scores: scores of the beams, float32 of shape (rows, beams).
        count: number of continuations of a row.
        suppressed: tokens that are not allowed. Their probability still counts when the others are normalized.

    Returns:
        Scores (float32), beams and tokens (int64) of shape (rows, count).

    Raises:
        FloatingPointError: the logits of a row are NaN or infinite.
    """
    largest = logits.amax(-1, keepdim=True).float()
    check_finite(largest)
    normalizer = log_normalizer(logits, largest)
    if suppressed:
        logits[:, suppressed] = -torch.inf
    vocabulary = logits.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    blocks = logits[:, :whole].unflatten(1, (-1, BLOCK))
    chosen = blocks.amax(-1).topk(min(count, blocks.shape[1]), sorted=False).indices[:, :, None]
    rest = torch.arange(whole, vocabulary, device=logits.device).expand(len(logits), -1)
    tokens = torch.cat(((chosen * BLOCK + torch.arange(BLOCK, device=logits.device)).flatten(1), rest), 1)
    scores = (logits.gather(1, tokens).float() - normalizer).view(*open_scores.shape, -1) + open_scores[:, :, None]
    top_scores, order = scores.flatten(1).topk(count)
    return top_scores, order // tokens.shape[1], tokens.view(len(open_scores), -1).gather(1, order)


def check_finite(values: torch.Tensor) -> None:
    """Raise a FloatingPointError if a value is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError("the scores of the next token are NaN or infinite")


def log_normalizer(logits: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the sum of exponentials of each row, float32 of shape (rows, 1).

    On CPUs, this takes less than half the time of `torch.logsumexp`, which writes all exponentials to memory.

    Args:
        logits: shape (rows, vocabulary).
        largest: the largest logit of each row, float32 of shape (rows, 1).
    """
    rows = max(1, CHUNK // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    chunks = zip(logits.split(rows), largest.split(rows), strict=True)
    sums = [(chunk.float() - maxima).exp_().sum(-1, keepdim=True) for chunk, maxima in chunks]
    return torch.cat(sums).log_() + largest
