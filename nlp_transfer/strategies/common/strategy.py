"""The strategy protocol: how a pretrained model is adapted to a task."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.settings.schema import DataConfig, Settings
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, View
from nlp_transfer.strategies.common.strategy_traits import StrategyTraits
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems


class Strategy(Settings):
    """How a pretrained model is adapted to a task.

    The defaults implement full fine-tuning. A strategy overrides the members in which it differs.
    """

    model_config = ConfigDict(ignored_types=(StrategyTraits,))

    @property
    def traits(self) -> StrategyTraits:
        """Facts about the strategy. Override it by a class attribute, or by a property if they depend on settings."""
        return StrategyTraits()

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        """Report problems of the settings, before any data is read, and settings without effect (`problems.no_effect`).

        Omit what follows from the traits, such as a missing `data.train`.

        Returns:
            The task, with the labels in the strategy's settings if there is no training data to learn them from.
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
        """Return changed parameter groups. By default there are two groups: with and without weight decay."""
        return groups

    def next_phase(self, state: State, view: View) -> Phase | None:
        """Return the phase that follows those in `state.finished`. None: training ends, possibly before the first phase."""
        return None if state.finished else Phase()

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        """Return changed or additional loss terms, as sums. Terms not counted by the task are divided by the number of rows."""
        return losses

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Return a model that can be loaded without the strategy. Save additional files, such as an adapter, in `folder`.

        Args:
            model: The trained model; also an untrained one, for which `prepare_data` was not called.
        """
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        """Return the auxiliary jobs by name, each with its model. They are scored and saved separately."""
        return {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Check that a class with its own `next_phase` says so, since the method would not be called in every list."""
        if cls.next_phase is Strategy.next_phase:
            return
        traits = inspect.getattr_static(cls, "traits")
        if traits is vars(Strategy)["traits"] or (isinstance(traits, StrategyTraits) and not traits.owns_phases):
            raise TypeError(
                f"{cls.__name__}: found next_phase without owns_phases; allowed: traits = StrategyTraits(owns_phases=True, ...)"
            )
