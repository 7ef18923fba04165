"""Inputs of a `Predictor` or `Translator` in Python, and their predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nlp_transfer import Predictor, Translator, UserError, load_translator
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.in_memory import read_inputs
from nlp_transfer.settings.schema import DataConfig
from tests.builders import refused, run, sentiment_rows

pytestmark = pytest.mark.model

TEXTS = ["a good film", "an awful plot", "the cat sat"]
FRAME = pd.DataFrame({"id": [7, 8, 9], "review": TEXTS})
TABLES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "DataFrame": lambda frame: frame,
    "DataFrame with another index": lambda frame: frame.set_axis([5, 3, 9]),
    "Dataset": datasets.Dataset.from_pandas,
    "Arrow table": pa.Table.from_pandas,
    "record batch": pa.RecordBatch.from_pandas,
    "dict of columns": lambda frame: frame.to_dict("list"),
    "dict of Series": lambda frame: dict(frame.items()),
    "list of dicts": lambda frame: frame.to_dict("records"),
    "generator of dicts": lambda frame: iter(frame.to_dict("records")),
}
SINGLE: dict[str, Callable[[list[str]], Any]] = {
    "list": list, "tuple": tuple, "generator": iter, "Series": pd.Series,
    "Series of strings": lambda texts: pd.Series(texts, dtype="string"),
    "categories": lambda texts: pd.Series(texts, dtype="category"), "array": np.array,
    "tuples of one": lambda texts: [(text,) for text in texts],
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A classifier of the text column `review` with the labels 0 and 1."""
    rows = sentiment_rows(64)
    train = pd.DataFrame({"review": [text for text, _ in rows], "label": [int(label == "positive") for _, label in rows]})
    return run(
        model=tiny["bert"], data={"train": train}, task={"text": "review"}, training={"max_steps": 40, "learning_rate": 0.01},
        output_dir=tmp_path_factory.mktemp("runs") / "run",
    ).predictor()  # fmt: skip


@pytest.mark.parametrize("form", TABLES)
def test_tables_need_the_columns_of_the_task(form: str) -> None:
    rows, single = read_inputs(TABLES[form](FRAME), ["review"])
    assert (list(rows.columns["review"]), single) == (TEXTS, False)
    pairs, _ = read_inputs(TABLES[form](FRAME.assign(other=["x", "y", "z"])), ["other", "review"])
    assert [list(pairs.columns[name]) for name in ("other", "review")] == [["x", "y", "z"], TEXTS]
    with refused("'review'"):
        read_inputs(TABLES[form](FRAME.rename(columns={"review": "text"})), ["review"])


@pytest.mark.parametrize("form", SINGLE)
def test_texts_need_no_column(form: str) -> None:
    rows, single = read_inputs(SINGLE[form](TEXTS), ["review"])
    assert (list(rows.columns["review"]), single) == (TEXTS, False)


@pytest.mark.parametrize("row", ["a good film", {"review": "a good film", "id": 3}])
def test_a_single_input_gets_a_single_prediction(predictor: Predictor, row: Any) -> None:
    assert predictor(row) == predictor(["a good film"])[0]


def test_text_pairs() -> None:
    pairs = [("a", "b"), ("c", "d")]
    for form in (pairs, [list(pair) for pair in pairs], np.array(pairs), iter(pairs)):
        rows, _ = read_inputs(form, ["text", "other"])
        assert [list(rows.columns[name]) for name in ("text", "other")] == [["a", "c"], ["b", "d"]]
    for form in ("a", ["a", "b"], ("a", "b"), pd.Series(["a", "b"]), [("a", "b", "c")]):
        with refused("row 1:", "text, other"):
            read_inputs(form, ["text", "other"])


def test_all_input_types_give_the_same_predictions(predictor: Predictor) -> None:
    expected = predictor(TEXTS)
    assert len({prediction["prediction"] for prediction in expected}) == 2
    for form in (*(make(FRAME) for make in TABLES.values()), *(make(TEXTS) for make in SINGLE.values())):
        assert predictor(form) == expected


@pytest.mark.parametrize("empty", [[], FRAME[:0], {"review": []}, iter(()), pd.Series([], dtype=object)])
def test_empty_inputs(predictor: Predictor, empty: Any) -> None:
    assert predictor(empty) == []


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (3, "found 3 .*DataFrame"), (None, "found None .*DataFrame"), (b"text", "found b'text'"), (True, "found True"),
        ([None], "row 1, column 'review': found nothing"), ([3], "row 1, column 'review': found 3"),
        (["a", float("nan")], "row 2, column 'review'"), ([b"a"], "row 1, column 'review': found b'a'"),
        (["a", ""], "row 2, column 'review': the cell is empty"), (np.array([1.5]), "found 1.5"),
        (pd.DataFrame({"review": ["a", None]}), "row 2, column 'review': found nothing"),
        (pd.DataFrame({"reviews": ["a"]}), "no column 'review'.*did you mean 'reviews'"),
        ({"review": 3}, "column 'review': found 3"), ({"review": ["a", "b"], "x": 1, "text": "a"}, ""),
        ({"train": FRAME}, "tables train"), ([{"review": "a"}, {"text": "b"}], "row 2: has no 'review'; found: text"),
        ([("a", "b")], r"row 1: found \('a', 'b'\)"), ([["a"], "b", {"id": 1}], "row 3: has no 'review'"),
        (FRAME.rename(columns={"id": "review"}), "2 columns called 'review'"),
    ],
)  # fmt: skip
def test_other_types_are_refused(predictor: Predictor, inputs: Any, says: str) -> None:
    if not says:  # columns that are not asked for may be anything
        assert len(predictor(inputs)) == 2
        return
    with pytest.raises(UserError, match=says):
        predictor(inputs)


def test_rows_of_a_data_frame() -> None:
    frame = FRAME.assign(other=["x", "y", "z"])
    rows, single = read_inputs(frame.iloc[0], ["other", "review"])
    assert ([rows.columns[name][0] for name in ("other", "review")], single) == (["x", TEXTS[0]], True)
    for form in (list(frame.itertuples(index=False)), [row for _, row in frame.iterrows()]):
        rows, single = read_inputs(form, ["other", "review"])
        assert (rows.columns["review"], rows.columns["other"], single) == (TEXTS, ["x", "y", "z"], False)
    with refused("column 'review': found"):
        read_inputs(frame.set_index(pd.Index(["a", "b", "c"])).to_dict(), ["review"])


def test_arrow_values_and_single_arrays(predictor: Predictor) -> None:
    assert read_inputs(pa.array(TEXTS), ["text"])[0].columns["text"] == TEXTS
    assert read_inputs(datasets.Dataset.from_pandas(FRAME).with_format("arrow"), ["review"])[0].columns["review"] == TEXTS
    with refused("found array"):
        predictor(np.array("a good film"))


def test_columns_of_different_length_are_refused() -> None:
    with refused("different lengths"):
        read_inputs({"text": ["a", "b"], "other": ["c"]}, ["text", "other"])


def test_a_streaming_dataset_is_refused(predictor: Predictor) -> None:
    stream = datasets.Dataset.from_pandas(FRAME).to_iterable_dataset()
    with refused("IterableDataset"):
        predictor(stream)


def test_columns_may_have_numbers_as_names() -> None:
    rows, _ = read_inputs(pd.DataFrame([["a", "b"]]), ["1"])
    assert list(rows.columns["1"]) == ["b"]


def test_multi_label_predictions_are_lists(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = sentiment_rows(64)
    train = pd.DataFrame({"text": [text for text, _ in rows]})
    train["labels"] = pd.Series([[1, 2] if label == "positive" else [2] if i % 4 else [] for i, (_, label) in enumerate(rows)])
    predictions = run(
        model=tiny["bert"], data={"train": train}, task={"name": "multi_label", "label": "labels"},
        training={"max_steps": 60, "learning_rate": 0.01}, output_dir=tmp_path / "run",
    ).predictor()(train)  # fmt: skip
    right = [prediction["prediction"] == labels for prediction, labels in zip(predictions, train["labels"], strict=True)]
    assert np.mean(right) > 0.7
    assert all(len(prediction["probability"]) == len(prediction["prediction"]) for prediction in predictions)


@pytest.fixture(scope="module")
def translate(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Translator:
    rows = [(text, text.upper()) for text, _ in sentiment_rows(24)]
    done = run(
        model=tiny["bert"], data={"train": pd.DataFrame(rows, columns=["en", "up"])},
        task={"name": "translation", "source": "en", "target": "up", "target_vocabulary": 300, "beams": 1},
        training={"max_steps": 5}, output_dir=tmp_path_factory.mktemp("runs") / "run",
    )  # fmt: skip
    return load_translator(done.output_dir)


def test_a_translator_reads_tables_and_single_texts(translate: Translator) -> None:
    expected = translate(TEXTS)
    frame = FRAME.rename(columns={"review": "en"})
    for form in (*(make(frame) for make in TABLES.values()), *(make(TEXTS) for make in SINGLE.values())):
        assert translate(form) == expected
    assert translate(TEXTS[0]) == translate({"en": TEXTS[0]}) == expected[0]
    with refused("no column 'en'"):
        translate(FRAME)
    with refused("row 2: found None"):
        translate(pd.DataFrame({"en": ["a", None]}))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (5, "found 5"),
        (["a", None], "texts, row 2: found None (NoneType); allowed: text"),
        (["a", "b", 5], "texts, row 3: found 5 (int); allowed: text"),
        ([("a", "b")], "texts, row 1: found ('a', 'b') (tuple)"),
        (["a", "b \ud83d"], "texts, row 2: found '\\ud83d', half of a character"),
    ],
)
def test_a_translator_refuses_other_types(translate: Translator, texts: Any, says: str) -> None:
    with refused(says):
        translate(texts)


def test_a_task_can_read_its_own_format(tmp_path: Path) -> None:
    def read(path: Path) -> Any:
        lines = path.read_text().splitlines()
        return None if lines[0].startswith("{") else ({"text": line, "label": str(len(line))} for line in lines)

    own = tmp_path / "a.lines"
    own.write_text("one\nthree\n")
    rows = read_rows(str(own), "train", DataConfig(), ["text", "label"], {".lines": read, ".jsonl": read})
    assert list(rows.columns["label"]) == ["3", "5"]
    assert rows.where(1) == f"{own}, row 2"
    assert list(rows.hashes) == [str(own.resolve())]
    table = tmp_path / "b.jsonl"
    table.write_text('{"text": "x", "label": "y"}\n')
    assert list(read_rows(str(table), "train", DataConfig(), ["label"], {".jsonl": read}).columns["label"]) == ["y"]
    with refused("a.lines", "'tags'", "text, label"):
        read_rows(str(own), "train", DataConfig(), ["tags"], {".lines": read})
