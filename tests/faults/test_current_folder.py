"""Commands that are started in a folder from a stranger: no Python file there runs, neither in a command nor in its children."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlp_transfer import compare, fine_tune
from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.data.sources import find_model, read_rows
from nlp_transfer.evaluation.metrics import load_hub_metric
from nlp_transfer.inference.worker_processes import PredictorPool
from nlp_transfer.security import child_processes
from nlp_transfer.settings import extensions
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import UserError
from tests.builders import sentiment_rows, write
from tests.helpers.children.slow_predictor import chunks
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.process

HOSTILE = (
    "pickle", "uuid", "json", "typing", "re", "tempfile", "multiprocessing", "subprocess", "ctypes", "secrets", "random",
    "torch", "transformers", "tokenizers", "numpy/__init__", "pip/__init__", "pip/__main__", "yaml", "click", "filelock",
    "sitecustomize", "usercustomize", "org/__init__", "tensorflow", "wandb", "_posixshmem",
)  # fmt: skip
"""Names of the standard library, of libraries, of what Python imports by itself, and of modules that are imported if present."""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, full of Python files that take down when they run; afterwards none has."""
    folder, ran = tmp_path / "stranger", tmp_path / "ran"
    for name in HOSTILE:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(ran)!r}, 'a').write({name!r} + ' ')\n")
    monkeypatch.chdir(folder)
    # Python puts the current folder before PYTHONPATH, so that the toolkit is not taken from there.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    yield folder
    assert not ran.exists(), ran.read_text()


def python(*arguments: object, **more: str) -> str:
    """Run Python in the current folder, as a user does who takes no care; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_without_protection_the_files_run(stranger: Path, tmp_path: Path) -> None:
    names = [name.removesuffix("/__init__").replace("/", ".") for name in HOSTILE]
    imports = "".join(
        f"sys.modules.pop({name!r}, 0)\ntry: importlib.import_module({name!r})\nexcept Exception: pass\n" for name in names
    )
    python("-c", f"import sys, importlib, traceback\n{imports}")
    ran = tmp_path / "ran"
    assert set(ran.read_text().split()) == set(HOSTILE)
    ran.unlink()


@pytest.fixture
def model(tiny: dict[str, Path], tmp_path: Path) -> Path:
    source = write(tmp_path / "train.csv", list(sentiment_rows(20)))
    fine_tune(
        model=str(tiny["bert"]), data={"train": str(source), "validation_share": 0}, task="text_classification",
        training={"max_steps": 1, "batch_size": 8}, output_dir=str(tmp_path / "run"),
        with_report=False,
    )  # fmt: skip
    return tmp_path / "run"


def document(tiny: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    source = write(tmp_path / "data.csv", list(sentiment_rows(20)))
    data = {"train": str(source), "test": str(source), "validation_share": 0}
    training = {"max_steps": 1, "batch_size": 8}
    return {"model": str(tiny["bert"]), "data": data, "task": "text_classification", "training": training, "output_dir": "out"}


def test_worker_processes_of_a_command(model: Path, stranger: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.csv"
    processes = min(2, len(os.sched_getaffinity(0)))
    python("-m", "nlp_transfer", "predict", model, "--input", data, "--output", "out.csv", "--processes", processes)
    assert len((stranger / "out.csv").read_text().splitlines()) == len(data.read_text().splitlines())


def test_a_comparison(tiny: dict[str, Path], stranger: Path, tmp_path: Path) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(document(tiny, tmp_path)))
    python("-m", "nlp_transfer", "compare", "run.yaml", "--strategies", "full", "--seeds", 0)
    assert (stranger / "out-comparison/comparison.json").is_file()


def test_training_in_two_processes(tiny: dict[str, Path], stranger: Path, tmp_path: Path) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(document(tiny, tmp_path)))
    torchrun = ["-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    python(*torchrun, "-m", "nlp_transfer", "train", "run.yaml", ACCELERATE_USE_CPU="true")
    assert (stranger / "out/result.json").is_file()


def test_a_command_without_children(model: Path, stranger: Path, tmp_path: Path) -> None:
    assert "accuracy" in python("-m", "nlp_transfer", "evaluate", model, "--data.test", tmp_path / "train.csv")


def test_pip(stranger: Path) -> None:
    done = child_processes.run_module("pip", ["--version"])
    assert (done.returncode, done.stdout.split()[0]) == (0, "pip")


def test_worker_processes_of_a_notebook(stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the current folder is among the places of modules, as an empty text."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "work").mkdir()
    with PredictorPool("tests.helpers.children.slow_predictor", "Slow", {"folder": tmp_path / "work"}, 2) as pool:
        found = list(pool.predict(lambda size, *_: iter(chunks(["a", "b", "c"], size))))
    assert [text for batch, _ in found for text in batch.columns["text"]] == ["a", "b", "c"]
    assert sys.path[0] == ""
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_class_of_a_notebooks_folder_is_found_in_a_comparison(
    tiny: dict[str, Path], stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stranger / "my_tasks.py").write_text(
        "from nlp_transfer.tasks.text_classification import TextClassification\nclass Mine(TextClassification): pass\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.setattr(extensions, "_CODE", {})
    import my_tasks  # type: ignore[import-not-found]

    try:
        found = compare(document(tiny, tmp_path) | {"task": my_tasks.Mine()}, ["full"], seeds=[0])
    finally:
        del sys.modules["my_tasks"]
    assert found.failed == []
    assert [row.label for row in found.rows] == ["full"]


def test_whatever_a_command_starts_is_isolated(stranger: Path) -> None:
    """Also by libraries, such as the resource tracker of `multiprocessing`."""
    assert run_command(lambda: python("-c", "import sys; print(sys.flags.safe_path)")) == "True\n"


def test_an_interpreter_that_ignores_the_variable_is_refused(stranger: Path) -> None:
    program = (
        f"import sys; sys.path[:] = {list(filter(None, sys.path))!r}; from nlp_transfer.security import child_processes\n"
        "try:\n    child_processes.run_module('pip', [])\nexcept child_processes.UserError as error:\n    print(error)"
    )
    assert "-E" in python("-E", "-c", program)


@pytest.mark.parametrize("name", ["rouge", "org/rouge", "./rouge", "rouge/rouge.py", "../elsewhere"])
def test_a_hub_metric_is_not_a_file_of_the_current_folder(
    name: str, stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate.load` prefers one."""
    for folder in (stranger / "rouge", stranger / "org/rouge", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('metric')\n")
    with pytest.raises(UserError, match="hub_metrics"):
        load_hub_metric(name, allow_hub_metrics=True)


def test_a_hub_id_is_not_read_from_the_current_folder(stranger: Path) -> None:
    (stranger / "org/name").mkdir(parents=True)
    (stranger / "org/name/config.json").write_text("{}")
    assert find_model("org/name").is_folder
    with pytest.raises(UserError, match="model: found org/name@main"):
        find_model("org/name@main")
    with pytest.raises(UserError, match=r"data\.train: found org/name#train"):
        read_rows("org/name#train", "train", DataConfig(), ["text"])
