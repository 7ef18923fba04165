"""A few logits and hashes of the weights, kept beside a model: whoever has a copy can see that it is whole and answers alike.

The ids are made up, not taken from the data: what is published must not tell what a model was trained on.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources.wheels import sha256_of
from nlp_transfer.models.checkpoint import has_decoder, place_end_tokens
from nlp_transfer.models.compatibility import embedding_rows
from nlp_transfer.models.regression_output import regression_outputs
from nlp_transfer.models.verification.untrusted_json import LIBRARY_ERRORS
from nlp_transfer.utils.errors import UserError, first_line, shorten

ROWS, LENGTH, SHOWN = 2, 8, 8
# Another machine rounds otherwise; damage is larger. A share of how far logits lie apart (of a head that was hardly trained about
# 0.01), or of the scale of the targets of a regression, and a share of how far they lie from 0.
TOLERANCE, ROUNDING, ROUNDING_OF_NUMBERS = 1e-3, 1e-5, 1e-6
WEIGHTS = "*.safetensors"
CHARACTERS = 256  # ids for a model that reads characters and has no table of them
SENTENCE = "Don't say naïve Größe: 3.14, e\u0301, 東京"


def make_probe(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """What is recorded of a model that was just read from `folder`: `input_ids` (2 rows of 8; `decoder_input_ids` where it
    writes), up to 8 `logits` a row, rounded, and the sha256 of each file of weights; of a regression also the `scale` of its
    targets."""
    any_model: Any = model
    own = not isinstance(model, PreTrainedModel)  # a module of the user's own class
    words = model.config.vocab_size if own else embedding_rows(model) or CHARACTERS
    inputs = {"input_ids": place_end_tokens(model, _spread(words, ROWS * LENGTH).view(ROWS, LENGTH))}
    if has_decoder(model):
        inputs["decoder_input_ids"] = _spread(any_model.get_output_embeddings().weight.shape[0], ROWS * LENGTH).view(ROWS, LENGTH)
    return {
        **{name: ids.tolist() for name, ids in inputs.items()},
        "logits": [[float(f"{value:.8g}") for value in row] for row in _logits(model, inputs).tolist()],
        **({"scale": regressions[-1].scale} if (regressions := regression_outputs(model)) else {}),
        "weights": {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob(WEIGHTS))},
    }


def check_probe(model: PreTrainedModel, probe: dict[str, Any], folder: Path) -> None:
    """Compares a model read from `folder` with what was recorded of it.

    Raises:
        UserError: the weights are other ones, or the model answers otherwise.
    """
    check_files(probe, folder)
    if (difference := probe_difference(model, probe)) is not None:
        raise UserError(
            f"{folder}: the model does not give the logits recorded when it was saved ({difference}); its configuration or a "
            "library is another one than then"
        )


def check_files(probe: dict[str, Any], folder: Path) -> None:
    """Raises a UserError where a file of weights is missing or is not the one that was saved."""
    weights = probe.get("weights", {})
    if not isinstance(weights, dict) or not all(re.fullmatch(r"[\w-][\w./-]{0,200}", name) for name in weights):
        raise UserError(f"{folder}: the record of its weights is {shorten(weights)}; allowed: their hashes by name of file")
    for name, digest in weights.items():
        if ".." in Path(name).parts or not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; copy the model again, whole")
        if sha256_of(folder / name) != digest:
            raise UserError(
                f"{folder / name}: is not the file that was saved (its sha256 differs from the one recorded); copy it again, "
                "or save the model again"
            )


def probe_difference(model: PreTrainedModel, probe: dict[str, Any]) -> str | None:
    """How the logits of a model, which must be in fp32, differ from those recorded; None where they agree up to rounding."""
    try:
        names: list[str] = [name for name in ("input_ids", "decoder_input_ids") if name in probe]
        inputs = {name: torch.tensor(probe[name]) for name in names}
        if any(ids.shape != (ROWS, LENGTH) for ids in inputs.values()):
            return "they are recorded for ids of another shape"
        wanted, found = torch.tensor(probe["logits"]), _logits(model, inputs)
        if not 0 < (scale := float(probe.get("scale", 1))) < math.inf or not wanted.isfinite().all():
            return "they are recorded as numbers that are not finite"
    except LIBRARY_ERRORS as error:  # ids beyond the vocabulary, say
        return f"they cannot be computed: {first_line(error)}"
    if wanted.shape != found.shape:
        return f"they have the shape {tuple(found.shape)} and not {tuple(wanted.shape)}"
    difference = float((wanted - found).abs().max())
    largest, apart = float(wanted.abs().max()), float((wanted - wanted.mean()).abs().max())
    if "scale" in probe:  # of a regression, whose values may lie far from 0 and close together
        allowed = max(TOLERANCE * scale, ROUNDING_OF_NUMBERS * largest)
    else:
        allowed = TOLERANCE * apart + ROUNDING * max(1.0, largest)
    return None if difference <= allowed else f"they differ by {difference:g}, which is more than rounding ({allowed:.1g})"


def _spread(words: int, count: int) -> torch.Tensor:
    """Ids from the whole of the vocabulary, in no order, the same each time."""
    return torch.tensor([(i * 7919 + 11) % words for i in range(count)])


def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of shape (rows, up to 8). Of a vocabulary the last token's logarithms of probabilities, in which every word has a share."""
    any_model: Any = model.eval()
    device = next(model.parameters()).device
    given = {name: ids.to(device) for name, ids in inputs.items()}
    with torch.inference_mode():
        logits = any_model(**given, attention_mask=torch.ones_like(given["input_ids"])).logits.float().cpu()
    return logits[:, -1].log_softmax(-1)[:, :SHOWN] if logits.dim() == 3 else logits[:, :SHOWN]


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what tells one tokenizer from another: a hash of its vocabulary, and the ids of a sentence with odd characters."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {"vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(), "ids": tokenizer(SENTENCE)["input_ids"]}
