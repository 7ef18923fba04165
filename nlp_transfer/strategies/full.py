"""Full fine-tuning: train all parameters of the model.

When to use it: by default. With enough labeled rows it is usually the most accurate strategy.

Cost: gradients and optimizer state for all parameters, and a complete copy of the model on disk for each task.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", 1810.04805. The learning rates for few rows follow
Mosbach et al. 2021, "On the Stability of Fine-tuning BERT", 2006.04884.
"""

from typing import Annotated

from pydantic import Field
from torch import nn

from nlp_transfer.strategies import Group, Strategy, StrategyTraits
from nlp_transfer.strategies.common.layer_depth import scale_head


class Full(Strategy):
    """Train all parameters, with a higher learning rate for the pooler and the head than for the pretrained layers."""

    traits = StrategyTraits(
        only_trains=True,
        search_space={"strategy.head_scale": [1.0, 3.0, 10.0, 30.0], "training.weight_decay": [0.0, 0.01, 0.1]},
    )

    head_scale: Annotated[float, Field(gt=0)] = 10.0
    """Factor on the learning rate of the pooler and the head."""

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, self.head_scale)
