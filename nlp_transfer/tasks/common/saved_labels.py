"""Read the labels of a saved model from its configuration, and compare them with those of its task."""

from typing import Any

from nlp_transfer.models.checkpoint import Checkpoint, check_head
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.utils.errors import UserError

TASK_OF_PROBLEM = {"multi_label_classification": "multi_label", "regression": "regression"}


def task_for_config(checkpoint: Checkpoint) -> Task:
    """Create the task of a model that this toolkit did not save, from the head and labels in its configuration.

    Raises:
        UserError: If the model has no head, an unknown head, or a head for an unsupported task such as token classification.
    """
    config: Any = checkpoint.config
    if config.is_encoder_decoder and checkpoint.head != "SequenceClassification":
        if not checkpoint.architecture:  # the model could be a classifier or a translation model
            raise UserError(
                f"model: {checkpoint.source.name} is a {config.model_type} model, and config.json has no `architectures`, which "
                "tells whether it generates text or classifies; allowed: a configuration that was saved with the model"
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
    """Return the label names in a configuration, ordered by id, with None for an id without a name."""
    return [None if (name := config.id2label.get(i)) is None else str(name) for i in range(config.num_labels)]


def check_schema(task: Task, checkpoint: Checkpoint) -> None:
    """Check that the configuration and the task have the same labels in the same order.

    Raises:
        UserError: If they differ.
    """
    labels = list(task.scorer.labels)
    if not labels:
        return
    config: Any = checkpoint.config
    configured = _configured(config)
    if configured != labels:
        raise UserError(
            f"{checkpoint.source.name}: config.json has the labels {configured[:5]}..., nlp_transfer.json {labels[:5]}...; "
            "one of the files was changed, so predictions would have wrong labels"
        )
