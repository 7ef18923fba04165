"""Records of an unfinished run that someone has edited, checksums included: they are skipped and named, and never believed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlp_transfer import fine_tune
from nlp_transfer.experiments.runs import read_outcome
from nlp_transfer.training import checkpointer, checkpoints
from nlp_transfer.training.position import Position, read_position
from tests.builders import Killed, sentiment_rows, stopped_at, write

pytestmark = pytest.mark.model

WRONG: list[Any] = [[], [5], -5, float("nan"), float("inf"), 2**70, 1e300, "5", "", None, True, {}, {"a": 1}]


@pytest.fixture(scope="module")
def start(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Any]:
    source = write(tmp_path_factory.mktemp("data") / "train.csv", list(sentiment_rows(50)))

    def begin(folder: Path) -> Any:
        return fine_tune(
            model=str(tiny["bert"]), data={"train": str(source)}, task="text_classification", strategy="gradual_unfreezing",
            training={
                "epochs": 3, "batch_size": 8, "checkpoint_every": 2, "evaluate_every": 2, "ema": 0.9, "early_stopping": 9,
                "precision": "fp32",
            },
            output_dir=str(folder), with_report=False,
        )  # fmt: skip

    return begin


@pytest.fixture(scope="module")
def unfinished(start: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its last phase; the newest two checkpoints are there."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    with stopped_at(7):
        start(folder)
    return folder


def copied(unfinished: Path, run: Path) -> tuple[Path, Path]:
    """Copy the run to another folder; returns its newest checkpoint and the one before."""
    shutil.copytree(unfinished, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(unfinished), str(run)))
    newest, before, *_ = checkpoints._steps(run / "checkpoints")
    return run / "checkpoints" / newest, run / "checkpoints" / before


def seal(checkpoint: Path) -> None:
    """Write the manifest anew, as an edit that is to be believed does."""
    files = [path for path in checkpoint.iterdir() if path.name != "manifest.json"]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (checkpoint / "manifest.json").write_text(json.dumps(hashes))


def wrong_values(state: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """States in which one field is wrong. A value of the same type that means the same is none."""
    states = [(name, {**state, name: value}) for name in state for value in WRONG if repr(value) != repr(state[name])]
    states += [(name, {key: value for key, value in state.items() if key != name}) for name in state]
    phase, strategy = state["phase"], state["strategy"]
    states += [("phase", {**state, "phase": {key: phase[key] for key in phase if key != name}}) for name in phase]
    states += [("strategy", {**state, "strategy": {**strategy, "finished": value}}) for value in ([1], "head", None)]
    nearly = {
        "step": state["step"] - 1, "phase_step": state["phase_step"] + 1, "epoch": state["epoch"] + 1,
        "window": state["window"] + 1, "best_step": 1, "best": 0.123, "worse": state["worse"] + 1, "stopped": True,
        "unjudged": not state["unjudged"], "pieces": 3, "touched": state["touched"][1:], "history": state["history"][:-1],
        "average_steps": state["step"] - 1, "examples": 10**9, "tokens": 0,
    }  # fmt: skip
    return states + [(name, {**state, name: value}) for name, value in nearly.items()]


def test_edited_fields_are_detected(unfinished: Path, start: Callable[[Path], Any], tmp_path: Path) -> None:
    """Each edit is tried where a trainer of the same run reads its checkpoints; the trainer then stops."""
    run = tmp_path / "run"
    newest, _ = copied(unfinished, run)
    state = json.loads((newest / "state.json").read_text())
    believed: list[Any] = []

    def resume(self: Any, check: Callable[[Position], object]) -> Any:
        for name, edited in [("", state), *wrong_values(state)]:
            (newest / "state.json").write_text(json.dumps(edited))
            seal(newest)
            reason = self._fault(newest) or self._fault_of_position(newest, check)
            if reason is None:
                believed.append((name, edited.get(name)))
            elif name:
                assert reason.startswith("state.json: "), reason
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer.Checkpointer, "resume", resume)
        with pytest.raises(Killed):
            start(run)
    assert [name for name, _ in believed] == [""], "only the state as it was written"


@pytest.mark.parametrize("what", ["{}", "[]", "null", '{"step": -5}', "[" * 100_000, "\\ud800", "no manifest entry"])
def test_edited_checkpoints_do_not_change_the_result(
    what: str, unfinished: Path, start: Callable[[Path], Any], straight: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    newest, before = copied(unfinished, run)
    if what == "no manifest entry":
        (newest / "model.safetensors").unlink()
    else:
        (newest / "state.json").write_text(what)
    seal(newest)
    resumed = start(run)
    shown = capsys.readouterr().err
    assert str(newest) in shown
    assert f"{before} (step {before.name.removeprefix('step-')})" in shown
    assert resumed.metrics == straight.metrics
    first, second = (load_file(one.output_dir / "model/model.safetensors") for one in (straight, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def straight(start: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start(tmp_path_factory.mktemp("straight") / "run")


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    own = checkpointer.Checkpointer(model, tmp_path, None)
    at = Position(step=1)
    own.begin_phase(at, ["weight", "bias"])
    own.save(at, best=False)
    assert checkpointer.Checkpointer(model, tmp_path, None).resume().step == 1
    path = tmp_path / "step-1/model.safetensors"
    for tensors in (
        {"weight": torch.zeros(3, 2)},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
        {"other": torch.zeros(1)},
    ):
        save_file(tensors, path)
        seal(path.parent)
        fresh = checkpointer.Checkpointer(model, tmp_path, None)
        assert fresh.resume() == Position()
        assert fresh.optimizer_state == {}


def test_invalid_positions_are_reported() -> None:
    with pytest.raises(ValueError, match=r"step: found -5"):
        read_position(json.dumps({**asdict(Position()), "step": -5}), 3)
    with pytest.raises(ValueError, match=r"step: found 4; allowed: 3"):
        read_position(json.dumps({**asdict(Position()), "step": 4}), 3)
    with pytest.raises(ValueError, match=r"average_steps: found nothing"):
        read_position("{}", 3)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "null", '{"done": true}', '{"failed": 3}', "[" * 100_000,
        '{"done": true, "model_bytes": -1, "stored_bytes": 1}', '{"done": true, "model_bytes": "1", "stored_bytes": 1}',
        '{"impossible": []}', '{"done": false, "failed": "x", "other": 1}',
    ],
)  # fmt: skip
def test_edited_comparison_results_are_ignored(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outcome.json").write_text(content)
    (tmp_path / "result.json").write_text(
        json.dumps({"task": {}, "metrics": {"test": {"accuracy": 0.5}}, "train": {"seconds": 1.0}})
    )
    assert read_outcome(tmp_path) is None
    assert str(tmp_path / "outcome.json") in capsys.readouterr().err
