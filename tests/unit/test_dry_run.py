"""`train --dry-run`: all checks and a few steps, and nothing is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlp_transfer import Callback
from nlp_transfer.run.dry_run import dry_run
from tests.builders import command, stopped_at, succeed

pytestmark = pytest.mark.model


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_measures_and_leaves_nothing(plan: Any, tmp_path: Path) -> None:
    callback = "tests.unit.test_dry_run:Unused"
    training = {"max_steps": 40, "trackers": ["tensorboard"], "callbacks": [callback]}
    settings = plan(training=training, output_dir=tmp_path / "new" / "run")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    _, shown = succeed("train", tmp_path / "run.yaml", "--dry-run")
    assert all(fact in shown for fact in ("for 40 steps", "GiB", "nothing was written"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    estimate = dry_run(settings)
    assert estimate is not None
    assert estimate.steps == 40
    assert estimate.seconds == pytest.approx(40 * estimate.step_seconds)
    assert 0 < estimate.step_seconds < 10
    assert estimate.peak_memory_bytes > 2**26
    quiet = succeed("train", tmp_path / "run.yaml", "--dry-run", "--quiet")[1].splitlines()
    assert len([line for line in quiet if not line.startswith("warning:")]) == 3


class Unused(Callback):
    """A callback that a dry run must not create; `resolve` only checks that it exists."""

    def __init__(self) -> None:
        raise AssertionError


def test_the_measured_loss_is_that_of_the_run(plan: Any, train: Any, tmp_path: Path) -> None:
    training = {"max_steps": 3, "logging_steps": 1, "precision": "fp32"}
    estimate = dry_run(plan(training=training))
    run = train(training=training)
    lines = [json.loads(line) for line in (run.output_dir / "log.jsonl").read_text().splitlines()]
    assert estimate is not None
    assert estimate.loss == pytest.approx(lines[0]["loss"], abs=1e-6)


@pytest.mark.parametrize("strategy", ["features", "prototypes", "gradual_unfreezing"])
def test_strategies_with_few_or_no_steps(strategy: str, plan: Any, tmp_path: Path) -> None:
    settings = plan(strategy={"name": strategy}, training={"max_steps": None if strategy == "prototypes" else 4})
    estimate = dry_run(settings)
    assert (estimate is None) == (strategy == "prototypes")
    assert not (tmp_path / "run").exists()


def test_checks_of_a_run_apply_and_an_unfinished_run_stays(plan: Any, train: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(plan(task={"label": "nope"})))
    status, _, shown = command("train", tmp_path / "bad.yaml", "--dry-run")
    assert (status, "nope" in shown) == (2, True)
    with stopped_at(1):
        train(training={"max_steps": 4, "checkpoint_every": 2})
    before = files(tmp_path / "run")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plan(training={"max_steps": 4, "checkpoint_every": 2})))
    assert "would resume" in succeed("train", tmp_path / "run.yaml", "--dry-run")[1]
    assert files(tmp_path / "run") == before
