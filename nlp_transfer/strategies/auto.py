"""Choose one of several strategies by trials on the training rows, and train with it.

When to use it: if it is not known which strategy suits the data. The result is that of the chosen strategy.

Cost: up to a quarter of `minutes`, before training.

Each candidate that can finish in time is trained on the same training rows and scored on the same held-out fold of train. Of the
candidates within one standard error of the best one, the fastest is chosen (the one-standard-error rule of Breiman et al. 1984,
"Classification and Regression Trees"). While there is time, further folds are held out, and candidates that are measurably worse
than the best one are dropped (as in the races of Maron and Moore 1994, "Hoeffding Races").
"""

from typing import Annotated, Any

from pydantic import Field, field_validator

from nlp_transfer.settings.base_settings import Document, Positive
from nlp_transfer.settings.schema import DataConfig, expand_name
from nlp_transfer.strategies import SENTENCE_MODEL, Choice, Strategy, StrategyTraits, check_strategy, strategy_from
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems


class Auto(Strategy):
    """Train with the one of several candidates that is best in trials."""

    minutes: Positive = 30.0
    """Minutes for choosing and training together. Trials take up to a quarter of it. Candidates whose training is estimated to
    take longer than the rest are left out."""
    candidates: Annotated[list[Document], Field(min_length=1)] = [
        {"name": "few_shot"}, {"name": "features"}, {"name": "lora"}, {"name": "full"}
    ]  # fmt: skip
    """Strategies to choose from: names, or settings such as {name: lora, r: 8}. Those that do not support the task or the other
    settings are left out. The first one is used if there are too few rows for a trial."""

    @property
    def traits(self) -> StrategyTraits:
        parts = [strategy_from(candidate).traits for candidate in self.candidates]
        return StrategyTraits(
            position="alone",
            needs_validation=any(part.needs_validation for part in parts),
            uses_weights=any(part.uses_weights for part in parts),
            uses_unlabelled=any(part.uses_unlabelled for part in parts),
            default_model=SENTENCE_MODEL,
            choice=Choice(self.candidates, 60 * self.minutes),
        )

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        found = [Problems() for _ in self.candidates]
        for candidate, of_candidate in zip(self.candidates, found, strict=True):
            check_strategy(strategy_from(candidate), data, task, of_candidate)
        if all(found):
            problems.extend(message for of_candidate in found for message in of_candidate.messages)
        return task

    @field_validator("candidates", mode="before")
    @classmethod
    def _expand_names(cls, value: Any) -> Any:
        return expand_name(value) if isinstance(value, list) else value

    @field_validator("candidates")
    @classmethod
    def _are_strategies(cls, value: list[Document]) -> list[Document]:
        documents = [strategy_from(candidate) for candidate in value]
        if any(strategy.traits.choice for strategy in documents):
            raise ValueError("strategies other than auto")
        if any(document in documents[:i] for i, document in enumerate(documents)):
            raise ValueError("each strategy once")
        return value
