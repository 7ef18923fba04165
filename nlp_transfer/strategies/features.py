"""Feature extraction: the encoder is a fixed function, run once over each row; only the head on top of it is trained.

Peters et al. 2019, "To Tune or Not to Tune? Adapting Pretrained Representations to Diverse Tasks", 1903.05987; the learned mix
of layers (`task.head.layers: mix`) is that of Peters et al. 2018, "Deep contextualized word representations", 1802.05365.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.cached_features import CachePoint
from nlp_transfer.models.feature_replay import disable_replay
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import find_layers, has_decoder
from nlp_transfer.models.preparation import freeze
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.schema import Positive
from nlp_transfer.strategies import Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.frozen_encoder import on_cached_features
from nlp_transfer.strategies.common.linear_heads import fit_logistic_regression, last_linear
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import UserError


class Features(Strategy):
    """Trains a head on what the encoder gave once. Epochs cost next to nothing, and the encoder stays as it was."""

    chooses_parameters: ClassVar[bool] = True

    classifier: Literal["trained", "logistic_regression"] = "trained"
    """How the head is fitted: by gradient steps, or a single layer by scikit-learn's logistic regression."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where features are kept; auto: in memory up to a gigabyte, else in a file that other runs find again; none: nowhere, the
    encoder runs in every epoch."""
    regularization: Annotated[Positive, UsedWith(classifier="logistic_regression")] = 1.0
    """Strength of logistic regression's L2 penalty: the inverse of scikit-learn's `C`."""

    def learning_rate(self, model: nn.Module) -> float:
        """A single layer is convex, and a deeper head small: both bear far larger steps than an encoder."""
        return 1e-2

    def preferred_head(self) -> HeadConfig:
        """Pooled over all tokens: the first token's vector, which the families' heads take, means little before fine-tuning."""
        return HeadConfig(pooling="mean")

    def unused(self, task: Task) -> dict[str, str]:
        return {"training.attention_dropout": "the encoder is frozen"}

    def owns_phases(self) -> bool:
        return not self.takes_steps()

    def takes_steps(self) -> bool:
        return self.classifier == "trained"

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Fixes the encoder; its pooler, if the head uses one, belongs to the head.

        Raises:
            UserError: the model writes text, or its head has hidden layers where a logistic regression is asked for.
        """
        if has_decoder(model):
            raise UserError(
                "strategy.name: found features, which gives one vector a row, and a decoder looks at all tokens; allowed for "
                "translation: {name: partial, frozen_layers: all}"
            )
        if self.classifier == "logistic_regression":
            last_linear(model, "strategy.classifier: found logistic_regression")
        layers = find_layers(model)
        freeze(model, {name for name, _ in model.named_parameters() if layers.depth_of(name) <= layers.depth})
        if self.classifier == "logistic_regression":
            freeze(model, {name for name, _ in model.named_parameters()})
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        labels = job.tables["train"].dense["labels"]
        if self.classifier == "logistic_regression" and labels.ndim == 1 and labels.dtype != np.int64:
            raise UserError("strategy.classifier: found logistic_regression; a regression has no classes; allowed: trained")
        return job if self.cache == "none" else on_cached_features(job, model, CachePoint(), self.cache)

    def next_phase(self, state: State, view: View) -> Phase | None:
        if self.classifier == "trained":
            return super().next_phase(state, view)
        fit_logistic_regression(view.model, view.tables["train"], self.regularization)
        return None

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        return disable_replay(model)
