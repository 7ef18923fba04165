"""The data half of the task protocol: settings, columns, checks and splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import PrivateAttr

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import Count, Settings, TrainingConfig
from nlp_transfer.utils.errors import BadRow, Problems

MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_LABEL = 20, 3


class TaskData(Settings, ABC):
    """How a task reads, checks and splits its rows. Base class of `Task`."""

    aligned: ClassVar[bool] = False
    """Whether the data may be two line-aligned files, one of sources and one of targets."""

    filters: ClassVar[tuple[str, ...]] = ()
    """Allowed values of `data.filter`."""

    while_training: ClassVar[tuple[str, ...]] = ()
    """Settings that only have an effect if there is a validation split."""

    max_length: Count | None = None
    """Maximum input length in tokens. null: 512, or the limit of the checkpoint if that is lower."""

    _changed: set[str] = PrivateAttr(default_factory=set)

    @property
    def changed(self) -> set[str]:
        """Names of the settings that were overridden when the saved task was loaded."""
        return self._changed

    @abstractmethod
    def input_columns(self) -> list[str]:
        """Return the columns that a row needs for prediction."""

    @abstractmethod
    def target_columns(self) -> list[str]:
        """Return the columns that hold the target."""

    def columns(self) -> list[str]:
        """Return all columns that a row needs for training and evaluation."""
        return [*self.input_columns(), *self.target_columns()]

    def models(self) -> dict[str, list[str]]:
        """Return the models named in the task's settings, by setting. A resumed run must name the same models."""
        return {}

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        """Check that the training settings suit this task; a regression has no class weights, for example."""

    @abstractmethod
    def fit(self, train: Rows, problems: Problems) -> Self:
        """Return a copy that has learned from the training rows, such as the labels; report what makes training impossible."""

    def fit_settings(self, problems: Problems) -> Self:
        """Return the fitted copy for a run without training data, which must follow from the settings alone."""
        problems.add("data.train: is required and was not given; this task learns its possible predictions from these rows")
        return self

    @abstractmethod
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        """Check every cell.

        Report bad rows with `problems.add_row`: they can be skipped. Report everything else with `problems.add`: it ends the run.
        """

    def filter(self, train: Rows, names: Sequence[str]) -> dict[int, BadRow]:
        """Return the training rows, by index, that the named `filters` remove. The cells have not been checked yet."""
        return {}

    def check_split(self, train: Rows, problems: Problems) -> None:
        """Check that rows can be held out of the training data."""

    def least_validation(self) -> int:
        """Return the number of validation rows below which the metrics are too uncertain to select the best weights."""
        return max(MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_LABEL * len(getattr(self, "labels", None) or []))

    @abstractmethod
    def keys(self, rows: Rows) -> Iterable[str]:
        """Yield the input of each row as one text. Rows with nearly equal keys (`normalized`) never appear in two splits.

        Join several texts by a separator surrounded by spaces, so that spaces at their ends are ignored.
        """

    @abstractmethod
    def strata(self, rows: Rows) -> np.ndarray:
        """Return the stratum of each row for a stratified split, int64 of shape (rows,)."""

    @abstractmethod
    def report(self, train: Rows) -> list[str]:
        """Describe the training data for the user before training, such as the class balance or the range of values."""

    def document(self) -> dict[str, Any]:
        """Return the task as JSON: its name and its settings. `task_from` reads it back."""
        return {"name": registry.name_of(type(self)), **self.model_dump(mode="json")}
