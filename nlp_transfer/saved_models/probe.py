"""Record a few logits of a saved model and the hashes of its weight files, so that copies can be verified.

The logits are for artificial token ids, which reveal nothing about the training data.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.models.compatibility import embedding_rows
from nlp_transfer.models.layers import has_decoder, output_logits, place_end_tokens
from nlp_transfer.models.regression_output import regression_outputs
from nlp_transfer.models.verification.untrusted_json import LIBRARY_ERRORS
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.errors import UserError, first_line, shorten

ROWS, LENGTH, SHOWN = 2, 8, 8
# Rounding differs between machines; damage causes larger differences. TOLERANCE is relative to the spread of the logits (about
# 0.01 for a head with little training) or to the scale of regression targets; the other limits are relative to the largest logit.
TOLERANCE, ROUNDING, REGRESSION_ROUNDING = 1e-3, 1e-5, 1e-6
WEIGHTS = "*.safetensors"
CHARACTERS = 256  # ids for a model without an embedding table (CANINE)
SENTENCE = "Don't say naïve Größe: 3.14, e\u0301, 東京"


def make_probe(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Record the logits and the weight files of a model that was loaded from `folder`.

    Returns:
        `input_ids` of shape (2, 8); for a model with a decoder, `decoder_input_ids` of the same shape; rounded `logits` of shape
        (2, up to 8); `weights`, the sha256 of each weight file by name; for a regression, `scale` of the targets.
    """
    any_model: Any = model
    is_custom = not isinstance(model, PreTrainedModel)  # a module of a user's class
    vocabulary = model.config.vocab_size if is_custom else embedding_rows(model) or CHARACTERS
    inputs = {"input_ids": place_end_tokens(model, _artificial_ids(vocabulary))}
    if has_decoder(model):
        inputs["decoder_input_ids"] = _artificial_ids(any_model.get_output_embeddings().weight.shape[0])
    regressions = regression_outputs(model)
    return {
        **{name: ids.tolist() for name, ids in inputs.items()},
        "logits": [[float(f"{value:.8g}") for value in row] for row in _logits(model, inputs).tolist()],
        **({"scale": regressions[-1].scale} if regressions else {}),
        "weights": {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob(WEIGHTS))},
    }


def check_probe(model: PreTrainedModel, probe: dict[str, Any], folder: Path) -> None:
    """Compare a model that was loaded from `folder` with the recorded probe.

    Raises:
        UserError: a weight file or the logits differ.
    """
    check_files(probe, folder)
    if (difference := probe_difference(model, probe)) is not None:
        raise UserError(
            f"{folder}: the model does not give the logits recorded when it was saved ({difference}); its configuration or a "
            "library has changed since then"
        )


def check_files(probe: dict[str, Any], folder: Path) -> None:
    """Raise a UserError if a weight file is missing or differs from its recorded hash."""
    weights = probe.get("weights", {})
    if not isinstance(weights, dict) or not all(re.fullmatch(r"[\w-][\w./-]{0,200}", name) for name in weights):
        raise UserError(f"{folder}: the record of its weights is {shorten(weights)}; allowed: hashes by file name")
    for name, digest in weights.items():
        if ".." in Path(name).parts or not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; copy the complete model again")
        if sha256_of(folder / name) != digest:
            raise UserError(
                f"{folder / name}: is not the file that was saved (its sha256 differs from the recorded one); copy it again, or "
                "save the model again"
            )


def probe_difference(model: PreTrainedModel, probe: dict[str, Any]) -> str | None:
    """Return how the fp32 logits of a model differ from the recorded ones, as text, or None if only rounding differs."""
    try:
        names: list[str] = [name for name in ("input_ids", "decoder_input_ids") if name in probe]
        inputs = {name: torch.tensor(probe[name]) for name in names}
        if any(ids.shape != (ROWS, LENGTH) for ids in inputs.values()):
            return "the recorded ids have another shape"
        recorded, logits = torch.tensor(probe["logits"]), _logits(model, inputs)
        if not 0 < (scale := float(probe.get("scale", 1))) < math.inf or not recorded.isfinite().all():
            return "the recorded numbers are not finite"
    except LIBRARY_ERRORS as error:  # such as ids beyond the vocabulary
        return f"they cannot be computed: {first_line(error)}"
    if recorded.shape != logits.shape:
        return f"they have the shape {tuple(logits.shape)} and not {tuple(recorded.shape)}"
    difference = float((recorded - logits).abs().max())
    largest, spread = float(recorded.abs().max()), float((recorded - recorded.mean()).abs().max())
    if "scale" in probe:  # regression values may be far from 0 and close together
        allowed = max(TOLERANCE * scale, REGRESSION_ROUNDING * largest)
    else:
        allowed = TOLERANCE * spread + ROUNDING * max(1.0, largest)
    return None if difference <= allowed else f"they differ by {difference:g}, which is more than rounding ({allowed:.1g})"


def _artificial_ids(vocabulary: int) -> torch.Tensor:
    """Return fixed ids spread over a vocabulary, int64 of shape (2, 8)."""
    return torch.tensor([(i * 7919 + 11) % vocabulary for i in range(ROWS * LENGTH)]).view(ROWS, LENGTH)


def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the first 8 logits of each row, of shape (rows, up to 8).

    For a model that generates text, these are log-probabilities of the next token, which depend on the complete vocabulary.
    """
    any_model: Any = model.eval()
    device = next(model.parameters()).device
    inputs = {name: ids.to(device) for name, ids in inputs.items()}
    with torch.inference_mode():
        logits = output_logits(any_model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))).float().cpu()
    return logits[:, -1].log_softmax(-1)[:, :SHOWN] if has_decoder(model) else logits.flatten(1)[:, :SHOWN]


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a fingerprint of a tokenizer: a hash of its vocabulary, and the ids of a sentence with unusual characters."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {"vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(), "ids": tokenizer(SENTENCE)["input_ids"]}
