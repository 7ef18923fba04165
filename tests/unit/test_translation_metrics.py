"""BLEU, chrF++ and TER are sacreBLEU's, split words as the target's language wants it, and say how certain they are."""

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
    """Translations that lost, changed and moved some words of their references; 1 to 20 words, cased and punctuated."""
    generator = random.Random(seed)
    words = [f"{start}ord{i}" for start in "wW" for i in range(40)]
    found, wanted = [], []
    for i in range(count):
        reference = generator.choices(words, k=generator.randint(1, 20))
        kept = [generator.choice(words) if generator.random() < 0.1 else word for word in reference if generator.random() < 0.9]
        place = generator.randrange(len(kept) + 1)
        found.append(" ".join(kept[place:] + kept[:place]) + ".,"[i % 2])
        wanted.append(" ".join(reference) + ".")
    return found, wanted


FOUND, WANTED = texts(60)
CHINESE = (["我今天去了学校。", "他喜欢吃苹果和香蕉。"], ["我昨天去了学校。", "他喜欢吃苹果。"])


@pytest.fixture(autouse=True)
def usual_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)


def sacre(found: list[str], wanted: list[str], **settings: Any) -> dict[str, Any]:
    """sacreBLEU's own scorers, asked directly."""
    scorers = {"bleu": BLEU(**settings), "chrf": CHRF(word_order=2), "ter": TER()}
    return {key: scorer.corpus_score(found, [wanted], n_bootstrap=RESAMPLES) for key, scorer in scorers.items()}


def test_figures_are_those_of_sacrebleu() -> None:
    found, expected = metrics.compute_translation_metrics(FOUND, WANTED), sacre(FOUND, WANTED)
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key].score, abs=1e-9), key
        assert 10 < found[key] < 90, "neither right nor wrong altogether"
    assert found["chrf"] != pytest.approx(sacrebleu.corpus_chrf(FOUND, [WANTED]).score, abs=0.1), "chrF++, not chrF"


def test_intervals_are_as_wide_as_those_of_sacrebleu() -> None:
    """sacreBLEU gives the mean of all resamples and half the width, computed in single precision."""
    found, expected = metrics.compute_translation_metrics(FOUND, WANTED), sacre(FOUND, WANTED)
    for key in KEYS:
        low, high = found[f"{key}_low"], found[f"{key}_high"]
        assert low < found[key] < high
        assert low < expected[key]._mean < high
        assert (high - low) / 2 == pytest.approx(expected[key]._ci, rel=1e-4), key


def test_intervals_can_be_repeated_and_narrow_with_more_rows() -> None:
    np.random.seed(7)
    first = metrics.compute_translation_metrics(FOUND, WANTED)
    np.random.seed(8)
    assert metrics.compute_translation_metrics(FOUND, WANTED) == first
    more = metrics.compute_translation_metrics(FOUND * 4, WANTED * 4)
    for key in KEYS:
        wide, narrow = (figures[f"{key}_high"] - figures[f"{key}_low"] for figures in (first, more))
        assert narrow == pytest.approx(wide / 2, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_stay_within_what_a_figure_can_be(seed: int) -> None:
    """A few short texts, of which only some have the four words that BLEU wants."""
    found, wanted = texts(5, seed)
    figures = metrics.compute_translation_metrics(found, wanted)
    for key in KEYS:
        assert 0 <= figures[f"{key}_low"] <= figures[key] <= figures[f"{key}_high"], key
    assert figures["bleu_high"] <= 100.0 + 1e-9
    assert figures["chrf_high"] <= 100.0 + 1e-9


def test_intervals_of_many_rows_take_little_memory() -> None:
    """All resamples at once would be 1,000 x 3,000 rows x 24 numbers: 288 MB in single precision."""
    found, wanted = ["a cat"] * 3000, ["a dog", "a cat", "two cats"] * 1000
    tracemalloc.start()
    try:
        score_translations("chrf", found, wanted, resamples=RESAMPLES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6


def test_perfect_translations() -> None:
    figures = metrics.compute_translation_metrics(WANTED, WANTED)
    assert figures == pytest.approx({f"{key}{end}": 100.0 * (key != "ter") for key in KEYS for end in ("", "_low", "_high")})


def test_translations_without_a_word_in_common() -> None:
    figures = metrics.compute_translation_metrics(["y y y y y"], ["z z z z z"], brief=True)
    assert figures == {"bleu": 0.0, "chrf": 0.0}
    assert metrics.load("ter").compute(predictions=["y y y y y"], references=["z z z z z"]) == {"ter": 100.0}


def test_an_empty_translation_counts() -> None:
    whole = metrics.compute_translation_metrics(WANTED, WANTED, brief=True)
    less = metrics.compute_translation_metrics(["", *WANTED[1:]], WANTED, brief=True)
    assert 0 < less["bleu"] < whole["bleu"]
    assert metrics.compute_translation_metrics([""], ["a b c d"])["ter"] == 100.0


def test_case_counts_in_bleu_and_chrf_and_not_in_ter() -> None:
    lower = metrics.compute_translation_metrics([text.lower() for text in WANTED], WANTED)
    assert lower["bleu"] < 100
    assert lower["chrf"] < 100
    assert lower["ter"] == 0


def test_brief_is_the_two_quick_ones_without_intervals() -> None:
    whole = metrics.compute_translation_metrics(FOUND, WANTED)
    assert metrics.compute_translation_metrics(FOUND, WANTED, brief=True) == {key: whole[key] for key in ("bleu", "chrf")}


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *((language, "zh") for language in ("zh", "zh_CN", "zh-TW", "ZH", "zho_Hans", "zho_Hant", "cmn_Hans", "yue_Hant")),
        *((language, "char") for language in ("ja", "ja_XX", "jpn_Jpan", "jpn", "ko", "ko_KR", "kor_Hang", "th", "tha_Thai")),
        *((language, "char") for language in ("km_KH", "khm_Khmr", "lao_Laoo", "my_MM", "mya_Mymr")),
        *((language, "13a") for language in (None, "", "de", "en_XX", "eng_Latn", "zul_Latn", "jav_Latn", "vi")),
    ],
)
def test_the_language_decides_how_words_are_split(language: str | None, tokenizer: str) -> None:
    assert bleu_tokenizer(language) == tokenizer
    assert f"|tok:{tokenizer}|" in metrics.translation_signatures(language)["bleu"]


@pytest.mark.parametrize("language", ["zh", "zh_CN", "zho_Hans"])
def test_chinese_is_not_one_word_a_sentence(language: str) -> None:
    found = metrics.compute_translation_metrics(*CHINESE, language)
    expected = BLEU(tokenize="zh").corpus_score(CHINESE[0], [CHINESE[1]])
    assert found["bleu"] == pytest.approx(expected.score)
    assert found["bleu"] > 30
    assert metrics.compute_translation_metrics(*CHINESE, "de", brief=True)["bleu"] == 0
    # One character of 8 was changed, and three of 7 (with the full stop) came on top.
    assert found["ter"] == pytest.approx(100 * (1 + 3) / (8 + 7))
    assert metrics.compute_translation_metrics(*CHINESE, "de")["ter"] == 100


@pytest.mark.parametrize("language", ["ja", "jpn_Jpan", "ko"])
def test_japanese_and_korean_are_counted_in_characters(language: str) -> None:
    pair = (["私は学生です"], ["私は先生です"]) if language != "ko" else (["나는 학생입니다"], ["나는 선생입니다"])
    found = metrics.compute_translation_metrics(*pair, language, brief=True)
    assert found["bleu"] == pytest.approx(BLEU(tokenize="char").corpus_score(pair[0], [pair[1]]).score)
    assert found["bleu"] != pytest.approx(BLEU().corpus_score(pair[0], [pair[1]]).score)


def test_signatures_say_how_figures_came_about() -> None:
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
def test_signatures_are_sacrebleus_own(language: str | None) -> None:
    asian = {"asian_support": True, "normalized": True} if language else {}
    scorers = {"bleu": BLEU(tokenize=bleu_tokenizer(language)), "chrf": CHRF(word_order=2), "ter": TER(**asian)}
    for key, scorer in scorers.items():
        scorer.corpus_score(FOUND, [WANTED], n_bootstrap=RESAMPLES)
        assert metrics.translation_signatures(language)[key] == str(scorer.get_signature())


@pytest.mark.parametrize("key", KEYS)
def test_a_metric_by_name(key: str) -> None:
    expected = metrics.compute_translation_metrics(FOUND, WANTED)
    assert metrics.load(key).compute(predictions=FOUND, references=WANTED) == {key: expected[key]}
    metric = metrics.load(key)
    metric.add_batch(predictions=FOUND[:9], references=WANTED[:9])
    metric.add_batch(predictions=FOUND[9:], references=WANTED[9:])
    names = (key, f"{key}_low", f"{key}_high")
    assert metric.compute(resamples=RESAMPLES) == {name: expected[name] for name in names}


def test_a_metric_by_name_and_language() -> None:
    pairs = {"predictions": CHINESE[0], "references": CHINESE[1]}
    expected = metrics.compute_translation_metrics(*CHINESE, "zho_Hans", brief=True)["bleu"]
    assert metrics.load("bleu", "zho_Hans").compute(**pairs) == {"bleu": expected}
    assert metrics.load("bleu").compute(**pairs) == {"bleu": 0.0}


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize(("found", "wanted"), [([], []), (["a"], []), ([], ["a"]), (["a"], ["a", "b"]), (["a", "b"], ["a"])])
def test_unequal_numbers_of_texts_are_refused(found: list[str], wanted: list[str], brief: bool) -> None:
    with pytest.raises(ValueError, match=f"predictions: {len(found)}, references: {len(wanted)}; .*at least one"):
        metrics.compute_translation_metrics(found, wanted, brief=brief)


@pytest.mark.parametrize(("found", "wanted"), [([], []), (["a"], ["a", "b"]), ([1], ["a"]), (["a"], [["a", "b"]])])
def test_wrong_inputs_of_a_metric_by_name(found: list[Any], wanted: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)predictions.*references"):
        metrics.load("bleu").compute(predictions=found, references=wanted)
