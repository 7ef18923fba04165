"""The model of several tasks: one encoder, and a head for each task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.strategies.multitask.mixed_batches import UNUSED, split_batch

AUXILIARY = "auxiliary"


class MultitaskModel(nn.Module):
    """The models of several tasks. They share the encoder of the main model, unless `shares_encoder` is false.

    Args:
        main: The model of the main task. Its structure does not change, and it can be saved separately.
        name: Name of the main task.
        others: The models of the other tasks, by name. With a shared encoder, their encoders are replaced.
    """

    def __init__(self, main: PreTrainedModel, name: str, others: Mapping[str, PreTrainedModel], shares_encoder: bool) -> None:
        super().__init__()
        self.main, self.name = main, name
        if shares_encoder:
            for other in others.values():
                setattr(other, main.base_model_prefix, getattr(main, main.base_model_prefix))
        self.auxiliary = nn.ModuleDict(others)

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the main model."""
        config: PretrainedConfig = self.main.config
        return config

    @property
    def models(self) -> dict[str, Any]:
        """The model of each task, by name of the task. The main task is the first."""
        return {self.name: self.main, **self.auxiliary}

    @property
    def new_parameters(self) -> frozenset[str]:
        """Names of the parameters that the checkpoint did not have."""
        return frozenset(f"{self._prefix(name)}{key}" for name, model in self.models.items() for key in new_parameters(model))

    def _prefix(self, name: str) -> str:
        return "main." if name == self.name else f"{AUXILIARY}.{name}."

    def forward(self, **inputs: Any) -> Any:
        """Run the head of each task on its rows.

        Tasks without rows in the batch get zero gradients, since distributed training requires that every parameter has a
        gradient in every process.

        Args:
            inputs: Columns named `TASK/COLUMN`, as in a batch of a `MixedTable`. Without the prefix `TASK/`, the columns are
                for the main task.

        Returns:
            The outputs of each task by name, and under `UNUSED` a zero that depends on the parameters of the tasks without
            rows. If the columns have no prefix, the outputs of the main model.
        """
        by_task = split_batch({path: value for path, value in inputs.items() if "/" in path})
        if not by_task:
            return self.main(**inputs)
        models = self.models
        outputs = {name: models[name](**model_inputs(columns)) for name, columns in by_task.items()}
        idle = [p for name, model in models.items() if name not in by_task for p in model.parameters() if p.requires_grad]
        outputs[UNUSED] = sum((0 * p.sum() for p in idle), start=torch.zeros((), device=self.main.device))
        return outputs


def plain_name(name: str) -> str:
    """Return the name that a parameter of a `MultitaskModel` has in the model of its task."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[2] if first == AUXILIARY else rest
