"""What a translation task takes from its checkpoint and its training pairs: the tokenizers and the maximum lengths."""

import math
from typing import Any, Literal

import numpy as np

from nlp_transfer.data.parallel_texts import draw_rows
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.utils.errors import Problems, UserError

Architecture = Literal["encoder_decoder", "seq2seq"]

ENCODER_DECODER = "encoder-decoder"  # transformers' model type for an encoder and a decoder that were put together
MEASURED_PAIRS = 2000  # pairs of the training data whose lengths are measured
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


def check_no_decoder_settings(task: Any, problems: Problems) -> None:
    """Check that no settings of a new decoder are given for a checkpoint that has one."""
    unused = {name: getattr(task, name) for name in ("decoder_layers", "target_tokenizer", "target_vocabulary")}
    unused |= {"decoder": task.decoder} if task.decoder != "encoder" else {}
    for name, value in unused.items():
        if value is not None:
            problems.add(f"task.{name}: found {value!r}; a seq2seq checkpoint has a decoder and a tokenizer; leave it out")


def measure_lengths(task: Any, train: Rows) -> tuple[float, int]:
    """Return how long targets may get, per source token, and the source length above which a text is split.

    Without such limits `generate` stops at 20 tokens, or far too late.
    """
    sample = train.select(draw_rows(len(train), MEASURED_PAIRS))
    features, _ = task.encode(next(sample.batches(MEASURED_PAIRS)), task.tokenizers.source)
    source, target = (np.array([len(ids) for ids in features[name]]) for name in ("input_ids", "labels"))
    ratio = float(np.quantile(target / (source + LENGTH_OFFSET), 0.999)) * 1.25
    longest = max(16, math.ceil(float(np.quantile(source, 0.999)) * 1.5))
    return round(ratio, 3), longest
