"""The hyperparameter search: search spaces, trials, pruning, resumption and the final comparison."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from nlp_transfer import tune
from nlp_transfer.commands.init import PROPOSED
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.experiments import hyperparameter_search, search_results
from nlp_transfer.experiments.experiment import Experiment
from nlp_transfer.experiments.hyperparameter_search import Pruning
from nlp_transfer.experiments.plan import make_plan
from nlp_transfer.experiments.runs import Outcome, Pruned
from nlp_transfer.experiments.search_space import FACTOR, default_space, defaults_in, read_space, used
from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from
from tests.builders import Killed, document, refused

SPACE = {"training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "training.batch_size": [8, 16]}


@pytest.mark.parametrize("name", [name for name in registry.names("strategy") if name not in ("multitask", "peft", "distill")])
def test_every_default_space_is_valid(name: str) -> None:
    space = default_space(strategy_from({"name": name}), {"batch_size": 8})
    assert "training.batch_size" not in space, "what the user sets is not searched"
    if space:
        assert set(read_space(space)) == set(space)


@pytest.mark.parametrize("name", ["full", "features", "lora", "few_shot", "partial", "bitfit", "layerwise_lr", "l2_sp"])
def test_every_value_of_a_default_space_is_allowed(name: str) -> None:
    settings = document(model="m", data={"train": "a.csv", "test": "b.csv"}, training={"max_steps": None}, output_dir="run")
    plan, runs = make_plan(settings, [name], [0], None, None, command="tune")
    hyperparameter_search._check_values(read_space(default_space(runs[0].strategy, {})), plan)


def test_changed_settings_are_not_searched() -> None:
    """But defaults are, as those that `init` writes."""
    defaults = {name: getattr(TrainingConfig(), name) for name in PROPOSED["training"]}
    for name, setting in (("lora", "strategy.r"), ("full", "training.epochs"), ("features", "training.epochs")):
        space = default_space(strategy_from({"name": name}), {})
        assert {setting, FACTOR} <= set(space)
        assert default_space(strategy_from({"name": name}), defaults) == space
    assert "strategy.r" not in default_space(strategy_from({"name": "lora", "r": 4}), {})
    changed = {"epochs": 4, "learning_rate": 1e-3}
    assert set(default_space(strategy_from({"name": "full"}), changed)) == {
        "training.batch_size",
        "training.weight_decay",
        "strategy.head_scale",
    }


def test_bad_spaces_are_refused() -> None:
    with refused("tune: 4 problems", "epochs", "low below high", "training.warmup", "a list of values"):
        ranges = {"training.learning_rate": {"low": 1, "high": 0}, "training.weight_decay": {"low": 0, "high": 1, "log": True}}
        read_space({"epochs": [1, 2], **ranges, "training.warmup": 3})
    with refused("tune: found {}"):
        read_space({})


class FakeExperiment:
    """Executes a run by computing its metric from its settings; ends, as if killed, in the run with the number `last`."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        self.folder, self.last, self.metric, self.number, self.run = folder, last, "accuracy", 0, 0
        self.server = SimpleNamespace(read=lambda *_, **__: None)
        self.executed: list[str] = []

    def execute(self, title: str, document: dict[str, Any], *_: Any, **__: Any) -> Outcome:
        name = Path(document["output_dir"]).name
        self.executed.append(name)
        if len(self.executed) == self.last:
            raise Killed
        rate = document["training"].get("learning_rate", 1e-3)
        assert document["data"]["test"] is None, "trials do not read the test file"
        return Outcome(self.folder, {"metrics": {"validation": {"accuracy": 1 - abs(rate - 0.01)}}})


def test_a_killed_search_is_resumed_without_loss(tmp_path: Path) -> None:
    """The resumed search has the same trials as an undisturbed one."""
    settings = document(model="m", data={"train": "a.csv", "test": "b.csv"}, training={"max_steps": None}, output_dir="run")
    plan, _ = make_plan(settings, ["full"], [0], None, None, command="tune")

    def search(folder: Path, last: int | None = None) -> Any:
        folder.mkdir(exist_ok=True)
        experiment: Any = FakeExperiment(folder, last)
        storage = f"sqlite:///{folder / 'study.db'}"
        study = optuna.create_study(storage=storage, study_name="tune", load_if_exists=True, direction="maximize")
        try:
            hyperparameter_search._run_trials(study, 14, read_space(SPACE), plan, experiment)
        except Killed:
            assert last is not None
        return experiment.executed, [(trial.number, trial.state.name, trial.value, trial.params) for trial in study.trials]

    executed, undisturbed = search(tmp_path / "once")
    assert len(undisturbed) == 14
    assert undisturbed[0][3] == {}, "the first trial has the default settings"
    assert len({str(trial[3]) for trial in undisturbed}) == 14
    search(tmp_path / "killed", last=3)
    search(tmp_path / "killed", last=6)
    again, resumed = search(tmp_path / "killed")
    assert resumed == undisturbed
    assert again == executed[7:], "finished trials are not repeated, the killed one is"


def test_the_sampler_knows_the_defaults(tmp_path: Path) -> None:
    """The first trial has the default settings as a point of the space, and survives a kill before it starts."""
    settings = document(model="m", data={"train": "a.csv", "test": "b.csv"}, training={"max_steps": None}, output_dir="run")
    plan, runs = make_plan(settings, ["features"], [0], None, None, command="tune")
    space = read_space(default_space(runs[0].strategy, {}))
    point = defaults_in(space, {"training": runs[0].config.training.model_dump(), "strategy": runs[0].strategy.document()})
    assert point is not None
    assert point["learning_rate_factor"] == 1
    assert point["strategy.classifier"] == "trained"
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="tune", direction="maximize")
    study.enqueue_trial(point)
    experiment: Any = FakeExperiment(tmp_path)
    hyperparameter_search._run_trials(study, 3, space, plan, experiment, point)
    assert study.trials[0].params == point
    assert study.trials[0].user_attrs["settings"] == {}
    assert experiment.executed == ["trial-0000", "trial-0001", "trial-0002"]
    settings_of = [trial.user_attrs["settings"] for trial in study.trials[1:]]
    for found in settings_of:
        assert ("strategy.regularization" in found) == (found["strategy.classifier"] == "logistic_regression")


def test_settings_without_effect_are_not_searched() -> None:
    assert "strategy.regularization" not in default_space(strategy_from({"name": "features", "classifier": "trained"}), {})
    assert "strategy.regularization" in default_space(strategy_from({"name": "features"}), {})
    assert "strategy.classifier" not in default_space(strategy_from({"name": "features"}), {}, with_classes=False)
    assert "training.epochs" not in default_space(strategy_from({"name": "full"}), {"max_steps": 5})
    values = {"learning_rate_factor": 2.0, "training.epochs": 5, "strategy.classifier": "logistic_regression"}
    assert used(values, {"name": "features"}) == {"strategy.classifier": "logistic_regression"}
    assert used(values, [{"name": "lora"}, {"name": "l2_sp"}]) == values


@pytest.mark.parametrize(("wrong", "is_better"), [(40, True), (2, False)])
def test_a_gain_within_chance_keeps_the_defaults(
    wrong: int, is_better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defaults are wrong in some of 200 rows, the best trial in none; 20 trials were compared."""
    labels = np.arange(200) % 2
    predicted = {0: np.where(np.arange(200) < wrong, 1 - labels, labels), 7: labels}

    def outcome(folder: Path) -> Any:
        answer = predicted[int(folder.name.rpartition("-")[2])]
        split = ScoredSplit({"prediction": answer, "scores": np.eye(2)[answer]}, {"labels": labels})
        return SimpleNamespace(result={"metrics": {}}, scored=lambda _: split)

    monkeypatch.setattr(search_results, "read_outcome", outcome)
    study = optuna.create_study(direction="maximize")
    for number in range(20):
        study.add_trial(optuna.trial.create_trial(value=1.0 if number == 7 else 1 - wrong / 200, params={}, distributions={}))
    task = task_from({"name": "text_classification", "labels": ["a", "b"]})
    found, advice = search_results.judge(study, tmp_path, SimpleNamespace(task=task), "accuracy")  # type: ignore[arg-type]
    assert found == is_better
    assert "20 trials" in advice


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_defaults_that_win_are_kept_with_the_numbers(direction: str, tmp_path: Path) -> None:
    """The defaults have 0.8 or, if lower is better, 0.2."""
    values = [0.8, 0.5, 0.7123, 0.6]
    study = optuna.create_study(direction=direction)
    for value in values if direction == "maximize" else [1 - value for value in values]:
        study.add_trial(optuna.trial.create_trial(value=value, params={}, distributions={}))
    run: Any = SimpleNamespace(task=task_from({"name": "text_classification", "labels": ["a", "b"]}))
    is_better, advice = search_results.judge(study, tmp_path, run, "accuracy")
    assert not is_better
    expected = ("0.8", "0.7123") if direction == "maximize" else ("0.2", "0.2877")
    assert all(f" {fact}" in advice for fact in (*expected, "3 finished trials", "trial 2")), advice
    alone = optuna.create_study(direction=direction)
    alone.add_trial(study.trials[0])
    assert "no trial" in search_results.judge(alone, tmp_path, run, "accuracy")[1]


def test_bad_trials_are_pruned(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize")
    for _ in range(6):
        trial = study.ask()
        trial.report(0.8, 1)
        study.tell(trial, 0.8)
    trainer: Any = SimpleNamespace(position=SimpleNamespace(history=[{}]))
    Pruning(storage, study.ask()._trial_id, "accuracy").on_evaluate(trainer, {"accuracy": 0.9})
    with pytest.raises(Pruned):
        Pruning(storage, study.ask()._trial_id, "accuracy").on_evaluate(trainer, {"accuracy": 0.5})


@pytest.mark.process
def test_the_best_settings_are_tested_once(
    tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = document(
        model=tiny["bert"], data={**sentiment, "validation_share": 0.2}, strategy="features", training={"max_steps": None},
        output_dir=tmp_path / "run",
    )  # fmt: skip
    space = {"training.learning_rate": [1e-9, 3e-2], "training.epochs": [1, 4], "training.seed": [0]}
    with refused("no test split"):
        tune(document(model="m", data={"train": "a.csv", "validation_share": 0.2}, output_dir="run"))
    del space["training.seed"]
    execute, trials = Experiment.execute, []

    def killed(self: Experiment, title: str, plan: dict[str, Any], *arguments: Any, **options: Any) -> Outcome:
        trials.append(plan["output_dir"])
        if len(trials) == 2:
            raise Killed
        return execute(self, title, plan, *arguments, **options)

    monkeypatch.setattr(Experiment, "execute", killed)
    with pytest.raises(Killed):
        tune(settings, 4, [0, 1], space)
    done = tune(settings, 4, [0, 1], space)
    assert not done.failed
    folder = done.output_dir
    runs = {path.name for path in (folder / "runs").iterdir()}
    assert {name for name in runs if name.startswith("trial-")} == {f"trial-{number:04}" for number in range(4)}
    assert trials.count(trials[0]) == 1, "a finished trial is not repeated"
    assert not (folder / "runs/trial-0001/predictions/test.parquet").exists()
    assert "test" not in json.loads((folder / "runs/trial-0001/result.json").read_text())["metrics"]
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert done.winner or not done.best
    assert best["training"].items() >= {name.removeprefix("training."): value for name, value in done.best.items()}.items()
    assert done.rows[0].label == "defaults"
    assert done.rows[0].seeds == [0, 1]
    with (folder / "trials.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    page = (folder / "tuning.html").read_text()
    assert "<svg" in page
    assert ("Tuned settings" in page) == (len(done.rows) > 1)
    assert ("fANOVA" in page) == ("importance of the settings is unknown" not in page)
    with refused("--output", "search.space"):
        tune(settings, 4, [0, 1], {"training.epochs": [1]})
