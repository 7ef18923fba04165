"""Base class of tasks that generate text: loss over target tokens, and token accuracy."""

from abc import abstractmethod
from typing import Any

import numpy as np

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.seq2seq.generation import ROWS
from nlp_transfer.models.seq2seq.tokenizer_pair import TokenizerPair
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks.common.objectives import TokenCrossEntropy, smoothing_of
from nlp_transfer.tasks.common.task import Task


class TextGenerationTask(Task):
    """A task that generates text with an encoder-decoder model."""

    @property
    @abstractmethod
    def tokenizers(self) -> TokenizerPair:
        """The tokenizers of sources and targets, available after `prepare`."""

    @property
    @abstractmethod
    def longest_piece(self) -> int:
        """Maximum source length in tokens. Longer texts are processed in pieces."""

    @abstractmethod
    def translate(self, model: Any, texts: list[str], beams: int | None = None, rows: int = ROWS) -> tuple[list[str], np.ndarray]:
        """Generate the targets of texts of any length; return them and their numbers of pieces, int64 of shape (texts,)."""

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> TokenCrossEntropy:
        """Return the loss over target tokens; label smoothing `auto` is 0.1 (Vaswani et al. 2017, 1706.03762)."""
        return TokenCrossEntropy(0.0 if training is None else smoothing_of(training, automatic=0.1))
