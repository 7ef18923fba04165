"""Base class of tasks that generate text: loss over target tokens, and token accuracy."""

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objectives import TokenCrossEntropy, smoothing_of
from nlp_transfer.tasks.common.task import Task


class TextGenerationTask(Task):
    """A task that generates text with an encoder-decoder model."""

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> TokenCrossEntropy:
        """Return the loss over target tokens; label smoothing `auto` is 0.1 (Vaswani et al. 2017, 1706.03762)."""
        return TokenCrossEntropy(0.0 if training is None else smoothing_of(training, automatic=0.1))
