"""Strategies: how a pretrained model is adapted to a task. Each file or folder holds one strategy, named after it.

`Strategy` is their protocol. `strategy_from` creates a strategy, or a list of strategies, from its configuration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nlp_transfer.settings import registry
from nlp_transfer.settings.validation import build
from nlp_transfer.strategies.common.combined import Combined
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, Tables, View
from nlp_transfer.strategies.common.strategy import SENTENCE_MODEL, Strategy
from nlp_transfer.utils.errors import UserError

__all__ = [
    "SENTENCE_MODEL",
    "Combined",
    "Group",
    "Job",
    "Losses",
    "Phase",
    "State",
    "Strategy",
    "Tables",
    "View",
    "strategy_from",
]


def strategy_from(document: Mapping[str, Any] | Sequence[Mapping[str, Any] | Strategy]) -> Strategy:
    """Create a strategy from a document with its name and settings. A list of documents or strategies becomes a `Combined`.

    Raises:
        UserError: If a name is unknown or repeated, a setting is invalid, or strategies of the list are incompatible.
    """
    if isinstance(document, Mapping):
        return _single(document, "strategy")
    strategies = tuple(_single(strategy, f"strategy.{i}") for i, strategy in enumerate(document))
    if not strategies:
        raise UserError(f"strategy: the list is empty; known: {', '.join(registry.names('strategy'))}")
    names = [registry.name_of(type(strategy)) for strategy in strategies]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"strategy: {repeated[0]} appears twice; allowed: each strategy once")
    _check_at_most_one([strategy for strategy in strategies if strategy.chooses_parameters], "choose the trainable parameters")
    for i, strategy in enumerate(strategies):
        if strategy.place() == "alone" and len(strategies) > 1:
            raise UserError(f"strategy.{i}: {names[i]} cannot be combined with other strategies; allowed: {names[i]} alone")
        if strategy.place() == "first" and i > 0:
            raise UserError(
                f"strategy.{i}: {names[i]} with these settings replaces layers that the strategies before it have prepared; "
                "allowed: as the first of the list"
            )
    _check_at_most_one([strategy for strategy in strategies if strategy.owns_phases()], "define the phases of training")
    return strategies[0] if len(strategies) == 1 else Combined(parts=strategies)


def _check_at_most_one(strategies: list[Strategy], role: str) -> None:
    if len(strategies) > 1:
        names = " and ".join(registry.name_of(type(strategy)) for strategy in strategies)
        raise UserError(f"strategy: {names} both {role}; allowed: one of them")


def _single(document: Mapping[str, Any] | Strategy, place: str) -> Strategy:
    strategy: Strategy = document if isinstance(document, Strategy) else build("strategy", document, place)
    return strategy
