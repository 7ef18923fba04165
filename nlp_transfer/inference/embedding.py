"""Vectors of texts: pooled token states of an encoder, fine-tuned or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModel

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Features, TokenTable, encode_rows, model_inputs, token_padding, tokenize
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.exported_model import Exported, ExportedModel, backend_precision, find_graph
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.inference.predictor import PRECISION, Predictor
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.device import inference_device, resolve_precision
from nlp_transfer.models.heads import pool, without_pooler
from nlp_transfer.models.layers import encoder_type, new_parameters
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.models.verification.model_files import read_settings
from nlp_transfer.saved_models.load import find_adapter, hub_adapter, quiet
from nlp_transfer.tasks.common.input_columns import check_texts
from nlp_transfer.tasks.common.task import DEFAULT_LENGTH, token_limit
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

Pooling = Literal["mean", "cls", "max"]


@dataclass(frozen=True)
class Embedder:
    """An encoder that turns texts into vectors. Created by `load_embedder`.

    Attributes:
        columns: names of the columns with the text, or with the two texts of a pair.
        max_length: maximum number of tokens; longer texts are truncated.
        pooling: `mean` or `max` over all tokens except padding (as in sentence-transformers), or `cls`, the first token's state.
        normalize: whether vectors are scaled to length 1.
    """

    encoder: Any
    tokenizer: Any
    columns: list[str]
    max_length: int
    pooling: Pooling = "mean"
    normalize: bool = False
    batch_size: int | None = None
    precision: str = PRECISION

    def __call__(self, inputs: Any) -> np.ndarray:
        """Return the vectors of texts, or of the rows of a table (see `Predictor`), float32 of shape (rows, width).

        Raises:
            UserError: an input is empty or not a text, or a column is missing.
        """
        rows, _ = read_inputs(inputs, self.columns)
        if len(rows) == 0:
            return np.zeros((0, self.encoder.config.hidden_size), np.float32)
        return self.vectors(self.encode(rows))

    def encode(self, rows: Rows) -> TokenTable:
        """Tokenize rows.

        Raises:
            UserError: a cell is empty or not a text. The message lists all of them.
        """
        check_texts(rows, self.columns, problems := Problems())
        problems.raise_if_any()
        return self.tokenize(rows)

    def tokenize(self, rows: Rows) -> TokenTable:
        """Tokenize rows without checking their cells, which are texts."""
        padding = token_padding(self.tokenizer)

        def encode(cells: dict[str, list[Any]]) -> Features:
            texts = [cells[name] for name in self.columns]
            ids, truncated = tokenize(self.tokenizer, texts, padding, self.max_length)
            return Features(ids, padding, truncated=truncated)

        return encode_rows(rows, encode)

    def vectors(self, table: TokenTable) -> np.ndarray:
        """Return the vectors of tokenized rows, float32 of shape (rows, width), in row order."""
        pooled: Any = SimpleNamespace(predict=self._pool, traits=SimpleNamespace(generates=False))
        predictions, _ = predict_table(self.encoder, pooled, table, self.batch_size, self.precision)
        return predictions["vector"]

    def _pool(self, encoder: Any, batch: dict[str, torch.Tensor], *_: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        inputs = model_inputs(batch)
        vectors = pool(encoder(**inputs).last_hidden_state.float(), inputs["attention_mask"], self.pooling)
        if self.normalize:
            vectors = F.normalize(vectors, dim=-1)
        return {"vector": vectors.cpu().numpy()}, {}


def load_embedder(
    model: str | Path,
    pooling: Pooling = "mean",
    normalize: bool = False,
    columns: Sequence[str] = (),
    batch_size: int | None = None,
    precision: str = PRECISION,
    max_length: int | None = None,
) -> Embedder:
    """Load an encoder for embedding.

    Args:
        model: a run folder, a model folder, a hub id or pypi:NAME==VERSION#PATH; fine-tuned or not. Heads are not used.
        columns: see `Embedder`. Empty: the inputs of the model's task, or `text` for other models.
        max_length: maximum number of tokens. None: that of a fine-tuned model, otherwise 512 or the limit of the model.

    Raises:
        UserError: the model is missing or damaged, has a decoder or no token states, or was not loaded completely; or
            `max_length` exceeds the limit of the model.
    """
    path = expand(model)
    is_adapter = bool(find_adapter(path) or hub_adapter(str(model)))
    checkpoint = None if is_adapter else Checkpoint.open(find_model(str(model)))
    if checkpoint is None or read_settings(checkpoint.source, RECORD):
        settings = {"max_length": max_length} if max_length else None
        predictor = load_predictor(model, batch_size, precision, settings)
        return predictor_embedder(predictor, pooling, normalize, columns)
    length, names = max_length or min(DEFAULT_LENGTH, checkpoint.max_length), list(columns) or ["text"]
    if max_length is not None and not 1 <= max_length <= checkpoint.max_length:
        raise UserError(f"max_length: found {max_length}; allowed: up to {checkpoint.max_length}, the limit of the model")
    if graph := find_graph(Path(checkpoint.source.path)):
        precision = backend_precision(graph[0], precision)
        exported = ExportedModel(checkpoint.config, *graph, precision)
        return _embedder(exported, checkpoint.tokenizer, names, length, pooling, normalize, batch_size, precision)
    with quiet():
        encoder = without_pooler(checkpoint.load(AutoModel))
    if missing := sorted(name for name in new_parameters(encoder) if not name.startswith("pooler.")):
        raise UserError(
            f"model: {checkpoint.source.name} has no weights for {', '.join(missing[:4])}; allowed: a complete encoder"
        )
    chosen, _ = resolve_precision(precision, encoder_type(checkpoint.config), "--precision")
    return _embedder(encoder, checkpoint.tokenizer, names, length, pooling, normalize, batch_size, chosen)


def predictor_embedder(
    predictor: Predictor, pooling: Pooling = "mean", normalize: bool = False, columns: Sequence[str] = ()
) -> Embedder:
    """Return the encoder of a loaded model; see `load_embedder`."""
    model: Any = predictor.model
    if isinstance(model, Exported):
        raise UserError("embed: found an export that computes predictions, not the states of tokens; allowed: the trained model, "
                        "or the export of an encoder without a head")  # fmt: skip
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UserError("embed: found an adapter that adds prompts to the input, which are not part of a text's vector; allowed: "
                        "other adapters, such as lora")  # fmt: skip
    model = getattr(model, "get_base_model", lambda: model)()
    encoder = getattr(model, str(model.base_model_prefix), model)
    names = list(columns) or list(predictor.task.inputs)
    limit = token_limit(predictor.task)
    return _embedder(
        encoder, predictor.tokenizer, names, limit, pooling, normalize, predictor.batch_size, predictor.precision
    )  # fmt: skip


def _embedder(encoder: Any, tokenizer: Any, columns: list[str], *settings: Any) -> Embedder:
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise UserError(f"embed: found a {encoder.config.model_type} model, which has a decoder; allowed: encoders")
    if len(columns) > 2:
        raise UserError(f"--column: found {len(columns)} columns; allowed: one, or two for pairs of texts")
    frozen = encoder.to(inference_device()).eval().requires_grad_(False)  # copies of frozen weights are kept between calls
    return Embedder(frozen, tokenizer, columns, *settings)
