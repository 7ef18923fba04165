"""Answer spans: the loss of their first and last tokens, the tokens of an answer, and the best span of a context."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nlp_transfer.tasks import Batch, Objective

# Marks in columns of positions: a token outside of the context, and the token that stands for no answer.
OUTSIDE, NO_ANSWER = -1, -2
BEST = 20  # spans per row that probabilities are computed over, as transformers' `n_best_size`
START, END = 1, 2  # bits of labels
LOWEST = np.float32(-np.inf)


@dataclass(frozen=True)
class SpanCrossEntropy(Objective):
    """Mean of the cross-entropies of the first and the last token of the answer, over the tokens of a window, in fp32.

    Windows without the answer have the token for no answer as their target. Windows without labels are ignored: those of rows
    whose answer is longer than the overlap of two windows, and in no window completely.
    """

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of rows, and of windows with a target."""
        windows = float((batch["labels"] > 0).any(-1).sum())
        return {"rows": float(batch["target_row"][-1] + 1), "cross_entropy": windows}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        labels, padding = batch["labels"], batch["attention_mask"] == 0
        has_target = (labels > 0).any(-1)
        total = torch.zeros((), device=labels.device)
        for logits, bit in ((outputs.start_logits, START), (outputs.end_logits, END)):
            scores = logits.float()[:, -labels.shape[1] :]  # prompts of adapters come before the text
            scores = scores.masked_fill(padding, torch.finfo(torch.float32).min)
            target = (labels & bit > 0).int().argmax(-1)
            total = total + (F.cross_entropy(scores, target, reduction="none") * has_target).sum()
        return {"cross_entropy": total / 2}


@dataclass(frozen=True)
class Spans:
    """The best span of each row; arrays of shape (rows,).

    Attributes:
        start, end: Characters of the context, int64. Both are 0 for a row without any span.
        margin: Score of no answer minus the score of the span, float32.
        probability, no_answer: Softmax over the best distinct spans and no answer, float32.
    """

    start: np.ndarray
    end: np.ndarray
    margin: np.ndarray
    probability: np.ndarray
    no_answer: np.ndarray


def find_tokens(starts: np.ndarray, ends: np.ndarray, first: int, last: int) -> tuple[int, int] | None:
    """Return the first and the last token of an answer in a window; None if the window does not hold all of it.

    Args:
        starts, ends: Characters of the context for each token; negative outside of the context.
        first, last: First character of the answer, and the one after its last.
    """
    inside = np.flatnonzero(starts >= 0)
    if not len(inside) or starts[inside[0]] > first or ends[inside[-1]] < last:
        return None
    start = int(np.searchsorted(starts[inside], first, side="right")) - 1
    end = int(np.searchsorted(ends[inside], last, side="left"))
    return int(inside[start]), int(inside[max(start, end)])


def best_spans(
    start_logits: np.ndarray, end_logits: np.ndarray, starts: np.ndarray, ends: np.ndarray, row: np.ndarray, longest: int
) -> Spans:
    """Return the best span of each row over its windows.

    The score of a span is the sum of the logits of its first and last token. The score of no answer is the lowest over the
    windows of a row, as in transformers: a window without the answer is confident that it has none.

    Args:
        start_logits, end_logits: float32 of shape (windows, tokens).
        starts, ends: Characters of the context of each token, or a mark, of the same shape.
        row: The row of each window, ascending from 0.
        longest: Maximum number of tokens in a span.
    """
    inside, nothing = starts >= 0, starts == NO_ANSWER
    first = np.where(inside, start_logits, LOWEST)
    last = np.where(inside, end_logits, LOWEST)
    tokens = starts.shape[1]
    scores = np.full((len(row), min(longest, tokens), tokens), LOWEST, np.float32)  # by window, length - 1 and first token
    for distance in range(scores.shape[1]):
        scores[:, distance, : tokens - distance] = first[:, : tokens - distance] + last[:, distance:]
    no_answer = np.where(nothing, start_logits + end_logits, np.float32(np.inf)).min(1)
    rows = [
        _best_of_row(scores[row == i], no_answer[row == i].min(), starts[row == i], ends[row == i]) for i in range(row[-1] + 1)
    ]
    columns = list(zip(*rows, strict=True))
    positions, numbers = (np.array(column, np.int64) for column in columns[:2]), (np.array(c, np.float32) for c in columns[2:])
    return Spans(*positions, *numbers)


def _best_of_row(
    scores: np.ndarray, no_answer: np.float32, starts: np.ndarray, ends: np.ndarray
) -> tuple[int, int, float, float, float]:
    """Return start, end, margin, probability and the probability of no answer."""
    flat = scores.reshape(-1)
    count = min(len(flat), BEST * len(scores))  # a span is in several windows
    order = np.argpartition(-flat, count - 1)[:count]
    order = order[np.lexsort((order, -flat[order]))]
    order = order[np.isfinite(flat[order])]
    spans: dict[tuple[int, int], float] = {}
    for window, distance, token in zip(*np.unravel_index(order, scores.shape), strict=True):
        span = int(starts[window, token]), int(ends[window, token + distance])
        spans.setdefault(span, float(scores[window, distance, token]))
        if len(spans) == BEST:
            break
    if not spans:
        return 0, 0, float(np.finfo(np.float32).max), 0.0, 1.0
    (start, end), best = next(iter(spans.items()))
    exponents = np.exp(np.array([*spans.values(), float(no_answer)]) - max(best, float(no_answer)))
    exponents /= exponents.sum()
    return start, end, float(no_answer) - best, float(exponents[0]), float(exponents[-1])
