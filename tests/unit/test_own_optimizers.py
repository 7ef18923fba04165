"""Other optimizers and the user's own, and the user's own schedules: they train, and resumed runs are bit-identical."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nlp_transfer import Callback, UserError, fine_tune
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.training.optimizer import find_optimizer, make_optimizer, rate_factor
from tests.builders import Killed, sentiment_rows, write
from tests.builders import trainer as trainer_of
from tests.unit.test_training import equal, log_of, weights_of

pytestmark = pytest.mark.model

HERE = __name__


class Counting(torch.optim.Optimizer):
    """Gradient descent with numbers in its state and in its parameter groups."""

    def __init__(self, groups: Any, lr: float, decay: float = 0.9) -> None:
        super().__init__(groups, {"lr": lr, "decay": decay, "weight_decay": 0.0, "count": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["size"] = group["decay"] * state.get("size", 0.0) + float(parameter.grad.abs().mean())
                state["steps"] = state.get("steps", 0) + 1
                scale = group["lr"] / (state["size"] * state["steps"] * group["count"] + 1e-3)
                parameter.add_(parameter.grad, alpha=-scale)


def counting(groups: Any, learning_rate: float) -> torch.optim.Optimizer:
    return Counting(groups, learning_rate)


def with_momentum(groups: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def unsaved(groups: Any, learning_rate: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, lr=learning_rate)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["text"] = "x"
    return optimizer


def nothing(groups: Any, learning_rate: float) -> None:
    return None


def other_groups(groups: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for group in groups for p in group["params"]], lr=learning_rate)


def steps_down(step: int, steps: int) -> float:
    return 1.0 if step < steps // 2 else 0.1


def negative(step: int, steps: int) -> float:
    return -1.0


class KillAt(Callback):
    def on_before_optimizer_step(self, trainer: Any, step: Any) -> None:
        if step.number == 4:
            raise Killed


NAMES = [
    "SGD", "Adam", "radam", "NAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD", "Rprop", "Adafactor", "AdamW",
    f"{HERE}:counting", f"{HERE}:with_momentum",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_any_optimizer_resumes_exactly(name: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": name, "max_steps": 6, "dropout": 0.1, "checkpoint_every": 1, "learning_rate": 1e-2}
    straight = trainer_of(tiny["bert"], output=tmp_path / "straight", **settings)
    before = weights_of(straight.model)
    straight.train()
    assert not equal(before, weights_of(straight.model))
    with pytest.raises(Killed):
        trainer_of(tiny["bert"], output=tmp_path / "broken", callbacks=[KillAt()], **settings).train()
    resumed = trainer_of(tiny["bert"], output=tmp_path / "broken", **settings)
    resumed.train()
    assert equal(weights_of(straight.model), weights_of(resumed.model))
    losses = [[line["loss"] for line in log_of(tmp_path / folder)] for folder in ("straight", "broken")]
    assert losses[0] == losses[1]


def test_sgd_takes_the_steps_of_sgd(tiny: dict[str, Path]) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer: Any, step: Any) -> None:
            seen.update(trainer.gradients())

    trainer = trainer_of(
        tiny["bert"], optimizer="SGD", max_steps=1, warmup=0, max_grad_norm=0, weight_decay=0, learning_rate=0.5,
        schedule="constant", callbacks=[Gradients()],
    )  # fmt: skip
    del trainer.data["validation"]
    before = weights_of(trainer.model)
    trainer.train()
    assert seen
    for name, weight in trainer.model.named_parameters():
        expected = before[name] - 0.5 * seen[name] if name in seen else before[name]
        assert torch.allclose(weight, expected, atol=1e-7), name


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("sdg", ("'sdg'", "SGD", "adamw")), ("LBFGS", ("several times a step",)), ("Optimizer", ("abstract",)),
        ("Muon", ("Muon", "2D")), ("no_such_module:f", ("no module no_such_module",)), (f"{HERE}:nope", ("has no nope",)),
        (f"{HERE}:NAMES", ("cannot be called",)), (f"{HERE}:nothing", ("returned NoneType",)),
        (f"{HERE}:other_groups", ("other parameter groups",)),
    ],
)  # fmt: skip
def test_wrong_optimizers_are_refused(name: str, facts: tuple[str, ...], tiny: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"training\.optimizer: ") as error:
        trainer_of(tiny["bert"], optimizer=name, max_steps=1).train()
    for fact in facts:
        assert fact in str(error.value)


def test_state_that_cannot_be_saved_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"training\.optimizer: .*/text is of type str; allowed: tensors and numbers"):
        trainer_of(tiny["bert"], output=tmp_path, optimizer=f"{HERE}:unsaved", max_steps=1).train()


def test_optimizers_without_weight_decay_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from nlp_transfer.strategies import Group
    from nlp_transfer.training import optimizer

    said: list[str] = []
    monkeypatch.setattr(optimizer, "say_once", said.append)
    make_optimizer(torch.nn.Linear(2, 2), [Group(["weight", "bias"], 0.1)], 1.0, "Rprop")
    (line,) = said
    assert all(fact in line for fact in ("training.weight_decay", "no effect", "Rprop"))


def test_classes_and_functions_become_names() -> None:
    config = TrainingConfig(optimizer=torch.optim.SGD, schedule=steps_down, callbacks=[KillAt])
    assert (config.optimizer, config.schedule, config.callbacks) == ("SGD", f"{HERE}:steps_down", [f"{HERE}:KillAt"])
    assert TrainingConfig(optimizer=torch.optim.AdamW).optimizer == TrainingConfig(optimizer="AdamW").optimizer == "adamw"
    assert find_optimizer("sgd") is torch.optim.SGD


@pytest.mark.parametrize("schedule", [steps_down, f"{HERE}:steps_down"])
def test_a_schedule_follows_the_warmup(schedule: Any, tiny: dict[str, Path], tmp_path: Path) -> None:
    trainer_of(tiny["bert"], output=tmp_path, schedule=schedule, warmup=2, max_steps=6, learning_rate=1e-3).train()
    rates = [line["learning_rate"] for line in log_of(tmp_path)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4])


def test_wrong_schedules_are_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"training\.schedule: .*negative\(0, 4\) returned -1\.0; allowed: a number from 0"):
        rate_factor(0, 4, TrainingConfig(schedule=negative, warmup=0))


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("schedule", "lienar", ("training.schedule: found 'lienar'", "cosine", "package.module:NAME")),
        ("schedule", f"{HERE}:nope", ("training.schedule", "has no nope")),
        ("augment", f"{HERE}:nope", ("training.augment", "has no nope")),
        ("augment", lambda *_: None, ("training.augment", "inside a function")),
        ("optimizer", "sdg", ("training.optimizer", "SGD")),
        ("callbacks", ["Nope"], ("training.callbacks: found 'Nope'", "package.module:NAME")),
    ],
)  # fmt: skip
def test_problems_are_reported_before_a_run(
    name: str, value: Any, facts: tuple[str, ...], tiny: dict[str, Path], tmp_path: Path
) -> None:
    train = write(tmp_path / "train.csv", sentiment_rows(24))
    with pytest.raises(UserError) as error:
        fine_tune(
            model=str(tiny["bert"]), data={"train": str(train)}, task="text_classification", training={name: value},
            output_dir=tmp_path / "run",
        )  # fmt: skip
    for fact in facts:
        assert fact in str(error.value)


def test_a_document_names_optimizer_and_schedule(tiny: dict[str, Path], tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", sentiment_rows(24))
    named = {"optimizer": f"{HERE}:with_momentum", "schedule": f"{HERE}:steps_down"}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({
            "model": str(tiny["bert"]), "data": {"train": str(train)}, "task": "text_classification",
            "training": {"max_steps": 4, "warmup": 0, "learning_rate": 1e-2, "logging_steps": 1, **named},
            "output_dir": str(tmp_path / "run"),
        })
    )  # fmt: skip
    fine_tune(tmp_path / "run.yaml")
    assert [line["learning_rate"] for line in log_of(tmp_path / "run")] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]
    assert {name: recorded[name] for name in named} == named
