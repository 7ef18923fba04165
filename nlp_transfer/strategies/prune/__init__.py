"""Structured pruning: make the feed-forward layers of a fine-tuned model narrower, then train it a little longer.

When to use it: for a smaller, faster model with slightly lower accuracy. Plain transformers loads the saved model.

Cost: a forward and a backward pass for `rows` rows, then the cost of full fine-tuning with fewer parameters.

Neurons are removed by their importance on training rows: McCarley et al. 2019, "Structured Pruning of a BERT-based Question
Answering Model", 1910.06360, with the measure of Michel et al. 2019, "Are Sixteen Heads Really Better than One?", 1905.10650.
Attention heads, which both papers also remove, are kept: the configurations of BERT-like models have no field for layers with
fewer heads of the same size, so transformers could not load such a model.
"""

from typing import Annotated

import numpy as np
from pydantic import Field
from transformers import PreTrainedModel

from nlp_transfer.models.layers import encoder_type, is_encoder_decoder, new_parameters
from nlp_transfer.models.preparation import count_parameters
from nlp_transfer.settings.base_settings import Count
from nlp_transfer.strategies import Job, Strategy, StrategyTraits
from nlp_transfer.strategies.prune.feed_forward import find_feed_forward, keep_neurons, most_important, neuron_importance
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import broadcast_from_main
from nlp_transfer.utils.errors import UserError


class Prune(Strategy):
    """Remove the least important neurons of each feed-forward layer of a fine-tuned model, and train the smaller model."""

    # Alone, because the preparations of other strategies would refer to the weights before pruning.
    traits = StrategyTraits(position="alone", default_model=None, search_space={"strategy.width": [0.25, 0.5, 0.75]})

    width: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the neurons of each feed-forward layer to keep."""
    rows: Count = 2000
    """Number of training rows, drawn at random, on which the importance of neurons is measured. If there are fewer, all."""

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Check that the model can be pruned.

        Raises:
            UserError: If its head is not trained, or its architecture is not supported.
        """
        if is_encoder_decoder(model):
            raise UserError(
                f"strategy.name: found prune with a {encoder_type(model.config)} model that has an encoder and a decoder; "
                "allowed: an encoder with a head"
            )
        if new := sorted(new_parameters(model)):
            raise UserError(
                "strategy.name: found prune with a model that was not fine-tuned for this task and these labels (it has no "
                f"weights for {new[0]}), so the importance of its neurons for the task is unknown; allowed: a fine-tuned model. "
                "First train with strategy.name: full, then set model to the folder of that run"
            )
        find_feed_forward(model)
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Measure the importance of the neurons on training rows, and remove the least important ones from the model."""
        table, blocks = job.tables["train"], find_feed_forward(model)
        count = max(1, round(self.width * blocks[0].neurons))
        chosen = np.random.default_rng(job.training.seed).permutation(len(table))[: self.rows]
        objective = job.task.objective(job.training, table)
        importance = neuron_importance(model, blocks, objective, table, np.sort(chosen), job.device)
        kept = broadcast_from_main(most_important(importance, count))  # rounding may differ between processes
        before = count_parameters(model)[1]
        keep_neurons(model, blocks, kept)
        say(
            f"pruned by importance on {len(chosen):,} rows: {count:,} of {blocks[0].neurons:,} neurons are kept in each "
            f"feed-forward layer; {count_parameters(model)[1]:,} of {before:,} parameters"
        )
        return job
