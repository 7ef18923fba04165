"""Scores generated texts as summaries."""

from dataclasses import dataclass
from typing import ClassVar

from nlp_transfer.evaluation.metrics.generation_scorer import GenerationScorer
from nlp_transfer.evaluation.metrics.rouge_metrics import (
    ROUGE_KEYS,
    compute_rouge,
    ignored_letters,
    is_english,
    mean_statistics,
    rouge_scores,
    rouge_signatures,
)
from nlp_transfer.evaluation.metrics.scorer import Arrays, Sums

MANY = 0.1  # share of letters that ROUGE ignores from which on a warning is printed


@dataclass(frozen=True)
class SummarizationScorer(GenerationScorer):
    """Scores summaries with ROUGE.

    Predictions also include `truncated`, whether each source was longer than the model reads.
    """

    main: ClassVar[str] = "rougeL"
    row_metric: ClassVar[str | None] = "rougeL"
    draft_setting: ClassVar[str] = "summarized_rows"
    names: ClassVar[tuple[str, str, str]] = ("text", "summary", "reference")
    shown: ClassVar[int | None] = 300

    def compute_texts(self, predictions: list[str], references: list[str], brief: bool) -> dict[str, float]:
        return compute_rouge(predictions, references, self.language, brief)

    def text_sums(self, metric: str, predictions: list[str], references: list[str]) -> Sums | None:
        if metric not in ROUGE_KEYS:
            return None
        return mean_statistics(rouge_scores(predictions, references, self.language, [metric])[:, 0])

    def higher_is_better(self, metric: str) -> bool:
        return metric in ROUGE_KEYS or super().higher_is_better(metric)

    def bounds(self, metric: str) -> tuple[float, float]:
        return (0.0, 100.0) if metric in ROUGE_KEYS else super().bounds(metric)

    def notes(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return how many texts were truncated, how many summaries are empty or copies, and whether ROUGE ignores letters."""
        texts, sources, expected = predictions["prediction"], references["sources"], references[self.reference]
        rows, lines = len(texts), []
        if truncated := int(predictions["truncated"].sum()):
            lines.append(f"{truncated} of {rows} texts have more than {self.max_length} tokens; the model read only these")
        empty, copies = int((texts == "").sum()), int((texts == sources).sum())
        if empty or copies:
            lines.append(
                f"of {rows} predictions, {empty} are empty and {copies} are equal to their text "
                f"(of the references, {int((expected == sources).sum())})"
            )
        if is_english(self.language) and (share := ignored_letters(expected.tolist())) > MANY:
            lines.append(
                f"warning: ROUGE ignores {share:.0%} of the letters of the references, since it is computed as for English; set "
                "task.target_language"
            )
        return lines

    def signatures(self) -> dict[str, str]:
        return rouge_signatures(self.language)
