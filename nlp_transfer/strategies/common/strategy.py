"""The strategy protocol: how a pretrained model is adapted to a task."""

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

    The default hooks implement full fine-tuning. A strategy overrides those in which it differs.
    """

    chooses_parameters: ClassVar[bool] = False
    """Whether `wrap` selects the trainable parameters. At most one strategy of a list may do so."""

    only_trains: ClassVar[bool] = False
    """Whether the strategy only changes learning rates, weight decay or the loss. It then has no effect in a list with a strategy
    that takes no optimizer steps."""

    def learning_rate(self, model: nn.Module) -> float:
        """Return the peak learning rate for `learning_rate: auto`.

        Wider models need lower rates: in published recipes for encoders of width 384, 768 and 1024, the rate falls roughly with
        the square of the width.
        """
        return float(f"{min(5e-4, 5e-5 * (768 / width(model)) ** 2.5):.1e}")

    def default_model(self) -> str | None:
        """Return a small model that suits the strategy, the default of `model`. None: a model is required."""
        return "distilbert/distilbert-base-uncased"

    def preferred_head(self) -> HeadConfig | None:
        """Return the head to use if `task.head` is null. None: the head of the model family."""
        return None

    def takes_steps(self) -> bool:
        """Return whether the strategy takes optimizer steps."""
        return True

    def needs_validation(self) -> bool:
        """Return whether the strategy requires a validation split, even a small one."""
        return False

    def uses_unlabelled(self) -> bool:
        """Return whether the strategy uses `data.unlabelled`."""
        return False

    def check_data(self, data: DataConfig, task: Task, problems: Problems) -> None:
        """Report missing data sources; by default, `data.train` is required."""
        if data.train is None:
            name, labels = registry.name_of(type(self)), "label" in task.traits.prediction
            instead = "; without such rows, strategy.name: zero_shot needs task.labels alone" if labels else ""
            problems.add(f"data.train: is required and was not given; {name} learns from rows with their labels{instead}")

    def name_labels(self, task: Task) -> Task:
        """Return the task, with the labels in the strategy's settings if it has none. Called for runs without training data."""
        return task

    def unused(self, task: Task) -> dict[str, str]:
        """Return the settings of `data`, `training` and `strategy` that have no effect here: the reason, by dotted name.

        Omit what follows from other hooks: `data.unlabelled` (`uses_unlabelled`), and training settings that have no effect
        without optimizer steps (`takes_steps`).
        """
        return {}

    def always_used(self) -> set[str]:
        """Return the dotted names of settings that have an effect here although another setting usually overrides them."""
        return set()

    def nested(self) -> dict[str, tuple[DataConfig, Task]]:
        """Return the data and task of each additional task in the settings, by dotted name relative to `strategy`."""
        return {}

    def models(self) -> dict[str, list[str]]:
        """Return the models named in the settings, by setting. A resumed run must name the same models."""
        return {}

    def place(self) -> Literal["any", "first", "alone"]:
        """Return the allowed position in a list of strategies. A strategy that replaces layers must be the first."""
        return "any"

    def owns_phases(self) -> bool:
        """Return whether the strategy defines the phases of training. At most one strategy of a list may do so."""
        return type(self).next_phase is not Strategy.next_phase

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze parameters, or add modules. Called once, before training."""
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Return the job with changed tables or objectives. Called once, after `wrap`.

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

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Return a model that can be loaded without the strategy. Save additional files, such as an adapter, in `folder`."""
        return model

    def auxiliary_jobs(self, model: nn.Module) -> dict[str, tuple[Job, PreTrainedModel]]:
        """Return the auxiliary jobs by name, each with its model. They are scored and saved separately."""
        return {}

    def document(self) -> Any:
        """Return the name and settings of the strategy as JSON, the input of `strategy_from`."""
        settings = self.model_dump(mode="json", fallback=lambda value: f"<{type(value).__name__} of {len(value)} rows in memory>")
        return {"name": registry.name_of(type(self)), **settings}
