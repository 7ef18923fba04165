"""Answers: SQuAD's metrics and format, tokens of an answer, and the best span over the windows of a context."""

import collections
import json
import random
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.evaluation.resampling import ResampledMetric, ScoredSplit
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.tasks.question_answering.answer_spans import NO_ANSWER, OUTSIDE, best_spans, find_tokens
from nlp_transfer.tasks.question_answering.squad_format import Answer, misplaced, parse_answers, read_squad
from nlp_transfer.tasks.question_answering.squad_metrics import AnswerScorer, normalize, scores
from tests.builders import refused, write

WORDS = ["the", "a", "An", "cat", "Cat", "cat's", "U.S.", "1,000", "dog", "-", "theme", "über", "naïve"]


def objects(values: list[Any]) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def by_definition(text: str) -> str:
    """SQuAD's normalization, step by step: lower case, punctuation, articles, white space."""
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", kept).split())


def f1_by_definition(prediction: str, answer: str) -> float:
    words, expected = by_definition(prediction).split(), by_definition(answer).split()
    if not words or not expected:
        return float(words == expected)
    same = sum((collections.Counter(words) & collections.Counter(expected)).values())
    return 0.0 if same == 0 else 2 * (same / len(words)) * (same / len(expected)) / (same / len(words) + same / len(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat!", "cat"), ("an apple, a day", "apple day"), ("theme", "theme"), ("U.S.", "us"), ("1,000", "1000"),
        ("a-b", "ab"), ("The", ""), ("l'été “ici”", "lété “ici”"), (" \t\n", ""),
    ],
)  # fmt: skip
def test_normalization(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_metrics_equal_their_definition() -> None:
    generator = random.Random(0)
    for _ in range(500):
        texts = [" ".join(generator.choices(WORDS, k=generator.randint(0, 4))) for _ in range(3)]
        prediction, answers = texts[0], [text for text in texts[1:] if by_definition(text)] or [""]
        exact = max(float(by_definition(prediction) == by_definition(answer)) for answer in answers)
        assert scores(prediction, texts[1:]) == (exact, max(f1_by_definition(prediction, answer) for answer in answers))


def test_no_answer_is_right_only_without_answers() -> None:
    assert (scores("", []), scores("cat", []), scores("", ["cat"])) == ((1.0, 1.0), (0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("unanswerable", [False, True])
def test_sums_of_rows_equal_the_metrics(unanswerable: bool) -> None:
    generator = random.Random(1)
    texts = [[" ".join(generator.choices(WORDS[3:], k=2)) for _ in range(60)] for _ in range(3)]
    answers = [[] if unanswerable and i % 3 == 0 else list(pair) for i, pair in enumerate(zip(*texts[:2], strict=True))]
    predicted = ["" if i % 4 == 0 else answers[i][0] if answers[i] and i % 2 else text for i, text in enumerate(texts[2])]
    split = ScoredSplit({"prediction": objects(predicted)}, {"answers": objects(answers)})
    scorer = AnswerScorer("f1")
    metrics = scorer.compute(split.predictions, split.references)
    parts = {f"{key}/{part}" for key in ("exact_match", "f1") for part in ("has_answer", "no_answer")}
    assert set(metrics) == {"exact_match", "f1"} | (parts if unanswerable else set())
    for name, value in metrics.items():
        metric = ResampledMetric(scorer, name, [split])
        assert metric.fast
        assert metric.scores(split, 0)[0] == pytest.approx(value)
        assert metric.bounds == (0, 100)
        assert metric.higher_is_better
    assert not scorer.higher_is_better("loss")


def span_case(seed: int) -> tuple[Any, ...]:
    """Logits, and characters of one context of 40 tokens after a token for no answer and a question of three tokens."""
    generator = torch.Generator().manual_seed(seed)
    start, end = (torch.randn(44, generator=generator).numpy() for _ in range(2))
    first = np.array([NO_ANSWER, *[OUTSIDE] * 3, *(5 * i for i in range(40))])
    last = np.array([*[OUTSIDE] * 4, *(5 * i + 4 for i in range(40))])
    return start, end, first, last


@pytest.mark.parametrize("seed", range(20))
def test_windows_give_the_span_of_one_long_window(seed: int) -> None:
    start, end, first, last = span_case(seed)
    longest = 6
    whole = best_spans(start[None], end[None], first[None], last[None], np.array([0]), longest)
    size, step = 14, 8  # six shared tokens, so every span is in a window
    places = [[*range(4), *range(4 + at, min(4 + at + size, 44))] for at in range(0, 40 - size + step, step)]
    padded = [place + [-1] * (4 + size - len(place)) for place in places]

    def windows(values: np.ndarray, fill: float) -> np.ndarray:
        return np.array([[fill if i < 0 else values[i] for i in place] for place in padded], values.dtype)

    row = np.zeros(len(padded), np.int64)
    parts = best_spans(windows(start, 9), windows(end, 9), windows(first, OUTSIDE), windows(last, OUTSIDE), row, longest)
    assert vars(parts).keys() == vars(whole).keys()
    for name, value in vars(whole).items():
        assert vars(parts)[name] == pytest.approx(value), name


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_the_best_span_is_the_best_of_all_pairs(longest: int) -> None:
    cases = [span_case(seed) for seed in range(5)]
    arrays = [np.stack(column) for column in zip(*cases, strict=True)]
    found = best_spans(*arrays, np.arange(5), longest)
    for row, (start, end, first, last) in enumerate(cases):
        pairs = [(i, j) for i in range(4, 44) for j in range(i, min(i + longest, 44))]
        i, j = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
        assert (found.start[row], found.end[row]) == (first[i], last[j])
        assert found.margin[row] == pytest.approx(start[0] + end[0] - start[i] - end[j], abs=1e-5)
        best = sorted((float(start[i] + end[j]) for i, j in pairs), reverse=True)[:20]
        candidates = torch.tensor([*best, float(start[0] + end[0])]).softmax(0)
        assert found.probability[row] == pytest.approx(float(candidates[0]), abs=1e-5)
        assert found.no_answer[row] == pytest.approx(float(candidates[-1]), abs=1e-5)


def test_no_answer_has_the_lowest_score_of_the_windows() -> None:
    first, last = np.array([[NO_ANSWER, 0], [NO_ANSWER, 3]]), np.array([[OUTSIDE, 2], [OUTSIDE, 5]])
    start, end = np.array([[2, 1], [8, 0]], np.float32), np.array([[1, 1], [8, 0]], np.float32)
    found = best_spans(start, end, first, last, np.array([0, 0]), 5)
    assert (found.start[0], found.end[0], found.margin[0]) == (0, 2, 1.0)


def test_a_row_without_tokens_of_the_context_has_no_span() -> None:
    marks = np.array([[NO_ANSWER, OUTSIDE]])
    found = best_spans(
        np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), marks, np.full((1, 2), OUTSIDE), np.array([0]), 5
    )
    assert (found.start[0], found.end[0], found.probability[0], found.no_answer[0]) == (0, 0, 0, 1)
    assert np.isfinite(found.margin).all()


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(0, 3, (1, 1)), (4, 11, (2, 3)), (5, 6, (2, 2)), (0, 11, (1, 3)), (8, 12, None), (12, 13, None)],
)
def test_tokens_of_an_answer(first: int, last: int, expected: Any) -> None:
    starts, ends = np.array([NO_ANSWER, 0, 4, 8, OUTSIDE]), np.array([OUTSIDE, 3, 7, 11, OUTSIDE])
    assert find_tokens(starts, ends, first, last) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (({"text": ["a", "b"], "answer_start": [1, 2]},), [Answer("a", 1), Answer("b", 2)]),
        (({"text": np.array(["a"], object), "answer_start": np.array([1])},), [Answer("a", 1)]),
        (('{"text": ["a"], "answer_start": [1]}',), [Answer("a", 1)]),
        (([{"text": "a", "answer_start": 1}],), [Answer("a", 1)]),
        (({"text": [], "answer_start": []},), []),
        ((np.array([], object),), []),
        (("[]",), []),
        (("a", "7", True), [Answer("a", 7)]),
        (("a", 7.0, True), [Answer("a", 7)]),
        ((["a", "b"], [1, 2], True), [Answer("a", 1), Answer("b", 2)]),
        ((None, None, True), []),
        (("", "", True), []),
        (("", -1, True), []),
        ((float("nan"), float("nan"), True), []),
    ],
)
def test_forms_of_answers(cells: tuple[Any, ...], expected: list[Answer]) -> None:
    assert parse_answers(*cells) == expected


@pytest.mark.parametrize(
    "cells",
    [
        (None,), ("",), ("cat",), ("7",), ({"text": ["a"]},), ({"text": ["a"], "answer_start": []},),
        ({"text": ["a"], "answer_start": [-2]},), ({"text": [" "], "answer_start": [0]},), ({"text": [3], "answer_start": [0]},),
        ({"text": ["a"], "answer_start": [True]},), ([{"text": "a"}],), ("[" * 5000,), ("a", None, True), ("a", 1.5, True),
        (None, 3, True), ("a", "x", True), ("a", float("inf"), True),
    ],
)  # fmt: skip
def test_other_forms_are_refused(cells: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="found"):
        parse_answers(*cells)


def test_an_answer_must_be_at_its_position() -> None:
    assert misplaced(Answer("cat", 4), "the cat sat") is None
    reason = misplaced(Answer("cat", 3), "the cat sat")
    assert reason is not None
    assert all(fact in reason for fact in ("'cat'", "at 3", "' ca'", "at 4"))
    assert "does not have" in str(misplaced(Answer("dog", 4), "the cat sat"))


def squad(**question: Any) -> dict[str, Any]:
    first = {"id": "1", "question": "who?", "answers": [{"text": "cat", "answer_start": 4}]}
    return {"version": "2", "data": [{"title": "T", "paragraphs": [{"context": "the cat", "qas": [first, question]}]}]}


def test_reading_the_format_of_squad(tmp_path: Path) -> None:
    second = {"id": "2", "question": "what?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "the"}]}
    rows = list(read_squad(write(tmp_path / "dev.json", squad(**second))) or ())
    assert [(row["id"], row["title"], row["question"], row["context"]) for row in rows] == [
        ("1", "T", "who?", "the cat"), ("2", "T", "what?", "the cat"),
    ]  # fmt: skip
    assert [parse_answers(row["answers"]) for row in rows] == [[Answer("cat", 4)], []]


@pytest.mark.parametrize(
    "document", [[{"paragraphs": "x"}], {"data": [{"question": "paragraphs"}]}, {"data": [{"question": "x"}]}]
)
def test_other_json_tables_are_left_to_the_reader_of_tables(document: Any, tmp_path: Path) -> None:
    assert read_squad(write(tmp_path / "rows.json", document)) is None


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda document: document["data"][0]["paragraphs"].append(3), ("data[0].paragraphs[1]", "found 3", "`qas`")),
        (lambda document: document["data"].append({"title": "x"}), ("data[1]", "`paragraphs`")),
        (lambda document: document["data"][0]["paragraphs"][0]["qas"].append("x"), ("paragraphs[0].qas", "found 'x'")),
    ],
)  # fmt: skip
def test_a_damaged_squad_file_is_refused(change: Any, facts: tuple[str, ...], tmp_path: Path) -> None:
    document = squad(id="2", question="what?", answers=[])
    change(document)
    with refused("dev.json", *facts, "allowed"):
        read_file(write(tmp_path / "dev.json", json.dumps(document)), "refuse")
    found = read_file(tmp_path / "dev.json", "skip")
    assert list(found.columns["question"]) == ["who?", "what?"]
    assert [(bad.row, *map(bad.reason.__contains__, facts)) for bad in found.skipped] == [(3, *[True] * len(facts))]


def read_file(path: Path, on_bad_rows: Any) -> Rows:
    return read_rows(str(path), "train", DataConfig(on_bad_rows=on_bad_rows), ["question"], {".json": read_squad})


def test_a_cut_squad_file_is_refused(tmp_path: Path) -> None:
    with refused("dev.json", "cannot be read"):
        list(read_squad(write(tmp_path / "dev.json", json.dumps(squad())[:-9])) or ())
