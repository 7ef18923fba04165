"""Settings of the threshold from which a label is predicted: a number, or the goal for which it is chosen on validation."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nlp_transfer.settings.base_settings import Positive, Settings

Probability = Annotated[float, Field(gt=0, lt=1)]


class ErrorCosts(Settings):
    """What a wrong prediction costs, in any unit."""

    false_positive: Positive
    """Cost of predicting a label that a row does not have."""
    false_negative: Positive
    """Cost of not predicting a label that a row has."""


class ThresholdGoal(Settings):
    """What a threshold is chosen for. Exactly one of the fields is set."""

    cost: ErrorCosts | None = None
    """Choose the threshold with the lowest total cost of errors."""
    recall_at_precision: Annotated[float, Field(gt=0, le=1)] | None = None
    """Choose the threshold with the highest recall among those with at least this precision."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.cost is None) == (self.recall_at_precision is None):
            raise ValueError("either `cost` or `recall_at_precision`")
        return self


Goal = Literal["f1", "f1_per_label"] | ThresholdGoal


def goal_of(threshold: Any) -> Goal | None:
    """Return a threshold if it is not a number yet, but a goal for which it is chosen on validation; otherwise None."""
    return threshold if isinstance(threshold, (str, ThresholdGoal)) else None  # type: ignore[return-value]
