"""Labels: what counts as one label in every format, the type of predictions, and labels of several kinds in a row."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from nlp_transfer.data.sources import read_rows
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.tasks.common.label_schema import label_value, learn_labels
from nlp_transfer.utils.errors import Problems, UserError
from tests.builders import refused, write

TEXTS = [f"text {i}" for i in range(12)]


def frame(cells: list[Any], **columns: list[Any]) -> pd.DataFrame:
    labels = pd.Series(cells, dtype=object) if any(isinstance(cell, (list, tuple)) for cell in cells) else cells
    return pd.DataFrame({"text": TEXTS[: len(cells)], "label": labels, **columns})


def fit(source: Any, name: str = "text_classification", **settings: Any) -> Any:
    """The task as fitted on a source that was read like train."""
    task = task_from({"name": name, **settings})
    rows = read_rows(
        str(source) if isinstance(source, Path) else source, "train", DataConfig(train="x"), [*task.inputs, *task.targets]
    )
    problems = Problems()
    task.fit(None, problems, TrainingConfig())
    fitted: Task = task.fit(rows, problems)
    fitted.check(rows, problems)
    problems.raise_if_any()
    return fitted, rows


def predicted(task: Any, ids: list[int]) -> list[Any]:
    scores = np.eye(len(task.labels))[ids]
    if task.document()["name"] == "multi_label":
        return task.columns({"prediction": scores > 0.5, "scores": scores})["prediction"]
    return task.columns({"prediction": np.array(ids), "scores": scores})["prediction"]


def write_jsonl(path: Path, cells: list[Any]) -> Path:
    return write(path, {"text": TEXTS[: len(cells)], "label": cells})


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ([0, 1, 1, 0], [0, 1]), ([True, False, True, False], [False, True]), ([0.0, 1.0, 1.0, 0.0], [0.0, 1.0]),
        ([0.5, 1.0, 1.0, 0.5], [0.5, 1.0]), (["b", "a", "b", "a"], ["a", "b"]), (["1", "0", "1", "0"], ["0", "1"]),
        (["1.0", "0.0", "1.0", "0.0"], ["0.0", "1.0"]), ([Decimal("1.00"), 1, Decimal("0.00"), 0], [0, 1]),
        ([np.int8(1), np.int8(0), np.int64(1), np.int64(0)], [0, 1]), (["x", 1, "1.0", "x"], ["1", "x"]),
    ],
)  # fmt: skip
def test_predictions_have_the_type_of_the_labels(cells: list[Any], values: list[Any]) -> None:
    task, rows = fit(frame(cells))
    predictions = predicted(task, task.describe(rows).strata.tolist())
    assert predicted(task, range(len(values))) == values
    assert [type(value) for value in predicted(task, range(len(values)))] == [type(value) for value in values]
    if all(type(cell) is type(cells[0]) for cell in cells):
        assert np.mean(np.array(predictions) == np.array(cells)) == 1.0
        assert 0.5 in cells or f1_score(cells, predictions, average="macro") == 1.0, "scikit-learn has no classes such as 0.5"
    restored = task_from(json.loads(json.dumps(task.document())))
    assert predicted(restored, range(len(values))) == values, "the type is saved with the model"


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["0", "1", "1", "0"], [0, 1]), (["0.0", "1.0", "1", "0"], [0, 1]), (["0.5", "1.5", "1.5", "0.5"], [0.5, 1.5]),
        (["True", "False", "False", "True"], [False, True]), (["true", "FALSE", "false", "true"], [False, True]),
        (["007", "7", "7", "007"], ["007", "7"]), (["1e3", "2", "1e3", "2"], ["1e3", "2"]),
        (["yes", "no", "no", "yes"], ["no", "yes"]),
    ],
)  # fmt: skip
def test_csv_label_types_match_pandas(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    frame(cells).to_csv(tmp_path / "t.csv", index=False)
    task, _ = fit(tmp_path / "t.csv")
    assert sorted(predicted(task, [0, 1]), key=str) == sorted(values, key=str)
    assert {type(value) for value in predicted(task, [0, 1])} == {type(value) for value in values}


def test_spellings_of_one_value_are_one_label(tmp_path: Path) -> None:
    task, _ = fit(write_jsonl(tmp_path / "t.jsonl", [1, "1.0", 0, "0.0", 1.0, False]))
    assert (task.labels, task.label_type) == (["0", "1"], "int")
    trained, _ = fit(frame([1, 0, 1, 0]))
    pd.DataFrame({"text": TEXTS[:4], "label": [1.0, 0.0, None, 1.0]}).dropna().to_csv(tmp_path / "f.csv", index=False)
    assert (tmp_path / "f.csv").read_text().splitlines()[1].endswith("1.0")
    for cells in (["1.0", "0.0"], [True, False], ["1", "0"], [Decimal("1.00"), Decimal("0")], ["true", "False"]):
        assert trained.encode_targets(cells).tolist() == [1, 0]
    rows = read_rows(str(tmp_path / "f.csv"), "test", DataConfig(), [*trained.inputs, *trained.targets])
    trained.check(rows, problems := Problems())
    assert not problems
    assert trained.encode_targets(rows.columns["label"]).tolist() == [1, 0, 1]
    words, _ = fit(frame(["1.0", "x", "1.0", "x"]))
    assert words.encode_targets([1, "x"]).tolist() == [0, 1], "text labels are found by value where that is unambiguous"


def test_unicode_forms_of_a_label_are_one_label() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    task, _ = fit(frame([composed, decomposed, "x", "x"]))
    assert len(task.labels) == 2
    assert label_value(composed) == label_value(decomposed)


def test_two_spellings_of_a_fraction_are_refused() -> None:
    cells = ["1.1", "1.10", "2.0", "1.1", "1.10", "2.0"]
    with refused("'1.1'", "'1.10'", "task.label_type: str"):
        fit(frame(cells))
    task, _ = fit(frame(cells), label_type="str")
    assert task.labels == ["1.1", "1.10", "2.0"]
    assert task.encode_targets(["1.10", "1.1", 2]).tolist() == [1, 0, 2]


def test_long_numbers_are_not_rounded_into_one_label() -> None:
    first, second = "0.1234567890123456789012345678901", "0.1234567890123456789012345678902"
    assert learn_labels([first, second], typed=False).counts == {first: 1, second: 1}
    assert label_value(Decimal("1E+999999")) == "1E+999999"


@pytest.mark.parametrize(
    ("cells", "kind"), [(["a", "b", "a", "b"], "bool"), ([1.5, 2.5, 1.5, 2.5], "int"), ([1, 2, 1, 2], "bool")]
)
def test_wrong_label_type_of_a_saved_model_is_refused(cells: list[Any], kind: str) -> None:
    task, _ = fit(frame(cells))
    problems = Problems()
    task_from(task.document() | {"label_type": kind}).fit(None, problems, TrainingConfig())
    assert f"task.label_type: found {kind}" in str(problems)


def test_class_weights_accept_any_spelling() -> None:
    task, _ = fit(frame([1, 0, 1, 0]))
    problems = Problems()
    training = TrainingConfig(class_weights={"1.0": 3.0, "0": 1.0})
    task.fit(None, problems, training)
    assert not problems
    assert task.objective(training, None).class_weights.tolist() == [1.0, 3.0]


MULTI_HOT: list[list[Any]] = [
    [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]],
    [[False, True, False], [True, True, False], [False, False, True], [False, False, False]],
    [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
    [(0, 1, 0), (1, 1, 0), (0, 0, 1), (0, 0, 0)],
    ["[0, 1, 0]", "[1, 1, 0]", "[0, 0, 1]", "[0, 0, 0]"],
    ["0|1|0", "1|1|0", "0|0|1", "0|0|0"],
]


@pytest.mark.parametrize("cells", MULTI_HOT, ids=lambda cells: str(cells[0]))
def test_indicators_need_label_names(cells: list[Any]) -> None:
    with refused("task.labels"):
        fit(frame(cells), "multi_label")
    with refused("task.labels", "it has 2"):
        fit(frame(cells), "multi_label", labels=["a", "b"])
    task, rows = fit(frame(cells), "multi_label", labels=["a", "b", "c"])
    assert task.encode_targets(rows.columns["label"]).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert predicted(task, [1]) == [["b"]]
    assert task.encode_targets(["a|b", ["c"], "", None]).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_arrays_are_read_as_lists() -> None:
    arrays = frame([[0, 1, 0]] * 4).assign(label=pd.Series([np.array(cell) for cell in MULTI_HOT[0]], dtype=object))
    task, rows = fit(arrays, "multi_label", labels=["a", "b", "c"])
    assert task.encode_targets(rows.columns["label"]).tolist() == MULTI_HOT[0]


def test_indicator_columns(tmp_path: Path) -> None:
    columns = {"sad": [0, 1, 1, 0], "glad": [True, False, False, False], "new": [1.0, 0.0, 1.0, 0.0]}
    table = pd.DataFrame({"text": TEXTS[:4], **columns})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for source in (table, tmp_path / "t.csv", tmp_path / "t.parquet"):
        task, rows = fit(source, "multi_label", label=["sad", "glad", "new"])
        assert task.labels == ["sad", "glad", "new"]
        assert task.encode_targets(task.target_cells(rows.columns)).tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]]
        assert task.describe(rows).strata.tolist() == [1, 0, 0, -1]
    with refused("row 2, column 'sad'", "found 2", "0 or 1"):
        fit(table.assign(sad=[0, 2, 1, 0]), "multi_label", label=["sad", "glad", "new"])
    with refused("no column 'angry'"):
        fit(table, "multi_label", label=["sad", "angry"])
    with pytest.raises(UserError, match=r"task\.label\b.*text"):
        fit(table, "multi_label", label=["sad", "text"])


def test_single_indicator_column_is_refused() -> None:
    for cells in ([0, 1, 1, 0], ["0", "1", "1", "0"], [True, False, False, True]):
        with refused("task.label: [label]"):
            fit(frame(cells), "multi_label")
        task, _ = fit(frame(cells), "multi_label", label=["label"])
        assert task.labels == ["label"]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (['["a", "b"]', '["b"]', "[]", ""], ["a", "b"]), (["['a', 'b']", "['b']", "[]", ""], ["a", "b"]),
        (["[1, 2]", "[2]", "[]", "[3]"], ["1", "2", "3"]), ([[1, 2], [2], [], [3]], ["1", "2", "3"]),
    ],
)  # fmt: skip
def test_lists_in_cells(tmp_path: Path, cells: list[Any], labels: list[str]) -> None:
    sources: list[Any] = [frame(cells)]
    if isinstance(cells[0], str):
        frame(cells).to_csv(tmp_path / "t.csv", index=False)
        sources.append(tmp_path / "t.csv")
    for source in sources:
        task, rows = fit(source, "multi_label")
        assert task.labels == labels
        assert task.encode_targets(rows.columns["label"])[0].tolist() == [1, 1, 0][: len(labels)]
    assert predicted(task, [0]) == [[1 if labels[0] == "1" else "a"]]


@pytest.mark.parametrize("cells", [[["C|C++", "C"], ["C++"], ["C"], []], [["a | b"], ["a"], ["b"], []]])
def test_separator_in_a_label_is_refused(cells: list[Any]) -> None:
    with refused("task.separator"):
        fit(frame(cells), "multi_label")
    task, rows = fit(frame(cells), "multi_label", separator=";")
    hot = task.encode_targets(rows.columns["label"])
    joined = task.columns({"prediction": hot > 0.5, "scores": hot}, cells=True)["prediction"]
    assert task.encode_targets(joined).tolist() == hot.tolist(), "predictions are read as the labels that they are"


SEVERAL = {"name": "multi_label"}
REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    (["a", "b", "a", "b"], {"label_type": "int"}, "task.label_type: found int"),
    *(([cell, *"xyxy"], {}, "multi_label") for cell in ([0, 1, 0], (0, 1, 0), "[0, 1, 0]", '["a"]', "['a', 'b']")),
    *(([cell, "a", "b", "a|b"], SEVERAL, "list of labels") for cell in ("[0 1 0]", "['a' 'b']", "[0. 1. 0.]", {"a": 1})),
    ([[-1, 1, 1], [1, 1, -1], [-1, -1, 1]], SEVERAL | {"labels": ["a", "b", "c"]}, "0 and 1"),
    ([[0.2, 0.8], [0.7, 0.1], [0.5, 0.4]], SEVERAL, "probabilities"),
    *((cells, SEVERAL, "0 or 1 for each label") for cells in (
        ["1,0,1", "0,1,0", "1,1,0"], ["1 0 1", "0 1 0", "1 1 0"], ["101", "010", "110"], ["1;0;1", "0;1;0"])),
    *(([labels, labels[:1], [], labels[1:]], SEVERAL | {"separator": separator}, "task.separator")
      for labels, separator in ((["a;", "c"], ";;"), (["a |", "b"], " | "))),
    ([None, None, ""], SEVERAL | {"labels": ["a", "b"], "label_format": "indicators"}, "no row of train has the label 'a'"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "settings", "fact"), REFUSED, ids=lambda value: str(value)[:40])
def test_cells_that_are_no_labels_are_refused(cells: list[Any], settings: dict[str, Any], fact: str) -> None:
    with refused(fact):
        fit(frame(cells), **settings)


def test_separator_in_a_column_name_is_refused() -> None:
    with refused("task.separator"):
        fit(pd.DataFrame({"text": TEXTS[:3], "a|b": [0, 1, 1], "b": [1, 0, 1]}), "multi_label", label=["a|b", "b"])


def test_labels_differing_in_case_are_reported() -> None:
    task, rows = fit(frame(["Spam", "spam", "ham", "Spam", "spam", "ham"]))
    assert any("'Spam', 'spam'" in line for line in task.describe(rows).lines)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ([[1, 0], [0, 1], [1, 0], [0, 1]], ["x", "y"]),
        ([[1], [0], [1], [0]], ["x"]),
        ([[1, 0, 0], None, [0, 1, 1], [0, 0, 1]], ["x", "y", "z"]),
    ],
)
def test_indicators_without_repeated_values(cells: list[Any], labels: list[str]) -> None:
    task, rows = fit(frame(cells), "multi_label", labels=labels)
    assert task.label_format == "indicators"
    assert task.encode_targets(rows.columns["label"]).tolist() == [cell or [0] * len(labels) for cell in cells]


def test_wrong_number_of_indicators_is_reported() -> None:
    with refused("data.train, row 3, column 'label': found [1, 0]", "3 zeros and ones") as error:
        fit(frame([[1, 0, 0], [0, 1, 1], [1, 0], [0, 0, 1]]), "multi_label", labels=["x", "y", "z"])
    assert "row 1" not in str(error.value)


def test_indicators_without_names_give_one_message() -> None:
    with pytest.raises(UserError) as error:
        fit(frame([[1, 0, 1], [0, 1, 0]] * 5), "multi_label")
    assert error.value.problems is not None
    assert error.value.problems.count == 1


@pytest.mark.parametrize(
    ("name", "settings", "cells"),
    [
        ("text_classification", {}, ["a", "b", None, "c", ""]),
        ("multi_label", {}, ["a", "b", "c", "a|d"]),
        ("multi_label", {"label_format": "indicators"}, [[1, 0], [0, 1], [1], [1, 1, 1]]),
    ],
)
def test_allowed_labels_are_named_once(name: str, settings: Any, cells: list[Any]) -> None:
    with pytest.raises(UserError) as error:
        fit(frame(cells), name, labels=["a", "b"], **settings)
    assert str(error.value).count("'a', 'b'") == 1
    assert "2 problems" in str(error.value) or "3 problems" in str(error.value)


@pytest.mark.parametrize("cell", ["('a', 'b')", "{'a', 'b'}", ("a", "b"), {"a", "b"}, frozenset({"a", "b"})])
def test_tuples_and_sets_are_lists(cell: Any) -> None:
    task, _ = fit(pd.DataFrame({"text": TEXTS[:3], "label": pd.Series([cell, "a", "b"], dtype=object)}), "multi_label")
    assert task.labels == ["a", "b"]
    assert task.encode_targets([cell]).tolist() == [[1, 1]]


def test_indicators_after_training_on_names_are_refused() -> None:
    task, _ = fit(frame([[0, 2], [1], [1, 2], [0]]), "multi_label")
    rows = read_rows(frame([[1, 0, 1], [0, 1, 0]]), "test", DataConfig(), [*task.inputs, *task.targets])
    task.check(rows, problems := Problems())
    assert "train contains names of labels" in str(problems)


def test_other_separator_is_reported() -> None:
    task, rows = fit(frame(["a,b", "a", "b", "a,b"]), "multi_label")
    assert any("','" in line and "task.separator" in line for line in task.describe(rows).lines)
    task, rows = fit(frame(["a|b", "a", "a", "a|b"]))
    assert any("'|'" in line and "multi_label" in line for line in task.describe(rows).lines)


def test_extreme_numbers_match_their_csv_spelling(tmp_path: Path) -> None:
    for values in (pd.Series([0.1, 0.2] * 3, dtype="float32"), pd.Series([1e16, 2e-7] * 3)):
        table = pd.DataFrame({"text": TEXTS[:6], "label": values})
        task, rows = fit(table)
        table.to_csv(tmp_path / "t.csv", index=False)
        read = read_rows(str(tmp_path / "t.csv"), "test", DataConfig(), [*task.inputs, *task.targets])
        assert task.encode_targets(read.columns["label"]).tolist() == task.encode_targets(rows.columns["label"]).tolist()


def test_labels_in_settings_can_be_numpy_numbers() -> None:
    assert fit(frame([1, 0, 1, 0]), labels=[np.int64(1), np.int64(0)])[0].labels == ["1", "0"]
    assert TrainingConfig(class_weights={np.int64(0): 1.0, True: 2.0}).class_weights == {"0": 1.0, "True": 2.0}  # type: ignore[dict-item]
    problems = Problems()
    task_from({"name": "text_classification", "labels": ["1", "0"]}).fit(
        None, problems, TrainingConfig(class_weights={"1": 1.0, "1.0": 2.0, "0": 1.0})
    )
    assert "two are the same label" in str(problems)
