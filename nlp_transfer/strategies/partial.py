"""Partial fine-tuning: the lowest layers stay as they were pretrained, those above and the head are trained.

Lee et al. 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", 1911.03090: a quarter of the layers
is enough for most of the quality.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.cached_features import Cut
from nlp_transfer.models.checkpoint import find_layers, freeze, new_parameters
from nlp_transfer.models.feature_replay import run_live
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.strategies import Group, Job, Strategy
from nlp_transfer.strategies.common.frozen_encoder import on_cached_features
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, scale_head
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import UserError


class Partial(Strategy):
    """Fixes the embeddings and the lowest layers. Parameters that the checkpoint did not have are always trained."""

    chooses_parameters: ClassVar[bool] = True

    frozen_layers: Annotated[int, Field(ge=0)] | Literal["all", "half"] = "half"
    """How many of the lowest layers are fixed, the embeddings with them; `all`: the whole encoder."""
    cache: Annotated[Literal["auto", "memory", "disk", "none"], UsedWith(frozen_layers=Not(0))] = "none"
    """Where the states that leave the fixed layers are kept, so that those run once and not in each epoch; auto: in memory up
    to a gigabyte, else in a file; none: nowhere. They take four bytes times the width for each token of train and validation."""

    def learning_rate(self, model: nn.Module) -> float:
        """A head alone starts from random weights and bears larger steps than pretrained layers."""
        return 1e-3 if self.frozen_layers == "all" else super().learning_rate(model)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """As in full fine-tuning the head learns faster than pretrained layers, where any of those are trained."""
        return groups if self.frozen_layers == "all" else scale_head(model, groups, HEAD_SCALE)

    def unused(self, task: Task) -> dict[str, str]:
        return {"training.attention_dropout": "the encoder is frozen"} if self.frozen_layers == "all" else {}

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where the model has fewer layers, or shares one set of weights among them."""
        layers = find_layers(model)
        wanted = self._fixed(layers.depth)
        if wanted > layers.depth:
            raise UserError(
                f"strategy.frozen_layers: found {wanted}; allowed: 0 to {layers.depth}, the layers of this model, or all"
            )
        if layers.shared and self.frozen_layers not in ("all", 0):
            raise UserError(
                f"strategy.frozen_layers: found {self.frozen_layers!r}; a {model.config.model_type} model shares one set of "
                "weights among its layers; allowed: 0 or all"
            )
        names = {name for name, _ in model.named_parameters() if layers.depth_of(name) <= wanted}
        freeze(model, names - new_parameters(model))
        return model

    def _fixed(self, depth: int) -> int:
        return (
            {"all": depth, "half": depth // 2}[self.frozen_layers] if isinstance(self.frozen_layers, str) else self.frozen_layers
        )

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        depth = find_layers(model).depth
        fixed = self._fixed(depth)
        if self.cache == "none" or fixed == 0:
            return job
        return on_cached_features(job, model, Cut(None if fixed == depth else fixed), self.cache)

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        return run_live(model)
