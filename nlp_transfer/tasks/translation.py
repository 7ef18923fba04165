"""Translation: translate a text into another language."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from nlp_transfer.data.parallel_texts import check_not_copies
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.evaluation.metrics.translation_scorer import TranslationScorer
from nlp_transfer.models.seq2seq.generation import ROWS, translate
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.base_settings import Count
from nlp_transfer.tasks import Arrays, TaskTraits
from nlp_transfer.tasks.common.generation_setup import sample_lengths
from nlp_transfer.tasks.common.task import token_limit
from nlp_transfer.tasks.common.text_generation import TextGenerationTask
from nlp_transfer.utils.errors import Problems, UserError

LENGTH_OFFSET = 8  # tokens added to source lengths before computing ratios, since the ratios of short texts vary more


class Translation(TextGenerationTask):
    """Translation with an encoder-decoder model, by beam search. Long texts are translated in pieces."""

    traits: ClassVar[TaskTraits] = replace(
        TextGenerationTask.traits, metrics=("token_accuracy", "bleu", "chrf"), command="translate", output="translation",
        validation_settings=("translated_rows",), pipeline="translation", card=Path(__file__).with_name("translation_card.md"),
    )  # fmt: skip
    sides: ClassVar[tuple[str, str]] = ("source", "target")
    drafted_rows: ClassVar[str] = "translated_rows"
    parallel: ClassVar[bool] = True

    source: Annotated[str, UsedBy("evaluate", "translate")] = "source"
    """The column with the text to translate."""
    target: Annotated[str, UsedBy("evaluate")] = "target"
    """The column with its translation."""
    translated_rows: Annotated[int, Field(ge=0), UsedBy()] = 200
    """Number of validation rows translated at each evaluation during training, by greedy search. The final evaluation translates
    all rows."""
    length_ratio: Annotated[Annotated[float, Field(gt=0)] | None, UsedBy("evaluate", "translate")] = None
    """Maximum target length, as a factor on the source length + 8 tokens. null: 25 % above the ratio in the training data."""
    longest_source: Annotated[Count | None, UsedBy("evaluate", "translate")] = None
    """Maximum source length in tokens. Longer texts are translated in pieces. null: 50 % above the length in the training
    data."""

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        super().check(rows, problems, targets)
        if targets:
            check_not_copies(rows, self.source, self.target, problems)

    def check_lengths(self) -> None:
        if self.longest_source and self.longest_source > token_limit(self):
            raise UserError(
                f"task.longest_source: found {self.longest_source}; allowed: up to task.max_length, {self.max_length}"
            )

    def fit_lengths(self, train: Rows) -> Self:
        self.tokenizers.check_room(token_limit(self), self.longest_source)
        source, target = sample_lengths(self, train)
        ratio = float(np.quantile(target / (source + LENGTH_OFFSET), 0.999)) * 1.25
        longest = max(16, math.ceil(float(np.quantile(source, 0.999)) * 1.5))
        longest = min(self.longest_source or longest, token_limit(self))
        return self.model_copy(update={"length_ratio": self.length_ratio or round(ratio, 3), "longest_source": longest})

    @property
    def longest_piece(self) -> int:
        limit = token_limit(self)
        return min(self.longest_source or limit, limit)

    def target_limit(self, source_tokens: int) -> int:
        return min(token_limit(self), math.ceil((self.length_ratio or 2.0) * (source_tokens + LENGTH_OFFSET)))

    def generate(self, model: Any, texts: list[str], beams: int | None = None, rows: int = ROWS) -> Arrays:
        """Translate texts of any length; `pieces`: the number of pieces of each text, int64 of shape (texts,)."""
        beams, limits = beams or self.beams, (self.longest_piece, self.target_limit)
        translations, pieces = translate(model, self.tokenizers, texts, *limits, beams, self.length_penalty, rows)
        return {"prediction": np.array(translations, object), "pieces": pieces}

    @property
    def scorer(self) -> TranslationScorer:
        return TranslationScorer(
            self.traits.best_metric, language=self.target_language, draft_rows=self.translated_rows,
            max_length=self.max_length, longest_piece=self.longest_piece,
        )  # fmt: skip
