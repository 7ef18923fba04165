"""`nlp-transfer runs`: the table of finished, unfinished and damaged runs."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.run.folder import LOCK
from nlp_transfer.run.overview import find_runs
from nlp_transfer.security.file_locks import lock_now
from tests.builders import command, printed, stopped_at, succeed

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(folder: Path, train: Callable[..., Any], sentiment: dict[str, Path]) -> Path:
    """A finished run, an unfinished one, and several damaged ones."""
    if (folder / "done").exists():
        return folder
    train(output_dir=folder / "done")
    with stopped_at(1):
        train(
            output_dir=folder / "sweep" / "stopped",
            data={"train": sentiment["train"], "validation": sentiment["test"]},
            training={"max_steps": 4, "evaluate_every": 2, "logging_steps": 1},
        )
    for name, record, content in (
        ("cut", "result.json", '{"metrics": {"te'),
        ("list", "result.json", "[]"),
        ("no metrics", "result.json", '{"metrics": 3}'),
        ("bad yaml", "config.yaml", "a: [b"),
        ("control", "config.yaml", 'model: "\x1b[2J"'),
    ):
        shutil.copytree(folder / "done", folder / "sweep" / "bad" / name)
        (folder / "sweep" / "bad" / name / record).write_text(content)
    (folder / "sweep" / "bad" / "pipe").mkdir()
    (folder / "sweep" / "bad" / "pipe" / "result.json").symlink_to("result.json")
    (folder / "notes").mkdir()
    return folder


def test_all_runs_are_listed_with_their_state(runs: Path) -> None:
    listed = {run["name"]: run for run in printed("runs", runs, "--json")}
    result = json.loads((runs / "done" / "result.json").read_text())
    done = listed.pop("done")
    assert (done["status"], done["task"], done["strategy"]) == ("finished", "text_classification", "full")
    assert (done["value"], done["split"], done["seconds"]) == (
        result["metrics"]["test"][done["metric"]],
        "test",
        result["train"]["seconds"],
    )
    stopped = listed.pop("sweep/stopped")
    assert (stopped["status"], stopped["step"], stopped["split"]) == ("unfinished", 4, "validation")
    assert 0 <= stopped["value"] <= 1
    assert {run["status"] for run in listed.values()} == {"damaged"}
    assert {Path(name).name for name in listed} == {"cut", "list", "no metrics", "bad yaml", "control", "pipe"}
    assert all(run["problem"] for run in listed.values())


def test_a_running_run_is_told_from_an_interrupted_one(runs: Path) -> None:
    """The lock of a killed run remains as a file, which nobody holds."""
    stopped = runs / "sweep" / "stopped"
    for is_running in (True, False):
        with lock_now(stopped / LOCK, "busy", "") if is_running else nullcontext():
            [found] = [run for run in find_runs(runs) if run.name == "sweep/stopped"]
            assert (found.status, found.step) == ("running" if is_running else "unfinished", 4)
            assert ("running, step 4" in "".join(succeed("runs", runs))) == is_running
        (stopped / LOCK).write_bytes(b"nlp_transfer lock\n")
    (stopped / LOCK).unlink()


def test_the_table_names_each_run_and_escapes_text(runs: Path) -> None:
    shown = "".join(succeed("runs", runs))
    assert "\x1b" not in shown
    assert all(fact in shown for fact in ("done", "sweep/stopped", "unfinished, step 4", "damaged: result.json", "accuracy"))
    assert "in all runs" not in "".join(succeed("runs", runs / "done"))


def test_runs_are_sorted_by_a_metric(runs: Path, tmp_path: Path) -> None:
    for name, accuracy, loss in (("a", 0.5, 0.1), ("b", 0.7, 0.3), ("c", 0.6, 0.2)):
        (tmp_path / name).mkdir()
        metrics = {"metrics": {"test": {"accuracy": accuracy, "loss": loss}}}
        (tmp_path / name / "result.json").write_text(json.dumps(metrics))
    assert [run.name for run in find_runs(tmp_path, "accuracy")] == ["b", "c", "a"]
    assert [run.name for run in find_runs(tmp_path, "loss")] == ["a", "c", "b"]
    status, _, shown = command("runs", tmp_path, "--sort", "bleu")
    assert (status, "accuracy, loss" in shown) == (2, True)
    assert command("runs", tmp_path / "nothing")[0] == 2
    (tmp_path / "empty").mkdir()
    assert json.loads(command("runs", tmp_path / "empty", "--json")[1].splitlines()[0]) == []
