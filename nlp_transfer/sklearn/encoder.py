"""A transformer from texts to vectors."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from nlp_transfer.inference.embedding import Embedder, load_embedder
from nlp_transfer.models.layers import width
from nlp_transfer.sklearn.isolation import isolated
from nlp_transfer.sklearn.model_bytes import read_files, temporary_folder, written_files
from nlp_transfer.sklearn.text_inputs import as_rows, read_texts
from nlp_transfer.strategies.common.strategy_traits import SENTENCE_MODEL
from nlp_transfer.utils.errors import UserError

POOLINGS = ("mean", "cls", "max")


class TextEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Encode texts as vectors with a pretrained or fine-tuned encoder, without training.

    Args:
        model: The encoder: a hub id, a folder, or `pypi:NAME==VERSION#PATH`. The head of a fine-tuned model is not used.
        pooling: Pooling of token vectors: `mean` or `max` over all tokens except padding, or `cls`, the first token's vector.
        normalize: Whether to scale vectors to length 1.
        max_length: Maximum length of an input in tokens; longer ones are truncated. None: that of a fine-tuned
            model, otherwise 512 or the limit of the model.
        batch_size: Rows per batch. None: the number that is fastest on the device.
        verbose: 0: print nothing. 1: print messages to standard error.

    Attributes:
        n_features_in_: Number of text columns: 1, or 2 for pairs.
    """

    def __init__(
        self,
        model: str | Path = SENTENCE_MODEL,
        *,
        pooling: str = "mean",
        normalize: bool = False,
        max_length: int | None = None,
        batch_size: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.model, self.pooling, self.normalize = model, pooling, normalize
        self.max_length, self.batch_size, self.verbose = max_length, batch_size, verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the encoder. The texts only determine the number of columns.

        Raises:
            UserError: A setting or text is invalid, or the model cannot be loaded. A subclass of ValueError.
        """
        self._texts(X, reset=True)
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling: found {self.pooling!r}; allowed: {', '.join(POOLINGS)}")
        self._encoder: Embedder | None = self._load(str(self.model), self.max_length)
        self._length = self._encoder.max_length
        self._n_features_out = width(self._encoder.encoder)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the vectors of texts, float32 of shape (rows, width)."""
        check_is_fitted(self)
        rows = as_rows(self._texts(X))
        if self._encoder is None:
            with written_files(self._files) as folder:
                self._encoder = self._load(str(folder), self._length)
        embedder = replace(self._encoder, columns=list(rows.columns))
        with isolated(self.verbose):
            return embedder.vectors(embedder.tokenize(rows))

    def _texts(self, X: Any, reset: bool = False) -> np.ndarray:
        """Return the texts in `X`, an array of objects of shape (rows, columns)."""
        return read_texts(self, X, reset)

    def _load(self, source: str, max_length: int | None) -> Embedder:
        pooling: Any = self.pooling
        with isolated(self.verbose):
            return load_embedder(source, pooling, self.normalize, batch_size=self.batch_size, max_length=max_length)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_encoder")

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        encoder = state.get("_encoder")
        if encoder is None:
            return dict(state)
        with ExitStack() as stack:
            stack.enter_context(isolated(self.verbose))
            folder = stack.enter_context(temporary_folder())
            encoder.encoder.save_pretrained(folder)
            encoder.tokenizer.save_pretrained(folder)
            return state | {"_encoder": None, "_files": read_files(folder)}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True  # two-dimensional too: columns of texts
        tags.transformer_tags.preserves_dtype = []
        return tags
