"""Facts about a strategy that other code can read without calling any of its methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import width

SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # a small sentence encoder


def default_learning_rate(model: nn.Module) -> float:
    """Return the peak learning rate of full fine-tuning.

    Wider models need lower rates: in published recipes for encoders of width 384, 768 and 1024, the rate falls a little faster
    than 1 / width^2.
    """
    return float(f"{min(5e-4, 5e-5 * (768 / width(model)) ** 2.5):.1e}")


@dataclass(frozen=True)
class Choice:
    """The strategies that trials choose from.

    Attributes:
        candidates: Their documents, with name and settings.
        seconds: Time allowed for the trials and the training with the chosen strategy.
    """

    candidates: Sequence[Mapping[str, Any]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StrategyTraits:
    """Facts about a strategy. The defaults describe full fine-tuning.

    Attributes:
        owns_parameters: Whether `prepare_model` selects the trainable parameters. At most one strategy of a list may do so.
        owns_phases: Whether `next_phase` defines the phases of training. At most one strategy of a list may do so.
        position: Allowed position in a list of strategies. A strategy that replaces layers must be the first.
        takes_steps: Whether the strategy takes optimizer steps.
        only_trains: Whether the strategy only changes learning rates, weight decay or the loss. If so, it has no effect when
        combined with a strategy that takes no optimizer steps.
        shortened_by: The setting with which the strategy removes layers of the checkpoint. None: the strategy keeps all layers.
        adds_adapter: Whether the strategy trains an adapter, which needs all layers of the checkpoint.
        needs_task: Required kind of task. `vector`: models of the task predict from one vector per text. `classes`: the same,
        and rows have classes.
        needs_train: Whether `data.train` is required.
        needs_validation: Whether a validation split is required. It can be small.
        uses_weights: Whether `data.weight` determines the influence of each training row.
        uses_unlabelled: Whether `data.unlabelled` has an effect.
        always_used: Dotted names of settings that have an effect with this strategy even if another setting would usually
        override them.
        default_model: Default value of `model`: a small model that suits the strategy. None: `model` must be set.
        head: The head to use if `task.head` is null. None: the head of the model family.
        learning_rate: Function that returns the peak learning rate of a model, for `learning_rate: auto`.
        choice: The strategies that this one stands for: before training, trials replace it by one of them. None: it trains
        itself.
        search_space: Default search space of `tune` for settings of the strategy, by dotted name, and for training settings that
        should differ from those of other strategies: a list of values, or a range `{low, high, log}`.
        classes_space: The part of the search space that only suits tasks whose rows have classes.
    """

    owns_parameters: bool = False
    owns_phases: bool = False
    position: Literal["any", "first", "alone"] = "any"
    takes_steps: bool = True
    only_trains: bool = False
    shortened_by: str | None = None
    adds_adapter: bool = False
    needs_task: Literal["any", "vector", "classes"] = "any"
    needs_train: bool = True
    needs_validation: bool = False
    uses_weights: bool = True
    uses_unlabelled: bool = False
    always_used: frozenset[str] = frozenset()
    default_model: str | None = "distilbert/distilbert-base-uncased"
    head: HeadConfig | None = None
    learning_rate: Callable[[nn.Module], float] = default_learning_rate
    choice: Choice | None = None
    search_space: Mapping[str, Any] = field(default_factory=dict)
    classes_space: Mapping[str, Any] = field(default_factory=dict)


def combine_traits(parts: Sequence[StrategyTraits]) -> StrategyTraits:
    """Return the traits of a combination of strategies."""
    rates = [part.learning_rate for part in parts if part.learning_rate is not default_learning_rate]
    return StrategyTraits(
        owns_parameters=any(part.owns_parameters for part in parts),
        owns_phases=any(part.owns_phases for part in parts),
        position="any" if all(part.position == "any" for part in parts) else "first",
        takes_steps=all(part.takes_steps for part in parts),
        only_trains=all(part.only_trains for part in parts),
        shortened_by=next((part.shortened_by for part in parts if part.shortened_by), None),
        adds_adapter=any(part.adds_adapter for part in parts),
        needs_task=next((kind for kind in ("classes", "vector") if any(part.needs_task == kind for part in parts)), "any"),
        needs_train=any(part.needs_train for part in parts),
        needs_validation=any(part.needs_validation for part in parts),
        uses_weights=all(part.uses_weights for part in parts),
        uses_unlabelled=any(part.uses_unlabelled for part in parts),
        always_used=frozenset().union(*(part.always_used for part in parts)),
        default_model=parts[0].default_model,
        head=next((part.head for part in parts if part.head is not None), None),
        learning_rate=rates[0] if rates else default_learning_rate,
        choice=next((part.choice for part in parts if part.choice is not None), None),
        search_space=parts[0].search_space if len(parts) == 1 else {},  # settings of a list have no dotted names
        classes_space=parts[0].classes_space if len(parts) == 1 else {},
    )
