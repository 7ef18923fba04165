"""Prototypes: a text gets the label whose mean vector is nearest. Nothing is trained.

Snell et al. 2017, "Prototypical Networks for Few-shot Learning", 1703.05175, of which this is the classifier, over an encoder
that stays as it is. A nearest mean is a linear layer: -s |x - m|^2 is 2 s m.x - s |m|^2 and a term that all labels share.
"""

from typing import ClassVar

from transformers import PreTrainedModel

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.strategies import SENTENCE_MODEL, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.linear_heads import fix_for_computed_head
from nlp_transfer.strategies.common.nearest_mean import write_prototypes

SETTING = "strategy.name: found prototypes"


class Prototypes(Strategy):
    """Writes the mean of each label's vectors into the head; a scale that suits the rows of train makes distances
    probabilities. For several labels a row each label has two means: of the rows with it and of those without."""

    chooses_parameters: ClassVar[bool] = True

    def default_model(self) -> str:
        return SENTENCE_MODEL

    def preferred_head(self) -> HeadConfig:
        """The mean over all tokens, of length 1: the squared distance is then two minus twice the cosine."""
        return HeadConfig(pooling="mean", normalize=True)

    def takes_steps(self) -> bool:
        return False

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Fixes everything.

        Raises:
            UserError: the answer is a text or a number, or the head has hidden layers, which nothing would train.
        """
        fix_for_computed_head(model, SETTING)
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        model.to(job.device)  # type: ignore[arg-type]
        write_prototypes(model, job.tables["train"], SETTING)
        return job

    def next_phase(self, state: State, view: View) -> Phase | None:
        return None
