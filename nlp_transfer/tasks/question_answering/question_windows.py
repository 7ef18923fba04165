"""Tokenize questions and contexts: a context that is too long is split into overlapping windows, each after the question."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlp_transfer.tasks.question_answering.answer_spans import END, NO_ANSWER, OUTSIDE, START, find_tokens
from nlp_transfer.tasks.question_answering.squad_format import Answer

Window = dict[str, np.ndarray]
"""Columns of one window, int64 of shape (tokens,). `target_start` and `target_end` are the characters of the context."""


def question_limit(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Return the maximum number of tokens in a question: half of those that are not special tokens."""
    return (max_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2


def truncate_questions(tokenizer: Any, questions: list[str], max_length: int) -> tuple[list[str], list[bool]]:
    """Return the questions without surrounding spaces, truncated, and whether each was truncated."""
    questions, limit = [question.strip() for question in questions], question_limit(tokenizer, max_length)
    if not questions:
        return [], []
    offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    long = [len(tokens) > limit for tokens in offsets]
    ends = [tokens[limit - 1][1] if is_long else None for tokens, is_long in zip(offsets, long, strict=True)]
    return [question[:end] for question, end in zip(questions, ends, strict=True)], long


def split_contexts(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], contexts: list[str], max_length: int, stride: int
) -> list[list[Window]]:
    """Return the windows of each row.

    Args:
        stride: Number of tokens that consecutive windows share.
    """
    windows: list[list[Window]] = [[] for _ in questions]
    if not questions:
        return windows
    encoded: Any = tokenizer(
        questions, contexts, truncation="only_second", max_length=max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True, padding=False, return_attention_mask=False,
    )  # fmt: skip
    for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
        ids, offsets = np.array(encoded["input_ids"][i]), np.array(encoded["offset_mapping"][i]).reshape(-1, 2)
        inside = np.array([side == 1 for side in encoded.sequence_ids(i)]) & (offsets[:, 1] > offsets[:, 0])
        window = {
            "input_ids": ids,
            "target_start": np.where(inside, offsets[:, 0], OUTSIDE),
            "target_end": np.where(inside, offsets[:, 1], OUTSIDE),
        }
        nothing = np.flatnonzero((ids == tokenizer.cls_token_id) & ~inside)
        window["target_start"][nothing[0] if len(nothing) else 0] = NO_ANSWER
        if "token_type_ids" in encoded:
            window["token_type_ids"] = np.array(encoded["token_type_ids"][i])
        windows[row].append(window)
    return windows


def label_windows(windows: list[Window], answers: list[Answer]) -> tuple[np.ndarray, bool]:
    """Return the labels of all tokens, int64 of shape (tokens,), and whether a window contains the first answer.

    The second value is true if there are no answers. If it is false, all labels are 0.
    """
    labels, is_inside = [], not answers
    for window in windows:
        starts, ends = window["target_start"], window["target_end"]
        tokens = None
        if answers:
            text, first = answers[0]
            left = first + len(text) - len(text.lstrip())
            tokens = find_tokens(starts, ends, left, left + len(text.strip()))
        is_inside |= tokens is not None
        nothing = int(np.flatnonzero(starts == NO_ANSWER)[0])
        start, end = tokens or (nothing, nothing)
        values = np.zeros(len(starts), np.int64)
        values[start] |= START
        values[end] |= END
        labels.append(values)
    joined = np.concatenate(labels)
    return (joined if is_inside else np.zeros_like(joined)), is_inside
