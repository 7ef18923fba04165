"""Unusual inputs get the same columns, predictions and messages from an export as from the trained model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nlp_transfer import UserError, load_predictor
from nlp_transfer.export import exporter
from nlp_transfer.export.script_check import is_close
from tests.builders import columns, command, read_table, run, write
from tests.helpers.graphs import copy_graph
from tests.helpers.strategies import TASKS

LONG = " ".join(columns(600, "text")["text"])
TEXTS = ["a good film", "", " ", " \t\n ", "🙂", "🙂 " * 9, LONG, "x", "\x00", "e\u0301 \u200b", "🙂" * 300]
ENGINES = ("onnx", "openvino")


@pytest.fixture(scope="module", params=["single", "pair", "entities", "question_answering"])
def models(request: pytest.FixtureRequest, tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a trained model and of its exports."""
    folder = tmp_path_factory.mktemp("odd")
    table = write(folder / "train.csv", columns(40))
    done = run(
        model=tiny["bert"], data={"train": table, "validation": table}, task=TASKS[request.param], output_dir=folder / "run",
        training={"max_steps": 30, "learning_rate": 5e-3},
    )  # fmt: skip
    found = {"trained": done.output_dir}
    with pytest.MonkeyPatch.context() as patch:
        for name in ENGINES:
            found[name] = exporter.export_model(done.output_dir, name, max_loss=1).folder
            patch.setattr(exporter, "write_onnx", partial(copy_graph, found["onnx"] / "onnx/model.onnx"))
    return found


def outcome(predict: Any, *arguments: Any, **settings: Any) -> Any:
    """Return what a predictor returns, or the message that it refuses an input with."""
    try:
        return predict(*arguments, **settings)
    except UserError as error:
        return str(error)


def row_of(names: list[str], text: Any) -> Any:
    return text if len(names) == 1 else (text, "a good film")


def inputs_of(names: list[str]) -> list[Any]:
    """Return single inputs, lists, tables, cells that are missing or no text, and tables without a column."""

    row, others = partial(row_of, names), [None, float("nan"), 3, b"a", ["a", "b"]]
    frame = pd.DataFrame({name: ["a good film", None, float("nan"), "🙂"] for name in names})
    many = columns(64, "text")["text"]
    return [
        *map(row, TEXTS), *(dict.fromkeys(names, text) for text in TEXTS), *([row("a"), row(other)] for other in others),
        list(map(row, TEXTS)), [row(text) for text in TEXTS if text.strip("\x00 \t\n")], list(map(row, many)), [], frame,
        frame.iloc[:1], frame[[]], {"other column": ["a"]}, 5,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("rows", [None, 1, 64])
def test_predictor_has_the_same_outcome(name: str, rows: int | None, models: dict[str, Path]) -> None:
    trained, exported = (load_predictor(models[place], batch_size=rows) for place in ("trained", name))
    outcomes = []
    for inputs in inputs_of(trained.task.inputs):
        for settings in ({}, {"on_bad_rows": "skip"}, {"probabilities": True}):
            expected, found = (outcome(predictor, inputs, **settings) for predictor in (trained, exported))
            assert is_close(expected, found), repr(inputs)[:200]
            outcomes.append(expected)
    assert exported.truncated == trained.truncated > 0 or trained.task.traits.architecture != "SequenceClassification"
    assert {str, list, dict} == {type(found) for found in outcomes}


@pytest.mark.parametrize("name", ENGINES)
def test_commands_have_the_same_outcome(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    data = columns(12)
    for column in ("text", "other"):
        data[column][:4] = ["🙂", LONG, " a  good\tfilm", "x"]
    good = write(tmp_path / "good.csv", data)
    bad = write(tmp_path / "bad.csv", data | {"text": ["", " ", *data["text"][2:]]})

    def outcome(place: str, table: Path, *arguments: Any) -> Any:
        output = tmp_path / f"{place}.jsonl"
        output.unlink(missing_ok=True)
        source = ("--data.test", table) if arguments == ("evaluate",) else ("--input", table, "--output", output)
        status, out, messages = command(arguments[0], models[place], *source, *arguments[1:])
        about_rows = [line for line in messages.splitlines() if str(table) in line or "truncated" in line]
        return status, json.loads(out or "null"), about_rows, read_table(output) if output.is_file() else None

    for table, arguments, status in (
        (good, ["predict"], 0), (bad, ["predict"], 0), (bad, ["predict", "--on-bad-rows", "refuse"], 2), (bad, ["evaluate"], 2),
        (good, ["evaluate"], 0 if "label" in load_predictor(models[name]).task.targets else 2),  # others belong to the old texts
    ):  # fmt: skip
        expected, found = (outcome(place, table, *arguments) for place in ("trained", name))
        assert expected[0] == status, expected[2]
        assert is_close(expected, found), arguments


@pytest.mark.parametrize("name", ENGINES)
def test_served_models_have_the_same_outcome(name: str, models: dict[str, Path]) -> None:
    from tests.unit.test_serving import client

    row = partial(row_of, load_predictor(models[name]).task.inputs)
    outcomes = []
    for texts in (*([text] for text in TEXTS), [text for text in TEXTS if text.strip("\x00 \t\n")], []):
        responses = []
        for place in ("trained", name):
            with client(models[place]) as opened:
                response = opened.post("/predict", json={"texts": [row(text) for text in texts]})
                responses.append((response.status_code, response.json()))
        assert is_close(*responses)
        outcomes.append(responses[0][0])
    assert {200, 422} == set(outcomes)
