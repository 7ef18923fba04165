"""The part of the task protocol that concerns data: columns, checks and splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import PrivateAttr

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.settings.schema import Count, Settings, TrainingConfig
from nlp_transfer.utils.errors import BadRow, Problems

MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_LABEL = 20, 3


class TaskData(Settings, ABC):
    """How a task reads, checks and splits its rows. Base class of `Task`."""

    aligned: ClassVar[bool] = False
    """Whether data may consist of two line-aligned files, one with sources and one with targets."""

    filters: ClassVar[tuple[str, ...]] = ()
    """Allowed values of `data.filter`."""

    while_training: ClassVar[tuple[str, ...]] = ()
    """Settings that have no effect without a validation split."""

    max_length: Count | None = None
    """Maximum input length in tokens. null: 512, or the limit of the checkpoint if that is lower."""

    _changed: set[str] = PrivateAttr(default_factory=set)

    @property
    def changed(self) -> set[str]:
        """Names of the settings that were overridden when the saved task was loaded."""
        return self._changed

    @abstractmethod
    def input_columns(self) -> list[str]:
        """Return the columns required for prediction."""

    @abstractmethod
    def target_columns(self) -> list[str]:
        """Return the columns that contain the target."""

    def columns(self) -> list[str]:
        """Return the columns required for training and evaluation."""
        return [*self.input_columns(), *self.target_columns()]

    def models(self) -> dict[str, list[str]]:
        """Return the models named in the task's settings, by setting. A resumed run must name the same models."""
        return {}

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        """Report training settings that are incompatible with this task, such as class weights in regression."""

    @abstractmethod
    def fit(self, train: Rows, problems: Problems) -> Self:
        """Return a copy with values learned from the training rows, such as the labels. Report data that cannot be trained on."""

    def fit_settings(self, problems: Problems) -> Self:
        """Return a fitted copy for a run without training data, based on the settings only."""
        problems.add("data.train: is required and was not given; this task learns its possible predictions from these rows")
        return self

    @abstractmethod
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        """Check every cell.

        Report bad rows, which can be skipped, with `problems.add_row`. Report problems that must end the run with `problems.add`.
        """

    def filter(self, train: Rows, names: Sequence[str]) -> dict[int, BadRow]:
        """Return the training rows, by index, that the named filters remove. Called before `check`."""
        return {}

    def check_split(self, train: Rows, problems: Problems) -> None:
        """Check that the training data can be split."""

    def least_validation(self) -> int:
        """Return the minimum number of validation rows for a reliable selection of the best weights."""
        return max(MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_LABEL * len(getattr(self, "labels", None) or []))

    @abstractmethod
    def keys(self, rows: Rows) -> Iterable[str]:
        """Yield the input of each row as one text. Rows with the same `normalized` key are always in the same split.

        Join several texts by a separator surrounded by spaces: normalization then removes spaces at the ends of each text.
        """

    @abstractmethod
    def strata(self, rows: Rows) -> np.ndarray:
        """Return the stratum of each row for a stratified split, int64 of shape (rows,)."""

    @abstractmethod
    def report(self, train: Rows) -> list[str]:
        """Return lines that describe the training data, such as the class balance or the range of values."""
