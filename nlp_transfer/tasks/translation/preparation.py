"""What a translation task takes from its checkpoint and its training pairs: the tokenizers and the maximum lengths."""

import math
from typing import Literal

import numpy as np

from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.utils.errors import UserError

Architecture = Literal["encoder_decoder", "seq2seq"]

ENCODER_DECODER = "encoder-decoder"  # transformers' model type for an encoder and a decoder that were put together
LENGTH_OFFSET = 8  # tokens added to the source length before it is multiplied by the ratio, since short texts vary more


def find_architecture(asked: Architecture | None, checkpoint: Checkpoint) -> Architecture:
    """Return what the checkpoint is, or will be part of.

    Raises:
        UserError: If that is not what `task.architecture` asks for.
    """
    is_seq2seq = checkpoint.config.is_encoder_decoder and checkpoint.config.model_type != ENCODER_DECODER
    architecture: Architecture = "seq2seq" if is_seq2seq else "encoder_decoder"
    if asked not in (None, architecture):
        kind = "is already an encoder-decoder" if is_seq2seq else "is only an encoder"
        raise UserError(f"task.architecture: found {asked}; {checkpoint.source.name} {kind}; allowed: {architecture}")
    return architecture


def measure_lengths(source: np.ndarray, target: np.ndarray) -> tuple[float, int]:
    """Return how long targets may get, per source token, and the source length above which a text is split.

    Without such limits `generate` stops at 20 tokens, or far too late.

    Args:
        source: Tokens of each source, int64 of shape (pairs,).
        target: Tokens of each target, int64 of shape (pairs,).
    """
    ratio = float(np.quantile(target / (source + LENGTH_OFFSET), 0.999)) * 1.25
    longest = max(16, math.ceil(float(np.quantile(source, 0.999)) * 1.5))
    return round(ratio, 3), longest
