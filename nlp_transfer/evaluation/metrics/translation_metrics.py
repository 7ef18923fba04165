"""Translation metrics by sacreBLEU: `predictions` and `references` are detokenised, cased texts, one reference each.

Post 2018, "A Call for Clarity in Reporting BLEU Scores", 1804.08771: a score is only comparable with its signature.
Popović 2017, "chrF++: words helping character n-grams"; Snover et al. 2006, TER. All from 0 to 100; for TER 0 is best, and
very long translations pass 100.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from sacrebleu.metrics import BLEU, CHRF, TER

RESAMPLES = 1000  # of the bootstrap
SEED = 12345  # sacreBLEU's own
# Chinese has a way of its own in sacreBLEU. Characters are counted in Japanese and Korean, for which it needs further packages,
# and in other scripts that have no spaces between words.
TOKENIZERS = dict.fromkeys(("zh", "zho", "cmn", "yue"), "zh") | dict.fromkeys(
    ("ja", "jpn", "jap", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz", "dzo"), "char"
)


def bleu_tokenizer(language: str | None) -> str:
    """How sacreBLEU splits a language given by any of the usual codes: `zh`, `zh_CN`, `zho_Hans`."""
    return TOKENIZERS.get((language or "").lower().replace("-", "_").split("_")[0], "13a")


class _TranslationMetric(evaluate.Metric):
    """What the translation metrics have in common: their inputs, and a language as `config_name`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.getdoc(self) or "",
            citation="",
            inputs_description=__doc__ or "",
            features=Features({"predictions": Value("string"), "references": Value("string")}),
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    @staticmethod
    def scorer(language: str | None) -> Any:
        """sacreBLEU's own metric."""
        raise NotImplementedError

    def _compute(self, *, predictions: Sequence[str], references: Sequence[str], resamples: int = 0) -> dict[str, float]:
        """The score, and with `resamples` the ends of its 95 % bootstrap interval as `KEY_low` and `KEY_high`."""
        if not len(predictions) or len(predictions) != len(references):
            raise ValueError(f"predictions: {len(predictions)}, references: {len(references)}; expected as many, at least one")
        key, scorer = type(self).__name__.lower(), self.scorer(self.config_name)
        rows = scorer._extract_corpus_statistics(list(predictions), [list(references)])
        figures = {key: float(scorer._aggregate_and_compute(rows).score)}
        if resamples:
            figures[f"{key}_low"], figures[f"{key}_high"] = _interval(scorer, np.asarray(rows, np.float64), resamples)
        return figures


def _interval(scorer: Any, rows: np.ndarray, resamples: int) -> tuple[float, float]:
    """Where 95 % of the scores of resampled rows lie (Koehn 2004, "Statistical Significance Tests for Machine Translation").

    sacreBLEU draws the same rows, but holds the statistics of all resamples at once: gigabytes from some ten thousand rows on.
    """
    generator = np.random.default_rng(SEED)
    scores = []
    for _ in range(resamples):
        times = np.bincount(generator.choice(len(rows), size=len(rows)), minlength=len(rows))
        scores.append(float(scorer._compute_score_from_stats(times @ rows).score))
    scores.sort()
    return scores[resamples // 40], scores[-1 - resamples // 40]


class Bleu(_TranslationMetric):
    """Precision of word 1- to 4-grams with a penalty for brevity: key `bleu`. 0 where no text has four words."""

    @staticmethod
    def scorer(language: str | None) -> Any:
        return BLEU(tokenize=bleu_tokenizer(language))


class Chrf(_TranslationMetric):
    """chrF++, an F-score of character 1- to 6-grams and word 1- and 2-grams: key `chrf`."""

    @staticmethod
    def scorer(language: str | None) -> Any:
        return CHRF(word_order=2)


class Ter(_TranslationMetric):
    """Edits, shifts of blocks among them, for each word of the reference: key `ter`. Lower is better.

    Chinese characters are words of their own; other scripts are split at spaces alone, so in Thai it means little.
    """

    @staticmethod
    def scorer(language: str | None) -> Any:
        characters = bleu_tokenizer(language) != "13a"
        return TER(asian_support=True, normalized=True) if characters else TER()


def statistics(
    key: str, predictions: Sequence[str], references: Sequence[str], language: str | None
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What a metric sums over rows, float64 of shape (rows, sums), and its value for each row of such sums, float64."""
    scorer = {metric.__name__.lower(): metric for metric in (Bleu, Chrf, Ter)}[key].scorer(language)
    rows = scorer._extract_corpus_statistics(list(predictions), [list(references)])

    def values(sums: np.ndarray) -> np.ndarray:
        return np.array([float(scorer._compute_score_from_stats(row).score) for row in sums])

    return np.asarray(rows, np.float64), values


def signatures(language: str | None, resamples: int) -> dict[str, str]:
    """sacreBLEU's signature of each metric, by key."""
    found = {}
    for metric in (Bleu, Chrf, Ter):
        scorer = metric.scorer(language)
        scorer.num_refs, scorer.n_bootstrap, scorer.seed = 1, resamples, str(SEED)
        found[metric.__name__.lower()] = str(scorer.get_signature())
    return found
