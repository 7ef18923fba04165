"""Tasks: what a model learns. Each file or folder holds one task, named after it; `Task` is their protocol.

`task_from` creates a task from its configuration.
"""

from collections.abc import Mapping
from typing import Any

from nlp_transfer.evaluation.metrics.scorer import Arrays
from nlp_transfer.settings import registry
from nlp_transfer.settings.validation import build
from nlp_transfer.tasks.common.objectives import Batch, Items, Objective
from nlp_transfer.tasks.common.task import Description, Task
from nlp_transfer.tasks.common.token_tables import encode_table
from nlp_transfer.tasks.common.traits import TaskTraits

__all__ = ["Arrays", "Batch", "Description", "Items", "Objective", "Task", "TaskTraits", "encode_table", "task_from", "task_name"]


def task_name(task: Task) -> str:
    """Return the name of a task in configurations."""
    return registry.name_of(type(task))


def task_from(document: Mapping[str, Any], kind: type[Task] | None = None) -> Task:
    """Create a task from a document with its name and settings.

    Args:
        kind: The task's class. None: look it up by the document's `name`.

    Raises:
        UserError: If the name is unknown or settings are invalid. The message lists all problems.
    """
    task: Task = build("task", document, "task", kind)
    return task
