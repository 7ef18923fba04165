"""Check the settings of strategies, and find the tasks that they name."""

from collections.abc import Sequence

from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies.common.combined import parts_of
from nlp_transfer.strategies.common.strategy import Strategy
from nlp_transfer.tasks import Task, task_from, task_name
from nlp_transfer.utils.errors import Problems, UserError


def check_strategy(strategy: Strategy, data: DataConfig, task: Task, problems: Problems) -> Task:
    """Check the settings of a strategy, including what its traits require. Return the task, as `Strategy.check` does."""
    for part in parts_of(strategy).values():
        _check_task(part, task, problems)
    needing = [part for part in parts_of(strategy).values() if part.traits.needs_train]
    if needing and data.train is None:
        instead = "; without such rows, strategy.name: zero_shot needs task.labels alone" if _has_labels(task) else ""
        problems.add(
            f"data.train: is required and was not given; {registry.name_of(type(needing[0]))} learns from rows with their "
            f"labels{instead}"
        )
    if data.weight is not None and not strategy.traits.uses_weights:
        unweighted = next(part for part in parts_of(strategy).values() if not part.traits.uses_weights)
        problems.add(
            f"data.weight: found {data.weight!r}; {registry.name_of(type(unweighted))} with these settings does not use weights "
            "of rows; allowed: null, or a strategy that trains on the loss of the task, such as full, lora or features"
        )
    return strategy.check(data, task, problems)


def _check_task(strategy: Strategy, task: Task, problems: Problems) -> None:
    """Report a problem if the strategy does not support this kind of task."""
    needed, name = strategy.traits.needs_task, registry.name_of(type(strategy))
    if needed == "any" or (task.traits.pools and (needed == "vector" or task.traits.classes)):
        return
    allowed = "a task whose rows have classes" if needed == "classes" else "a task that predicts from one vector per text"
    problems.add(
        f"strategy.name: found {name} with the task {task_name(task)}, which predicts {task.traits.prediction}; allowed: "
        f"{allowed}; strategies for every task: full, partial, bitfit, lora"
    )


def _has_labels(task: Task) -> bool:
    return "label" in task.traits.prediction


def nested_tasks(strategy: Strategy) -> dict[str, tuple[DataConfig, Task]]:
    """Return the data and the task of each additional task in the settings, by dotted name such as `strategy.tasks.0`.

    An additional task is a setting, or an item of a list, that has a `data: DataConfig` and a `task`.
    """
    nested: dict[str, tuple[DataConfig, Task]] = {}
    for place, part in parts_of(strategy).items():
        for name in type(part).model_fields:
            value = getattr(part, name)
            items = {f"{name}.{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
            for path, item in items.items():
                data = getattr(item, "data", None)
                if isinstance(data, DataConfig):
                    nested[f"{place}.{path}"] = data, task_from(item.task)
    return nested


def check_list(strategies: Sequence[Strategy]) -> None:
    """Check that strategies can be combined in this order.

    Raises:
        UserError: If a strategy is repeated, is at a position that is not allowed, or contradicts another one.
    """
    traits = [(registry.name_of(type(strategy)), strategy.traits) for strategy in strategies]
    names = [name for name, _ in traits]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"strategy: {repeated[0]} appears twice; allowed: each strategy once")
    _check_at_most_one([name for name, part in traits if part.owns_parameters], "choose the trainable parameters")
    for i, (name, part) in enumerate(traits):
        if part.position == "alone" and len(traits) > 1:
            raise UserError(f"strategy.{i}: {name} cannot be combined with other strategies; allowed: {name} alone")
        if part.position == "first" and i > 0:
            raise UserError(
                f"strategy.{i}: {name} with these settings replaces layers that the strategies before it have prepared; "
                "allowed: as the first of the list"
            )
    settings = [part.shortened_by for _, part in traits if part.shortened_by]
    adapters = [name for name, part in traits if part.adds_adapter]
    if settings and adapters:
        raise UserError(
            f"{settings[0]}: the adapter of {adapters[0]} needs all layers of the checkpoint, and this model has only some of "
            f"them; allowed with {adapters[0]}: null"
        )
    _check_at_most_one([name for name, part in traits if part.owns_phases], "define the phases of training")


def _check_at_most_one(names: list[str], role: str) -> None:
    if len(names) > 1:
        raise UserError(f"strategy: {' and '.join(names)} both {role}; allowed: one of them")
