"""Scores generated texts: predicted tokens on all rows, and metrics of texts on the rows that were generated."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlp_transfer.data.parallel_texts import draw_rows
from nlp_transfer.evaluation.metrics.scorer import Arrays, Form, Scorer, Sums, mean

EXAMPLES = 3


@dataclass(frozen=True)
class GenerationScorer(Scorer):
    """Scores generated texts, and predicted tokens.

    Predictions also include the number of target tokens that were predicted correctly (`right`) and of all target tokens (`of`),
    unless the model has no logits.
    References also include `sources`.

    Attributes:
        language: The target language.
        draft_rows: Maximum number of rows to generate during training.
        max_length: Limit in tokens of the texts whose loss is computed, for notes.
    """

    language: str | None = None
    draft_rows: int = 0
    max_length: int | None = None
    reference: ClassVar[str] = "references"
    form: ClassVar[Form] = "texts"
    main: ClassVar[str]
    """The metric of texts by which finished models are compared."""
    draft_setting: ClassVar[str]
    """Name under which the number of drafted rows is logged."""
    names: ClassVar[tuple[str, str, str]]
    """Names of source, prediction and reference in examples."""
    shown: ClassVar[int | None] = None
    """Characters of each text in examples. None: all."""

    @abstractmethod
    def compute_texts(self, predictions: list[str], references: list[str], brief: bool) -> dict[str, float]:
        """Compute the metrics of texts.

        Args:
            brief: Only those that are needed during training.
        """

    @abstractmethod
    def text_sums(self, metric: str, predictions: list[str], references: list[str]) -> Sums | None:
        """Return `sums` for a metric of texts."""

    def notes(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return lines to print before the examples."""
        return []

    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        """Return `token_accuracy` on truncated texts, if it is known, and `compute_texts` on the generated rows."""
        metrics = {"token_accuracy": float(predictions["right"].sum() / predictions["of"].sum())} if "of" in predictions else {}
        generated = np.array([text is not None for text in predictions["prediction"]])
        if generated.any():
            columns = (predictions["prediction"], references[self.reference])
            texts, expected = (column[generated].tolist() for column in columns)
            metrics |= self.compute_texts(texts, expected, brief=not generated.all())
        return metrics

    def compare_by(self, best_metric: str | None) -> str:
        """Return `best_metric` if it measures generated texts, otherwise the main metric of texts."""
        return self.main if best_metric in (None, "loss", "token_accuracy") else str(best_metric)

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        if metric == "token_accuracy":
            return np.stack([predictions["right"], predictions["of"]], 1).astype(float), mean
        return self.text_sums(metric, predictions["prediction"].tolist(), references[self.reference].tolist())

    def draft(self, rows: int) -> tuple[np.ndarray | None, dict[str, float]]:
        chosen = np.zeros(rows, bool)
        chosen[draw_rows(rows, self.draft_rows)] = True
        return chosen, {self.draft_setting: min(rows, self.draft_rows), "beams": 1} if self.draft_rows else {}

    def examples(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return notes, and a few predictions with their sources and references."""
        lines = self.notes(predictions, references)
        columns = (references["sources"], predictions["prediction"], references[self.reference])
        for row in np.linspace(0, len(columns[0]) - 1, EXAMPLES).astype(np.int64):
            for name, texts in zip(self.names, columns, strict=True):
                cut = len(texts[row]) if self.shown is None else self.shown
                lines.append(f"{name + ':':<12} {texts[row][:cut]}{' ...' if len(texts[row]) > cut else ''}")
            lines[-1] += "\n"
        return lines
