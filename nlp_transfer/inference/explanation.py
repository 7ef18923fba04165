"""Explain predictions: which words they depend on, and whether the prediction changes when these words are removed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.inference.attribution import Attribution, Word, attribute, check_explainable
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.utils.console import Steps
from nlp_transfer.utils.errors import Problems, UserError, did_you_mean

REMOVED = 0.2  # share of the words that the deletion test removes
DRAWS = 20  # random sets of words that it compares with
METHOD = "integrated gradients on the word embeddings (Sundararajan et al. 2017), baseline: mask tokens"


@dataclass(frozen=True)
class DeletionTest:
    """How much the output drops if words are removed from the text.

    Attributes:
        removed: number of removed words.
        draws: number of random sets of words.
        output: probability of the explained label, or the predicted number, before words are removed.
        top: drop of the output without the words with the largest scores.
        random: mean drop without as many random words.
        random_deviation: standard deviation of this drop over the draws.
    """

    removed: int
    draws: int
    output: float
    top: float
    random: float
    random_deviation: float


@dataclass(frozen=True)
class Neighbor:
    """A training row with a similar vector.

    Attributes:
        similarity: cosine similarity of the mean token vectors of the two rows.
        where: file and row.
        columns: the inputs and targets of the row.
    """

    similarity: float
    where: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Explanation:
    """Why a model made a prediction.

    Attributes:
        texts: the inputs by column.
        prediction: the prediction, as `predict` returns it: `prediction`, and `probability` if there is one.
        label: the explained label; None for a regression.
        attribution: the scores of the words.
        deletion: the deletion test; None for a text of one word.
        truncated: whether the end of the text was not read by the model.
        neighbors: the most similar training rows, best first; None if they were not requested or are not available.
    """

    texts: dict[str, str]
    prediction: dict[str, Any]
    label: str | None
    attribution: Attribution
    deletion: DeletionTest | None
    truncated: bool
    neighbors: tuple[Neighbor, ...] | None = None

    def top_words(self, count: int | None = None) -> list[Word]:
        """Return the words with the largest absolute scores, the largest first."""
        return sorted(self.attribution.words, key=lambda word: -abs(word.score))[:count]

    def segments(self, column: str) -> list[tuple[str, float | None]]:
        """Return the parts of a text in order, each with its score; None for white space and for what the model did not read."""
        text, end = self.texts[column], 0
        parts: list[tuple[str, float | None]] = []
        for word in sorted((word for word in self.attribution.words if word.column == column), key=lambda word: word.start):
            parts += [(text[end : word.start], None)] * (end < word.start)
            parts.append((word.text, word.score))
            end = word.end
        return [*parts, (text[end:], None)] if end < len(text) else parts

    @property
    def largest_score(self) -> float:
        """The largest absolute score of a word; positive, so that scores can be divided by it."""
        return max((abs(word.score) for word in self.attribution.words), default=0.0) or 1.0

    def notes(self) -> list[str]:
        """Return sentences about the scores, their accuracy and the deletion test."""
        attribution, test = self.attribution, self.deletion
        kind = "predicted value" if self.label is None else "probability"
        lines = [
            f"A score is what a word adds to the {self.unit}: {attribution.value:.4g} for this text, {attribution.baseline:.4g} "
            "with mask tokens in place of all words.",
            f"Completeness error {attribution.error:.2g} with {attribution.steps} steps"
            + ("." if attribution.converged else ", which is above the tolerance: the scores are not exact."),
        ]
        if self.label is not None and attribution.baseline > attribution.value:
            lines.append(
                f"Mask tokens alone favor {self.label} even more than this text. The scores add up to the difference, which is "
                "negative, so nearly every word can count against the label, even if it is predicted with certainty: compare the "
                "scores of the words with each other."
            )
        if test is None:
            lines.append("No deletion test: the text has only one word.")
        else:
            words = "word" if test.removed == 1 else f"{test.removed} words"
            lines.append(
                f"Deletion test: without the {words} with the largest scores, the {kind} changes from {test.output:.4f} to "
                f"{test.output - test.top:.4f} (a drop of {test.top:.4f}); without as many random words it drops by "
                f"{test.random:.4f} on average (standard deviation {test.random_deviation:.4f}, {test.draws} draws). The scores "
                "are faithful to the model to the extent that the first drop is larger."
            )
        if self.truncated:
            lines.append("The text was truncated to the maximum length of the model; the rest has no scores.")
        return lines

    def document(self) -> dict[str, Any]:
        """Return the explanation as a value for JSON."""
        return {"method": METHOD, "unit": self.unit} | asdict(self)

    @property
    def unit(self) -> str:
        """The unit of the scores."""
        return "predicted value" if self.label is None else f"log-odds of {self.label}"


def explain_texts(predictor: Predictor, inputs: Any, label: Any = None, seed: int = 0) -> list[Explanation]:
    """Explain the predictions of texts, or of the rows of a table; see `Predictor` for the forms of inputs.

    Args:
        label: the label to explain. None: the one with the highest probability.
        seed: seed of the random words of the deletion test.

    Raises:
        UserError: the model or an input cannot be explained, or there is no such label.
    """
    check_explainable(predictor)
    task = predictor.task
    rows, _ = read_inputs(inputs, task.inputs, task.traits.word_lists)
    task.check(rows, problems := Problems(), targets=False)
    problems.raise_if_any()
    chosen = None if label is None else _find_label(predictor, label)
    explanations = []
    with Steps("explaining", len(rows)) as progress:
        for texts in zip(*(rows.columns[name] for name in task.inputs), strict=True):
            explanations.append(_explain_row(predictor, texts, chosen, seed))
            progress.advance()
    return explanations


def _explain_row(predictor: Predictor, texts: Sequence[str], target: int | None, seed: int) -> Explanation:
    task, labels = predictor.task, predictor.task.scorer.labels
    before = predictor.truncated
    columns = dict(zip(task.inputs, texts, strict=True))
    row = from_columns({name: [text] for name, text in columns.items()}, "text")
    prediction = {name: values[0] for name, values in predictor.predict_columns(row).items()}
    if target is None:
        target = int(_outputs(predictor, [texts], None)[0].argmax()) if labels else 0
    attribution = attribute(predictor, texts, target)
    deletion = _test_deletion(predictor, texts, attribution.words, target, seed)
    label = labels[target] if labels else None
    return Explanation(columns, prediction, label, attribution, deletion, predictor.truncated > before)


def _find_label(predictor: Predictor, label: Any) -> int:
    labels = predictor.task.scorer.labels
    if not labels:
        raise UserError(f"--label: found {label!r}; the model predicts a number and has no labels; leave it out")
    if str(label) not in labels:
        shown = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
        raise UserError(f"--label: found {label!r}, not a label of the model{did_you_mean(label, labels)}; allowed: {shown}")
    return labels.index(str(label))


def _outputs(predictor: Predictor, rows: Sequence[Sequence[str]], target: int | None) -> np.ndarray:
    """Return probabilities of shape (rows,), or of all labels if `target` is None; or predicted numbers of shape (rows,)."""
    names = predictor.task.inputs
    table = predictor.encode(from_columns({name: [texts[i] for texts in rows] for i, name in enumerate(names)}, "text"))
    predictions, _ = predict_table(predictor.model, predictor.task, table, predictor.batch_size)
    if not predictor.task.scorer.labels:
        return predictions["prediction"]
    scores = predictions["scores"]
    return scores if target is None else scores[:, target]


def _test_deletion(
    predictor: Predictor, texts: Sequence[str], words: Sequence[Word], target: int, seed: int
) -> DeletionTest | None:
    """Remove the words with the largest scores, and random words, and compare the outputs; None for a text of one word."""
    if len(words) < 2:
        return None
    removed = max(1, round(REMOVED * len(words)))
    generator = np.random.default_rng(seed)
    top = sorted(range(len(words)), key=lambda i: -words[i].score)[:removed]
    sets = [[], top, *(generator.choice(len(words), removed, replace=False).tolist() for _ in range(DRAWS))]
    names = predictor.task.inputs
    variants = [
        [_without(text, [words[i] for i in indices if words[i].column == name]) for name, text in zip(names, texts, strict=True)]
        for indices in sets
    ]
    outputs = _outputs(predictor, variants, target).astype(float)
    drops = outputs[0] - outputs[1:]
    draws = drops[1:]
    deviation = float(draws.std(ddof=1))
    return DeletionTest(removed, DRAWS, float(outputs[0]), float(drops[0]), float(draws.mean()), deviation)


def _without(text: str, words: Sequence[Word]) -> str:
    for word in sorted(words, key=lambda word: -word.start):
        text = text[: word.start] + text[word.end :]
    return text
