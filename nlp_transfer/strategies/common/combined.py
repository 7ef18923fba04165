"""A list of strategies that acts as one strategy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, View
from nlp_transfer.strategies.common.strategy import Strategy
from nlp_transfer.strategies.common.strategy_traits import StrategyTraits, combine_traits
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems


class Combined(Strategy):
    """Several strategies that act as one. Hooks are called from left to right, `export_model` from right to left."""

    parts: tuple[Strategy, ...]

    @property
    def traits(self) -> StrategyTraits:
        return combine_traits([part.traits for part in self.parts])

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        for i, part in enumerate(self.parts):
            task = part.check(data, task, of_part := Problems())
            of_part.unused = {name.replace("strategy.", f"strategy.{i}.", 1): why for name, why in of_part.unused.items()}
            problems.merge(of_part)
        return task

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        for part in self.parts:
            model = part.prepare_model(model)
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
        owners = [part for part in self.parts if part.traits.owns_phases]
        return (owners or self.parts)[0].next_phase(state, view)

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        for part in self.parts:
            losses = part.loss(losses, outputs, batch, model)
        return losses

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        for part in reversed(self.parts):
            model = part.export_model(model, folder)
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        return {name: job for part in self.parts for name, job in part.auxiliary_jobs(model).items()}

    def document(self) -> Any:
        return [part.document() for part in self.parts]


def parts_of(strategy: Strategy) -> dict[str, Strategy]:
    """Return each strategy of a list under its place (`strategy.0` and so on), or a single strategy under `strategy`."""
    if isinstance(strategy, Combined):
        return {f"strategy.{i}": part for i, part in enumerate(strategy.parts)}
    return {"strategy": strategy}
