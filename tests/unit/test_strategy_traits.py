"""Traits of strategies and of lists of strategies, and what follows from them and from the settings' fields."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from nlp_transfer.models.heads import HeadConfig
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.settings.annotations import named_models
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import (
    Combined,
    Phase,
    State,
    Strategy,
    StrategyTraits,
    View,
    check_strategy,
    default_learning_rate,
    nested_tasks,
    strategy_from,
)
from nlp_transfer.strategies.common.strategy_traits import combine_traits
from nlp_transfer.strategies.features import Features
from nlp_transfer.strategies.full import Full
from nlp_transfer.strategies.multitask.multitask_model import MultitaskModel, plain_name
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems
from tests.helpers.models import tiny_classifier

TASK: dict[str, Any] = {"name": "text_classification", "labels": ["a", "b"]}
HEADS = HeadConfig(pooling="mean"), HeadConfig(pooling="max")


def rate(model: nn.Module) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("name", "values", "combined"),
    [
        ("owns_parameters", (False, True), True),
        ("owns_phases", (False, True), True),
        ("position", ("first", "any"), "first"),
        ("takes_steps", (True, False), False),
        ("only_trains", (True, False), False),
        ("shortened_by", (None, "strategy.x"), "strategy.x"),
        ("adds_adapter", (True, False), True),
        ("needs_train", (False, True), True),
        ("needs_validation", (False, True), True),
        ("uses_unlabelled", (True, False), True),
        ("always_used", (frozenset("a"), frozenset("b")), frozenset("ab")),
        ("default_model", (None, "m"), None),
        ("head", (None, HEADS[1]), HEADS[1]),
        ("learning_rate", (default_learning_rate, rate), rate),
    ],
)
def test_each_trait_of_a_list_follows_one_rule(name: str, values: tuple[Any, Any], combined: Any) -> None:
    assert getattr(combine_traits([StrategyTraits(**{name: value}) for value in values]), name) == combined


def test_every_trait_has_a_rule() -> None:
    different: dict[str, Any] = {
        "position": "first",
        "needs_task": "vector",
        "head": HEADS[0],
        "learning_rate": rate,
        "default_model": "m",
        "shortened_by": "s",
        "search_space": {"training.epochs": [1, 2]},
    }
    for field in fields(StrategyTraits):
        value = different.get(field.name, frozenset("a") if field.name == "always_used" else not field.default)
        assert getattr(combine_traits([StrategyTraits(**{field.name: value})]), field.name) == value, field.name


def test_first_of_a_list_decides() -> None:
    traits = [StrategyTraits(head=head, learning_rate=lambda model, head=head: HEADS.index(head)) for head in HEADS]  # type: ignore[misc]
    combined = combine_traits(traits)
    assert (combined.head, combined.learning_rate(nn.Identity())) == (HEADS[0], 0)


def test_own_phases_have_to_be_declared() -> None:
    def next_phase(self: Any, state: State, view: View) -> Phase | None:
        return None

    for base, named in ((Strategy, {}), (Full, {}), (Strategy, {"traits": StrategyTraits(only_trains=True)})):
        with pytest.raises(TypeError, match="owns_phases"):
            type("Silent", (base,), {"next_phase": next_phase, "__module__": __name__, **named})
    declared = type(
        "Declared", (Full,), {"next_phase": next_phase, "traits": StrategyTraits(owns_phases=True), "__module__": __name__}
    )
    assert declared().traits.owns_phases
    assert type("Depends", (Features,), {"next_phase": next_phase, "__module__": __name__})


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ({"name": "full"}, ["data.train", "full learns", "zero_shot"]),
        ([{"name": "zero_shot"}, {"name": "l2_sp"}], ["data.train", "l2_sp learns"]),
        ({"name": "zero_shot"}, []),
    ],
)
def test_missing_training_data_are_reported_once(strategy: Any, parts: list[str]) -> None:
    task, data = task_from(TASK), DataConfig(test="t.csv")
    check_strategy(strategy_from(strategy), data, task, problems := Problems())
    assert problems.count == bool(parts)
    assert [part for part in parts if part not in "".join(problems.messages)] == []


def test_settings_without_effect_have_their_place_in_the_list() -> None:
    strategy = strategy_from([{"name": "l2_sp"}, {"name": "distill", "teacher": "t", "temperature": 3}])
    assert isinstance(strategy, Combined)
    strategy.check(DataConfig(), task_from({"name": "regression"}), problems := Problems())
    assert set(problems.unused) == {"training.weight_decay", "strategy.1.temperature"}
    assert not problems


def test_zero_shot_names_the_labels_only_without_training_data() -> None:
    strategy = strategy_from({"name": "zero_shot", "labels": {"a": "one", "b": "two"}})
    task = task_from({"name": "text_classification"})
    named = [strategy.check(data, task, Problems()) for data in (DataConfig(test="t"), DataConfig(train="t"))]
    assert [each.document()["labels"] for each in named] == [["a", "b"], None]


def test_models_are_named_by_annotated_fields() -> None:
    for given, expected in (("t", {"teacher": ["t"]}), (["t", "u"], {"teacher": ["t", "u"]}), (None, {})):
        assert named_models(strategy_from({"name": "distill", "teacher": given, "student_layers": 1})) == expected
    assert named_models(strategy_from({"name": "full"})) == {}


def test_additional_tasks_are_found_in_the_fields() -> None:
    inner = {"data": {"train": "u.csv"}, "task": {"name": "regression"}}
    strategy = strategy_from({"name": "multitask", "tasks": [{"name": "one", **inner}, {"name": "two", **inner}]})
    found = nested_tasks(strategy)
    assert list(found) == ["strategy.tasks.0", "strategy.tasks.1"]
    assert {(data.train, task.document()["name"]) for data, task in found.values()} == {("u.csv", "regression")}
    assert nested_tasks(strategy_from([{"name": "full"}, {"name": "l2_sp"}])) == {}


def batch(rows: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 30, (rows, 4), generator=torch.Generator().manual_seed(rows))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(rows, dtype=torch.int64)}


@pytest.mark.parametrize("shared", [True, False])
def test_model_of_several_tasks_runs_the_head_of_each(shared: bool) -> None:
    models: list[Any] = [tiny_classifier("bert").eval() for _ in range(2)]
    with torch.no_grad():
        models[1].bert.embeddings.word_embeddings.weight.mul_(2)
        models[1].classifier.weight.mul_(3)
    model = MultitaskModel(models[0], "own", {"other": models[1]}, shares_encoder=shared)
    assert (models[1].bert is models[0].bert) == shared
    assert "forward" not in vars(models[0])
    columns = {f"{task}/{name}": value for task, rows in (("own", 2), ("other", 3)) for name, value in batch(rows).items()}
    outputs = model(**columns)
    for task, rows, plain in (("own", 2, models[0]), ("other", 3, models[1])):
        inputs = {name: value for name, value in batch(rows).items() if name != "labels"}
        assert torch.equal(outputs[task].logits, plain(**inputs).logits)
        assert torch.equal(model(**inputs).logits, models[0](**inputs).logits), "without a task: the main one"
    sum(value.logits.sum() for value in outputs.values() if hasattr(value, "logits")).backward()
    model.zero_grad()
    only = model(**{name: value for name, value in columns.items() if name.startswith("own/")})
    (only["own"].logits.sum() + only["unused"]).backward()
    idle = models[1].classifier.weight.grad
    assert idle is not None, "distributed training needs a gradient for every parameter"
    assert not idle.any()
    assert {plain_name(name) for name, _ in model.named_parameters()} == {name for name, _ in models[0].named_parameters()}


def test_new_parameters_of_several_tasks_have_their_prefix() -> None:
    models: list[Any] = [tiny_classifier("bert") for _ in range(2)]
    for each in models:
        each.new_parameters = frozenset({"classifier.weight"})
    model = MultitaskModel(models[0], "own", {"other": models[1]}, shares_encoder=True)
    assert new_parameters(model) == {"main.classifier.weight", "auxiliary.other.classifier.weight"}
    assert new_parameters(model) <= {name for name, _ in model.named_parameters()}
