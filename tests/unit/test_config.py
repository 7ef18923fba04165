"""One document, whatever it was written in: YAML, dotted flags, keyword arguments."""

from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.run.document import merge, parse_overrides, read_document
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings.schema import DataConfig, RunConfig, TrainingConfig, settings_help
from nlp_transfer.settings.validation import validate
from nlp_transfer.utils.errors import SHOWN, Problems, UserError, did_you_mean, shorten
from tests.builders import refused, write

BASE: dict[str, Any] = {
    "model": "m",
    "data": {"train": "a.csv"},
    "task": {"name": "text_classification", "text": "review"},
    "strategy": {"name": "lora", "r": 8},
    "output_dir": "run",
}


def merged(*flags: str, base: dict[str, Any] = BASE) -> dict[str, Any]:
    return merge(base, parse_overrides(flags))[0]


def test_yaml_flags_and_keywords_give_the_same_run(tmp_path: Path) -> None:
    wanted = BASE | {"training": {"epochs": 5, "learning_rate": 2e-4, "class_weights": {"a": 1.0, "b": 2.0}}}
    whole, short = write(tmp_path / "whole.yaml", wanted), write(tmp_path / "short.yaml", BASE)
    flags = ["--training.epochs", "5", "--training.learning_rate=2e-4", "--training.class_weights", "{a: 1, b: 2}"]
    document, notes = merge(read_document(short), parse_overrides(flags))
    runs = [resolve(whole), resolve(document), resolve(short, training=wanted["training"]), resolve(**wanted), resolve(wanted)]
    typed = [resolve(RunConfig(**wanted)), resolve(BASE, training=TrainingConfig(**wanted["training"]))]
    assert notes == []
    assert len({run.config.model_dump_json() for run in runs + typed}) == 1
    assert len({run.task.model_dump_json() for run in runs + typed}) == 1
    assert runs[0].config.training.learning_rate == 2e-4
    assert {"name": "lora", "r": 8, "target_modules": "all"}.items() <= runs[0].strategy.document().items()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("2.5", 2.5), ("2.0e-4", 2e-4), ("true", True), ("null", None), ("~", None), ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}), ("'1'", "1"), ('"null"', "null"), ("2e-4", "2e-4"), ("|", "|"), ("-", "-"), ("#", "#"), (",", ","),
        ("", ""), ("a: b", "a: b"), ("- x", "- x"),
        ("2020-01-01", "2020-01-01"), ("2020-13-45", "2020-13-45"), ("[a", "[a"),
        ("{a: 1, a: 2}", "{a: 1, a: 2}"), ("a b", "a b"),
        ("\t", "\t"), ("data/*.csv", "data/*.csv"), ("@x", "@x"), ("None", "None"),
    ],
)  # fmt: skip
def test_value_of_a_flag(text: str, value: object) -> None:
    parsed = parse_overrides(["--x", text])
    assert parsed == [("x", value)]
    assert type(parsed[0][1]) is type(value)


def test_flags_with_equals_and_dashes() -> None:
    assert parse_overrides(["--a.b=1=2", "--c-d", "-1"]) == [("a.b", "1=2"), ("c_d", -1)]


@pytest.mark.parametrize("flags", [["--a"], ["--a", "--b", "1"], ["a"], ["--"], ["-a", "1"]])
def test_broken_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(UserError):
        parse_overrides(flags)


@pytest.mark.parametrize("flags", [("--strategy.name", "partial"), ("--strategy", "partial")])
def test_changed_name_drops_the_old_settings_and_says_so(flags: tuple[str, str]) -> None:
    document, notes = merge(BASE, parse_overrides(["--strategy.frozen_layers", "1", *flags]))
    assert document["strategy"] == {"name": "partial", "frozen_layers": 1}, "the name goes first, in whatever order"
    assert notes == ["strategy.name changed from lora to partial; dropped its settings: r"]


def test_same_name_drops_nothing() -> None:
    document, notes = merge(BASE, parse_overrides(["--strategy.name", "lora"]))
    assert document == BASE
    assert notes == []


def test_callers_document_stays_as_it_was() -> None:
    base = {"a": {"b": [1, {"c": 2}]}}
    assert merged("--a.b.1.c", "3", base=base) == {"a": {"b": [1, {"c": 3}]}}
    assert base == {"a": {"b": [1, {"c": 2}]}}


def test_missing_and_null_parts_are_made() -> None:
    assert merged("--training.epochs", "2", base={}) == {"training": {"epochs": 2}}
    assert merged("--training.epochs", "2", base={"training": None}) == {"training": {"epochs": 2}}
    assert merged("--task.head.pooling", "max", base={"task": "regression"}) == {
        "task": {"name": "regression", "head": {"pooling": "max"}}
    }


def test_lists_of_strategies_are_reached_by_position() -> None:
    base = {"strategy": ["full", {"name": "lora", "r": 4}]}
    assert merged("--strategy.1.r", "8", base=base)["strategy"] == ["full", {"name": "lora", "r": 8}]
    assert merged("--strategy.0.r", "8", base=base)["strategy"][0] == {"name": "full", "r": 8}
    assert merged("--strategy.0", "lora", base=base)["strategy"][0] == "lora"
    for flag in ("--strategy.2.r", "--strategy.x", "--strategy.name"):
        with refused("allowed: a position from 0 to 1"):
            merged(flag, "8", base=base)


def test_separator_and_column_names_come_through() -> None:
    document = merged("--task", "multi_label", "--task.separator", "|", "--task.text", "2024", "--task.labels", "[0, 1.0, x]")
    task = resolve(document).task
    assert (task.separator, task.text, task.labels) == ("|", "2024", ["0", "1", "x"])  # type: ignore[attr-defined]


def test_every_problem_is_listed_at_once() -> None:
    training = {"epoch": 1, "batch_size": 0, "warmup": -1}
    with refused() as error:
        resolve(BASE | {"training": training, "task": {"name": "regression", "txt": 1}, "modl": 1})
    assert str(error.value).startswith("settings: 5 problems")
    for name in ("training.epoch:", "training.batch_size:", "training.warmup:", "task.txt:", "modl:"):
        assert str(error.value).count(f"- {name}") == 1


def test_union_problems_are_one_line() -> None:
    problems = Problems()
    assert validate(TrainingConfig, {"epochs": "many"}, problems, "training") is None
    assert problems.messages == ["training.epochs: found 'many'; allowed: a number, or 'auto'"]


def test_settings_are_no_mapping() -> None:
    problems = Problems()
    assert validate(DataConfig, [1], problems, "data") is None
    assert problems.messages == ["data: found [1]; allowed: settings by name"]


def test_problems_show_twenty_and_count_the_rest() -> None:
    inner = Problems("a file")
    inner.extend(f"fault {i}" for i in range(SHOWN + 5))
    outer = Problems("data")
    outer.add("first")
    with pytest.raises(UserError) as error:
        inner.raise_if_any()
    outer.absorb(error.value)
    outer.absorb(UserError("last"))
    assert outer.count == SHOWN + 7
    lines = str(outer).splitlines()
    assert lines[:3] == [f"data: {SHOWN + 7} problems", "  - first", "  - fault 0"]
    assert lines[-1] == "  ... and 7 more"
    assert len(lines) == SHOWN + 2


def test_one_problem_without_a_heading_is_its_message() -> None:
    problems = Problems()
    assert not problems
    problems.raise_if_any()
    problems.add("only this")
    assert str(problems) == "only this"


def test_suggestions() -> None:
    assert did_you_mean("lorra", ["full", "lora"]) == " (did you mean 'lora'?)"
    assert did_you_mean("xyz", ["full", "lora"]) == ""


def test_long_values_are_shortened() -> None:
    assert shorten("a") == "'a'"
    assert shorten(list(range(1000))).endswith("... (list)")
    assert len(shorten(list(range(1000)))) < 140


def test_help_names_every_setting() -> None:
    rows = {name: (default, text) for name, default, text in settings_help()}
    for prefix, schema in (("data.", DataConfig), ("training.", TrainingConfig)):
        assert {prefix + name for name in schema.model_fields} <= set(rows)
    assert rows["model"][0] == "required"
    assert all(text for _, text in rows.values())
