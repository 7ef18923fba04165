"""Pushing to a hub and loading by id, with the real command and the real client."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlp_transfer import fine_tune
from tests.builders import document, sentiment_rows, write
from tests.helpers.children.push_steps import STEPS
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.process


def test_pushed_models_are_loaded_by_id(tmp_path: Path, tiny: dict[str, Path]) -> None:
    shutil.copytree(tiny["bert"], tmp_path / "tiny")
    rows = sentiment_rows(60)
    write(tmp_path / "train.csv", rows[:40])
    write(tmp_path / "test.csv", rows[40:])
    write(tmp_path / "train.txt", [text for text, _ in rows])
    plan = document(
        model="ann/tiny",
        data={"train": tmp_path / "train.csv", "test": tmp_path / "test.csv", "validation_share": 0.1},
        strategy={"name": "lora", "r": 2},
        training={"max_steps": 8, "learning_rate": 0.02},
        output_dir=tmp_path / "run",
    )
    write(tmp_path / "run.yaml", plan)
    line = [sys.executable, "-m", "tests.helpers.children.push", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.split() == [step.__name__ for step in STEPS]


@pytest.mark.parametrize(("rank", "done"), [("0", ["check", "train", "push"]), ("1", ["train"])])
def test_only_the_first_process_pushes(
    rank: str, done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan: Any
) -> None:
    module, calls = sys.modules[fine_tune.__module__], []
    trainer = SimpleNamespace(accelerator=SimpleNamespace(trackers=[]))
    monkeypatch.setattr(module, "check_push", lambda name: calls.append("check"))
    for stage in ("read", "encode", "build", "save", "score", "report"):
        monkeypatch.setattr(module, stage, lambda run, *_: replace(run, predictions={}, trainer=trainer))
    monkeypatch.setattr(module, "train", lambda run, *_: calls.append("train") or run)
    monkeypatch.setattr(module, "push_run", lambda folder, name: calls.append("push"))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    fine_tune(plan(), push_to="ann/reviews")
    assert calls == done
