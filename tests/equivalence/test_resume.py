"""A resumed run is bit-identical to an uninterrupted one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlp_transfer.kernels import acceleration
from nlp_transfer.strategies import Strategy
from nlp_transfer.training import checkpoints
from tests import builders
from tests.builders import GOOD, answer_in, refused, sentiment_rows, stopped_at, write
from tests.helpers.children.gradient_jobs import HeadThenAll
from tests.helpers.strategies import teacher

pytestmark = pytest.mark.model

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"strategy": "lora"},
    "ema": {"training": {"ema": 0.9}},
    "phases": {"strategy": HeadThenAll},
    "gradual unfreezing": {"strategy": "gradual_unfreezing"},
    "l2_sp": {"strategy": {"name": "l2_sp", "alpha": 1.0}},
    "accumulation": {"training": {"gradient_accumulation_steps": 2, "batch_size": 4}},
    "token budget": {"training": {"batch_tokens": 80}},
    "augment": {"training": {"augment": {"drop": 0.2, "swap": 0.2, "mask": 0.2, "replace": 0.2}, "dropout": 0.1}},
    "oversample": {"task": {"name": "text_classification", "label": "rare"}, "training": {"oversample": 0.5, "focal_gamma": 2.0}},
    "regression": {"task": {"name": "regression", "label": "score"}, "training": {"evaluate_every": 1, "dropout": 0.1}},
    "distill": {
        "strategy": {"name": "distill", "teacher": "TEACHER", "student_layers": 1, "hidden": 1},
        "data": {"unlabelled": "UNLABELLED"},
        "training": {"evaluate_every": 2},
    },
    "self_training": {
        "strategy": {"name": "self_training", "rounds": 2, "confidence": 0},
        "data": {"unlabelled": "UNLABELLED"},
        "training": {"max_steps": 20, "learning_rate": 3e-3, "evaluate_every": 1},
    },
    "few_shot": {"strategy": {"name": "few_shot", "group": 4, "epochs": 1}},
    "few_shot and logistic regression": {
        "strategy": {"name": "few_shot", "group": 4, "epochs": 6, "classifier": "logistic_regression"}
    },
    "no validation": {"data": {"validation_share": 0}},
    "early stopping": {"training": {"epochs": 10, "early_stopping": 2, "evaluate_every": 3, "learning_rate": 3e-2}},
    "question answering": {
        "task": {
            "name": "question_answering",
            "question": "translated",
            "context": "text",
            "answers": "answer",
            "answer_start": "answer_start",
            "max_length": 14,
            "stride": 2,
        },
        "training": {"evaluate_every": 2, "dropout": 0.1},
    },
    "token classification": {"task": {"name": "token_classification", "tokens": "text", "tags": "words", "max_length": 6}},
    "translation": {
        "task": {"name": "translation", "source": "text", "target": "translated", "translated_rows": 3, "beams": 2},
        "training": {"ema": 0.9, "evaluate_every": 3, "schedule": "inverse_sqrt", "dropout": 0.1},
    },
    "summarization": {
        "task": {"name": "summarization", "summary": "translated", "summarized_rows": 3, "beams": 2},
        "training": {"evaluate_every": 3, "dropout": 0.1, "best_metric": "rougeL"},
    },
}
# Phases in which a run is stopped, with the number of checkpoints until then; other runs are stopped after three.
PHASES: dict[str, dict[str, int]] = {
    "self_training": {"supervised": 3, "round 1": 6, "round 2": 12},
    "few_shot": {"pairs": 1, "train": 4},
    "few_shot and logistic regression": {"pairs": 2},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        (
            text, label, " ".join(text.split()[i % 4 :: -1]), "rare" if i % 5 == 0 else label, i % 5, *answer_in(text),
            " ".join(f"B-{word}" if word in GOOD else "O" for word in text.split()),
        )
        for i, (text, label) in enumerate(sentiment_rows(50))
    ]  # fmt: skip
    names = ("text", "label", "translated", "rare", "score", "answer", "answer_start", "words")
    return write(tmp_path_factory.mktemp("data") / "train.csv", rows, names)


@pytest.fixture(autouse=True)
def small_tables_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use sparse embedding updates for the small vocabulary of tiny models, too."""
    monkeypatch.setattr(acceleration, "MIN_SPARSE_ROWS", 8)


def run(checkpoint: Path, source: Path, output: Path, case: dict[str, Any]) -> Any:
    strategy, data = case.get("strategy", "full"), {"train": source, "validation_share": None} | case.get("data", {})
    if "unlabelled" in data:
        data["unlabelled"] = write(source.parent / "more.csv", [(text,) for text, _ in sentiment_rows(80)[50:]], ("text",))
    if isinstance(strategy, dict) and "teacher" in strategy:
        strategy = strategy | {"teacher": teacher(checkpoint, "single", source.parent)}
    return builders.run(
        model=checkpoint,
        data=data,
        task=case.get("task", "text_classification"),
        strategy=strategy() if isinstance(strategy, type) and issubclass(strategy, Strategy) else strategy,
        training={"epochs": 3, "batch_size": 8, "checkpoint_every": 2, "logging_steps": 1, "precision": None}
        | case.get("training", {}),
        output_dir=output,
    )


def last_state(run: Path) -> Any:
    """What the last checkpoint of a run says about where it is."""
    folder = run / "checkpoints"
    return json.loads((folder / str(checkpoints.read_pointer(folder, "last")) / "state.json").read_text())


@pytest.mark.parametrize(
    ("name", "phase", "writes"), [(name, *stop) for name in CASES for stop in PHASES.get(name, {"": 3}).items()]
)
def test_resumed_run_equals_an_uninterrupted_one(
    name: str, phase: str, writes: int, tiny: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    straight = run(tiny["bert"], source, tmp_path / "straight", CASES[name])
    with stopped_at(writes):
        run(tiny["bert"], source, tmp_path / "broken", CASES[name])
    assert not (tmp_path / "broken/result.json").exists()
    state = last_state(tmp_path / "broken")
    assert 0 < state["step"] < straight.result["train"]["steps"]
    assert not phase or state["phase"]["name"] == phase
    assert name != "early stopping" or straight.result["train"]["steps"] < 60, "it has stopped early"
    resumed = run(tiny["bert"], source, tmp_path / "broken", CASES[name])
    assert resumed.metrics == straight.metrics
    for count in ("steps", "examples", "tokens", "best_step"):
        assert resumed.result["train"][count] == straight.result["train"][count], count
    first, second = (load_file(folder / "model/model.safetensors") for folder in (straight.output_dir, resumed.output_dir))
    assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [list(map(json.loads, (run.output_dir / "log.jsonl").read_text().splitlines())) for run in (straight, resumed)]
    lines = [[{k: v for k, v in line.items() if k != "examples_per_second"} for line in log] for log in logs]
    assert lines[0] == lines[1], "each step once, with the same figures"
    assert len(lines[0]) > 5
    assert name != "translation" or {"bleu", "chrf"} <= set(lines[0][-1]["validation"]), "some rows are translated on the way"
    assert not (resumed.output_dir / "checkpoints").exists(), "a finished run needs none"


@pytest.mark.parametrize("writes", [1, 2, 4, 6])
def test_gradual_unfreezing_resumes_in_any_phase(writes: int, tiny: dict[str, Path], source: Path, tmp_path: Path) -> None:
    """18 steps: three in each of the first three phases, nine in the last; a checkpoint every two steps."""
    case = {"strategy": ["gradual_unfreezing", "layerwise_lr"], "training": {"evaluate_every": 2}}
    straight = run(tiny["bert"], source, tmp_path / "straight", case)
    with stopped_at(writes):
        run(tiny["bert"], source, tmp_path / "broken", case)
    state = last_state(tmp_path / "broken")
    assert len(state["strategy"]["finished"]) == min(3, (state["step"] - 1) // 3)
    resumed = run(tiny["bert"], source, tmp_path / "broken", case)
    assert resumed.metrics == straight.metrics
    assert straight.result["train"]["steps"] == resumed.result["train"]["steps"] == 18
    first, second = (load_file(folder / "model/model.safetensors") for folder in (straight.output_dir, resumed.output_dir))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def unfinished(tiny: dict[str, Path], source: Path, tmp_path: Path) -> Path:
    """A run that ended after five checkpoints; the newest two and the best one are kept."""
    with stopped_at(5):
        run(tiny["bert"], source, tmp_path / "run", {"training": {"learning_rate": 1e-9, "evaluate_every": 2}})
    return tmp_path / "run"


def test_best_and_last_are_separate(unfinished: Path) -> None:
    folder = unfinished / "checkpoints"
    kept = {checkpoints.read_pointer(folder, "best"), checkpoints.read_pointer(folder, "last")}
    assert {path.name for path in folder.glob("step-*")} == kept | {"step-8"}
    assert checkpoints.read_pointer(folder, "last") == "step-10"


@pytest.mark.parametrize("damage", ["flipped byte", "missing file", "no manifest", "half written"])
def test_damaged_checkpoint_is_skipped_by_name(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        tensors = {"model": {"w": torch.full((9,), float(step))}}
        checkpoints.write_checkpoint(folder, step, tensors, {"step": step}, best=step == 2)
    newest = folder / "step-4"
    if damage == "flipped byte":
        content = bytearray((newest / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(bytes(content))
    elif damage == "missing file":
        (newest / "model.safetensors").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        newest.rename(folder / ".part-4")
    whole, notes = checkpoints.newest_intact(folder)
    assert whole == folder / "step-2"
    assert torch.equal(checkpoints.read_tensors(folder / "step-2", "model")["w"], torch.full((9,), 2.0))
    assert (len(notes) == 1 and str(newest) in notes[0]) or damage == "half written"


def test_resume_uses_the_checkpoint_before_a_damaged_one(
    unfinished: Path, tiny: dict[str, Path], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unfinished / "checkpoints/step-10/optimizer.safetensors").unlink()
    assert (unfinished / "checkpoints/step-8").is_dir()
    finished = run(tiny["bert"], source, unfinished, {"training": {"learning_rate": 1e-9, "evaluate_every": 2}})
    shown = capsys.readouterr().err
    assert "step-10 is skipped: optimizer.safetensors is missing" in shown
    assert f"resuming from {unfinished / 'checkpoints/step-8'}" in shown
    assert finished.result["train"]["steps"] == 18


def test_lost_best_weights_are_reported_and_replaced(
    unfinished: Path, tiny: dict[str, Path], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = checkpoints.read_pointer(unfinished / "checkpoints", "best")
    assert best != "step-10"
    (unfinished / f"checkpoints/{best}/model.safetensors").unlink()
    finished = run(tiny["bert"], source, unfinished, {"training": {"learning_rate": 1e-9, "evaluate_every": 2}})
    shown = capsys.readouterr().err
    assert "are lost: model.safetensors is missing" in shown
    assert "(step 10)" in shown
    assert finished.result["train"]["best_step"] > 10


def test_changed_settings_are_refused_by_name(unfinished: Path, tiny: dict[str, Path], source: Path) -> None:
    before = sorted(path.name for path in unfinished.rglob("*"))
    with refused("training.batch_size: 8 before, 4 now"):
        run(tiny["bert"], source, unfinished, {"training": {"batch_size": 4, "learning_rate": 1e-9, "evaluate_every": 2}})
    assert sorted(path.name for path in unfinished.rglob("*")) == before
