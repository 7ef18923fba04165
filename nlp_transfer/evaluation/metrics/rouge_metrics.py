"""ROUGE of generated texts with one reference each, by the package rouge-score.

Values are F1 scores from 0 to 100, averaged over rows, without stemming (Lin 2004, "ROUGE: A Package for Automatic Evaluation of
Summaries").

- `rouge1`, `rouge2`: words, and pairs of adjacent words.
- `rougeL`: the longest common subsequence of words.
- `rougeLsum`: the union of the longest common subsequences of sentences. Each line of a text is a sentence.
"""

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import regex

from nlp_transfer.evaluation.metrics.bootstrap import RESAMPLES, bootstrap_bounds
from nlp_transfer.evaluation.metrics.scorer import Sums, mean
from nlp_transfer.models.seq2seq.long_texts import SPACELESS
from nlp_transfer.utils.errors import UserError

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# A word is a run of letters and digits. In scripts without spaces between words, it is a character.
WORD = regex.compile(rf"(?=[\p{{L}}\p{{N}}])[{SPACELESS}]\p{{M}}*|(?:(?![{SPACELESS}])[\p{{L}}\p{{M}}\p{{N}}])+")


class WordTokenizer:
    """Splits lowercased texts in any script into words. English texts without accents are split as by rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return WORD.findall(text.lower())


def is_english(language: str | None) -> bool:
    """Return whether a language code such as `en_XX` stands for English, as None does."""
    return (language or "en").lower().replace("-", "_").split("_")[0] in ("en", "eng")


def missing_package() -> str | None:
    """Return how to install rouge-score; None if it is installed."""
    if find_spec("rouge_score"):
        return None
    return "ROUGE needs the package rouge-score, which is not installed; to install it: pip install rouge-score"


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str], language: str | None = None, keys: Sequence[str] = ROUGE_KEYS
) -> np.ndarray:
    """Compute the F1 of each row.

    Args:
        language: Code of the language of the texts. None and English: rouge-score's tokenizer, which ignores all characters but
            a to z and digits. Others: words of any script (`WordTokenizer`).

    Returns:
        float64 of shape (rows, keys), from 0 to 100.

    Raises:
        UserError: rouge-score is not installed.
    """
    if (reason := missing_package()) is not None:
        raise UserError(reason)
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(keys), tokenizer=None if is_english(language) else WordTokenizer())
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)]
    return 100 * np.array([[row[key].fmeasure for key in keys] for row in rows], float).reshape(len(rows), len(keys))


def mean_statistics(scores: np.ndarray) -> Sums:
    """Return the statistics (rows, 2) of scores (rows,), and the function from their sums to the means of resamples."""
    return np.stack([scores, np.ones(len(scores))], 1), mean


def compute_rouge(
    predictions: Sequence[str], references: Sequence[str], language: str | None = None, brief: bool = False
) -> dict[str, float]:
    """Compute ROUGE over rows.

    Args:
        brief: Without intervals, for evaluation during training.

    Returns:
        Each of `ROUGE_KEYS` with its 95 % bootstrap interval (`rouge1_low`, `rouge1_high`, ...).

    Raises:
        UserError: rouge-score is not installed.
    """
    metrics: dict[str, float] = {}
    for key, scores in zip(ROUGE_KEYS, rouge_scores(predictions, references, language).T, strict=True):
        metrics[key] = float(scores.mean())
        metrics |= {} if brief else bootstrap_bounds(key, *mean_statistics(scores), RESAMPLES)
    return metrics


def rouge_signatures(language: str | None = None) -> dict[str, str]:
    """Return the conventions by which each metric is computed, in the form of sacreBLEU's signatures."""
    tokens = "a-z0-9" if is_english(language) else "unicode"
    common = f"f1|mean:rows|case:lc|stem:no|tok:{tokens}"
    sentences = {"rougeLsum": "|sent:lines"}
    installed = version("rouge-score")
    return {key: f"{common}{sentences.get(key, '')}|rouge-score:{installed}|bs:{RESAMPLES}" for key in ROUGE_KEYS}


def ignored_letters(texts: Sequence[str]) -> float:
    """Return the share of letters and digits that rouge-score's tokenizer ignores: all but a to z and 0 to 9."""
    letters = [character for text in texts for character in text if character.isalnum()]
    return sum(not character.isascii() for character in letters) / max(1, len(letters))
