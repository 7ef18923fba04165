"""Comparisons with the real command: files, resumption, failed and impossible runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.builders import command, document, sentiment_rows, succeed, write

pytestmark = pytest.mark.process

FILES = "result.json data_facts.json config.yaml log.jsonl log.txt predictions.npz outcome.json strategy.json predictions".split()
BASE = [sys.executable, "-m", "nlp_transfer", "compare"]


def write_run(folder: Path, tiny: dict[str, Path], family: str = "bert", **training: Any) -> Path:
    rows = sentiment_rows(100)
    write(folder / "train.csv", rows[:60])
    write(folder / "test.csv", rows[60:])
    plan = document(
        model=tiny[family],
        data={"train": "train.csv", "test": "test.csv", "validation_share": 0.1},
        training={"max_steps": 4, "batch_size": 8, **training},
        output_dir="out",
    )
    write(folder / "run.yaml", plan)
    return folder / "out-comparison"


def compare(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*BASE, "run.yaml", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, for commands in this process, whose runs are in a process of their own all the same."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stamps(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}


def test_interrupted_comparison_is_resumed(tmp_path: Path, tiny: dict[str, Path]) -> None:
    """Kill the process group in the second run. Finished runs are not repeated, and seeds can be added."""
    out = write_run(tmp_path, tiny)
    asked = ["--strategies", "full", "lora", "--seeds", "0"]
    slow = ["--training.max_steps", "4"]
    process = subprocess.Popen([*BASE, "run.yaml", *asked, *slow], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    while not (out / "runs/full-all-0/outcome.json").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    while not (out / "runs/lora-all-0").exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = stamps(out)
    assert list(before) == ["full-all-0"]

    done = compare(tmp_path, *asked, "1", *slow)
    assert done.returncode == 0, done.stderr
    after = stamps(out)
    assert set(after) == {"full-all-0", "lora-all-0", "full-all-1", "lora-all-1"}
    assert after["full-all-0"] == before["full-all-0"]
    assert "run 1 of 4: full, seed 0: already finished" in done.stderr
    assert "run 2 of 4: lora, seed 0" in done.stderr
    assert "step " not in done.stderr, "the output of runs goes to their logs"
    assert "accuracy" in (out / "runs/lora-all-1/log.txt").read_text()

    for name in after:
        left = {path.name for path in (out / "runs" / name).iterdir()}
        assert left == set(FILES)
    sizes = json.loads((out / "runs/lora-all-1/outcome.json").read_text())
    assert sizes["stored_bytes"] > 0
    assert sizes["model_bytes"] != sizes["stored_bytes"], "the adapter is what must be stored"
    with np.load(out / "runs/full-all-0/predictions.npz") as one, np.load(out / "runs/lora-all-0/predictions.npz") as other:
        for split in ("validation", "test"):
            assert np.array_equal(one[f"{split}/reference/labels"], other[f"{split}/reference/labels"])
            right = (one[f"{split}/answer/prediction"] == one[f"{split}/reference/labels"]).mean()
            result = json.loads((out / "runs/full-all-0/result.json").read_text())
            assert right == result["metrics"][split]["accuracy"]
    whole = json.loads((out / "comparison.json").read_text())
    assert [row["label"] for row in whole["rows"]] == ["full", "lora"]
    assert whole["rows"][1]["seeds"] == [0, 1]
    assert whole["advice"] in " ".join(done.stderr.split())
    assert len(pd.read_csv(out / "comparison.csv")) == 2
    assert "<svg" in (out / "comparison.html").read_text()

    again = compare(tmp_path, *asked, *slow, "--training.weight_decay", "0.5")
    assert again.returncode == 2
    assert "training.weight_decay: 0.01 before, 0.5 now" in again.stderr
    assert stamps(out) == after


def test_shots_rates_and_impossible_runs(here: Path, tiny: dict[str, Path]) -> None:
    """ALBERT shares its layers, so some cannot be frozen: the row says so, and the other runs continue."""
    out = write_run(here, tiny, "albert")
    strategies = ["--strategies", "full", "{name: partial, frozen_layers: 1}"]
    succeed("compare", "run.yaml", *strategies, "--seeds", "1", "--shots", "4", "all", "--rates", "1", "10")
    names = {"full-4-1", "full-4-1-10", "full-all-1", "full-all-1-10"}
    assert set(stamps(out)) == names
    rates = [
        yaml.safe_load((out / "runs" / name / "config.yaml").read_text())["training"]["learning_rate"] for name in sorted(names)
    ]
    assert rates[1] == pytest.approx(10 * rates[0])
    assert rates[3] == pytest.approx(10 * rates[2])
    assert "8 of 54 rows kept, 4 of each label" in (out / "runs/full-4-1/log.txt").read_text()
    rows = json.loads((out / "comparison.json").read_text())["rows"]
    assert [(row["label"], row["shots"]) for row in rows] == [
        (label, shots) for shots in (4, None) for label in ("full", "partial(frozen_layers=1)")
    ]
    assert rows[1]["mean"] is None
    assert rows[1]["note"].startswith("not possible: strategy.frozen_layers: found 1; a albert model shares one set")
    figures = {
        rate: json.loads((out / "runs" / name / "result.json").read_text())["metrics"]["validation"]["accuracy"]
        for rate, name in ((1.0, "full-all-1"), (10.0, "full-all-1-10"))
    }
    assert figures[rows[2]["rate"]] == max(figures.values())


def test_failed_run_does_not_stop_the_others(here: Path, tiny: dict[str, Path]) -> None:
    """One run crashes, and the next call repeats it."""
    out = write_run(here, tiny)
    (here / "crash.py").write_text(
        "from pathlib import Path\nfrom nlp_transfer.strategies.full import Full\nclass Crash(Full):\n"
        "    def prepare_data(self, job, model):\n        if Path('crash').exists():\n"
        "            raise ZeroDivisionError('planted')\n        return job\n"
    )
    (here / "crash").touch()
    arguments = ["run.yaml", "--strategies", "crash:Crash", "lora", "--seeds", "0", "--code", "crash.py"]
    status, _, messages = command("compare", *arguments)
    assert status == 1, messages
    assert "failed: ZeroDivisionError" in messages
    [failed] = [path for path in (out / "runs").iterdir() if "lora" not in path.name]
    assert "Traceback" in (failed / "log.txt").read_text()
    assert "Traceback" not in messages
    found = json.loads((out / "comparison.json").read_text())["rows"]
    assert found[0]["mean"] is None
    assert found[0]["note"].startswith("seed 0 failed: ZeroDivisionError")
    assert found[1]["mean"] is not None
    before = stamps(out)["lora-all-0"]
    (here / "crash").unlink()
    succeed("compare", *arguments)
    assert json.loads((out / "comparison.json").read_text())["rows"][0]["mean"] is not None
    assert stamps(out)["lora-all-0"] == before


def test_invalid_data_fails_before_the_first_run(here: Path, tiny: dict[str, Path]) -> None:
    out = write_run(here, tiny)
    write(here / "test.csv", [("a text", "neither")])
    status, _, messages = command("compare", "run.yaml", "--strategies", "full", "--seeds", "0")
    assert status == 2
    assert "the label 'neither' is not known" in messages
    assert not out.exists()


def test_validation_is_split_off_in_every_run(here: Path, tiny: dict[str, Path]) -> None:
    """Without a test file, strategies are compared on validation, even if a single run would have none."""
    out = write_run(here, tiny, max_steps=1)
    document = yaml.safe_load((here / "run.yaml").read_text()) | {"data": {"train": "train.csv"}}
    (here / "run.yaml").write_text(yaml.safe_dump(document))
    _, messages = succeed("compare", "run.yaml", "--strategies", "full", "prototypes", "--seeds", "0")
    assert "warning: validation: only 6 rows" in messages
    for name in ("full-all-0", "prototypes-all-0"):
        config = yaml.safe_load((out / "runs" / name / "config.yaml").read_text())
        assert config["data"]["validation_share"] == 0.1
    assert all(row["mean"] is not None for row in json.loads((out / "comparison.json").read_text())["rows"])
