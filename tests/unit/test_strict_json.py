"""No JSON that is written holds NaN or Infinity."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nlp_transfer.inference.model_evaluation import print_metrics
from nlp_transfer.inference.writers import Writer
from nlp_transfer.utils.atomic_files import to_json, write_json


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


VALUES = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf, "x")], "c": {"d": math.nan}}
NULLS = {"a": None, "b": [None, 1.5, [None, "x"]], "c": {"d": None}}


def test_numbers_that_are_not_finite_become_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert strict(to_json(VALUES)) == NULLS
    write_json(tmp_path / "result.json", VALUES)
    assert strict((tmp_path / "result.json").read_text()) == NULLS
    print_metrics({"pearson": math.nan, "mse": 0.5}, None)
    assert strict(capsys.readouterr().out) == {"pearson": None, "mse": 0.5}


def test_predictions_in_jsonl_hold_null_and_say_where(tmp_path: Path) -> None:
    table = pa.table(
        {"n": [1.0, math.inf, math.nan], "m": pa.array([[("a", 1.0)], [], [("b", math.inf)]], pa.map_(pa.string(), pa.float64()))}
    )
    with Writer(tmp_path / "a.jsonl", ".jsonl") as writer:
        writer.write({"prediction": ["x"] * 3}, table)
    rows = [strict(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows] == [1.0, None, None]
    assert rows[2]["m"] == [["b", None]]
    assert (writer.not_finite, writer.first_not_finite) == (2, 2)


def test_csv_keeps_infinite_numbers_but_in_lists(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.csv", ".csv") as writer:
        writer.write({"n": [math.inf, 1.0], "l": [[1.0], [math.nan, {"a": -math.inf}]]})
    assert (tmp_path / "a.csv").read_text() == 'n,l\ninf,[1.0]\n1.0,"[null, {""a"": null}]"\n'
    assert (writer.not_finite, writer.first_not_finite) == (1, 2)
