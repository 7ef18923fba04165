"""Translation metrics by sacreBLEU: `predictions` and `references` are detokenised, cased texts, one reference each.

Post 2018, "A Call for Clarity in Reporting BLEU Scores", 1804.08771: a score is only comparable with its signature.
Popović 2017, "chrF++: words helping character n-grams"; Snover et al. 2006, TER. All from 0 to 100; for TER 0 is best, and
very long translations pass 100.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from sacrebleu.metrics import BLEU, CHRF, TER

RESAMPLES = 1000  # of the bootstrap, whose seed is sacreBLEU's own
# Scripts without spaces between words: sacreBLEU's own way for Chinese, single characters for the others.
TOKENIZERS = {"zh": "zh", "zho": "zh", "ja": "char", "jpn": "char", "jap": "char", "ko": "char", "kor": "char", "th": "char"}


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

    def scorer(self) -> Any:
        """sacreBLEU's own metric."""
        raise NotImplementedError

    def _compute(self, *, predictions: Sequence[str], references: Sequence[str], resamples: int = 0) -> dict[str, float]:
        """The score, and with `resamples` the ends of its 95 % bootstrap interval as `KEY_low` and `KEY_high`."""
        if not len(predictions) or len(predictions) != len(references):
            raise ValueError(f"predictions: {len(predictions)}, references: {len(references)}; expected as many, at least one")
        key = type(self).__name__.lower()
        found = self.scorer().corpus_score(list(predictions), [list(references)], n_bootstrap=resamples or 1)
        figures = {key: float(found.score)}
        if resamples:
            figures |= {f"{key}_low": float(found._mean - found._ci), f"{key}_high": float(found._mean + found._ci)}
        return figures


class Bleu(_TranslationMetric):
    """Precision of word 1- to 4-grams with a penalty for brevity: key `bleu`."""

    def scorer(self) -> Any:
        return BLEU(tokenize=bleu_tokenizer(self.config_name))


class Chrf(_TranslationMetric):
    """chrF++, an F-score of character 1- to 6-grams and word 1- and 2-grams: key `chrf`."""

    def scorer(self) -> Any:
        return CHRF(word_order=2)


class Ter(_TranslationMetric):
    """Edits, shifts of blocks among them, for each word of the reference: key `ter`. Lower is better."""

    def scorer(self) -> Any:
        characters = bleu_tokenizer(self.config_name) != "13a"
        return TER(asian_support=True, normalized=True) if characters else TER()


def signatures(language: str | None, resamples: int) -> dict[str, str]:
    """sacreBLEU's signature of each metric, by key."""
    found = {}
    for metric in (Bleu, Chrf, Ter):
        scorer = metric(config_name=language, keep_in_memory=True).scorer()
        scorer.corpus_score(["a b c d"] * 2, [["a b c d"] * 2], n_bootstrap=resamples)
        found[metric.__name__.lower()] = str(scorer.get_signature())
    return found
