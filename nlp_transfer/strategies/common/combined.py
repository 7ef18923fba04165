"""A list of strategies that acts as one strategy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, View
from nlp_transfer.strategies.common.strategy import Strategy
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems


class Combined(Strategy):
    """Several strategies that act as one. Hooks are called from left to right, `unwrap` from right to left."""

    parts: tuple[Strategy, ...]

    def learning_rate(self, model: nn.Module) -> float:
        overriding = [part for part in self.parts if type(part).learning_rate is not Strategy.learning_rate]
        return (overriding or self.parts)[0].learning_rate(model)

    def preferred_head(self) -> HeadConfig | None:
        return next((head for head in (part.preferred_head() for part in self.parts) if head), None)

    def default_model(self) -> str | None:
        return self.parts[0].default_model()

    def takes_steps(self) -> bool:
        return all(part.takes_steps() for part in self.parts)

    def needs_validation(self) -> bool:
        return any(part.needs_validation() for part in self.parts)

    def uses_unlabelled(self) -> bool:
        return any(part.uses_unlabelled() for part in self.parts)

    def check_data(self, data: DataConfig, task: Task, problems: Problems) -> None:
        for part in self.parts:
            part.check_data(data, task, problems)

    def name_labels(self, task: Task) -> Task:
        for part in self.parts:
            task = part.name_labels(task)
        return task

    def unused(self, task: Task) -> dict[str, str]:
        return {
            name.replace("strategy.", f"strategy.{i}.", 1): reason
            for i, part in enumerate(self.parts)
            for name, reason in part.unused(task).items()
        }

    def always_used(self) -> set[str]:
        return {name for part in self.parts for name in part.always_used()}

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        for part in self.parts:
            model = part.wrap(model)
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        for part in self.parts:
            job = part.prepare_data(job, model)
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        for part in self.parts:
            groups = part.param_groups(model, groups)
        return groups

    def next_phase(self, state: State, view: View) -> Phase | None:
        owners = [part for part in self.parts if part.owns_phases()]
        return (owners or self.parts)[0].next_phase(state, view)

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        for part in self.parts:
            losses = part.loss(losses, outputs, batch, model)
        return losses

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        for part in reversed(self.parts):
            model = part.unwrap(model, folder)
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        return {name: job for part in self.parts for name, job in part.auxiliary_jobs(model).items()}

    def document(self) -> Any:
        return [part.document() for part in self.parts]
