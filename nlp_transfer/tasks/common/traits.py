"""Facts about a task class that are true for all settings. The rest of the package relies on them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from nlp_transfer.data.sources.task_formats import Readers


@dataclass(frozen=True, kw_only=True)
class TaskTraits:
    """Facts about the class of a task.

    A class changes those of its base class with `dataclasses.replace(Base.traits, ...)`.

    Attributes:
        prediction: What is predicted for a row, such as `label`, `labels`, `number`, `text`; other words for user-defined tasks.
        metrics: Names of all metrics, any of which can be `training.best_metric`.
        best_metric: Validation metric that selects the best weights, unless `training.best_metric` is set.
        output: Name of the output column with the prediction.
        command: Command that predicts with the models of the task: `predict` or `translate`.
        word_lists: Whether an input may be a list of words instead of a text.
        has_probabilities: Whether predictions have a column `probability`, and `probability:LABEL` for each label.
        classes: Whether rows have classes, which class weights, oversampling, the focal loss and `shots` require.
        aligned: Whether data may consist of two line-aligned files, one with sources and one with targets.
        filters: Allowed values of `data.filter`.
        validation_settings: Settings that have no effect without a validation split.
        untokenized: Settings that do not affect the tokens.
        auto_class: Name of the transformers Auto class that loads the models of the task.
        architecture: The part after `For` in the class names of these models, such as `SequenceClassification`.
        pipeline: Tag of the task on the Hugging Face Hub.
        card: Template of the model card, which extends `model_card.md`. None means the card for any task.
        fixed: Settings that cannot be changed after training.
        configured: Function that gets the configuration of a model that another program saved with the head in `architecture`. It
            returns the settings of the task, or None if the model has another task.
        readers: For the extension of each file format that only this task supports, the function that reads it. The function gets
            the path of a file; it yields the rows as dictionaries, and a `Fault` instead of a row that cannot be used. It returns
            None if the file is an ordinary table.
        calibration: Function that returns the `Calibration` of a task, which is fitted on the validation split after training, or
            None if its settings ask for none.
    """

    prediction: str
    metrics: tuple[str, ...]
    best_metric: str
    output: str = "prediction"
    command: str = "predict"
    word_lists: bool = False
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
    configured: Callable[[Any], Mapping[str, Any] | None] | None = None
    readers: Readers = field(default_factory=dict)
    calibration: Callable[[Any], Any] = lambda task: None

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
