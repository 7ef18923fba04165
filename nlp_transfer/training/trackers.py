"""Experiment trackers of Accelerate: start them with the settings of a run, add its results, and close them.

Nothing is sent anywhere unless the environment of the user says so: wandb runs offline (WANDB_MODE), mlflow writes to the output
folder (MLFLOW_TRACKING_URI) and sends no usage data (MLFLOW_DISABLE_TELEMETRY), and trackio writes to its local folder
(TRACKIO_SPACE_ID, TRACKIO_SERVER_URL).
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems, UserError, did_you_mean

PROJECT = "nlp_transfer"
EXTRAS = ("mlflow", "tensorboard", "trackio", "wandb")
"""Trackers whose package is an extra of this package."""
REPORT, MODEL = "report.html", "model"
STORE = "MLFLOW_TRACKING_URI"


def check_trackers(names: list[str], problems: Problems) -> None:
    """Report trackers that are unknown or not installed; Accelerate silently ignores missing ones."""
    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = sorted(str(name) for name in get_available_trackers())
    for name in names:
        if name not in known:
            problems.add(f"training.trackers: found {name!r}{did_you_mean(name, known)}; allowed: {', '.join(known)}")
        elif name not in installed:
            package = f'"{PROJECT}[{name}]"' if name in EXTRAS else name.replace("_", "-")
            problems.add(
                f"training.trackers: found {name!r}, which is not installed; to install it: pip install {package}; or use an "
                f"installed one: {', '.join(installed) or 'none'}"
            )


def start_trackers(accelerator: Accelerator, output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Start the trackers of a run, and record its settings and where it writes its report and its model.

    Args:
        accelerator: the accelerator of the run.
        output_dir: folder of the run.
        settings: the content of `config.yaml`, from which secrets are already removed.

    Raises:
        UserError: a tracker cannot be started.
    """
    if not accelerator.is_main_process or not accelerator.log_with:
        return
    folder = output_dir.absolute()
    names = [str(name) for name in accelerator.log_with]
    options: dict[str, dict[str, Any]] = {"wandb": {"name": folder.name, "dir": str(folder)}, "trackio": {"name": folder.name}}
    options["trackio"]["embed"] = False  # otherwise it starts a server in notebooks
    if "wandb" in names and not os.environ.get("WANDB_MODE"):
        options["wandb"]["mode"] = "offline"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        say(f"wandb: offline, in {folder / 'wandb'}; to upload the run: wandb sync, or set WANDB_MODE=online before")
    if "mlflow" in names:
        options["mlflow"] = {"run_name": folder.name, **_local_store(folder)}
    try:
        with redirect_stdout(sys.stderr):  # trackio prints messages
            accelerator.init_trackers(PROJECT, init_kwargs=options)
        recorded = {**dict(_flat(settings)), "model_folder": str(folder / MODEL), "report": str(folder / REPORT)}
        for tracker in accelerator.trackers:
            tracker.store_init_configuration(recorded)
    except Exception as error:  # each tracker has errors of its own
        finish_trackers(accelerator)
        raise UserError(f"training.trackers: found {names}, which cannot be started: {error}") from error


def add_results(accelerator: Accelerator, output_dir: Path, metrics: Mapping[str, Mapping[str, float]], step: int) -> None:
    """Add the metrics of the finished run as `final/SPLIT/NAME`, and copy the report to trackers that store files.

    Errors are printed as warnings, since the run is finished.
    """
    if not accelerator.is_main_process:
        return
    values = {f"final/{split}/{name}": value for split, scores in metrics.items() for name, value in scores.items()}
    report = output_dir.absolute() / REPORT
    for tracker in accelerator.trackers:
        try:
            if values:
                tracker.log(values, step=step)
            if report.is_file() and tracker.name == "mlflow":
                tracker.log_artifact(str(report))
            elif report.is_file() and tracker.name == "wandb":
                tracker.tracker.save(str(report), base_path=str(report.parent), policy="now")
        except Exception as error:
            say(f"warning: {tracker.name}: the results were not added: {error}")


def finish_trackers(accelerator: Accelerator) -> None:
    """Flush and close all trackers.

    Accelerate's `end_training` also destroys the process group, so the next run in these processes would fail.
    """
    while accelerator.trackers:
        tracker = accelerator.trackers.pop()
        try:
            with redirect_stdout(sys.stderr):
                tracker.finish()
        except Exception as error:  # the run itself is not affected
            say(f"warning: {tracker.name}: cannot be closed: {error}")
    if os.environ.get(STORE) in _local_stores:
        os.environ.pop(STORE)


_local_stores: set[str] = set()
"""Stores that runs of this process have set. The next run has a store of its own."""


def _local_store(folder: Path) -> dict[str, str]:
    """Let mlflow write to the folder of the run, unless the user has chosen a store. Return options for the tracker."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import
    import mlflow

    if os.environ.get(STORE) or mlflow.is_tracking_uri_set():
        return {}
    place = folder / "mlflow"
    place.mkdir(parents=True, exist_ok=True)
    # mlflow has deprecated stores of plain files; mlflow-skinny does without the database packages.
    store = f"sqlite:///{place / 'mlflow.db'}" if find_spec("sqlalchemy") and find_spec("alembic") else place.as_uri()
    os.environ[STORE] = store
    _local_stores.add(store)
    say(f"mlflow: in {place}; to view it: mlflow ui --backend-store-uri {store}")
    return {"logging_dir": (place / "artifacts").as_uri()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted name. Values that are not numbers, texts or booleans become JSON, since trackers need these."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)
