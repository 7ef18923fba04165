"""Scores predicted entities as seqeval and CoNLL's `conlleval` do: an entity counts if type, start and end are right."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer, Sums, mean

RATIOS = ("f1", "precision", "recall", "f1_macro")
ENTITY_KEYS = (*RATIOS, "accuracy")


@dataclass(frozen=True)
class EntityScorer(Scorer):
    """Scores the entities of each row: lists of dicts with `label`, `start` and `end`.

    Predictions may also include `right` and `of`, the number of correctly tagged words and of words with a token.

    Attributes:
        types: The entity types.
    """

    types: tuple[str, ...] = ()
    reference = "references"
    row_metric: ClassVar[str | None] = "f1"

    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        """Compute micro precision, recall and F1, `f1_macro` over the types that occur, and `f1/TYPE` for these.

        `accuracy` is the share of words with the right tag. Ratios with a denominator of 0 are 0.
        """
        counts = self._counts(predictions, references).sum(0, keepdims=True)
        _, predicted, true = np.split(counts[0], 3)
        by_type = [f"f1/{label}" for label, count in zip(self.types, predicted + true, strict=True) if count]
        metrics = {name: float(_ratio(counts, name, self.types)[0]) for name in (*RATIOS, *by_type)}
        if "of" in predictions:
            metrics["accuracy"] = float(predictions["right"].sum() / max(1, predictions["of"].sum()))
        return metrics

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        if metric == "accuracy":
            return (np.stack([predictions["right"], predictions["of"]], 1).astype(float), mean) if "of" in predictions else None
        if metric not in ENTITY_KEYS and metric.removeprefix("f1/") not in self.types:
            return None
        return self._counts(predictions, references), partial(_ratio, metric=metric, types=self.types)

    def class_counts(self, predictions: Arrays, references: Arrays) -> tuple[tuple[str, ...], np.ndarray] | None:
        return self.types, self._counts(predictions, references).sum(0).reshape(3, -1).astype(np.int64)

    def _counts(self, predictions: Arrays, references: Arrays) -> np.ndarray:
        """Return the numbers of correct, predicted and true entities by type, float64 of shape (rows, 3 x types)."""
        rows = [_spans(predictions["prediction"]), _spans(references[self.reference])]
        position = {label: i for i, label in enumerate(self.types)}
        counts = np.zeros((len(rows[0]), 3 * len(position)))
        for i, (predicted, true) in enumerate(zip(*rows, strict=True)):
            for column, spans in enumerate((predicted & true, predicted, true)):
                for (label, _, _), count in spans.items():
                    counts[i, column * len(position) + position[label]] += count
        return counts

    def higher_is_better(self, metric: str) -> bool:
        return metric.startswith("f1/") or metric in ENTITY_KEYS or super().higher_is_better(metric)

    def bounds(self, metric: str) -> tuple[float, float]:
        return (0.0, 1.0) if metric.startswith("f1/") or metric in ENTITY_KEYS else super().bounds(metric)

    def examples(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return the most frequent entities that were missed, and those that were predicted without a reason."""
        lines = []
        rows = list(zip(predictions["prediction"], references[self.reference], strict=True))
        for name, wrong in (("missed", [row[::-1] for row in rows]), ("not in the references", rows)):
            counts: Counter[str] = Counter()
            for first, second in wrong:
                known = _key_counts(second)
                counts.update(f"{each['text']!r} ({each['label']})" for each in first if _key(each) not in known)
            if counts:
                lines.append(f"{name}: {', '.join(text for text, _ in counts.most_common(5))}")
        return lines


def _key(entity: Any) -> tuple[str, int, int]:
    return entity["label"], entity["start"], entity["end"]


def _key_counts(entities: Any) -> "Counter[tuple[str, int, int]]":
    return Counter(map(_key, entities))


def _spans(column: np.ndarray) -> "list[Counter[tuple[str, int, int]]]":
    return [_key_counts(entities) for entities in column]


def _ratio(sums: np.ndarray, metric: str, types: tuple[str, ...]) -> np.ndarray:
    """Compute a metric from sums of `EntityScorer._counts`, of shape (resamples, 3 x types); 0 for 0 / 0.

    Returns:
        float64 of shape (resamples,).
    """
    correct, predicted, true = np.split(sums, 3, axis=1)
    if metric.startswith("f1/"):
        chosen = [types.index(metric.removeprefix("f1/"))]
        correct, predicted, true = correct[:, chosen], predicted[:, chosen], true[:, chosen]
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric == "f1_macro":
            occurs = (predicted + true) > 0
            return np.nan_to_num((np.nan_to_num(2 * correct / (predicted + true)) * occurs).sum(1) / occurs.sum(1))
        correct, predicted, true = correct.sum(1), predicted.sum(1), true.sum(1)
        denominator = {"precision": predicted, "recall": true}.get(metric, (predicted + true) / 2)
        return np.nan_to_num(correct / denominator)
