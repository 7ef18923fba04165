"""Pairs of texts from every kind of source: line-aligned files, tables, and texts by language inside a column."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, Features, Translation

from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.aligned_files import read_aligned
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.checksums import sha256_of
from tests.builders import refused, write

PAIRS = [("a dog", "ein Hund"), ('the "cat"', "die „Katze“, 猫"), ("it's 5\tkm", "es sind 5\tkm")]
ENGLISH, GERMAN = ([pair[side] for pair in PAIRS] for side in (0, 1))


def aligned(folder: Path, source: str | bytes, target: str | bytes, **data: Any) -> Rows:
    files = {"source": str(write(folder / "a.en", source)), "target": str(write(folder / "a.de", target))}
    return read_rows(files, "train", DataConfig(**data), ["source", "target"])


def test_line_n_belongs_to_line_n(tmp_path: Path) -> None:
    rows = aligned(tmp_path, "\n".join(ENGLISH) + "\n", "\n".join(GERMAN) + "\n")
    assert rows.columns == {"source": ENGLISH, "target": GERMAN}
    assert [rows.where(i) for i in (0, 2)] == [f"{tmp_path}/a.en + {tmp_path}/a.de, row {row}" for row in (1, 3)]
    assert rows.hashes == {str((tmp_path / name).resolve()): sha256_of(tmp_path / name) for name in ("a.en", "a.de")}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_of_both_kinds_and_a_last_one_or_none(end: str, last: bool, tmp_path: Path) -> None:
    rows = aligned(tmp_path, end.join(ENGLISH) + end * last, "\n".join(GERMAN) + "\n")
    assert rows.columns == {"source": ENGLISH, "target": GERMAN}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\0", "\ufeff"])
def test_only_the_end_of_a_line_ends_a_line(mark: str, tmp_path: Path) -> None:
    rows = aligned(tmp_path, f"one {mark} two\nthree{mark}four\n", "eins\ndrei\n")
    assert rows.columns == {"source": [f"one {mark} two", f"three{mark}four"], "target": ["eins", "drei"]}


def test_marks_at_the_start_of_either_file_are_no_text(tmp_path: Path) -> None:
    rows = aligned(tmp_path, b"\xef\xbb\xbfa dog\n", b"\xef\xbb\xbfein Hund\n")
    assert rows.columns == {"source": ["a dog"], "target": ["ein Hund"]}


def test_each_side_in_an_encoding_of_its_own(tmp_path: Path) -> None:
    rows = aligned(tmp_path, "café\n".encode(), "Übung\n".encode("cp1252"), encoding=["utf-8", "cp1252"])
    assert rows.columns == {"source": ["café"], "target": ["Übung"]}
    rows = aligned(tmp_path, "café\n".encode("utf-16"), "Übung\n".encode("utf-16"), encoding="utf-16")
    assert rows.columns == {"source": ["café"], "target": ["Übung"]}


def test_more_lines_than_one_batch(tmp_path: Path) -> None:
    count = 25_001
    rows = aligned(tmp_path, "".join(f"a {i}\n" for i in range(count)), "".join(f"b {i}\n" for i in range(count)))
    assert [text.split()[1] for text in rows.columns["source"]] == [text.split()[1] for text in rows.columns["target"]]
    assert len(rows) == len(rows.columns["source"]) == count
    assert rows.where(count - 1).endswith(f", row {count}")


def test_problems_of_both_files_are_listed_together(tmp_path: Path) -> None:
    with refused("a.en, row 2", "a.de: the file is empty") as error:
        aligned(tmp_path, b"fine\n\xe9\n", b"")
    assert error.value.problems is not None
    assert error.value.problems.count == 2


def test_one_file_is_not_two_sides(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.en", "a\n"))
    with refused("is given as both source and target"):
        read_aligned({"source": path, "target": path}, "train", DataConfig(), ["source", "target"])


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet"])
def test_tables_of_pairs(ending: str, tmp_path: Path) -> None:
    rows = read_rows(str(write(tmp_path / f"pairs{ending}", PAIRS, ("en", "de"))), "train", DataConfig(), ["en", "de"])
    assert rows.columns == {"en": ENGLISH, "de": GERMAN}
    first = 2 if ending == ".tsv" else 1
    assert rows.where(0).endswith(f"pairs{ending}, row {first}")


def by_language(kind: str, folder: Path) -> Any:
    cells = [{"en": en, "de": de} for en, de in PAIRS]
    features = Features({"translation": Translation(languages=["en", "de"])})
    data = Dataset.from_dict({"translation": cells}, features=features)
    if kind == "jsonl":
        return str(write(folder / "pairs.jsonl", {"id": [1] * len(cells), "translation": cells}))
    if kind == "parquet":
        data.to_parquet(folder / "pairs.parquet")
        return str(folder / "pairs.parquet")
    return {"frame": pd.DataFrame({"translation": cells}), "data set": data, "plain data set": Dataset.from_list(data.to_list())}[
        kind
    ]


KINDS = ["jsonl", "parquet", "frame", "data set", "plain data set"]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_by_language_inside_a_column(kind: str, tmp_path: Path) -> None:
    rows = read_rows(by_language(kind, tmp_path), "train", DataConfig(), ["de", "en"])
    assert rows.columns == {"de": GERMAN, "en": ENGLISH}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_languages_are_named_with_the_known_ones(kind: str, tmp_path: Path) -> None:
    with refused("no column 'dee' (did you mean 'de'?); found:", "translation, en, de"):
        read_rows(by_language(kind, tmp_path), "train", DataConfig(), ["en", "dee"])


def test_a_column_of_that_name_wins_over_a_language(tmp_path: Path) -> None:
    lines = [{"en": "from the column", "translation": {"en": "from inside", "de": "von innen"}}]
    path = write(tmp_path / "a.jsonl", lines)
    rows = read_rows(str(path), "train", DataConfig(), ["en", "de"])
    assert rows.columns == {"en": ["from the column"], "de": ["von innen"]}


def test_rows_without_the_language_are_missing_not_lost(tmp_path: Path) -> None:
    cells: list[Any] = [{"en": "a", "de": "b"}, {"en": "c"}, None, "d", {"en": None, "de": "e"}]
    path = write(tmp_path / "a.jsonl", {"translation": cells})
    rows = read_rows(str(path), "train", DataConfig(), ["en", "de"])
    assert rows.columns == {"en": ["a", "c", None, None, None], "de": ["b", None, None, None, "e"]}


def test_several_files_with_texts_by_language(tmp_path: Path) -> None:
    for name, pair in zip("ab", PAIRS, strict=False):
        write(tmp_path / f"{name}.jsonl", [{"translation": dict(zip(("en", "de"), pair, strict=True))}])
    rows = read_rows(f"{tmp_path}/*.jsonl", "train", DataConfig(), ["en", "de"])
    assert rows.columns == {"en": ENGLISH[:2], "de": GERMAN[:2]}
