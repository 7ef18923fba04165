"""Experiment trackers: what they get from a run, where they write, and what a missing one says. Each is a fake here."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker

from nlp_transfer.training import trackers
from tests.builders import refused

NAMES = ("wandb", "mlflow", "trackio")


class Fake(GeneralTracker):
    """Records its calls."""

    requires_logging_directory = False
    name, made = "", list["Fake"]()

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__(_blank=True)
        self.project, self.options, self.settings = project, options, dict[str, Any]()
        self.logged, self.files, self.finished = list[tuple[int, dict[str, float]]](), list[str](), 0
        self.store = os.environ.get("MLFLOW_TRACKING_URI")
        self.made.append(self)

    @property
    def tracker(self) -> Any:
        return SimpleNamespace(save=lambda path, **_: self.files.append(path))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.logged.append((step or 0, values))

    def log_artifact(self, path: str) -> None:
        self.files.append(path)

    def finish(self) -> None:
        print("a message of the tracker")
        self.finished += 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Replace three trackers of Accelerate; return those that are started."""
    made: list[Fake] = []
    classes = {name: type(name, (Fake,), {"name": name, "made": made}) for name in NAMES}
    for name, value in classes.items():
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, value)
    available = [accelerate.tracking.LoggerType(name) for name in NAMES]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", available)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", SimpleNamespace(is_tracking_uri_set=lambda: False))
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return made


@pytest.mark.model
def test_trackers_get_settings_metrics_and_places(
    train: Callable[..., Any], fakes: list[Fake], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_report(*arguments: Any) -> None:
        (tmp_path / "run/report.html").write_text("<html></html>")
        trackers.add_results(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlp_transfer.run.stages.add_results", with_report)
        run = train(training={"max_steps": 4, "logging_steps": 2, "trackers": list(NAMES), "seed": 3})
    assert [tracker.name for tracker in fakes] == list(NAMES)
    for tracker in fakes:
        assert (tracker.project, tracker.finished) == ("nlp_transfer", 1)
        assert (tracker.settings["training.seed"], tracker.settings["strategy.name"]) == (3, "full")
        assert tracker.settings["model_folder"] == str(run.output_dir.absolute() / "model")
        assert all(isinstance(value, (bool, int, float, str)) for value in tracker.settings.values())
        assert [step for step, values in tracker.logged if "train/loss" in values] == [2, 4]
        last_step, last = tracker.logged[-1]
        assert (last_step, last["final/test/accuracy"]) == (4, run.metrics["test"]["accuracy"])
        assert tracker.files == ([] if tracker.name == "trackio" else [tracker.settings["report"]])
    wandb, mlflow, _ = fakes
    assert (wandb.options["mode"], wandb.options["dir"]) == ("offline", str(run.output_dir.absolute()))
    assert mlflow.options["logging_dir"].startswith((run.output_dir.absolute() / "mlflow").as_uri())
    assert str(run.output_dir) in str(mlflow.store)
    assert "MLFLOW_TRACKING_URI" not in os.environ, "the next run has another folder"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert capsys.readouterr().out == "", "messages are not results"


@pytest.mark.model
def test_the_environment_of_the_user_is_respected(
    train: Callable[..., Any], fakes: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    run = train(training={"max_steps": 1, "trackers": ["wandb", "mlflow"]})
    wandb, mlflow = fakes
    assert "mode" not in wandb.options
    assert (mlflow.store, "logging_dir" in mlflow.options) == ("http://tracking.example", False)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://tracking.example"
    assert not (run.output_dir / "mlflow").exists()


@pytest.mark.model
def test_a_failing_tracker_ends_the_run_before_training(
    train: Callable[..., Any], fakes: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But an error after training is a warning, as the run is finished."""

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    wandb = accelerate.tracking.LOGGER_TYPE_TO_CLASS["wandb"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "store_init_configuration", fail)
        with refused("training.trackers", "wandb", "no route to host"):
            train(training={"max_steps": 1, "trackers": ["wandb"]})
    assert fakes[0].finished == 1
    monkeypatch.setattr(wandb, "finish", fail)
    assert train(training={"max_steps": 1, "trackers": ["wandb"]}).metrics["test"]


@pytest.mark.parametrize("name", [name for name in trackers.EXTRAS if name != "tensorboard"])
def test_a_missing_tracker_names_its_command(
    name: str, plan: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlp_transfer.run.resolve import resolve

    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with refused(f'pip install "nlp_transfer[{name}]"'):
        resolve(plan(training={"trackers": [name]}))
