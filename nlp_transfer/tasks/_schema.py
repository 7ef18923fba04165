"""The label schema of a saved model: read from a configuration, and checked where two places speak of it."""

from typing import Any

from nlp_transfer.errors import UserError
from nlp_transfer.models import Checkpoint, check_head
from nlp_transfer.tasks import Task, task_from

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
    labels = [] if name == "regression" else [config.id2label[i] for i in range(config.num_labels)]
    return task_from({"name": name} | ({"labels": labels} if labels else {}))


def check_schema(task: Task, checkpoint: Checkpoint) -> None:
    """Raises a UserError where the configuration's labels are not those of the task, in its order."""
    labels = getattr(task, "labels", None)
    if not labels:
        return
    config: Any = checkpoint.config
    configured = [config.id2label.get(i) for i in range(config.num_labels)]
    if configured != labels:
        raise UserError(
            f"{checkpoint.source.name}: config.json has the labels {configured[:5]}..., nlp_transfer.json {labels[:5]}...; "
            "one of the files was changed, and answers would carry wrong names"
        )
