"""Runs are identified by content: folder, data and model can be moved, and paths written differently."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nlp_transfer import FineTuned, compare, fine_tune, load_predictor
from nlp_transfer.data.sources.portable_paths import mapping, without_folders
from nlp_transfer.run.document import read_document
from nlp_transfer.run.provenance import check_files, compare_content
from tests.builders import refused, sentiment_rows, stopped_at, write
from tests.helpers.models import save_tiny

pytestmark = pytest.mark.model


def run(document: Any = None, **changes: Any) -> FineTuned:
    """Do a short run in the working directory, with some settings changed."""
    settings = {
        "model": "models/bert",
        "data": {"train": "a.csv", "test": "more/t*.csv"},
        "task": "text_classification",
        "training": {"epochs": 2, "batch_size": 16, "checkpoint_every": 2, "precision": "fp32"},
        "output_dir": "runs/x",
    }
    changed = (settings | changes, {}) if document is None else (document, changes)
    return fine_tune(changed[0], with_report=False, **changed[1])


def write_project(folder: Path) -> Path:
    save_tiny("bert", folder / "models/bert")
    rows = sentiment_rows(90)
    (folder / "more").mkdir()
    write(folder / "a.csv", rows[:60])
    write(folder / "more/t1.csv", rows[60:75])
    write(folder / "more/t2.csv", rows[75:])
    return folder


def killed(start: Callable[[], Any] = run) -> None:
    """Start a run and end it before its second checkpoint."""
    with stopped_at(1):
        start()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """The uninterrupted run."""
    folder = write_project(tmp_path_factory.mktemp("straight"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run()
    return FineTuned(folder / done.output_dir, done.result)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an unfinished run in `runs/x`."""
    folder = write_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    killed()
    return folder


def check_same(done: FineTuned, straight: FineTuned, shown: str) -> None:
    assert "(step 2)" in shown, "it was resumed"
    assert done.metrics == straight.metrics
    first, second = (load_file(one.output_dir / "model/model.safetensors") for one in (done, straight))
    assert all(torch.equal(first[name], second[name]) for name in second)


def elsewhere(project: Path) -> dict[str, Any]:
    (project.parent / "elsewhere").mkdir()
    os.chdir(project.parent / "elsewhere")
    return {"model": "../project/models/bert", "data": {"train": "../project/a.csv", "test": "../project/more/t?.csv"},
            "output_dir": "../project/runs/x"}  # fmt: skip


def moved_apart(project: Path) -> dict[str, Any]:
    for old, new in (("runs/x", "y"), ("a.csv", "b.csv"), ("more", "test"), ("models/bert", "tiny")):
        shutil.move(project / old, project.parent / new)
    place = project.parent
    return {"model": str(place / "tiny"), "data": {"train": str(place / "b.csv"), "test": str(place / "test/*.csv")},
            "output_dir": str(place / "y")}  # fmt: skip


def copied(project: Path) -> dict[str, Any]:
    shutil.copytree(project, project.parent / "copy")
    shutil.rmtree(project / "runs")
    os.chdir(project.parent / "copy")
    return {}


def linked(project: Path) -> dict[str, Any]:
    for name in ("runs", "models", "more", "a.csv"):
        (project.parent / name).symlink_to(project / name)
    os.chdir(project.parent)
    return {}


MOVES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "absolute paths": lambda project: {
        "model": str(project / "models/bert"), "data": {"train": str(project / "a.csv"), "test": str(project / "more/t*.csv")},
        "output_dir": str(project / "runs/x"),
    },
    "other spelling": lambda project: {
        "model": "./models/../models/bert/", "data": {"train": "./a.csv", "test": "more//t[12].csv"}, "output_dir": "./runs//x/",
    },
    "another working directory": elsewhere,
    "each part moved and renamed": moved_apart,
    "the project copied": copied,
    "links": linked,
}  # fmt: skip


@pytest.mark.parametrize("name", list(MOVES))
def test_run_is_resumed_after_its_files_were_moved(
    name: str, project: Path, straight: FineTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = MOVES[name](project)
    check_same(run(**changes), straight, capsys.readouterr().err)


def folder_moved(project: Path) -> Path:
    shutil.move(project / "runs/x", project / "y")
    return project / "y"


def project_moved(project: Path) -> Path:
    renamed = shutil.move(project, project.parent / "renamed")
    os.chdir(project.parent)
    return Path(renamed, "runs/x")


def folder_renamed(project: Path) -> Path:
    shutil.move(project / "runs/x", project / "runs/y")
    os.chdir(project.parent)
    return project / "runs/y"


def inside_the_folder(project: Path) -> Path:
    shutil.move(project / "runs/x", project / "runs/z")
    os.chdir(project / "runs/z")
    return project / "runs/z"


def behind_a_link(project: Path) -> Path:
    moved = shutil.move(project / "runs", project.parent / "scratch")
    (project / "runs").symlink_to(moved)
    return (project / "runs/x").resolve()


@pytest.mark.parametrize("move", [folder_moved, project_moved, folder_renamed, inside_the_folder, behind_a_link])
def test_config_yaml_resumes_a_moved_run(
    move: Callable[[Path], Path], project: Path, straight: FineTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = move(project)
    done = run(folder / "config.yaml")
    assert done.output_dir == folder
    assert not (project / "runs/x").exists() or move is behind_a_link
    shown = capsys.readouterr().err
    assert "is missing" not in shown
    check_same(done, straight, shown)


def test_unreachable_files_are_reported_with_the_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(project / "runs/x", tmp_path / "x")
    monkeypatch.chdir("/")
    read_document(tmp_path / "x/config.yaml")
    said = capsys.readouterr().err
    assert "run the command in the folder" in said
    assert "a.csv" in said or "models/bert" in said


def test_added_files_are_not_reported_as_changed(project: Path) -> None:
    write(project / "more/t3.csv", sentiment_rows(4))
    (project / "models/bert/merges.txt").write_text("{}")
    with refused("data.test: more/t3.csv was not among the files before", "merges.txt was not among") as error:
        run()
    assert "changed" not in str(error.value)


def change_weights(project: Path) -> str:
    path = project / "models/bert/model.safetensors"
    weights = load_file(path)
    save_file({name: weight * 1.5 for name, weight in weights.items()}, path, {"format": "pt"})
    return "model.safetensors"


def change_tokenizer(project: Path) -> str:
    path = project / "models/bert/tokenizer.json"
    path.write_text(path.read_text().replace('"good"', '"goood"'))
    return "tokenizer.json"


def change_row(name: str) -> Callable[[Path], str]:
    def change(project: Path) -> str:
        path = project / name
        path.write_text(path.read_text().replace("the", "tree", 1))
        return name

    return change


CHANGES = {
    "model": change_weights, "tokenizer": change_tokenizer, "train": change_row("a.csv"), "test": change_row("more/t2.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
@pytest.mark.parametrize("moved", [False, True])
def test_changed_content_is_refused_by_name(
    name: str, moved: bool, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = CHANGES[name](project)
    if moved:
        shutil.move(project, tmp_path / "renamed")
        monkeypatch.chdir(tmp_path / "renamed")
    setting = {"tokenizer": "model"}.get(name, name if name == "model" else f"data.{name}")
    with refused("unfinished run", f"{setting}: ", changed) as error:
        run()
    others = {"model.safetensors", "tokenizer.json", "a.csv", "t1.csv", "t2.csv"} - {Path(changed).name}
    assert not [other for other in others if other in str(error.value)], "only what changed is named"
    assert not Path("runs/x/result.json").exists()


def test_same_files_in_other_splits_are_refused(project: Path) -> None:
    with refused("data.train", "data.test"):
        run(data={"train": "more/t*.csv", "test": "a.csv"})


def test_data_in_memory_is_compared_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: FineTuned) -> None:
    import pandas as pd

    write_project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    data = {"train": pd.read_csv("a.csv"), "test": pd.read_csv("more/t1.csv")}
    killed(lambda: run(data=data))
    changed = data["train"].copy()
    changed.loc[7, "text"] = "a good film"
    with refused("data.train: ", " in memory"):
        run(data=data | {"train": changed})
    assert run(data={name: frame.copy() for name, frame in data.items()}).result["train"]["steps"] == 8


def test_config_yaml_of_a_finished_run_repeats_it(straight: FineTuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = shutil.copytree(straight.output_dir.parents[1], tmp_path / "copy")
    settings = read_document(project / "runs/x/config.yaml")
    assert settings["data"]["train"] == str(project / "a.csv"), "read from the run's working directory"
    monkeypatch.chdir(tmp_path)
    with refused("finished run"):
        run(project / "runs/x/config.yaml")
    again = run(project / "runs/x/config.yaml", output_dir="again")
    assert again.metrics == straight.metrics
    monkeypatch.chdir(project)
    shutil.copy("runs/x/config.yaml", "again.yaml")
    assert run("again.yaml", output_dir="again").metrics == straight.metrics
    change_row("a.csv")(project)
    with refused("a.csv is not the file"):
        run("again.yaml", output_dir="third")


def test_paths_are_relative_if_possible(straight: FineTuned, project: Path, tmp_path: Path) -> None:
    text = (straight.output_dir / "config.yaml").read_text()
    assert str(straight.output_dir.parents[1]) not in text
    document = yaml.safe_load(text)
    assert document["model"] == "./models/bert", "no hub id, should the folder be missing"
    assert document["data"] | {"train": "a.csv", "test": "more/t*.csv"} == document["data"]
    assert (document["output_dir"], document["provenance"]["directory"]) == ("runs/x", "../..")
    assert {"a.csv", "more/t1.csv", "more/t2.csv"} < set(document["provenance"]["files"])
    write(tmp_path / "far.csv", sentiment_rows(20))
    run(data={"train": str(project / "a.csv"), "test": str(tmp_path / "far.csv")}, output_dir=str(project / "runs/second"))
    data = yaml.safe_load(Path("runs/second/config.yaml").read_text())["data"]
    assert (data["train"], data["test"]) == ("a.csv", str(tmp_path / "far.csv"))


def test_teacher_and_further_tasks_compare_by_content(
    straight: FineTuned, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree("runs")
    shutil.copytree(straight.output_dir / "model", "teacher")
    distill = {"name": "distill", "teacher": "teacher"}
    further = {"name": "second", "data": {"train": "more/t1.csv", "validation_share": 0}, "task": "text_classification"}
    multitask = {"name": "multitask", "tasks": [further]}
    for name, strategy in (("taught", distill), ("several", multitask)):
        killed(lambda: run(strategy=strategy, output_dir=f"runs/{name}"))  # noqa: B023
    assert set(yaml.safe_load(Path("runs/several/config.yaml").read_text())["provenance"]["content"]) == {
        "model", "data.train", "data.test", "strategy.tasks.0.data.train",
    }  # fmt: skip
    shutil.move(project, tmp_path / "renamed")
    monkeypatch.chdir(tmp_path / "renamed")
    change_row("more/t1.csv")(Path())
    with refused("strategy.tasks.0.data.train: ", "more/t1.csv"):
        run(strategy=multitask, output_dir="runs/several")
    write_project(tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    shutil.move("../renamed/runs", "runs")
    run(strategy=multitask, output_dir="runs/several")
    shutil.move("../renamed/teacher", "professor")
    assert run(strategy=distill | {"teacher": "professor"}, output_dir="runs/taught").result["train"]["steps"] == 8


def test_adapter_finds_its_base_after_a_move(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("runs")
    done = run(strategy={"name": "peft", "type": "P_TUNING"}, task={"name": "text_classification", "max_length": 30})
    texts = ["a good film", "the awful dull plot"]
    expected = done.predictor()(texts)
    shutil.move(project, tmp_path / "renamed")
    monkeypatch.chdir(tmp_path)
    assert load_predictor(tmp_path / "renamed/runs/x")(texts) == expected
    change_weights(tmp_path / "renamed")
    with refused("another base"):
        load_predictor(tmp_path / "renamed/runs/x")


def test_moved_comparison_is_not_repeated(straight: FineTuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_project(tmp_path / "project")
    shutil.copytree(straight.output_dir / "model", folder / "teacher")
    document = {"model": "models/bert", "data": {"train": "a.csv", "test": "more/t1.csv"}, "task": "text_classification",
                "training": {"max_steps": 2, "batch_size": 8, "precision": "fp32"}}  # fmt: skip
    strategies = ["prototypes", {"name": "distill", "teacher": "teacher"}]
    monkeypatch.chdir(folder)
    compare(document, strategies, seeds=[0], output_dir="out")
    results = sorted(Path("out/runs").glob("*/result.json"))
    assert len(results) == 2
    before = [path.stat().st_mtime_ns for path in results]
    shutil.move(folder, tmp_path / "renamed")
    monkeypatch.chdir(tmp_path)
    shutil.move("renamed/out", "out")
    shutil.move("renamed/teacher", "professor")
    moved = document | {
        "model": "renamed/models/bert",
        "data": {name: f"renamed/{path}" for name, path in document["data"].items()},
    }
    strategies = ["prototypes", {"name": "distill", "teacher": str(tmp_path / "professor")}]
    done = compare(moved, strategies, seeds=[0], output_dir="out")
    assert len(done.rows) == 2
    assert [path.stat().st_mtime_ns for path in results] == before
    change_row("a.csv")(tmp_path / "renamed")
    with refused("data.train: ", "a.csv"):
        compare(moved, strategies, seeds=[0], output_dir="out")


def test_pushed_files_contain_no_folder_names(straight: FineTuned) -> None:
    document = yaml.safe_load((straight.output_dir / "config.yaml").read_text())
    strategy = [{"name": "distill", "teacher": ["./runs/big", "pypi:models==1.0#big"]}]
    provenance = document["provenance"] | {"content": document["provenance"]["content"] | {"strategy.0.teacher": ["0" * 64]}}
    found = without_folders(document | {"strategy": strategy, "provenance": provenance})
    assert (found["model"], found["data"]["train"], found["data"]["test"]) == ("bert", "a.csv", "t*.csv")
    assert found["strategy"][0]["teacher"] == ["big", "pypi:models==1.0#big"]
    assert "output_dir" not in found
    assert "directory" not in found["provenance"]
    assert {"t1.csv", "t2.csv", "model.safetensors"} < set(found["provenance"]["files"])


@pytest.mark.parametrize(
    "provenance",
    [3, [1], {"files": 3}, {"files": {3: 4}, "content": [1]}, {"directory": 7}, {"directory": "..", "content": {"data..x": 1}}],
)
def test_malformed_provenance_is_tolerated(provenance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    document = {"model": "x", "data": {"train": "a.csv"}, "output_dir": "runs", "provenance": provenance}
    (tmp_path / "runs/config.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.chdir("/")
    found = read_document(tmp_path / "runs/config.yaml")
    assert found["data"] == document["data"]
    assert compare_content(mapping(provenance), {"files": {}, "content": {"model": ["0"]}}) == ([], {})
    check_files(mapping(provenance), {"files": {"a.csv": "0"}})
