"""Prototypes: predict the label with the nearest mean vector, without training.

When to use it: with very few labeled rows per label, for immediate results, or as a baseline. Good results require a sentence
encoder.

Cost: one forward pass per training row.

Snell et al. 2017, "Prototypical Networks for Few-shot Learning", 1703.05175; here with a frozen encoder. The classifier is a
linear layer, since -s |x - m|^2 equals 2 s m.x - s |m|^2 plus a term that is the same for all labels.
"""

from transformers import PreTrainedModel

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.strategies import SENTENCE_MODEL, Job, Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.strategies.common.linear_heads import freeze_for_computed_head
from nlp_transfer.strategies.common.nearest_mean import write_prototypes

SETTING = "strategy.name: found prototypes"


class Prototypes(Strategy):
    """Set the head to a nearest-mean classifier, with distances scaled to give calibrated probabilities.

    In multi-label tasks, each label has two means: that of the rows with the label, and that of the rows without it.
    """

    traits = StrategyTraits(
        needs_task="classes",
        owns_parameters=True,
        owns_phases=True,
        takes_steps=False,
        uses_weights=False,
        default_model=SENTENCE_MODEL,
        head=HeadConfig(pooling="mean", normalize=True),  # with vectors of length 1, squared distances are 2 - 2 cosine
    )

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze all parameters.

        Raises:
            UserError: If the head has hidden layers.
        """
        freeze_for_computed_head(model, SETTING)
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        model.to(job.device)  # type: ignore[arg-type]
        write_prototypes(model, job.tables["train"], SETTING)
        return job

    def next_phase(self, state: State, view: View) -> Phase | None:
        return None
