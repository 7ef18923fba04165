"""Integrated gradients of a classifier or regression model on its word embeddings, summed over words.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", 1703.01365. Importing this module loads captum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import model_inputs, to_device
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.regression_output import regression_outputs, standardized_outputs
from nlp_transfer.tasks import task_name
from nlp_transfer.tasks.common.task import token_limit
from nlp_transfer.utils.errors import UserError

try:
    from captum.attr import LayerIntegratedGradients
except ImportError as error:
    raise UserError(
        'explain: needs the package captum, which is not installed; to install it: pip install "nlp_transfer[explain]"'
    ) from error

STEPS = (32, 64, 128, 256, 512)  # numbers of points on the path; the next one is tried while the error is too large
TOLERANCE = 0.01  # largest completeness error, as a share of the difference of the outputs
SMALLEST_DIFFERENCE = 1.0  # differences below this count as this, in log-odds or in standard deviations
TOKENS = 4096  # tokens of interpolated inputs that are computed together


@dataclass(frozen=True)
class Word:
    """A word of a text with its attribution.

    Attributes:
        column: the column of the text.
        start, end: position in the text, in characters.
        text: the word.
        score: how much the word adds to the explained value, compared with a mask token in its place.
    """

    column: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Attribution:
    """The attributions of all words of a row.

    Attributes:
        words: the words in order; those beyond the maximum length are missing.
        value: the explained value: the log-odds of a label, or the prediction of a regression.
        baseline: the explained value if every token except the special ones is a mask token.
        error: completeness error: the sum of all attributions minus `value` - `baseline`, which it would be with infinitely many
            steps.
        steps: number of points on the path from the baseline to the input.
        converged: whether the error is within the tolerance.
    """

    words: tuple[Word, ...]
    value: float
    baseline: float
    error: float
    steps: int
    converged: bool


def check_explainable(predictor: Predictor) -> None:
    """Check that the words of the model's input can be explained.

    Raises:
        UserError: the task has no single output per row, the model has a decoder, or the tokenizer returns no characters.
    """
    traits, model = predictor.task.traits, predictor.model
    if not traits.pools:
        raise UserError(
            f"explain: found a model that predicts {traits.prediction} (task {task_name(predictor.task)}); allowed: models that "
            "predict from one vector per text: text_classification, multi_label, regression"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"explain: found a {model.config.model_type} model, which has a decoder; allowed: encoders")
    if not predictor.tokenizer.is_fast:
        raise UserError(
            f"explain: the model has a {type(predictor.tokenizer).__name__}, which does not return the characters of its tokens; "
            "allowed: a model with a fast tokenizer (tokenizer.json)"
        )


def attribute(predictor: Predictor, texts: Sequence[str], target: int) -> Attribution:
    """Compute the attributions of the words of one row, in fp32.

    Args:
        texts: the text, or the two texts of a pair.
        target: index of the label; 0 for a regression.

    Raises:
        UserError: the tokens of the text cannot be assigned to its characters.
    """
    model: Any = predictor.model
    names = predictor.task.inputs
    table = predictor.encode(from_columns({name: [text] for name, text in zip(names, texts, strict=True)}, "text"))
    batch = model_inputs(to_device(table.batch(np.zeros(1, np.int64)), next(model.parameters()).device))
    ids = batch.pop("input_ids")
    owners, spans = _words_of_tokens(predictor, texts, ids[0].tolist())
    blank = predictor.tokenizer.mask_token_id
    blank = predictor.tokenizer.pad_token_id if blank is None else blank
    in_text = torch.tensor([[owner is not None for owner in owners]], device=ids.device)
    baseline = ids.masked_fill(in_text, blank)
    layer = getattr(model, "get_base_model", lambda: model)().get_input_embeddings()
    forward, scale = _explained_value(predictor, target, list(batch))
    extra = tuple(batch.values())
    with standardized_outputs(model):
        value, start = _end_points(forward, layer, ids, baseline, extra)
        difference = value - start
        method = LayerIntegratedGradients(forward, layer)
        for steps in STEPS:
            scores = method.attribute(
                ids, baseline, additional_forward_args=extra, n_steps=steps,
                internal_batch_size=max(1, TOKENS // ids.shape[1]),
            ).detach().double().sum(-1)[0].cpu().numpy()  # fmt: skip
            error = float(scores.sum()) - difference
            converged = abs(error) <= TOLERANCE * max(abs(difference), SMALLEST_DIFFERENCE)
            if converged:
                break
    sums = dict.fromkeys(spans, 0.0)
    for owner, score in zip(owners, scores, strict=True):
        if owner is not None:
            sums[owner] += float(score)
    words = tuple(
        Word(names[owner[0]], first, last, texts[owner[0]][first:last], sums[owner] * scale)
        for owner, (first, last) in spans.items()
    )
    mean = regression_outputs(model)[-1].mean if regression_outputs(model) else 0.0
    return Attribution(words, value * scale + mean, start * scale + mean, error * scale, steps, converged)


def _explained_value(predictor: Predictor, target: int, names: Sequence[str]) -> tuple[Callable[..., torch.Tensor], float]:
    """Return a function that computes the explained value of each row of a batch, and the unit of its result.

    For labels that exclude each other, the value is the log-odds, log p / (1 - p), of the label under the softmax; unlike the
    logit, it takes into account that a word may support the other labels even more. For a label among several it is the logit.
    """
    model: Any = predictor.model
    scorer = predictor.task.scorer
    exclusive = bool(scorer.labels) and not getattr(scorer, "multilabel", False)

    def forward(ids: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, **dict(zip(names, extra, strict=True))).logits.float()
        chosen = logits[:, target]
        if not exclusive or logits.shape[1] == 1:
            return chosen
        others = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1)
        return chosen - others.logsumexp(1)

    layers = regression_outputs(model)
    return forward, layers[-1].scale if layers else 1.0


@torch.no_grad()
def _end_points(
    forward: Callable[..., torch.Tensor], layer: Any, ids: torch.Tensor, baseline: torch.Tensor, extra: tuple[torch.Tensor, ...]
) -> tuple[float, float]:
    """Return the explained value of the input and of the baseline.

    Only the embeddings of the baseline are used: families such as RoBERTa compute positions from the token ids.
    """
    value = float(forward(ids, *extra))
    vectors = layer(baseline)
    handle = layer.register_forward_hook(lambda *_: vectors)
    try:
        return value, float(forward(ids, *extra))
    finally:
        handle.remove()


Owner = tuple[int, int]  # index of the text, and index of the word in the tokenizer's count


def _words_of_tokens(
    predictor: Predictor, texts: Sequence[str], ids: list[int]
) -> tuple[list[Owner | None], dict[Owner, tuple[int, int]]]:
    """Return the word of each token (None for special tokens), and the characters of each word."""
    encoded = predictor.tokenizer(
        *texts, truncation=True, max_length=token_limit(predictor.task), return_offsets_mapping=True, verbose=False
    )
    if list(encoded["input_ids"]) != ids:
        raise UserError("explain: the tokenizer of the model returns other tokens when it is asked for their characters")
    owners: list[Owner | None] = []
    spans: dict[Owner, tuple[int, int]] = {}
    tokens = zip(encoded.sequence_ids(), encoded.word_ids(), encoded["offset_mapping"], strict=True)
    for text, word, (first, last) in tokens:
        if text is None or word is None:
            owners.append(None)
            continue
        owners.append(owner := (text, word))
        token = texts[text][first:last]
        start = last - len(token.lstrip())  # some tokenizers count the space before a word as a part of it
        before = spans.get(owner, (start, last))
        spans[owner] = (min(before[0], start), max(before[1], last)) if before[0] < before[1] else (start, last)
    return owners, spans
