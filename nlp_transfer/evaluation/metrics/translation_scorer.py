"""Scores generated texts as translations."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlp_transfer.data.parallel_texts import draw_rows
from nlp_transfer.evaluation.metrics.scorer import Arrays, Scorer, Sums, mean
from nlp_transfer.evaluation.metrics.translation_metrics import (
    TRANSLATION_KEYS,
    compute_translation_metrics,
    translation_signatures,
    translation_statistics,
)

EXAMPLES = 3


@dataclass(frozen=True)
class TranslationScorer(Scorer):
    """Scores translations with sacreBLEU, and the accuracy of predicted tokens.

    For each row, predictions also include `pieces`, the number of pieces in which the source was translated; `right`, the
    number of target tokens that were predicted correctly; and `of`, the number of all target tokens. References also include
    `sources`.

    Attributes:
        language: The target language.
        draft_rows: Maximum number of rows to translate during training.
        max_length, longest_piece: Maximum number of tokens of a text whose loss is computed, and of a piece of a source. Both
        appear in notes to the user.
    """

    language: str | None = None
    draft_rows: int = 0
    max_length: int | None = None
    longest_piece: int | None = None
    reference: ClassVar[str] = "references"

    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        """Return `token_accuracy` on truncated texts, and the results of `compute_translation_metrics` on the translated rows."""
        metrics = {"token_accuracy": float(predictions["right"].sum() / predictions["of"].sum())}
        translated = np.array([text is not None for text in predictions["prediction"]])
        if translated.any():
            columns = (predictions["prediction"], references[self.reference])
            texts, expected = (column[translated].tolist() for column in columns)
            metrics |= compute_translation_metrics(texts, expected, self.language, brief=not translated.all())
        return metrics

    def compare_by(self, best_metric: str | None) -> str:
        """Return `best_metric` if it measures translations, otherwise `bleu`."""
        return "bleu" if best_metric in (None, "loss", "token_accuracy") else str(best_metric)

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        if metric == "token_accuracy":
            return np.stack([predictions["right"], predictions["of"]], 1).astype(float), mean
        if metric not in TRANSLATION_KEYS:
            return None
        texts, expected = predictions["prediction"].tolist(), references[self.reference].tolist()
        return translation_statistics(metric, texts, expected, self.language)

    def draft(self, rows: int) -> tuple[np.ndarray | None, dict[str, float]]:
        chosen = np.zeros(rows, bool)
        chosen[draw_rows(rows, self.draft_rows)] = True
        return chosen, {"translated_rows": min(rows, self.draft_rows), "beams": 1} if self.draft_rows else {}

    def examples(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return some translations with sources and references, and a note on how many sources were translated in pieces."""
        lines = []
        if long := int((predictions["pieces"] > 1).sum()):
            lines.append(
                f"{long} of {len(predictions['pieces'])} sources have more than {self.longest_piece} tokens and were translated "
                f"in pieces; loss and token_accuracy are computed on the first {self.max_length} tokens of each text"
            )
        columns = {"source": references["sources"], "translation": predictions["prediction"]}
        columns["reference"] = references[self.reference]
        for row in np.linspace(0, len(columns["reference"]) - 1, EXAMPLES).astype(np.int64):
            lines += [f"{name + ':':<12} {texts[row]}" for name, texts in columns.items()]
            lines[-1] += "\n"
        return lines

    def signatures(self) -> dict[str, str]:
        return translation_signatures(self.language)
