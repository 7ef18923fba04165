"""Scores generated texts as translations."""

from dataclasses import dataclass
from typing import ClassVar

from nlp_transfer.evaluation.metrics.generation_scorer import GenerationScorer
from nlp_transfer.evaluation.metrics.scorer import Arrays, Sums
from nlp_transfer.evaluation.metrics.translation_metrics import (
    TRANSLATION_KEYS,
    compute_translation_metrics,
    translation_signatures,
    translation_statistics,
)


@dataclass(frozen=True)
class TranslationScorer(GenerationScorer):
    """Scores translations with sacreBLEU.

    Predictions also include `pieces`, the number of pieces in which each source was translated.

    Attributes:
        longest_piece: Maximum tokens of a piece of a source, for notes.
    """

    longest_piece: int | None = None
    main: ClassVar[str] = "bleu"
    row_metric: ClassVar[str | None] = "chrf"  # BLEU is 0 for most single sentences
    draft_setting: ClassVar[str] = "translated_rows"
    names: ClassVar[tuple[str, str, str]] = ("source", "translation", "reference")

    def compute_texts(self, predictions: list[str], references: list[str], brief: bool) -> dict[str, float]:
        return compute_translation_metrics(predictions, references, self.language, brief)

    def text_sums(self, metric: str, predictions: list[str], references: list[str]) -> Sums | None:
        if metric not in TRANSLATION_KEYS:
            return None
        return translation_statistics(metric, predictions, references, self.language)

    def notes(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return the number of texts translated in pieces."""
        pieces = predictions["pieces"]
        if not (long := int((pieces > 1).sum())):
            return []
        return [
            f"{long} of {len(pieces)} sources have more than {self.longest_piece} tokens and were translated in pieces; loss and "
            f"token_accuracy are computed on the first {self.max_length} tokens of each text"
        ]

    def signatures(self) -> dict[str, str]:
        return translation_signatures(self.language)
