"""Strategies: ways to adapt a pretrained model to a task. Each file or folder contains the strategy of the same name.

`Strategy` is their base class. `strategy_from` creates a strategy, or a combination of strategies, from its configuration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nlp_transfer.settings import registry
from nlp_transfer.settings.validation import build
from nlp_transfer.strategies.common.combined import Combined, parts_of
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, Tables, View
from nlp_transfer.strategies.common.strategy import Strategy
from nlp_transfer.strategies.common.strategy_checks import check_list, check_strategy, nested_tasks
from nlp_transfer.strategies.common.strategy_traits import SENTENCE_MODEL, Choice, StrategyTraits, default_learning_rate
from nlp_transfer.utils.errors import UserError

__all__ = [
    "SENTENCE_MODEL",
    "Choice",
    "Combined",
    "Group",
    "Job",
    "Losses",
    "Phase",
    "State",
    "Strategy",
    "StrategyTraits",
    "Tables",
    "View",
    "check_strategy",
    "default_learning_rate",
    "nested_tasks",
    "parts_of",
    "strategy_from",
]


def strategy_from(document: Mapping[str, Any] | Sequence[Mapping[str, Any] | Strategy]) -> Strategy:
    """Create a strategy from a document with its name and settings. A list becomes a `Combined` strategy.

    Raises:
        UserError: If a name is unknown or repeated, a setting is invalid, or strategies in the list are incompatible.
    """
    if isinstance(document, Mapping):
        return _single(document, "strategy")
    strategies = tuple(_single(strategy, f"strategy.{i}") for i, strategy in enumerate(document))
    if not strategies:
        raise UserError(f"strategy: the list is empty; known: {', '.join(registry.names('strategy'))}")
    check_list(strategies)
    return strategies[0] if len(strategies) == 1 else Combined(parts=strategies)


def _single(document: Mapping[str, Any] | Strategy, place: str) -> Strategy:
    strategy: Strategy = document if isinstance(document, Strategy) else build("strategy", document, place)
    return strategy
