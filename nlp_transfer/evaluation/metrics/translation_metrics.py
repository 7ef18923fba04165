"""Translation metrics with sacreBLEU, for detokenized, cased texts with one reference each.

Values are from 0 to 100, except that `ter` can exceed 100. For `ter`, lower is better.

- `bleu`: precision of word 1- to 4-grams with a brevity penalty. It is 0 if no text has four words. Only scores with the same
  signature are comparable (Post 2018, "A Call for Clarity in Reporting BLEU Scores", 1804.08771).
- `chrf`: chrF++, an F-score of character 1- to 6-grams and word 1- and 2-grams (Popović 2017, "chrF++: words helping character
  n-grams").
- `ter`: translation edit rate, the number of edits (including block shifts) per word of the reference (Snover et al. 2006).
    Each Chinese character counts as a word. Other scripts are split at spaces, so the metric is not meaningful for Thai, for
    example.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nlp_transfer.evaluation.metrics.bootstrap import RESAMPLES, SEED, bootstrap_bounds

TRANSLATION_KEYS = ("bleu", "chrf", "ter")
# sacreBLEU has a tokenizer for Chinese. Characters are the tokens in Japanese and Korean, for which sacreBLEU needs additional
# packages, and in other scripts without spaces between words.
TOKENIZERS = dict.fromkeys(("zh", "zho", "cmn", "yue"), "zh") | dict.fromkeys(
    ("ja", "jpn", "jap", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz", "dzo"), "char"
)


def compute_translation_metrics(
    predictions: Sequence[str], references: Sequence[str], language: str | None = None, brief: bool = False
) -> dict[str, float]:
    """Compute the translation metrics of a split.

    Args:
        predictions: Translations, detokenized and cased.
        references: One reference for each prediction.
        language: Code of the target language, for tokenization. None: split at spaces and punctuation.
        brief: Compute only `bleu` and `chrf`, and no intervals. Used for evaluation during training.

    Returns:
        `bleu`, `chrf` and `ter`, each with its 95 % bootstrap interval (`bleu_low`, `bleu_high`, ...).

    Raises:
        ValueError: There are no texts, or the numbers of predictions and references differ.
    """
    metrics: dict[str, float] = {}
    for key in ("bleu", "chrf") if brief else TRANSLATION_KEYS:
        metrics |= score_translations(key, predictions, references, language, 0 if brief else RESAMPLES)
    return metrics


def score_translations(
    key: str, predictions: Sequence[str], references: Sequence[str], language: str | None = None, resamples: int = 0
) -> dict[str, float]:
    """Compute `bleu`, `chrf` or `ter`. With `resamples`, also compute its 95 % bootstrap interval, `KEY_low` and `KEY_high`.

    Raises:
        ValueError: There are no texts, or the numbers of predictions and references differ.
    """
    rows = len(predictions)
    if not rows or rows != len(references):
        raise ValueError(f"predictions: {rows}, references: {len(references)}; expected the same number, at least one")
    statistics, score = translation_statistics(key, predictions, references, language)
    metrics = {key: float(score(statistics.sum(0, keepdims=True))[0])}
    return metrics | (bootstrap_bounds(key, statistics, score, resamples) if resamples else {})


def translation_signatures(language: str | None = None) -> dict[str, str]:
    """Return the sacreBLEU signature of each metric that `compute_translation_metrics` returns, by key."""
    signatures = {}
    for key in TRANSLATION_KEYS:
        scorer = _scorer(key, language)
        scorer.num_refs, scorer.n_bootstrap, scorer.seed = 1, RESAMPLES, str(SEED)
        signatures[key] = str(scorer.get_signature())
    return signatures


def bleu_tokenizer(language: str | None) -> str:
    """Return the name of sacreBLEU's tokenizer for a language code such as `zh`, `zh_CN` or `zho_Hans`."""
    return TOKENIZERS.get((language or "").lower().replace("-", "_").split("_")[0], "13a")


def _scorer(key: str, language: str | None) -> Any:
    from sacrebleu.metrics import BLEU, CHRF, TER

    tokenizer = bleu_tokenizer(language)
    if key == "bleu":
        return BLEU(tokenize=tokenizer)
    if key == "chrf":
        return CHRF(word_order=2)
    return TER() if tokenizer == "13a" else TER(asian_support=True, normalized=True)


def translation_statistics(
    key: str, predictions: Sequence[str], references: Sequence[str], language: str | None = None
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the statistics of each row for `bleu`, `chrf` or `ter`, and the function that computes the metric from their sums.

    Returns:
        float64 of shape (rows, statistics), and a function from sums of shape (resamples, statistics) to scores of shape
        (resamples,).
    """
    scorer = _scorer(key, language)
    # This is the only use of private functions of sacreBLEU. `corpus_score` returns no statistics. With `n_bootstrap`, it needs
    # gigabytes of memory for ten thousand rows, and returns only the width of the interval.
    statistics = scorer._extract_corpus_statistics(list(predictions), [list(references)])
    return (
        np.asarray(statistics, np.float64),
        lambda sums: np.array([float(scorer._compute_score_from_stats(row).score) for row in sums]),
    )
