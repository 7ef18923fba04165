"""The part of the task protocol that concerns data: columns, checks and splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import PrivateAttr

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import Count, Settings, TrainingConfig
from nlp_transfer.tasks.common.traits import TaskTraits
from nlp_transfer.utils.errors import Problems

MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_LABEL = 20, 3


class TaskData(Settings, ABC):
    """How a task reads, checks and splits its rows. Base class of `Task`."""

    traits: ClassVar[TaskTraits]
    """Facts about the task that do not depend on its settings."""

    max_length: Count | None = None
    """Maximum input length in tokens. null: 512, or the limit of the checkpoint if that is lower."""

    _changed: set[str] = PrivateAttr(default_factory=set)

    @property
    def changed(self) -> set[str]:
        """Names of the settings that were overridden when the saved task was loaded."""
        return self._changed

    @property
    @abstractmethod
    def inputs(self) -> list[str]:
        """The columns required for prediction."""

    @property
    @abstractmethod
    def targets(self) -> list[str]:
        """The columns that contain the target, required in addition for training and evaluation."""

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

    def document(self) -> dict[str, Any]:
        """Return the name and settings of the task as JSON, the input of `task_from`."""
        return {"name": registry.name_of(type(self)), **self.model_dump(mode="json")}
