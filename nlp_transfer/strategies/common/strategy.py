"""The strategy protocol: how the knowledge in a pretrained checkpoint is transferred to a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import width
from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import DataConfig, Settings
from nlp_transfer.strategies.common.job import Group, Job, Losses, Phase, State, View
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems

SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # a small sentence encoder


class Strategy(Settings):
    """How a pretrained model is adapted to a task.

    Every hook has a default, and the defaults are full fine-tuning. A strategy overrides the hooks in which it differs.
    """

    chooses_parameters: ClassVar[bool] = False
    """Whether `wrap` chooses the trainable parameters. At most one strategy of a list may."""

    only_trains: ClassVar[bool] = False
    """Whether it changes nothing but learning rates, weight decay and the loss. Beside a strategy that takes no optimizer steps
    it then has no effect."""

    def learning_rate(self, model: nn.Module) -> float:
        """Return a good peak learning rate, for `learning_rate: auto`.

        Wide models need a low rate: those of published recipes for encoders of width 384, 768 and 1024 fall roughly with the
        square of the width.
        """
        return float(f"{min(5e-4, 5e-5 * (768 / width(model)) ** 2.5):.1e}")

    def default_model(self) -> str | None:
        """Return a small model that suits the strategy, for a command that names none. None: there is no such model."""
        return "distilbert/distilbert-base-uncased"

    def preferred_head(self) -> HeadConfig | None:
        """Return the head to use if the task's settings name none. None: the head of the model family."""
        return None

    def takes_steps(self) -> bool:
        """Return whether anything is trained by gradient descent."""
        return True

    def needs_validation(self) -> bool:
        """Return whether there must be a validation split, however small."""
        return False

    def uses_unlabelled(self) -> bool:
        """Return whether `data.unlabelled` is used."""
        return False

    def check_data(self, data: DataConfig, task: Task, problems: Problems) -> None:
        """Check that the data sources that the strategy needs are given. By default that is `data.train`."""
        if data.train is None:
            name, labels = registry.name_of(type(self)), "label" in task.prediction_kind
            instead = "; without such rows, strategy.name: zero_shot needs task.labels alone" if labels else ""
            problems.add(f"data.train: is required and was not given; {name} learns from rows with their labels{instead}")

    def name_labels(self, task: Task) -> Task:
        """Return the task, with the labels from the strategy's settings if it has none. For runs without training data."""
        return task

    def unused(self, task: Task) -> dict[str, str]:
        """Return the settings that have no effect with this strategy and task: by dotted name, the reason.

        The settings are those of `data`, `training` and the strategy (`strategy.NAME`). Leave out `data.unlabelled`, and training
        settings if no optimizer steps are taken: these are known.
        """
        return {}

    def always_used(self) -> set[str]:
        """Return the dotted names of settings that have an effect here although another setting usually replaces them."""
        return set()

    def nested(self) -> dict[str, tuple[DataConfig, Task]]:
        """Return the data and tasks among the strategy's settings, by their dotted name below `strategy`."""
        return {}

    def models(self) -> dict[str, list[str]]:
        """Return the models named in the strategy's settings, by setting. A resumed run must name the same models."""
        return {}

    def place(self) -> Literal["any", "first", "alone"]:
        """Return where it may be in a list of strategies. One that replaces parts of the model must be the first."""
        return "any"

    def owns_phases(self) -> bool:
        """Return whether it defines its own phases. At most one strategy of a list may."""
        return type(self).next_phase is not Strategy.next_phase

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze parameters, or add modules. Called once, before training."""
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Change the tables or objectives. Called once, after `wrap`.

        The finished model is scored on the original tables.
        """
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Change the optimizer's parameter groups; the default groups are one with and one without weight decay."""
        return groups

    def next_phase(self, state: State, view: View) -> Phase | None:
        """Return the phase after those in `state.finished`. None: training is finished, which may be so from the start."""
        return None if state.finished else Phase()

    def loss(self, losses: Losses, outputs: Any, batch: Mapping[str, torch.Tensor], model: nn.Module) -> Losses:
        """Change the summed losses, by term, or add terms. A term that the task does not count is divided by the rows."""
        return losses

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Return a model that loads without the strategy. Save what belongs to the strategy, such as an adapter, in `folder`."""
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        """Return the jobs learned beside the run's own, by name, each with its model. Each is scored and saved separately."""
        return {}

    def document(self) -> Any:
        """Return the strategy as JSON: its name and its settings. `strategy_from` reads it back."""
        settings = self.model_dump(mode="json", fallback=lambda value: f"<{type(value).__name__} of {len(value)} rows in memory>")
        return {"name": registry.name_of(type(self)), **settings}
