"""Infer settings of a task that generates text from its checkpoint and training pairs: the architecture, and lengths."""

from typing import Any, Literal

import numpy as np

from nlp_transfer.data.parallel_texts import draw_rows
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.utils.errors import Problems, UserError

Architecture = Literal["encoder_decoder", "seq2seq"]

ENCODER_DECODER = "encoder-decoder"  # transformers' model type of `EncoderDecoderModel`
MEASURED_PAIRS = 2000  # maximum size of the sample of training pairs for `sample_lengths`


def find_architecture(requested: Architecture | None, checkpoint: Checkpoint) -> Architecture:
    """Return the architecture of the checkpoint, or the one that is built from it.

    Raises:
        UserError: If it differs from `task.architecture`.
    """
    is_seq2seq = checkpoint.config.is_encoder_decoder and checkpoint.config.model_type != ENCODER_DECODER
    architecture: Architecture = "seq2seq" if is_seq2seq else "encoder_decoder"
    if requested not in (None, architecture):
        kind = "is already an encoder-decoder" if is_seq2seq else "is only an encoder"
        raise UserError(f"task.architecture: found {requested}; {checkpoint.source.name} {kind}; allowed: {architecture}")
    return architecture


def check_no_decoder_settings(task: Any, problems: Problems) -> None:
    """Report settings of a new decoder for a checkpoint that already has one."""
    unused = {name: getattr(task, name) for name in ("decoder_layers", "target_tokenizer", "target_vocabulary")}
    unused |= {"decoder": task.decoder} if task.decoder != "encoder" else {}
    for name, value in unused.items():
        if value is not None:
            problems.add(f"task.{name}: found {value!r}; a seq2seq checkpoint has a decoder and a tokenizer; leave it out")


def sample_lengths(task: Any, train: Rows) -> np.ndarray:
    """Return the lengths of sources and of targets in tokens, for a sample of training pairs; int64 of shape (2, pairs)."""
    sample = train.select(draw_rows(len(train), MEASURED_PAIRS))
    ragged = task.encode(next(sample.batches(MEASURED_PAIRS)), task.tokenizers.source).ragged
    return np.array([[len(ids) for ids in ragged[name]] for name in ("input_ids", "labels")])
