"""Facts about a task that hold for all of its settings, on which the rest of the package relies."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers


@dataclass(frozen=True, kw_only=True)
class TaskTraits:
    """Facts about the class of a task.

    A class changes those of its base class with `dataclasses.replace(Base.traits, ...)`.

    Attributes:
        prediction: Kind of prediction for a row: `label`, `labels`, `number`, `text`, or a word of a user's task.
        metrics: Names of all metrics, any of which can be `training.best_metric`.
        best_metric: Validation metric by which the best weights are selected, unless `training.best_metric` is set.
        output: Name of the output column with the prediction.
        command: Command that predicts with the models of the task: `predict` or `translate`.
        has_probabilities: Whether predictions have a column `probability`, and `probability:LABEL` for each label.
        classes: Whether rows have classes, so that class weights, oversampling, the focal loss and `shots` make sense.
        aligned: Whether data may consist of two line-aligned files, one with sources and one with targets.
        filters: Allowed values of `data.filter`.
        validation_settings: Settings that have no effect without a validation split.
        untokenized: Settings that tokens do not depend on.
        auto_class: Name of the transformers Auto class that loads the models of the task.
        architecture: How names of these models' classes end, after `For`.
        pipeline: Tag of the task on the Hugging Face Hub.
        card: Template of the model card, which extends `model_card.md`. None: a card that holds for any task.
        fixed: Settings that cannot be changed after training.
        readers: Functions that read files in a format of the task's own, by file extension. They get the path of a file and yield
            its rows as dictionaries, or return None for a file that is an ordinary table.
    """

    prediction: str
    metrics: tuple[str, ...]
    best_metric: str
    output: str = "prediction"
    command: str = "predict"
    has_probabilities: bool = False
    classes: bool = False
    aligned: bool = False
    filters: tuple[str, ...] = ()
    validation_settings: tuple[str, ...] = ()
    untokenized: frozenset[str] = frozenset()
    auto_class: str = "AutoModelForSequenceClassification"
    architecture: str = "SequenceClassification"
    pipeline: str = "text-classification"
    card: Path | None = None
    fixed: tuple[str, ...] = ()
    readers: Mapping[str, Callable[[Path], Iterable[Mapping[str, Any]] | None]] = field(default_factory=dict)

    @property
    def generates(self) -> bool:
        """Whether the models of the task generate text with a decoder."""
        return self.architecture == "ConditionalGeneration"

    @property
    def pools(self) -> bool:
        """Whether the models of the task predict from one vector per text."""
        return self.architecture == "SequenceClassification"

    def load_auto_class(self) -> Any:
        """Return the transformers Auto class that loads the models of the task."""
        return getattr(transformers, self.auto_class)
