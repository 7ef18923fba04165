"""The label schema of a saved model: read from a configuration, and checked where two places speak of it."""

from typing import Any

from nlp_transfer.models.checkpoint import Checkpoint, check_head
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.utils.errors import UserError

TASK_OF_PROBLEM = {"multi_label_classification": "multi_label", "regression": "regression"}


def task_for_config(checkpoint: Checkpoint) -> Task:
    """The task of a model saved elsewhere, as far as its configuration tells: its kind and its labels.

    Raises:
        UserError: it was saved with a head for something else, such as token classification, or does not say with which.
    """
    config: Any = checkpoint.config
    if config.is_encoder_decoder and checkpoint.head != "SequenceClassification":
        if not checkpoint.architecture:  # a BART classifier could be read as a translation model as well
            raise UserError(
                f"model: {checkpoint.source.name} is a {config.model_type} model, and config.json has no `architectures`, which "
                "says whether it writes text or classifies; allowed: a configuration that was saved with the model"
            )
        check_head(checkpoint, "ConditionalGeneration")
        return task_from({"name": "translation"})
    check_head(checkpoint)
    name = TASK_OF_PROBLEM.get(config.problem_type or "", "text_classification")
    if name == "text_classification" and config.num_labels == 1:
        name = "regression"
    labels = [] if name == "regression" else _configured(config)
    if None in labels:
        raise UserError(
            f"model: {checkpoint.source.name}: config.json has id2label {dict(config.id2label)}; allowed: a name for each id "
            f"from 0 to {config.num_labels - 1}"
        )
    return task_from({"name": name} | ({"labels": labels} if labels else {}))


def _configured(config: Any) -> list[str | None]:
    """Return the names of the labels in a configuration, in the order of their ids; None for an id without a name."""
    return [None if (name := config.id2label.get(i)) is None else str(name) for i in range(config.num_labels)]


def check_schema(task: Task, checkpoint: Checkpoint) -> None:
    """Raises a UserError where the configuration's labels are not those of the task, in its order."""
    labels = getattr(task, "labels", None)
    if not labels:
        return
    config: Any = checkpoint.config
    configured = _configured(config)
    if configured != labels:
        raise UserError(
            f"{checkpoint.source.name}: config.json has the labels {configured[:5]}..., nlp_transfer.json {labels[:5]}...; "
            "one of the files was changed, and answers would carry wrong names"
        )
