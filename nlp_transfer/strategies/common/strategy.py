"""The base class of strategies."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.settings.named_settings import NamedSettings
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, View
from nlp_transfer.strategies.common.strategy_traits import StrategyTraits
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems


class Strategy(NamedSettings):
    """How a pretrained model is adapted to a task.

    The defaults implement full fine-tuning. A strategy overrides the members in which it differs.
    """

    model_config = ConfigDict(ignored_types=(StrategyTraits,))

    @property
    def traits(self) -> StrategyTraits:
        """Facts about the strategy. Override this with a class attribute, or with a property if the facts depend on settings."""
        return StrategyTraits()

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        """Report invalid settings, and settings without effect (`problems.no_effect`). Called before data is read.

        Omit problems that follow from the traits, such as a missing `data.train`; they are reported elsewhere.

        Returns:
            The task. If there is no training data that shows the labels, the task has those in the settings of the strategy.
        """
        return task

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze parameters, or add modules. Called once, before training."""
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Return the job with changed tables or objectives. Called once, after `prepare_model`.

        The final evaluation uses the original tables.
        """
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Return changed parameter groups. By default there are two: one with weight decay, one without."""
        return groups

    def next_phase(self, state: State, view: View) -> Phase | None:
        """Return the next phase, after those in `state.finished`. None: training ends; there may have been no phase at all."""
        return None if state.finished else Phase()

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        """Return the loss terms, changed or with additional ones. Each term is a sum over the batch.

        The training loop divides each term by the count that the task gives for it, or else by the number of rows.
        """
        return losses

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Return a model that can be loaded without the strategy. Save additional files, such as an adapter, in `folder`.

        Args:
            model: The trained model. It can also be an untrained one, for which `prepare_data` was not called.
        """
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        """Return the auxiliary jobs by name, each with its model. Their models are scored and saved separately."""
        return {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Check that a class which overrides `next_phase` has the trait `owns_phases`.

        Without it, the method might not be called for a strategy in a list.
        """
        if cls.next_phase is Strategy.next_phase:
            return
        traits = inspect.getattr_static(cls, "traits")
        if traits is vars(Strategy)["traits"] or (isinstance(traits, StrategyTraits) and not traits.owns_phases):
            raise TypeError(
                f"{cls.__name__}: found next_phase without owns_phases; allowed: traits = StrategyTraits(owns_phases=True, ...)"
            )
