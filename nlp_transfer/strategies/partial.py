"""Partial fine-tuning: freeze the embeddings and the lowest layers, and train the other layers and the head.

When to use it: to train faster, with slightly lower accuracy. Training a quarter of the layers gives most of the accuracy of full
fine-tuning.

Cost: gradients and optimizer state only for the trained layers. With `cache`, the frozen layers run only once per row, and the
    cache takes 4 bytes x the encoder width per token.

Lee et al. 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", 1911.03090.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.cached_features import CachePoint
from nlp_transfer.models.feature_replay import disable_replay
from nlp_transfer.models.layers import find_layers, new_parameters
from nlp_transfer.models.preparation import freeze
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Group, Job, Strategy, StrategyTraits, default_learning_rate
from nlp_transfer.strategies.common.frozen_encoder import with_cached_features
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, scale_head
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems, UserError


class Partial(Strategy):
    """Freeze the embeddings and the lowest layers. New parameters are always trained."""

    frozen_layers: Annotated[int, Field(ge=0)] | Literal["all", "half"] = "half"
    """Number of layers to freeze, from the bottom up. The embeddings are always frozen too. `all`: freeze the
    whole encoder."""
    cache: Annotated[Literal["auto", "memory", "disk", "none"], UsedWith(frozen_layers=Not(0))] = "none"
    """Where to cache the output of the frozen layers, so that they run only once per row. auto: in memory up to 1 GB, otherwise
    in a file. none: do not cache. The cache takes 4 bytes x the encoder width per token of train and validation."""

    @property
    def traits(self) -> StrategyTraits:
        return StrategyTraits(
            owns_parameters=True,
            learning_rate=self._learning_rate,
            search_space={"strategy.frozen_layers": [0, 2, "half", "all"]},
        )

    def _learning_rate(self, model: nn.Module) -> float:
        """Return the default rate, or a higher one if the encoder is frozen."""
        return 1e-3 if self.frozen_layers == "all" else default_learning_rate(model)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Give the head a higher learning rate than pretrained layers, as in full fine-tuning."""
        return groups if self.frozen_layers == "all" else scale_head(model, groups, HEAD_SCALE)

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        if self.frozen_layers == "all":
            problems.no_effect("training.attention_dropout", "the encoder is frozen")
        return task

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze the lowest layers.

        Raises:
            UserError: If the model does not have that many layers, or its layers share their weights.
        """
        layers = find_layers(model)
        frozen = self._frozen(layers.depth)
        if frozen > layers.depth:
            raise UserError(
                f"strategy.frozen_layers: found {frozen}; allowed: 0 to {layers.depth}, the layers of this model, or all"
            )
        if layers.shared and self.frozen_layers not in ("all", 0):
            raise UserError(
                f"strategy.frozen_layers: found {self.frozen_layers!r}; a {model.config.model_type} model shares one set of "
                "weights among its layers; allowed: 0 or all"
            )
        names = {name for name, _ in model.named_parameters() if layers.depth_of(name) <= frozen}
        freeze(model, names - new_parameters(model))
        return model

    def _frozen(self, depth: int) -> int:
        """Return the number of layers to freeze in a model with `depth` layers."""
        counts = {"all": depth, "half": depth // 2}
        return counts[self.frozen_layers] if isinstance(self.frozen_layers, str) else self.frozen_layers

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        depth = find_layers(model).depth
        frozen = self._frozen(depth)
        if self.cache == "none" or frozen == 0:
            return job
        return with_cached_features(job, model, CachePoint(None if frozen == depth else frozen), self.cache)

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        return disable_replay(model)
