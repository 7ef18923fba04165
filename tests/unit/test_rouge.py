"""ROUGE: equal to rouge-score, as means of rows; what it ignores is said."""

from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from rouge_score.tokenizers import DefaultTokenizer

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.evaluation.metrics import rouge_metrics
from nlp_transfer.evaluation.metrics.rouge_metrics import ROUGE_KEYS, WordTokenizer, compute_rouge, rouge_scores, rouge_signatures
from nlp_transfer.evaluation.metrics.summarization_scorer import SummarizationScorer
from nlp_transfer.evaluation.resampling import ResampledMetric, ScoredSplit
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems, UserError
from tests.builders import refused, sentiment_rows

WORDS = [text.split() for text, _ in sentiment_rows(60)]
REFERENCES = ["\n".join((" ".join(words[:2]), " ".join(words[2:]))) for words in WORDS]  # two sentences each
# Another text in some rows; else the reference, without its first words or with its sentences swapped.
PREDICTIONS = [
    f"{' '.join(words[2:])}\n{' '.join(words[:2])}" if i % 4 == 1 else " ".join((words if i % 2 else WORDS[-i])[i % 3 :])
    for i, words in enumerate(WORDS)
]
SCORER = SummarizationScorer("token_accuracy", draft_rows=2, max_length=16)


def predictions(texts: list[Any], truncated: int = 0) -> dict[str, np.ndarray]:
    rows = np.ones(len(texts), np.int64)
    return {"prediction": np.array(texts, object), "truncated": np.arange(len(texts)) < truncated, "right": rows, "of": 2 * rows}


def references(texts: list[str], sources: list[str] | None = None) -> dict[str, np.ndarray]:
    return {"references": np.array(texts, object), "sources": np.array(sources or texts, object)}


def test_equals_the_aggregation_of_the_package() -> None:
    aggregator, scorer = BootstrapAggregator(), RougeScorer(list(ROUGE_KEYS))
    rows = [scorer.score(reference, prediction) for reference, prediction in zip(REFERENCES, PREDICTIONS, strict=True)]
    for row in rows:
        aggregator.add_scores(row)
    np.random.seed(0)
    expected, found = aggregator.aggregate(), compute_rouge(PREDICTIONS, REFERENCES)
    for key in ROUGE_KEYS:
        assert found[key] == pytest.approx(100 * np.mean([row[key].fmeasure for row in rows]))
        assert found[key] == pytest.approx(100 * expected[key].mid.fmeasure, abs=2), "the median of its resamples"
        assert found[f"{key}_low"] == pytest.approx(100 * expected[key].low.fmeasure, abs=2)
        assert found[f"{key}_high"] == pytest.approx(100 * expected[key].high.fmeasure, abs=2)
        assert found[f"{key}_low"] < found[key] < found[f"{key}_high"]
    assert len({round(found[key], 6) for key in ROUGE_KEYS}) == 4, "four different metrics"


def test_drafts_have_no_intervals() -> None:
    assert set(compute_rouge(PREDICTIONS, REFERENCES, brief=True)) == set(ROUGE_KEYS)


@pytest.mark.parametrize("key", [*ROUGE_KEYS, "token_accuracy"])
def test_sums_give_the_metric_of_any_rows(key: str) -> None:
    predicted, expected = predictions(PREDICTIONS[:9]), references(REFERENCES[:9])
    sums = SCORER.sums(key, predicted, expected)
    assert sums is not None
    counts = np.array([0, 3, 1, 0, 2, 0, 1, 1, 1])
    chosen = np.repeat(np.arange(9), counts)
    of_rows = SCORER.compute(*({name: column[chosen] for name, column in one.items()} for one in (predicted, expected)))
    assert sums[1](counts[None] @ sums[0])[0] == pytest.approx(of_rows[key])
    resampled = ResampledMetric(SCORER, key, [ScoredSplit(predicted, expected)])
    assert (resampled.fast, resampled.higher_is_better) == (True, True)
    assert resampled.bounds == ((0.0, 1.0) if key == "token_accuracy" else (0.0, 100.0))


def test_words_are_not_stemmed_and_lines_are_sentences() -> None:
    assert compute_rouge(["dogs running"], ["dog runs"], brief=True)["rouge1"] == 0
    swapped = compute_rouge(["the dog ran\na cat sat"], ["a cat sat\nthe dog ran"], brief=True)
    assert swapped["rougeLsum"] == pytest.approx(100)
    assert swapped["rougeL"] == pytest.approx(50)
    signatures = rouge_signatures()
    assert all("stem:no" in text and "rouge-score:" in text for text in signatures.values())
    assert ["sent:lines" in signatures[key] for key in ROUGE_KEYS] == [False, False, False, True]


def test_rows_without_words_score_zero() -> None:
    assert rouge_scores(["", "...", "dog"], ["dog", "dog", "!"]).tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("text", [*REFERENCES[:20], "It's 3.14, isn't it? A-B_c\n d", ""])
def test_words_of_english_are_those_of_the_package(text: str) -> None:
    assert WordTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("language", "text", "other", "common"),
    [
        ("es", "El niño comió piñas", "un niño durmió", 1), ("zho_Hans", "猫坐在垫子上。", "猫在睡", 2),
        ("ru", "Кот сидит", "кот спит", 1),
        ("hi", "कुत्ता दौड़ा", "कुत्ता सोया", 1),
    ],
)  # fmt: skip
def test_a_language_selects_words_of_any_script(language: str, text: str, other: str, common: int) -> None:
    words = [len(WordTokenizer().tokenize(one)) for one in (text, other)]
    assert rouge_scores([text], [other], language, ["rouge1"])[0, 0] == pytest.approx(200 * common / sum(words))
    assert rouge_scores([text], [text], language).tolist() == pytest.approx(np.array([[100.0] * 4]))
    assert rouge_signatures(language)["rouge1"] != rouge_signatures("en_XX")["rouge1"] == rouge_signatures()["rouge1"]


def test_letters_that_rouge_ignores_are_reported() -> None:
    texts = ["Кот сидит на крыше", "the dog"] * 2
    told = SCORER.notes(predictions(texts), references(texts, ["x"] * 4))
    assert ["%" in line and "task.target_language" in line for line in told] == [True]
    russian = SummarizationScorer("token_accuracy", language="ru")
    assert russian.notes(predictions(texts), references(texts, ["x"] * 4)) == []


def test_copies_and_empty_and_long_texts_are_counted() -> None:
    predicted = predictions(["", "a dog", "a cat", "x"], truncated=3)
    told = SCORER.notes(predicted, references(["a dog", "a dog", "a cat", "y"], ["a dog", "a dog", "the cat", "x"]))
    assert len(told) == 2
    assert "3 of 4" in told[0]
    assert "16 tokens" in told[0]
    assert ["1 are empty" in told[1], "2 are equal" in told[1], "references, 2" in told[1]] == [True] * 3
    assert SCORER.notes(predictions(["a", "b"]), references(["c", "d"])) == []


def test_examples_show_the_start_of_long_texts() -> None:
    long = "the dog ran. " * 100
    lines = SCORER.examples(predictions(["a"] * 3), references(["b"] * 3, [long, "c", "d"]))
    assert [line.split()[0] for line in lines] == ["text:", "summary:", "reference:"] * 3
    assert max(map(len, lines)) < 400 < len(long)


def test_comparisons_use_a_metric_of_texts() -> None:
    assert [SCORER.compare_by(name) for name in (None, "loss", "token_accuracy", "rouge2")] == ["rougeL"] * 3 + ["rouge2"]


def check(name: str, pairs: list[tuple[str, str]]) -> list[str]:
    task = task_from({"name": name})
    rows = from_columns(dict(zip((*task.inputs, *task.targets), map(list, zip(*pairs, strict=True)), strict=True)), "pairs.csv")
    task.check(rows, problems := Problems())
    return problems.messages + [line for line in task.describe(rows).lines if line.startswith("warning")]


def test_texts_may_be_their_own_summary() -> None:
    pairs = [(f"the dog {i}", f"the dog {i}") for i in range(100)]
    assert check("summarization", pairs) == []
    assert any("same text" in message for message in check("translation", pairs))


def test_summaries_may_be_far_shorter_than_their_texts() -> None:
    pairs = [(f"the dog {i} " * (5 + 90 * (i % 2)), f"the dog {i} and the cat that sat on a mat") for i in range(20)]
    assert check("summarization", pairs) == []
    assert check("translation", pairs)


def test_a_missing_package_ends_the_run_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge_metrics, "find_spec", lambda name: None)
    task_from({"name": "summarization"}).fit(None, problems := Problems(), TrainingConfig())
    assert ["pip install rouge-score" in message for message in problems.messages] == [True]
    task_from({"name": "summarization"}).fit(None, problems := Problems())
    assert problems.messages == [], "prediction does not need it"
    with refused("pip install", "rouge-score"):
        compute_rouge(["a"], ["a"])


@pytest.mark.parametrize(
    ("settings", "training", "fact"),
    [
        ({"summary": "text"}, {}, "task.summary: found 'text', which is task.text"),
        ({"summarized_rows": 0}, {"best_metric": "rouge2"}, "task.summarized_rows 0"),
        ({}, {"class_weights": "balanced"}, "training.class_weights"),
        ({}, {"augment": {"drop": 0.1}}, "training.augment"),
        ({"target_vocabulary": 300, "target_tokenizer": "source"}, {}, "task.target_vocabulary: found 300"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], training: dict[str, Any], fact: str) -> None:
    task_from({"name": "summarization", **settings}).fit(None, problems := Problems(), TrainingConfig(**training))
    with pytest.raises(UserError) as error:
        problems.raise_if_any()
    assert fact in str(error.value)
