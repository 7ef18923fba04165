"""What a run leaves on disk: predictions of each scored split, permissions, cards, numbers that people can read."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlp_transfer import FineTuned
from nlp_transfer.evaluation.metrics import compute_label_metrics, compute_regression_metrics, compute_translation_metrics
from nlp_transfer.utils.atomic_files import apply_umask
from nlp_transfer.utils.console import duration, percent
from tests.builders import printed, refused, run, sentiment_rows, succeed

pytestmark = pytest.mark.process

TASKS: dict[str, Any] = {
    "words": {"name": "text_classification", "label": "label"},
    "numbers": {"name": "text_classification", "label": "stars"},
    "pairs": {"name": "text_classification", "text": "text", "text_pair": "other", "label": "yes"},
    "tags": {"name": "multi_label", "label": "tags"},
    "score": {"name": "regression", "label": "score"},
    "translation": {"name": "translation", "source": "text", "target": "other", "beams": 1},
}
RUN = {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Typed columns of every kind, and one that no task reads."""
    folder, rows = tmp_path_factory.mktemp("tables"), sentiment_rows(80)
    frame = pd.DataFrame({
        "number": range(len(rows)),
        "text": [text for text, _ in rows],
        "other": [" ".join(text.split()[::-1]) for text, _ in rows],
        "label": [label for _, label in rows],
        "stars": [1 + 2 * (label == "positive") for _, label in rows],
        "yes": [label == "positive" for _, label in rows],
        "score": [0.25 * (label == "positive") + 1000 + len(text) for text, label in rows],
        "tags": [[label, "long"] if len(text) > 30 else [label] if i % 5 else [] for i, (text, label) in enumerate(rows)],
    })  # fmt: skip
    frame[:60].to_parquet(folder / "train.parquet")
    frame[60:].to_parquet(folder / "test.parquet")
    return {"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet"), "validation_share": 0.1}


@pytest.fixture(scope="module")
def runs(
    tiny: dict[str, Path], tables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, FineTuned]]:
    folder = tmp_path_factory.mktemp("runs")
    umask = os.umask(0o027)
    try:
        yield {
            name: run(model=tiny["bert"], data=tables, task=task, training=RUN, output_dir=folder / name)
            for name, task in TASKS.items()
        }
    finally:
        os.umask(umask)


def predictions(done: FineTuned, split: str) -> pa.Table:
    return pq.read_table(done.output_dir / "predictions" / f"{split}.parquet")


def recompute(name: str, table: pa.Table, labels: list[Any]) -> dict[str, float]:
    """Metrics of a file of predictions, as `result.json` calls them."""
    wanted, found = table["reference"].to_pylist(), table["prediction"].to_pylist()
    if name == "translation":
        return compute_translation_metrics(found, wanted, None)
    if name == "score":
        return compute_regression_metrics(np.array(found), np.array(wanted))
    if name == "tags":
        sets = [
            [set(cell.split("|")) - {""} if isinstance(cell, str) else set(cell) for cell in part] for part in (found, wanted)
        ]
        hot = [np.array([[label in row for label in labels] for row in part], np.int64) for part in sets]
        return compute_label_metrics(hot[0], hot[1], hot[0].astype(float), multilabel=True)
    ids = [np.array([labels.index(cell) for cell in part]) for part in (found, wanted)]
    scores = np.where(ids[0] == 1, table["probability"].to_numpy(), 1 - table["probability"].to_numpy())
    return compute_label_metrics(ids[0], ids[1], np.stack([1 - scores, scores], 1))


LABELS: dict[str, list[Any]] = {
    "words": ["negative", "positive"], "numbers": [1, 3], "pairs": [False, True], "tags": ["long", "negative", "positive"],
}  # fmt: skip
TYPES = {"words": "string", "numbers": "int64", "pairs": "bool", "tags": "string", "score": "double",
         "translation": "string"}  # fmt: skip


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_follow_from_the_predictions_on_disk(
    name: str, split: str, runs: dict[str, FineTuned], tables: dict[str, Any]
) -> None:
    table = predictions(runs[name], split)
    figures = recompute(name, table, LABELS.get(name, []))
    expected = {metric: value for metric, value in runs[name].metrics[split].items() if metric in figures}
    if name == "tags":  # computed here from labels alone
        figures.pop("auc", None), expected.pop("auc", None)
    assert len(expected) >= (1 if name == "translation" else 3)
    assert {metric: figures[metric] for metric in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)
    source = pq.read_table(tables["test" if split == "test" else "train"])
    assert set(table["file"].to_pylist()) == {tables["test" if split == "test" else "train"]}
    if split == "test":
        assert table["row"].to_pylist() == list(range(1, len(source) + 1))
    rows = source.take([row - 1 for row in table["row"].to_pylist()])
    inputs = ["text", "other"] if name == "pairs" else ["text"]
    probability = ["probability", *(f"probability:{label}" for label in LABELS[name])] if name in LABELS else []
    assert table.column_names == [*inputs, "reference", "prediction", *probability, "file", "row"]
    for column in inputs:
        assert table[column].equals(rows[column].cast(table[column].type)), "the rows of the split, in its order"
    assert str(table.schema.field("prediction").type) == str(table.schema.field("reference").type) == TYPES[name]
    references = rows[TASKS[name].get("label", "other")].to_pylist()
    if name == "tags":
        references = ["|".join(sorted(cell)) for cell in references]
    assert table["reference"].to_pylist() == references


def test_the_predictions_on_disk_are_those_of_the_command(
    runs: dict[str, FineTuned], tables: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("numbers", "tags", "score"):
        output = tmp_path / f"{name}.parquet"
        succeed("predict", runs[name].output_dir, "--input", tables["test"], "--output", output)
        written, table = pq.read_table(output), predictions(runs[name], "test")
        for column in {"prediction", "probability"} & set(table.column_names):
            found, wanted = table[column].to_pylist(), written[column].to_pylist()
            assert (
                found == (pytest.approx(wanted, rel=1e-6, abs=1e-6) if isinstance(wanted[0], float) else wanted) or name == "tags"
            )
            assert table[column].type == written[column].type


def test_predictions_name_the_file_and_row_of_each_input(
    tiny: dict[str, Path], tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = pd.read_parquet(tables["train"]).rename(columns={"text": "row"})
    for name, lines in (("a", ["a film,positive", ",positive", "b film,negative"]), ("b", ["c film,positive"])):
        (tmp_path / f"test-{name}.csv").write_text("\n".join(["row,label", *lines]) + "\n")
    done = run(
        model=tiny["bert"], data={"train": train, "test": tmp_path / "test-*.csv", "on_bad_rows": "skip"},
        task={"text": "row", "label": "label"}, training=RUN, output_dir=tmp_path / "run",
    )  # fmt: skip
    table = predictions(done, "test")
    assert table["row"].to_pylist() == ["a film", "b film", "c film"]
    assert [Path(file).name for file in table["file"].to_pylist()] == ["test-a.csv", "test-a.csv", "test-b.csv"]
    assert table["source_row"].to_pylist() == [2, 4, 2]
    assert "'source_row'" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["prototypes", "few_shot", "lora"])
def test_strategies_of_every_kind_leave_predictions(
    strategy: Any, tiny: dict[str, Path], tables: dict[str, Any], tmp_path: Path
) -> None:
    training = {"max_steps": None if strategy == "prototypes" else 4}
    done = run(
        model=tiny["bert"], data=tables, task=TASKS["words"], strategy=strategy, training=training, output_dir=tmp_path / "run"
    )
    table = predictions(done, "test")
    assert table.num_rows == 20
    right = np.mean(np.array(table["reference"].to_pylist()) == np.array(table["prediction"].to_pylist()))
    assert right == done.metrics["test"]["accuracy"]


def test_further_tasks_leave_predictions_and_a_card(tiny: dict[str, Path], tables: dict[str, Any], tmp_path: Path) -> None:
    further = {"name": "stars", "data": tables, "task": TASKS["score"]}
    done = run(
        model=tiny["bert"], data=tables, task=TASKS["words"], strategy={"name": "multitask", "tasks": [further]},
        training=RUN, output_dir=tmp_path / "run",
    )  # fmt: skip
    folder = done.output_dir / "tasks/stars"
    expected = done.result["tasks"]["stars"]["metrics"]
    assert {path.stem for path in (folder / "predictions").iterdir()} == {"validation", "test"}
    figures = recompute("score", pq.read_table(folder / "predictions/test.parquet"), [])
    assert figures == pytest.approx({name: expected["test"][name] for name in figures}, rel=1e-6, abs=1e-6)
    card = (folder / "model/README.md").read_text()
    assert "A regression model" in card
    assert f"| rmse | {expected['test']['rmse']:.2f}" in card
    assert "test.parquet" in card
    assert json.loads((folder / "model/nlp_transfer.json").read_text())["metrics"] == expected


@pytest.mark.parametrize("column", ["reference", "prediction", "probability"])
def test_an_input_named_like_a_written_column_is_refused(
    column: str, tiny: dict[str, Path], tables: dict[str, Any], tmp_path: Path
) -> None:
    frame = pd.read_parquet(tables["train"]).rename(columns={"text": column})
    with refused(f"'{column}'"):
        run(model=tiny["bert"], data={"train": frame}, task=TASKS["words"] | {"text": column}, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_writes_signatures_into_its_file(runs: dict[str, FineTuned], tables: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    found = printed("evaluate", runs["translation"].output_dir, "--data.test", tables["test"], "--output", output)
    written = json.loads(output.read_text())
    assert written.pop("signatures") == runs["translation"].result["signatures"]
    assert "bleu" in runs["translation"].result["signatures"]
    assert found == written


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_files_have_the_permissions_of_the_umask(
    runs: dict[str, FineTuned], tiny: dict[str, Path], tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlp_transfer.training import checkpoints

    seen: dict[str, int] = {}
    original = checkpoints.write_checkpoint

    def write(*arguments: Any) -> Path:
        written = original(*arguments)
        seen.update({f"checkpoints/{name}": mode for name, mode in modes(written.parent).items()})
        return written

    monkeypatch.setattr(checkpoints, "write_checkpoint", write)
    umask = os.umask(0o027)
    try:
        further = {"name": "stars", "data": tables, "task": TASKS["score"]}
        strategies = ["bitfit", "lora", {"name": "multitask", "tasks": [further]}]
        for i, strategy in enumerate(strategies):
            training = {**RUN, "max_steps": 2, "ema": 0.9}
            run(model=tiny["bert"], data=tables, strategy=strategy, training=training, output_dir=tmp_path / str(i))
    finally:
        os.umask(umask)
    found = seen | modes(tmp_path) | modes(runs["translation"].output_dir)
    needed = {
        "0/biases.safetensors", "1/adapter/adapter_model.safetensors", "2/shared/own.safetensors", "2/model/model.safetensors",
        "2/tasks/stars/model/model.safetensors", "0/predictions/test.parquet", "model/target_tokenizer/tokenizer.json",
        "checkpoints/step-2/model.safetensors", "checkpoints/step-2/optimizer.safetensors",
    }  # fmt: skip
    assert needed <= set(found)
    assert {name: mode for name, mode in found.items() if mode != 0o640} == {}


def test_the_umask_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    before = os.umask(0o022)
    try:
        apply_umask(tmp_path / "file")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (770, 22_713_984, "0.003%"), (0, 5, "0.0%"), (5, 5, "100.0%"), (1, 3, "33.3%"), (1, 1000, "0.1%"), (19, 20_000, "0.10%"),
        (99_999, 100_000, ">99.9%"), (1, 10**9, "0.0000001%"), (999, 1000, "99.9%"),
    ],
)  # fmt: skip
def test_shares_have_digits_that_say_something(part: int, whole: int, shown: str) -> None:
    assert percent(part, whole) == shown


def test_durations_have_a_unit_of_their_size() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 119, 121, 5400, 36_000)] == [
        "0 seconds", "59 seconds", "119 seconds", "2.0 minutes", "90.0 minutes", "10.0 hours",
    ]  # fmt: skip


def test_a_run_prints_few_digits(
    tiny: dict[str, Path], tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.concat([pd.read_parquet(tables["train"])] * 30)
    run(
        model=tiny["bert"], data={"train": frame, "validation": tables["test"]}, task=TASKS["score"], strategy="bitfit",
        training={**RUN, "max_steps": 1}, output_dir=tmp_path / "run",
    )  # fmt: skip
    shown = capsys.readouterr().err
    for words in ("train: 1,800 rows", "0.00444 epochs, 1 step of 8 rows"):
        assert words in shown
    mean, deviation = frame["score"].mean(), frame["score"].std(ddof=0)
    assert f"mean {round(mean, 1):.10g}, deviation {deviation:.3g}" in shown
    card = (tmp_path / "run/model/README.md").read_text()
    assert ", 1,800 rows" in card
    assert "learning_rate: `0.001`" in card
