"""Read the labels of a saved model from its configuration, and compare them with those of its task."""

from typing import Any

from nlp_transfer.models.checkpoint import Checkpoint, check_head
from nlp_transfer.settings import registry
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.tasks.common.labels import configured_labels
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError


def task_for_config(checkpoint: Checkpoint, name: str | None = None, kind: type[Task] | None = None) -> Task:
    """Create the task of a model that this toolkit did not save, from the head and labels in its configuration.

    Args:
        name: The task of a model that generates text, which its configuration does not tell. None: translation.
        kind: The class of this task. None: look it up by the name.

    Raises:
        UserError: If the model has no head, an unknown head, or a head for an unsupported task, or `name` does not generate text.
    """
    config: Any = checkpoint.config
    if config.is_encoder_decoder and checkpoint.head != "SequenceClassification":
        if not checkpoint.architecture:  # the model could be a classifier or a translation model
            raise UserError(
                f"model: {checkpoint.source.name} is a {config.model_type} model, and config.json has no `architectures`, which "
                "tells whether it generates text or classifies; allowed: a configuration that was saved with the model"
            )
        check_head(checkpoint, "ConditionalGeneration")
        if name is None and kind is None:
            say(
                f"note: {checkpoint.source.name} generates text but does not name its task; translation is assumed (to change "
                'it: --task.name summarization, in Python settings={"name": "summarization"})'
            )
        task = task_from({"name": name or "translation"}, kind)
        if not task.traits.generates:
            raise UserError(
                f"task.name: found {name}; {checkpoint.source.name} generates text; allowed: a task that does, such as "
                "translation or summarization"
            )
        return task
    for known in registry.names("task"):
        if registry.is_outside("task", known):
            continue
        traits = registry.load("task", known).traits
        is_own = traits.architecture == (checkpoint.head or "SequenceClassification")
        if is_own and traits.configured is not None and (settings := traits.configured(config)) is not None:
            if settings and None in configured_labels(config):
                raise UserError(
                    f"model: {checkpoint.source.name}: config.json has id2label {dict(config.id2label)}; allowed: a name for "
                    f"each id from 0 to {config.num_labels - 1}"
                )
            return task_from({"name": known} | dict(settings))
    check_head(checkpoint)
    raise AssertionError("a sequence classifier has a task")


def check_schema(task: Task, checkpoint: Checkpoint) -> None:
    """Check that the configuration and the task have the same labels in the same order.

    Raises:
        UserError: If they differ.
    """
    labels = list(task.scorer.labels)
    if not labels:
        return
    config: Any = checkpoint.config
    configured = configured_labels(config)
    if configured != labels:
        raise UserError(
            f"{checkpoint.source.name}: config.json has the labels {configured[:5]}..., nlp_transfer.json {labels[:5]}...; "
            "one of the files was changed, so predictions would have wrong labels"
        )
