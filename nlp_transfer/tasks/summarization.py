"""Summarization: write a shorter, corrected or rephrased text for a text."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.evaluation.metrics.rouge_metrics import ROUGE_KEYS, missing_package
from nlp_transfer.evaluation.metrics.summarization_scorer import SummarizationScorer
from nlp_transfer.models.seq2seq.generation import ROWS, generate_texts
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.base_settings import Count
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Arrays, TaskTraits
from nlp_transfer.tasks.common.generation_setup import sample_lengths
from nlp_transfer.tasks.common.task import token_limit
from nlp_transfer.tasks.common.text_generation import TextGenerationTask
from nlp_transfer.utils.errors import Problems, UserError

LONGEST_SUMMARY = 128  # maximum tokens of a summary if there are no training data


class Summarization(TextGenerationTask):
    """Summaries, headlines, corrections or paraphrases with an encoder-decoder model, by beam search.

    The text may be identical to its summary, as in the correction of errors. Long texts are truncated.
    """

    traits: ClassVar[TaskTraits] = replace(
        TextGenerationTask.traits, metrics=("token_accuracy", *ROUGE_KEYS), validation_settings=("summarized_rows",),
        pipeline="summarization", card=Path(__file__).with_name("summarization_card.md"),
    )  # fmt: skip
    sides: ClassVar[tuple[str, str]] = ("text", "summary")
    drafted_rows: ClassVar[str] = "summarized_rows"

    text: Annotated[str, UsedBy("evaluate", "predict")] = "text"
    """The column with the text."""
    summary: Annotated[str, UsedBy("evaluate")] = "summary"
    """The column with its summary."""
    summarized_rows: Annotated[int, Field(ge=0), UsedBy()] = 200
    """Number of validation rows summarized at each evaluation during training, by greedy search. The final evaluation summarizes
    all rows."""
    max_new_tokens: Annotated[Count | None, UsedBy("evaluate", "predict")] = None
    """Maximum length of a summary in tokens. null: 25 % above the length in the training data."""

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        if training is not None and (reason := missing_package()) is not None:
            problems.add(f"task.name: {reason}")
        return super().fit(train, problems, training)

    def check_lengths(self) -> None:
        if self.max_new_tokens and self.max_new_tokens > token_limit(self):
            raise UserError(
                f"task.max_new_tokens: found {self.max_new_tokens}; allowed: up to task.max_length, {self.max_length}"
            )

    def fit_lengths(self, train: Rows) -> Self:
        self.tokenizers.check_room(token_limit(self), None)
        usual = math.ceil(float(np.quantile(sample_lengths(self, train)[1], 0.999)) * 1.25)
        return self.model_copy(update={"max_new_tokens": self.max_new_tokens or min(usual, token_limit(self))})

    def target_limit(self, source_tokens: int) -> int:
        return min(self.max_new_tokens or LONGEST_SUMMARY, token_limit(self))

    def generate(self, model: Any, texts: list[str], beams: int | None = None, rows: int = ROWS) -> Arrays:
        """Summarize texts; `truncated`: whether the text is longer than `max_length`, bool of shape (texts,)."""
        search = self.longest_piece, self.target_limit, beams or self.beams, self.length_penalty, rows
        summaries, truncated = generate_texts(model, self.tokenizers, texts, *search)
        return {"prediction": np.array(summaries, object), "truncated": truncated}

    @property
    def scorer(self) -> SummarizationScorer:
        return SummarizationScorer(
            self.traits.best_metric, language=self.target_language, draft_rows=self.summarized_rows, max_length=self.max_length
        )
