"""Full fine-tuning: every parameter moves.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", 1810.04805; the rates for few rows follow
Mosbach et al. 2021, 2006.04884.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from nlp_transfer.strategies import Group, Strategy
from nlp_transfer.strategies.common.layer_depth import scale_head


class Full(Strategy):
    """Everything moves; the pooler and the head, which have to be learned, faster than what is pretrained."""

    only_trains: ClassVar[bool] = True

    head_scale: Annotated[float, Field(gt=0)] = 10.0
    """Factor on the learning rate of the pooler and the head."""

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, self.head_scale)
