"""Feature extraction: encode each row once with the frozen encoder, and train only the head on the features.

When to use it: for a fast baseline, on small machines, or to compare many heads on one encoder.

Cost: one forward pass per row. After that, an epoch takes very little time. The features of a row take 4 bytes x the encoder
width. Accuracy is usually clearly lower than with fine-tuning.

Peters et al. 2019, "To Tune or Not to Tune? Adapting Pretrained Representations to Diverse Tasks", 1903.05987. The learned mix
of layers (`task.head.layers: mix`) is from Peters et al. 2018, "Deep Contextualized Word Representations", 1802.05365.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from transformers import PreTrainedModel

from nlp_transfer.models.cached_features import CachePoint
from nlp_transfer.models.feature_replay import disable_replay
from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import find_layers
from nlp_transfer.models.preparation import freeze
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.base_settings import Positive
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Job, Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.strategies.common.frozen_encoder import with_cached_features
from nlp_transfer.strategies.common.linear_heads import fit_logistic_regression, last_linear
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems, UserError


class Features(Strategy):
    """Train a head on cached features of the frozen encoder."""

    classifier: Literal["trained", "logistic_regression"] = "trained"
    """`trained`: train the head by gradient descent. `logistic_regression`: fit a single layer with scikit-learn."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where to cache features. auto: in memory up to 1 GB, otherwise in a file that later runs reuse. none: do not cache; the
    encoder runs in every epoch."""
    regularization: Annotated[Positive, UsedWith(classifier="logistic_regression")] = 1.0
    """Strength of the L2 penalty of logistic regression: 1 / `C` in scikit-learn."""

    @property
    def traits(self) -> StrategyTraits:
        return StrategyTraits(
            needs_task="vector",
            owns_parameters=True,
            owns_phases=self.classifier == "logistic_regression",
            takes_steps=self.classifier == "trained",
            head=HeadConfig(pooling="mean"),  # without fine-tuning, the first token's vector contains little information
            learning_rate=lambda model: 1e-2,  # stable for a small head
            search_space={
                "training.epochs": ["auto", 10, 30],  # epochs on cached features are cheap
                "training.weight_decay": [0.0, 0.01, 0.1],
            },
            classes_space={
                "strategy.classifier": ["trained", "logistic_regression"],
                "strategy.regularization": {"low": 0.001, "high": 10.0, "log": True},
            },
        )

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        problems.no_effect("training.attention_dropout", "the encoder is frozen")
        return task

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze the encoder, but not its pooler.

        Raises:
            UserError: If the head has hidden layers and `classifier` is `logistic_regression`.
        """
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
        return job if self.cache == "none" else with_cached_features(job, model, CachePoint(), self.cache)

    def next_phase(self, state: State, view: View) -> Phase | None:
        if self.classifier == "trained":
            return super().next_phase(state, view)
        fit_logistic_regression(view.model, view.tables["train"], self.regularization)
        return None

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        return disable_replay(model)
