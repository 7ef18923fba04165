"""BLEU, chrF++ and TER: values, intervals and signatures of sacreBLEU, with the tokenization of the target language."""

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER

from nlp_transfer.evaluation import metrics
from nlp_transfer.evaluation.metrics.translation_metrics import RESAMPLES, bleu_tokenizer, score_translations

KEYS = ("bleu", "chrf", "ter")


def texts(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return translations and references of 1 to 20 words; translations lack, replace and move some words."""
    generator = random.Random(seed)
    words = [f"{start}ord{i}" for start in "wW" for i in range(40)]
    predictions, references = [], []
    for i in range(count):
        reference = generator.choices(words, k=generator.randint(1, 20))
        kept = [generator.choice(words) if generator.random() < 0.1 else word for word in reference if generator.random() < 0.9]
        place = generator.randrange(len(kept) + 1)
        predictions.append(" ".join(kept[place:] + kept[:place]) + ".,"[i % 2])
        references.append(" ".join(reference) + ".")
    return predictions, references


PREDICTIONS, REFERENCES = texts(60)
CHINESE = (["我今天去了学校。", "他喜欢吃苹果和香蕉。"], ["我昨天去了学校。", "他喜欢吃苹果。"])


@pytest.fixture(autouse=True)
def usual_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)


def sacre(predictions: list[str], references: list[str], **settings: Any) -> dict[str, Any]:
    """Return the scores by sacreBLEU's public functions."""
    scorers = {"bleu": BLEU(**settings), "chrf": CHRF(word_order=2), "ter": TER()}
    return {key: scorer.corpus_score(predictions, [references], n_bootstrap=RESAMPLES) for key, scorer in scorers.items()}


def test_scores_equal_sacrebleu() -> None:
    values, expected = metrics.compute_translation_metrics(PREDICTIONS, REFERENCES), sacre(PREDICTIONS, REFERENCES)
    for key in KEYS:
        assert values[key] == pytest.approx(expected[key].score, abs=1e-9), key
        assert 10 < values[key] < 90
    assert values["chrf"] != pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score, abs=0.1), "chrF++, not chrF"


def test_interval_widths_equal_sacrebleu() -> None:
    """sacreBLEU returns the mean of the resamples and half the width, in single precision."""
    values, expected = metrics.compute_translation_metrics(PREDICTIONS, REFERENCES), sacre(PREDICTIONS, REFERENCES)
    for key in KEYS:
        low, high = values[f"{key}_low"], values[f"{key}_high"]
        assert low < values[key] < high
        assert low < expected[key]._mean < high
        assert (high - low) / 2 == pytest.approx(expected[key]._ci, rel=1e-4), key


def test_intervals_are_deterministic_and_narrow_with_rows() -> None:
    np.random.seed(7)
    first = metrics.compute_translation_metrics(PREDICTIONS, REFERENCES)
    np.random.seed(8)
    assert metrics.compute_translation_metrics(PREDICTIONS, REFERENCES) == first
    more = metrics.compute_translation_metrics(PREDICTIONS * 4, REFERENCES * 4)
    for key in KEYS:
        wide, narrow = (values[f"{key}_high"] - values[f"{key}_low"] for values in (first, more))
        assert narrow == pytest.approx(wide / 2, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_stay_within_bounds(seed: int) -> None:
    """Few short texts, only some of which have the four words that BLEU needs."""
    values = metrics.compute_translation_metrics(*texts(5, seed))
    for key in KEYS:
        assert 0 <= values[f"{key}_low"] <= values[key] <= values[f"{key}_high"], key
    assert values["bleu_high"] <= 100.0 + 1e-9
    assert values["chrf_high"] <= 100.0 + 1e-9


def test_intervals_of_many_rows_take_little_memory() -> None:
    """All resamples at once would be 1,000 x 3,000 rows x 24 numbers: 288 MB in single precision."""
    predictions, references = ["a cat"] * 3000, ["a dog", "a cat", "two cats"] * 1000
    tracemalloc.start()
    try:
        score_translations("chrf", predictions, references, resamples=RESAMPLES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6


def test_perfect_translations() -> None:
    values = metrics.compute_translation_metrics(REFERENCES, REFERENCES)
    assert values == pytest.approx({f"{key}{end}": 100.0 * (key != "ter") for key in KEYS for end in ("", "_low", "_high")})


def test_translations_without_a_common_word() -> None:
    values = metrics.compute_translation_metrics(["y y y y y"], ["z z z z z"], brief=True)
    assert values == {"bleu": 0.0, "chrf": 0.0}
    assert metrics.load("ter").compute(predictions=["y y y y y"], references=["z z z z z"]) == {"ter": 100.0}


def test_empty_translation() -> None:
    complete = metrics.compute_translation_metrics(REFERENCES, REFERENCES, brief=True)
    partial = metrics.compute_translation_metrics(["", *REFERENCES[1:]], REFERENCES, brief=True)
    assert 0 < partial["bleu"] < complete["bleu"]
    assert metrics.compute_translation_metrics([""], ["a b c d"])["ter"] == 100.0


def test_bleu_and_chrf_are_case_sensitive() -> None:
    lower = metrics.compute_translation_metrics([text.lower() for text in REFERENCES], REFERENCES)
    assert lower["bleu"] < 100
    assert lower["chrf"] < 100
    assert lower["ter"] == 0


def test_brief_gives_bleu_and_chrf_only() -> None:
    complete = metrics.compute_translation_metrics(PREDICTIONS, REFERENCES)
    assert metrics.compute_translation_metrics(PREDICTIONS, REFERENCES, brief=True) == {
        key: complete[key] for key in ("bleu", "chrf")
    }


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *((language, "zh") for language in ("zh", "zh_CN", "zh-TW", "ZH", "zho_Hans", "zho_Hant", "cmn_Hans", "yue_Hant")),
        *((language, "char") for language in ("ja", "ja_XX", "jpn_Jpan", "jpn", "ko", "ko_KR", "kor_Hang", "th", "tha_Thai")),
        *((language, "char") for language in ("km_KH", "khm_Khmr", "lao_Laoo", "my_MM", "mya_Mymr")),
        *((language, "13a") for language in (None, "", "de", "en_XX", "eng_Latn", "zul_Latn", "jav_Latn", "vi")),
    ],
)
def test_tokenizer_follows_the_language(language: str | None, tokenizer: str) -> None:
    assert bleu_tokenizer(language) == tokenizer
    assert f"|tok:{tokenizer}|" in metrics.translation_signatures(language)["bleu"]


@pytest.mark.parametrize("language", ["zh", "zh_CN", "zho_Hans"])
def test_chinese_is_tokenized(language: str) -> None:
    values = metrics.compute_translation_metrics(*CHINESE, language)
    expected = BLEU(tokenize="zh").corpus_score(CHINESE[0], [CHINESE[1]])
    assert values["bleu"] == pytest.approx(expected.score)
    assert values["bleu"] > 30
    assert metrics.compute_translation_metrics(*CHINESE, "de", brief=True)["bleu"] == 0
    # One character of 8 was changed, and three of 7 (with the full stop) came on top.
    assert values["ter"] == pytest.approx(100 * (1 + 3) / (8 + 7))
    assert metrics.compute_translation_metrics(*CHINESE, "de")["ter"] == 100


@pytest.mark.parametrize("language", ["ja", "jpn_Jpan", "ko"])
def test_japanese_and_korean_are_scored_by_character(language: str) -> None:
    pair = (["私は学生です"], ["私は先生です"]) if language != "ko" else (["나는 학생입니다"], ["나는 선생입니다"])
    values = metrics.compute_translation_metrics(*pair, language, brief=True)
    assert values["bleu"] == pytest.approx(BLEU(tokenize="char").corpus_score(pair[0], [pair[1]]).score)
    assert values["bleu"] != pytest.approx(BLEU().corpus_score(pair[0], [pair[1]]).score)


def test_signatures_name_the_settings() -> None:
    signatures = metrics.translation_signatures("de")
    assert set(signatures) == set(KEYS)
    for signature in signatures.values():
        fields = dict(field.split(":") for field in signature.split("|"))
        assert fields["version"] == sacrebleu.__version__
        assert fields["bs"] == str(RESAMPLES)
        assert fields["seed"] == "12345"
        assert fields["nrefs"] == "1"
    assert "|case:mixed|" in signatures["bleu"]
    assert "|nw:2|" in signatures["chrf"]
    assert "|tok:tercom|norm:no|" in signatures["ter"]
    assert "|norm:yes|punct:yes|asian:yes|" in metrics.translation_signatures("zh")["ter"]


@pytest.mark.parametrize("language", [None, "zh_CN", "ja"])
def test_signatures_equal_sacrebleu(language: str | None) -> None:
    asian = {"asian_support": True, "normalized": True} if language else {}
    scorers = {"bleu": BLEU(tokenize=bleu_tokenizer(language)), "chrf": CHRF(word_order=2), "ter": TER(**asian)}
    for key, scorer in scorers.items():
        scorer.corpus_score(PREDICTIONS, [REFERENCES], n_bootstrap=RESAMPLES)
        assert metrics.translation_signatures(language)[key] == str(scorer.get_signature())


@pytest.mark.parametrize("key", KEYS)
def test_load(key: str) -> None:
    expected = metrics.compute_translation_metrics(PREDICTIONS, REFERENCES)
    assert metrics.load(key).compute(predictions=PREDICTIONS, references=REFERENCES) == {key: expected[key]}
    metric = metrics.load(key)
    metric.add_batch(predictions=PREDICTIONS[:9], references=REFERENCES[:9])
    metric.add_batch(predictions=PREDICTIONS[9:], references=REFERENCES[9:])
    names = (key, f"{key}_low", f"{key}_high")
    assert metric.compute(resamples=RESAMPLES) == {name: expected[name] for name in names}


def test_load_with_language() -> None:
    pairs = {"predictions": CHINESE[0], "references": CHINESE[1]}
    expected = metrics.compute_translation_metrics(*CHINESE, "zho_Hans", brief=True)["bleu"]
    assert metrics.load("bleu", "zho_Hans").compute(**pairs) == {"bleu": expected}
    assert metrics.load("bleu").compute(**pairs) == {"bleu": 0.0}


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize(
    ("predictions", "references"), [([], []), (["a"], []), ([], ["a"]), (["a"], ["a", "b"]), (["a", "b"], ["a"])]
)
def test_unequal_numbers_of_texts(predictions: list[str], references: list[str], brief: bool) -> None:
    with pytest.raises(ValueError, match=f"predictions: {len(predictions)}, references: {len(references)}; .*at least one"):
        metrics.compute_translation_metrics(predictions, references, brief=brief)


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], ["a", "b"]), ([1], ["a"]), (["a"], [["a", "b"]])])
def test_load_refuses_wrong_inputs(predictions: list[Any], references: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)predictions.*references"):
        metrics.load("bleu").compute(predictions=predictions, references=references)
