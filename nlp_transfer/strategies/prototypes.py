"""Prototypes: predict the label whose mean vector is nearest. Nothing is trained.

When to use it: with very few labeled rows per label, for instant results, or as a baseline, with a sentence encoder.

Cost: one forward pass per training row.

Snell et al. 2017, "Prototypical Networks for Few-shot Learning", 1703.05175. This is their classifier on a frozen encoder. The
nearest mean is a linear layer: -s |x - m|^2 is 2 s m.x - s |m|^2, plus a term that all labels share.
"""

from typing import ClassVar

from transformers import PreTrainedModel

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.strategies import SENTENCE_MODEL, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.linear_heads import freeze_for_computed_head
from nlp_transfer.strategies.common.nearest_mean import write_prototypes

SETTING = "strategy.name: found prototypes"


class Prototypes(Strategy):
    """Write the mean vector of each label into the head, scaled so that distances become probabilities.

    In multi-label tasks each label has two means: of the rows with the label and of those without it.
    """

    chooses_parameters: ClassVar[bool] = True

    def default_model(self) -> str:
        return SENTENCE_MODEL

    def preferred_head(self) -> HeadConfig:
        """Return mean pooling, normalized to length 1: the squared distance is then 2 - 2 cosine."""
        return HeadConfig(pooling="mean", normalize=True)

    def takes_steps(self) -> bool:
        return False

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze everything.

        Raises:
            UserError: If the task does not predict labels, or the head has hidden layers, which would stay untrained.
        """
        freeze_for_computed_head(model, SETTING)
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        model.to(job.device)  # type: ignore[arg-type]
        write_prototypes(model, job.tables["train"], SETTING)
        return job

    def next_phase(self, state: State, view: View) -> Phase | None:
        return None
