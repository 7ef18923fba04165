"""Exact match and F1 of answers, as defined by SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer, Sums, mean

ANSWER_KEYS = ("exact_match", "f1")
PARTS = ("has_answer", "no_answer")
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
EXAMPLES = 3


def normalize(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and English articles, with single spaces.

    Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 1606.05250.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def scores(prediction: str, answers: Iterable[str]) -> tuple[float, float]:
    """Return the exact match and the F1 of a prediction, each the best over the answers, from 0 to 1.

    Answers without any word are ignored. If none is left, the question has no answer, and the prediction must be empty.
    """
    words = normalize(prediction).split()
    expected = [normalized.split() for answer in answers if (normalized := normalize(answer))] or [[]]
    return max(float(words == other) for other in expected), max(_f1(words, other) for other in expected)


def _f1(words: list[str], expected: list[str]) -> float:
    if not words or not expected:
        return float(words == expected)
    common = (Counter(words) & Counter(expected)).total()
    precision, recall = common / len(words), common / len(expected)
    return 2 * precision * recall / (precision + recall) if common else 0.0


@dataclass(frozen=True)
class AnswerScorer(Scorer):
    """Scores answers. References are lists of acceptable answers, which are empty if a question has no answer."""

    reference: ClassVar[str] = "answers"
    row_metric: ClassVar[str | None] = "f1"

    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        """Return the metrics from 0 to 100; if some questions have no answer, also for questions with and without an answer."""
        values, has_answer = self._scores(predictions, references)
        metrics = {key: 100 * float(values[:, i].mean()) for i, key in enumerate(ANSWER_KEYS)}
        if has_answer.all():
            return metrics
        for part, rows in zip(PARTS, (has_answer, ~has_answer), strict=True):
            if rows.any():
                metrics |= {f"{key}/{part}": 100 * float(values[rows, i].mean()) for i, key in enumerate(ANSWER_KEYS)}
        return metrics

    def _scores(self, predictions: Arrays, references: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Return the metrics of each row, float64 of shape (rows, 2), and whether it has an answer, bool of shape (rows,)."""
        answers = references[self.reference]
        pairs = zip(predictions["prediction"], answers, strict=True)
        return np.array([scores(*pair) for pair in pairs]).reshape(-1, 2), np.array([len(texts) > 0 for texts in answers], bool)

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        key, _, part = metric.partition("/")
        if key not in ANSWER_KEYS or part not in ("", *PARTS):
            return None
        values, has_answer = self._scores(predictions, references)
        rows = {"": np.ones_like(has_answer), "has_answer": has_answer, "no_answer": ~has_answer}[part]
        return np.stack([100 * values[:, ANSWER_KEYS.index(key)] * rows, rows], 1).astype(float), mean

    def higher_is_better(self, metric: str) -> bool:
        return metric.partition("/")[0] in ANSWER_KEYS or super().higher_is_better(metric)

    def bounds(self, metric: str) -> tuple[float, float]:
        return (0.0, 100.0) if metric.partition("/")[0] in ANSWER_KEYS else super().bounds(metric)

    def perfect(self, references: np.ndarray) -> np.ndarray:
        return np.array([answers[0] if answers else "" for answers in references], object)

    def typed(self, values: np.ndarray) -> list[Any]:
        """Return predictions as texts, and references as lists of texts."""
        return [value if isinstance(value, str) else list(value) for value in values]

    def examples(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return a few questions with the predicted answer and those of the data."""
        lines = []
        for row in np.linspace(0, len(references["questions"]) - 1, EXAMPLES).astype(np.int64):
            expected = " | ".join(references[self.reference][row]) or "no answer"
            lines += [
                f"question:   {references['questions'][row]}",
                f"prediction: {predictions['prediction'][row] or 'no answer'}",
                f"reference:  {expected}\n",
            ]
        return lines
