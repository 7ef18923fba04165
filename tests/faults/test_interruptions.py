"""External events: signals, a full disk, insufficient memory, damaged checkpoints, a second run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from nlp_transfer import fine_tune
from nlp_transfer.training import checkpoints, gradient, validation_scores
from nlp_transfer.training.gradient import WindowGradient
from nlp_transfer.training.interruption import Signals
from nlp_transfer.training.trainer import Trainer, TrainingError
from nlp_transfer.utils import atomic_files
from nlp_transfer.utils.interrupts import Interrupted
from tests.builders import refused, sentiment_rows, write

pytestmark = pytest.mark.process

Start = Callable[..., Any]  # a run, with settings that differ from those of most tests
STRATEGIES = ["full", "lora", "gradual_unfreezing"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "train.csv", list(sentiment_rows(50)))


@pytest.fixture(scope="module")
def run_in(tiny: dict[str, Path], source: Path) -> Callable[..., Any]:
    def begin(folder: Path, *, strategy: str = "full", resume: Any = "auto", **training: Any) -> Any:
        settings = {"epochs": 3, "batch_size": 8, "checkpoint_every": 5, "evaluate_every": 3, "logging_steps": 1} | training
        return fine_tune(
            model=str(tiny["bert"]), data={"train": str(source)}, task="text_classification", strategy=strategy,
            training=settings, output_dir=str(folder), resume=resume, with_report=False,
        )  # fmt: skip

    return begin


@pytest.fixture
def run(run_in: Start, tmp_path: Path) -> Callable[..., Any]:
    return lambda name, **settings: run_in(tmp_path / name, **settings)


@pytest.fixture(scope="module")
def uninterrupted(run_in: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return the run with some settings that nothing disturbs; tests with the same settings share it."""
    runs: dict[str, Any] = {}

    def find(**settings: Any) -> Any:
        key = json.dumps(settings, sort_keys=True)
        if key not in runs:
            runs[key] = run_in(tmp_path_factory.mktemp("uninterrupted") / "run", **settings)
        return runs[key]

    return find


@pytest.fixture
def interrupted(run: Start, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start a run that a signal ends during an optimizer step."""

    def begin(step: int, number: int = signal.SIGTERM, name: str = "broken", **settings: Any) -> Interrupted:
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: os.kill(os.getpid(), number))
            with pytest.raises(Interrupted) as caught:
                run(name, **settings)
        return caught.value

    return begin


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[], Any], times: int = 1) -> None:
    """Do something during an optimizer step, before its gradient is computed."""
    original, left = gradient.seed_step, [times]

    def seed(seed: int, at: int, process: int) -> None:
        original(seed, at, process)
        if at == step and left[0]:
            left[0] -= 1
            what()

    monkeypatch.setattr(gradient, "seed_step", seed)


def assert_same_model(one: Any, other: Any, rtol: float = 0, atol: float = 0) -> None:
    first, second = (load_file(run.output_dir / "model/model.safetensors") for run in (one, other))
    torch.testing.assert_close(first, second, rtol=rtol, atol=atol)


def assert_same_log(one: Any, other: Any) -> None:
    first, second = ([*map(json.loads, (run.output_dir / "log.jsonl").read_text().splitlines())] for run in (one, other))
    assert [(line["step"], "validation" in line) for line in first] == [(line["step"], "validation" in line) for line in second]


# --- signals


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 4), (signal.SIGINT, 8), (signal.SIGTERM, 17)])
def test_signal_ends_a_run_that_resumes_exactly(
    strategy: str, number: signal.Signals, step: int, run: Start, uninterrupted: Start, interrupted: Start, tmp_path: Path
) -> None:
    straight = uninterrupted(strategy=strategy)
    before = signal.getsignal(number)
    caught = interrupted(step, number, strategy=strategy)
    assert re.search(rf"step {step + 1} is saved.*resume", str(caught))
    assert caught.status == 128 + number
    assert signal.getsignal(number) is before, "the handler of the caller is back"
    assert checkpoints.read_pointer(tmp_path / "broken/checkpoints", "last") == f"step-{step + 1}"
    resumed = run("broken", strategy=strategy)
    assert resumed.metrics == straight.metrics
    assert_same_model(straight, resumed)
    assert_same_log(straight, resumed)


@pytest.mark.parametrize("step", [3, 18])
def test_evaluation_ended_by_a_signal_is_repeated(
    step: int, run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"ema": 0.9, "early_stopping": 9, "evaluate_every": step}
    straight = uninterrupted(**settings)
    original = validation_scores.score

    def score(*arguments: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **more)

    for _ in range(2):  # a repeated evaluation can be interrupted too
        with monkeypatch.context() as patch:
            patch.setattr(validation_scores, "score", score)
            with pytest.raises(Interrupted, match=f"step {step} is saved"):
                run("broken", **settings)
        state = json.loads((tmp_path / f"broken/checkpoints/step-{step}/state.json").read_text())
        assert state["unjudged"]
        assert state["history"] == []
    resumed = run("broken", **settings)
    assert resumed.metrics == straight.metrics
    assert_same_model(straight, resumed)
    assert_same_log(straight, resumed)


def test_signal_before_the_first_step_ends_a_run(run: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = Trainer.train

    def train(self: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", train)
        with pytest.raises(Interrupted):
            run("broken")
    assert not (tmp_path / "broken/checkpoints").exists()
    assert run("broken").result["train"]["steps"] == 18


def test_signals_are_ignored_outside_the_main_thread(run: Start) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run("threaded", max_steps=2)))
    thread.start()
    thread.join()
    assert found[0].result["train"]["steps"] == 2


SECOND = """
import os, signal
from nlp_transfer.training.interruption import Signals
with Signals() as signals, signals.held():
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.received, flush=True)
    os.kill(os.getpid(), signal.{name})
    print("still here", flush=True)
"""


@pytest.mark.parametrize(("name", "launched", "status"), [("SIGINT", "1", 130), ("SIGTERM", "1", 143), ("SIGINT", "2", 0)])
def test_second_signal_ends_a_process_immediately(name: str, launched: str, status: int) -> None:
    """With a launcher, a second signal that follows immediately does not count: the launcher forwards the first one."""
    done = subprocess.run(
        [sys.executable, "-c", SECOND.format(name=name)], capture_output=True, text=True, check=False,
        env=os.environ | {"WORLD_SIZE": launched},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stdout == ("15\n" if status else "15\nstill here\n")
    assert "send it again to exit immediately" in done.stderr


def test_held_signal_is_only_recorded() -> None:
    with Signals() as signals:
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            with pytest.raises(Interrupted), signals.held(False):
                pytest.fail("what may be broken off does not even begin")
        with pytest.raises(Interrupted, match="SIGTERM"):
            signals.raise_if_received()


# --- memory and numbers


class Small:
    """Simulates a device with memory for a number of rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, error: Callable[[], BaseException]) -> None:
        self.seen: list[int] = []
        original = WindowGradient.backward

        def backward(computed: WindowGradient, *more: Any) -> Any:
            model = computed.model

            def forward(*arguments: Any, **inputs: Any) -> Any:
                count = len(inputs["input_ids"])
                if count > rows:
                    raise error()
                self.seen.append(count)
                return model(*arguments, **inputs)

            computed.model = forward  # type: ignore[assignment]
            try:
                return original(computed, *more)
            finally:
                computed.model = model

        monkeypatch.setattr(WindowGradient, "backward", backward)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "python": MemoryError,
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_out_of_memory_splits_micro_batches(
    name: str, run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {"dropout": 0, "attention_dropout": 0, "precision": "fp32", "max_steps": 6}
    straight = uninterrupted(**still)
    with monkeypatch.context() as patch:
        device = Small(patch, 2, ERRORS[name])
        cut = run("cut", **still)
    shown = capsys.readouterr().err
    assert "step 1: out of memory with 8 rows at a time; continuing with 4" in shown
    assert "step 1: out of memory with 4 rows at a time; continuing with 2" in shown
    assert shown.count("out of memory") == 2, "it is remembered"
    assert max(device.seen) == 2
    assert cut.result["train"]["steps"] == 6
    assert_same_model(straight, cut, rtol=1e-4, atol=1e-5)


def test_split_of_micro_batches_is_resumed(run: Start, interrupted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Small(patch, 4, MemoryError)
        straight = run("straight")
        interrupted(7)
    capsys.readouterr()
    resumed = run("broken")
    assert "out of memory" not in capsys.readouterr().err
    assert_same_model(straight, resumed)


def test_out_of_memory_with_one_row_ends_training(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    Small(monkeypatch, 0, MemoryError)
    with pytest.raises(TrainingError, match=r"step 1: out of memory with 1 rows at a time.* a shorter task\.max_length"):
        run("broken")


def test_out_of_memory_in_evaluation_splits_batches(
    run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlp_transfer.tasks.text_classification import TextClassification

    straight = uninterrupted(max_steps=3, precision="fp32")
    original, seen = TextClassification.predict, []

    def answer(self: Any, model: Any, batch: Any, *more: Any) -> Any:
        if len(batch["input_ids"]) > 2:
            raise MemoryError
        seen.append(len(batch["input_ids"]))
        return original(self, model, batch, *more)

    monkeypatch.setattr(TextClassification, "predict", answer)
    cut = run("cut", max_steps=3, precision="fp32")
    assert "out of memory" in capsys.readouterr().err
    assert set(seen) <= {1, 2}
    assert cut.metrics["validation"]["accuracy"] == straight.metrics["validation"]["accuracy"]
    assert cut.metrics["validation"]["loss"] == pytest.approx(straight.metrics["validation"]["loss"], rel=1e-5)


def test_nan_loss_leaves_a_good_checkpoint(
    run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = uninterrupted()
    original = WindowGradient.backward

    def backward(self: WindowGradient, window: Any, at: Any) -> Any:
        found = original(self, window, at)
        return found | {"loss": found["loss"] * (float("nan") if at.step == 7 else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(WindowGradient, "backward", backward)
        with pytest.raises(TrainingError, match=r"step 8: the loss or its gradient is not a number.*row \d+"):
            run("broken")
    assert checkpoints.read_pointer(tmp_path / "broken/checkpoints", "last") == "step-7"
    resumed = run("broken")
    assert_same_model(straight, resumed)  # nothing of the broken step was kept


# --- disk


def full(times: int, where: str = "state.json") -> Callable[..., Any]:
    """Let writing fail a number of times, as on a full disk."""
    original, left = Path.write_text, [times]

    def write(self: Path, *arguments: Any, **more: Any) -> Any:
        if self.name == where and left[0]:
            left[0] -= 1
            original(self, "ha")
            raise OSError(28, "No space left on device")
        return original(self, *arguments, **more)

    return write


def test_run_waits_while_the_disk_is_full(
    run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = uninterrupted()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full(3))
        patch.setattr(atomic_files, "PAUSE", 0.0)
        waited = run("waited")
    assert capsys.readouterr().err.count("the disk is full; waiting for free space to write the checkpoint of step 3") == 1
    assert_same_model(straight, waited)


@pytest.mark.parametrize("ended_by", ["time", "signal"])
def test_full_disk_keeps_the_previous_checkpoint(
    ended_by: str, run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = uninterrupted()
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: patch.setattr(Path, "write_text", full(10**9)))
        patch.setattr(atomic_files, "PAUSE", 0.0)
        patch.setattr(atomic_files, "LONGEST", 0.0 if ended_by == "time" else 600.0)
        if ended_by == "signal":
            patch.setattr(atomic_files, "say", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(atomic_files.DiskFullError, match=r"the disk is full, so the checkpoint of step 6 was not written"):
            run("broken")
    folder = tmp_path / "broken/checkpoints"
    assert not list(folder.glob(".part*"))
    assert checkpoints.newest_intact(folder) == (folder / "step-5", [])
    assert_same_model(straight, run("broken"))


def test_all_errors_of_a_full_disk_are_recognized() -> None:
    from safetensors import SafetensorError

    assert atomic_files.is_full(OSError(28, "x"))
    assert atomic_files.is_full(OSError(122, "x"))
    assert atomic_files.is_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not atomic_files.is_full(OSError(13, "Permission denied"))
    assert not atomic_files.is_full(RuntimeError("os error 280"))
    with pytest.raises(PermissionError):
        atomic_files.retry_while_full(lambda: (_ for _ in ()).throw(PermissionError(13, "no")), "x", "y")


# --- checkpoints


@pytest.fixture
def unfinished(interrupted: Start, tmp_path: Path) -> Path:
    interrupted(12, ema=0.9)
    return tmp_path / "broken/checkpoints"


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(
        path.read_bytes()[:-2] + bytes([path.read_bytes()[-2] ^ 4]) + path.read_bytes()[-1:]
    ),
    "deleted": lambda path: path.unlink(),
}


def test_any_damaged_checkpoint_file_is_survived(
    unfinished: Path, run: Start, uninterrupted: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    straight = uninterrupted(ema=0.9)
    files = sorted(path.name for path in (unfinished / "step-13").iterdir())
    assert files == ["average.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    for file in files:
        for damage, do in DAMAGES.items():
            again = tmp_path / "again"
            shutil.copytree(tmp_path / "broken", again)
            config = again / "config.yaml"
            config.write_text(config.read_text().replace(str(tmp_path / "broken"), str(again)))
            do(again / "checkpoints/step-13" / file)
            capsys.readouterr()
            resumed = run("again", ema=0.9)
            shown = capsys.readouterr().err
            assert f"{again / 'checkpoints/step-13'} is skipped: {file} " in shown or (
                file == "manifest.json" and damage == "flipped" and "step-13 is skipped" in shown
            ), (file, damage, shown)
            assert f"resuming from {again / 'checkpoints/step-10'}" in shown
            assert_same_model(straight, resumed)
            shutil.rmtree(again)


def test_newest_and_best_checkpoints_are_kept(tmp_path: Path) -> None:
    tensors = {"model": {"w": torch.zeros(1)}}
    for step, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6)]:
        checkpoints.write_checkpoint(tmp_path, step, tensors, {"step": step, "best_step": best}, step == best, number=2)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["best", "last", "step-6", "step-7"]
    checkpoints.write_checkpoint(tmp_path, 8, tensors, {"step": 8, "best_step": 8}, True, number=3)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-6", "step-7", "step-8"]
    checkpoints.write_checkpoint(tmp_path, 9, tensors, {"step": 9, "best_step": 8}, False, number=1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-8", "step-9"]


# --- the folder


def test_resume_modes(unfinished: Path, run: Start) -> None:
    with refused("found must", "no unfinished run"):
        run("new", resume="must")
    assert not (unfinished.parent.parent / "new").exists()
    with refused("found never", "an unfinished run"):
        run("broken", resume="never", ema=0.9)
    with refused("sometimes", "auto, must, never"):
        run("new", resume="sometimes")
    assert run("broken", resume="must", ema=0.9).result["train"]["steps"] == 18
    with refused("a finished run"):
        run("broken", resume="must", ema=0.9)


def test_two_runs_cannot_use_one_folder(run: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[str] = []

    def second() -> None:
        with refused(str(tmp_path / "one"), "another process"):
            run("one", max_steps=2)
        tried.append("second")

    at_step(monkeypatch, 1, second)
    assert run("one", max_steps=2).result["train"]["steps"] == 2
    assert tried == ["second"]
    assert not (tmp_path / "one/.lock").exists()


def test_run_resumes_with_another_batch_split(
    run: Start, uninterrupted: Start, interrupted: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {"dropout": 0, "attention_dropout": 0, "precision": "fp32"}
    straight = uninterrupted(**still)
    interrupted(8, **still)
    with refused("training.batch_size: 8 before, 4 now"):
        run("broken", **still, batch_size=4)
    capsys.readouterr()
    resumed = run("broken", **still, batch_size=4, gradient_accumulation_steps=2)
    assert "training.batch_size 8 before, 4 now; each step sees the same rows" in capsys.readouterr().err
    assert resumed.result["train"]["steps"] == 18
    assert_same_model(straight, resumed, rtol=1e-3, atol=1e-4)


def test_other_package_versions_only_give_a_warning(unfinished: Path, run: Start, capsys: pytest.CaptureFixture[str]) -> None:
    config = unfinished.parent / "config.yaml"
    text = config.read_text()
    assert f"torch: {torch.__version__}" in text
    config.write_text(text.replace(f"torch: {torch.__version__}", "torch: 1.0.0"))
    assert run("broken", ema=0.9).result["train"]["steps"] == 18
    assert f"warning: torch 1.0.0 before, {torch.__version__} now" in capsys.readouterr().err


def test_repeated_evaluation_is_logged_once(
    run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A signal ends the evaluation; it is repeated; then the process is lost before its next checkpoint."""
    straight = uninterrupted(learning_rate=1e-9)
    original = validation_scores.score
    with monkeypatch.context() as patch:
        score = lambda *a, **b: os.kill(os.getpid(), signal.SIGTERM) or original(*a, **b)  # noqa: E731
        at_step(patch, 5, lambda: patch.setattr(validation_scores, "score", score))
        with pytest.raises(Interrupted, match="step 6 is saved"):
            run("broken", learning_rate=1e-9)
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: (_ for _ in ()).throw(ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            run("broken", learning_rate=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "broken/log.jsonl").read_text().splitlines()]
    assert any(line["step"] == 6 and "validation" in line for line in lines)
    assert (tmp_path / "broken/checkpoints/step-6").is_dir()
    resumed = run("broken", learning_rate=1e-9)
    assert_same_model(straight, resumed)
    assert_same_log(straight, resumed)


def test_model_and_log_wait_while_the_disk_is_full(
    run: Start, uninterrupted: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from transformers import BertForSequenceClassification

    straight = uninterrupted(max_steps=4)
    original, left = BertForSequenceClassification.save_pretrained, [2]
    opened, tries = atomic_files.open_for_append, [2]

    def save(self: Any, folder: Any, *arguments: Any, **more: Any) -> Any:
        original(self, folder, *arguments, **more)
        if left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")

    def full(path: Path) -> Any:
        """Open a file that accepts half a line at first."""

        def write(line: bytes) -> int:
            if tries[0]:
                tries[0] -= 1
                file.write(b'{"half a li')
                raise OSError(28, "No space left on device")
            return file.write(line)

        file = opened(path)
        wrapped = MagicMock(wraps=file)
        wrapped.write, wrapped.__enter__.return_value = write, wrapped
        wrapped.__exit__.side_effect = file.__exit__
        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "PAUSE", 0.0)
        patch.setattr(BertForSequenceClassification, "save_pretrained", save)
        patch.setattr(atomic_files, "open_for_append", full)
        waited = run("waited", max_steps=4)
    shown = capsys.readouterr().err
    assert "waiting for free space to write the model" in shown
    assert "waiting for free space to write log.jsonl" in shown
    assert_same_log(straight, waited)
    assert_same_model(straight, waited)


def test_clock_set_back_changes_nothing(
    run: Start, uninterrupted: Start, interrupted: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = uninterrupted(max_steps=6)
    real, asked = time.time, [0]

    def back() -> float:
        asked[0] += 1
        return real() - 3600.0 * asked[0]

    monkeypatch.setattr(time, "time", back)
    interrupted(3, name="back", max_steps=6)
    resumed = run("back", max_steps=6)
    assert_same_model(straight, resumed)
    assert resumed.result["train"]["seconds"] >= 0
    assert resumed.result["train"]["examples_per_second"] > 0
