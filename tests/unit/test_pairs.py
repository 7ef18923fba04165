"""Checks of pairs: what makes a pair useless is refused, what only looks odd is told, and no source stands in two splits."""

from typing import Any

import pandas as pd
import pytest

from nlp_transfer.data.parallel_texts import describe_pairs
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.splits import Splits, read_splits
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems

CHINESE = "我们昨天在城里的商店买了一些新鲜的水果和面包"
ENGLISH = "Yesterday we bought some fresh fruit and some bread in a shop in the town"


def rows_of(pairs: list[tuple[Any, Any]]) -> Rows:
    return from_columns({"source": [source for source, _ in pairs], "target": [target for _, target in pairs]}, "pairs.tsv", 2)


def problems_of(pairs: list[tuple[Any, Any]], target: str | None = "target") -> list[str]:
    task_from({"name": "translation"}).check(rows_of(pairs), problems := Problems(), targets=target is not None)
    return problems.messages


def told(pairs: list[tuple[str, str]]) -> list[str]:
    """What is said beside the sizes."""
    return describe_pairs(rows_of(pairs), "source", "target")[1:]


def different(count: int, length: int = 5) -> list[tuple[str, str]]:
    return [(f"{i} " + "dog " * length, f"{i} " + "Hund " * length) for i in range(count)]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("", "this side is empty; allowed: text (or remove the pair)"), (" \t\r\u3000\u2028", "this side is empty"),
        (None, "found nothing; allowed: text"), (5, "found 5 (int); allowed: text"), (True, "found True (bool)"),
        (["a"], "found ['a'] (list)"), ({"en": "a"}, "found {'en': 'a'} (dict)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", [0, 1])
def test_cells_without_text_are_named(cell: Any, says: str, side: int) -> None:
    pair = [("a", cell), (cell, "b")][1 - side]
    found = problems_of([("a dog", "ein Hund"), pair])
    assert len(found) == 1
    assert found[0].startswith(f"pairs.tsv, row 3, column '{('source', 'target')[side]}': ")
    assert says in found[0]


def test_without_targets_only_the_source_is_looked_at() -> None:
    assert problems_of([("a", None), ("b", "b")] * 10, target=None) == []


def test_huge_cells_do_not_fill_the_screen() -> None:
    assert len(problems_of([(["word"] * 10_000, "b")])[0]) < 300


@pytest.mark.parametrize("alike", [51, 60, 100])
def test_mostly_the_same_text_is_a_mistake(alike: int) -> None:
    pairs = different(100)
    found = problems_of(pairs[alike:] + [(f" {source}", f"{source}\r") for source, _ in pairs[:alike]])
    assert len(found) == 1
    assert f"in total {alike} of 100 pairs" in found[0]
    assert f"row {100 - alike + 2}: source and target are the same text in this and in" in found[0]


def test_some_of_the_same_text_is_told() -> None:
    pairs = different(100)
    pairs[4:54] = [(source, source) for source, _ in pairs[4:54]]
    assert problems_of(pairs) == []
    assert told(pairs) == [
        "warning: 50 of 100 pairs have the same text on both sides: pairs.tsv, row 6; pairs.tsv, row 7; pairs.tsv, row 8 ..."
    ]


@pytest.mark.parametrize(("rows", "refused"), [(1, False), (7, False), (8, True), (40, True)])
def test_the_last_few_pairs_of_a_file_may_be_alike(rows: int, refused: bool) -> None:
    """Files are scored in windows, and the last one may hold some names alone."""
    assert bool(problems_of([(f"name {i}", f"name {i}") for i in range(rows)])) is refused
    assert problems_of([*[(f"name {i}", f"name {i}") for i in range(rows)], ("a dog", "ein Hund")]) == []


def test_empty_sides_are_not_the_same_text() -> None:
    found = problems_of([("", " ")] * 9)
    assert len(found) == 18
    assert all("this side is empty" in message for message in found)
    assert all("found nothing" in message for message in problems_of([(None, None)] * 9))


def test_odd_lengths_are_told() -> None:
    pairs = different(50)
    pairs[7] = ("No.", "Nein, " * 20)
    pairs[9] = ("dog " * 30, "Hund")
    assert told(pairs) == ["warning: 2 of 50 pairs have an unusual ratio of lengths: pairs.tsv, row 9; pairs.tsv, row 11"]


def test_short_texts_may_differ() -> None:
    assert told([*different(20), ("OK", "In Ordnung, danke"), ("I beg your pardon?", "Bitte?")]) == []


def test_one_huge_text_does_not_make_all_others_odd() -> None:
    pairs = [*different(50, length=20), ("a", "Hund " * 100_000)]
    assert told(pairs) == ["warning: 1 of 51 pairs have an unusual ratio of lengths: pairs.tsv, row 52"]


@pytest.mark.parametrize("swapped", [False, True])
def test_scripts_of_other_lengths_are_not_odd(swapped: bool) -> None:
    pairs = [(CHINESE[: 10 + i % 13], ENGLISH[: 33 + 3 * (i % 13)]) for i in range(60)]
    pairs = [(f"{source}{i}", f"{target} {i}") for i, (source, target) in enumerate(pairs)]
    pairs = [(target, source) for source, target in pairs] if swapped else pairs
    assert told(pairs) == []
    odd = (CHINESE * 6, ENGLISH)
    assert told([*pairs, odd[::-1] if swapped else odd]) == [
        "warning: 1 of 61 pairs have an unusual ratio of lengths: pairs.tsv, row 62"
    ]


def test_pairs_that_stand_twice_are_counted() -> None:
    pairs = different(10)
    assert told([*pairs, pairs[0], (pairs[1][0].upper() + " ", pairs[1][1]), (pairs[2][0], "etwas anderes")]) == [
        "2 of 13 pairs repeat another one"
    ]


def test_sizes_come_first() -> None:
    assert describe_pairs(rows_of([("ab", "abcd"), ("abcd", "a")]), "source", "target") == [
        "2 pairs, 3 characters a source and 2 a target on average"
    ]


def split(pairs: list[tuple[str, str]], seed: int = 0, **data: Any) -> Splits:
    frame = pd.DataFrame(pairs, columns=["source", "target"])
    return read_splits(DataConfig(train=frame, **data), task_from({"name": "translation"}), TrainingConfig(), seed)[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_source_never_stands_in_two_splits(seed: int) -> None:
    """Neither with another translation, nor with spaces around it."""
    pairs = [(" " * (i % 3) + f"source {i % 60}", f"target {i}") for i in range(240)]
    splits = split(pairs, seed, validation_share=0.2, test_share=0.2)
    parts = {name: {text.strip() for text in rows.columns["source"]} for name, rows in splits.rows.items()}
    assert set(parts) == {"train", "validation", "test"}
    assert all(parts.values())
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 60
    assert sum(map(len, splits.rows.values())) == 240
    assert "train: 180 of 240 rows repeat the input of another row" in splits.notes


def test_sources_of_given_splits_that_stand_in_two_are_told() -> None:
    test = pd.DataFrame([(" source 1 ", "anders"), ("source 99", "neu")], columns=["source", "target"])
    notes = split([(f"source {i}", f"target {i}") for i in range(20)], test=test, validation_share=0).notes
    assert any("1 of 2 rows of test have an input that also occurs in train" in note for note in notes)
