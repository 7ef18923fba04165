"""What is wrong with settings, and what was meant: suggestions, single values for lists, and what YAML makes of words."""

from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.run.document import parse_overrides, read_document
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings.base_settings import Settings
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.settings.validation import FOREIGN_NAMES, all_settings, suggest, validate
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems
from tests.builders import refused


def problems_of(schema: type[Settings], raw: Any, prefix: str = "") -> list[str]:
    validate(schema, raw, problems := Problems(), prefix)
    return problems.messages


def test_every_suggestion_is_a_setting_and_no_word_means_two() -> None:
    assert set(FOREIGN_NAMES) <= {name for name, _, _ in all_settings()}
    words = [word for words in FOREIGN_NAMES.values() for word in words.split()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("training.lr", "training.learning_rate"), ("learning_rate", "training.learning_rate"),
        ("lr", "training.learning_rate"), ("epochs", "training.epochs"), ("batch_size", "training.batch_size"),
        ("batch-size", "training.batch_size"), ("model_name_or_path", "model"), ("train_file", "data.train"),
        ("num_train_epochs", "training.epochs"), ("fp16", "training.precision"), ("lables", "task.labels"),
        ("data.batch_size", "training.batch_size"), ("warmup_ratio", "training.warmup"), ("lora_r", "strategy.r"),
        ("text", "task.text"), ("task.max_seq_length", "task.max_length"),
    ],
)  # fmt: skip
def test_a_setting_under_another_name_is_suggested(name: str, meant: str) -> None:
    assert f"'{meant}'" in suggest(name)
    document = {"model": "m", "data": {"train": "a.csv"}, "task": {"name": "text_classification"}, "output_dir": "x"}
    place, _, last = name.rpartition(".")
    document |= {place: {**document.get(place, {}), last: 1}} if place else {last: 1}  # type: ignore[dict-item]
    with refused(f"{name}: unknown setting", f"'{meant}'"):
        resolve(document)


def test_a_flag_without_a_value_is_suggested_too() -> None:
    with refused("--fp16", "'training.precision'"):
        parse_overrides(["--fp16"])
    with refused("--training.seed") as error:
        parse_overrides(["--training.seed"])
    assert "did you mean" not in str(error.value)


def test_a_single_value_is_a_list_of_one() -> None:
    assert TrainingConfig(trackers="tensorboard", hub_metrics="a/b").trackers == ["tensorboard"]  # type: ignore[arg-type]
    assert DataConfig(columns="text").columns == ["text"]  # type: ignore[arg-type]
    assert DataConfig(encoding="cp1252").encoding == "cp1252"
    assert task_from({"name": "text_classification", "labels": "a", "head": {"hidden": 8}}).labels == ["a"]  # type: ignore[attr-defined]
    assert task_from({"name": "multi_label", "label": "toxic"}).label == "toxic"  # type: ignore[attr-defined]
    assert task_from({"name": "text_classification", "labels": None}).labels is None  # type: ignore[attr-defined]
    target = [strategy_from({"name": "lora", "target_modules": value}).target_modules for value in ("all", "query")]  # type: ignore[attr-defined]
    assert target == ["all", ["query"]]
    further = {"name": "b", "data": {"train": "b.csv"}, "task": {"name": "text_classification"}}
    assert [part.name for part in strategy_from({"name": "multitask", "tasks": further}).tasks] == ["b"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("010", "010"), ("12:30", "12:30"), ("1_000", "1_000"), ("0x1F", "0x1F"), ("0b11", "0b11"), ("+1", "+1"),
        ("2024-01-01", "2024-01-01"), ("1e-4", "1e-4"), ("08", "08"), ("1.5", 1.5), ("-3", -3), (".5", 0.5), ("1.0e-05", 1e-5),
        ("0", 0), ("true", True), ("1_0.5", "1_0.5"),
    ],
)  # fmt: skip
def test_yaml_reads_numbers_as_a_person_does(text: str, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    found = read_document(tmp_path / "a.yaml")["x"]
    assert (found, type(found)) == (expected, type(expected))
    assert parse_overrides(["--x", text]) == [("x", expected)]


def test_text_that_spells_a_number_becomes_one() -> None:
    training = TrainingConfig(learning_rate="1e-4", seed="010", batch_size="1_000", warmup=".1")  # type: ignore[arg-type]
    assert (training.learning_rate, training.seed, training.batch_size, training.warmup) == (1e-4, 10, 1000, 0.1)
    assert problems_of(TrainingConfig, {"epochs": "12:30"})
    peft = strategy_from({"name": "peft", "type": "LORA", "settings": {"lora_dropout": "1e-1", "r": "010", "bias": "none"}})
    assert peft.settings == {"lora_dropout": 0.1, "r": 10, "bias": "none"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "NO", "null", "~"])
@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("strategy", "{name: zero_shot, labels: {WORD: a film}}"),
        ("strategy", "{name: few_shot, labels: {a: WORD}}"),
        ("task", "{name: text_classification, labels: [WORD, maybe]}"),
        ("task", "{name: text_classification, labels: {WORD: a}}"),
        ("task", "{name: text_classification, text: WORD}"),
        ("task", "{name: multi_label, label: [WORD]}"),
        ("task", "{name: translation, source_language: WORD, source: a}"),
        ("data", "{columns: [id, WORD]}"),
    ],
)
def test_words_that_yaml_converts_are_to_be_quoted(word: str, kind: str, document: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"x: {document.replace('WORD', word)}\n")
    raw = read_document(tmp_path / "a.yaml")["x"]
    if word in ("null", "~") and "source_language" in document:
        return  # null is allowed there
    if kind == "data":
        assert "quotes" in problems_of(DataConfig, raw, "data")[0]
        return
    with refused("quotes"):
        (task_from if kind == "task" else strategy_from)(raw)


def test_the_same_words_are_text_on_the_command_line() -> None:
    assert parse_overrides(["--task.label", "no"]) == [("task.label", "no")]
    assert TrainingConfig(gradient_checkpointing="yes").gradient_checkpointing is True  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "line", "column", "advice"),
    [
        ("model: a: b\n", 1, 9, "quotes"), ("model: a\n\tdata: b\n", 2, 1, "spaces"), ("model: @x\n", 1, 8, "quotes"),
        ("model: a\nmodel: b\n", 2, 1, "one of the two"), ("model: [a\ndata: }", 2, 5, "bracket"),
        ("model: 'a\n", 2, 1, "quote"), ("a: 1\nb:\n  c: 1\n d: 2\n", 4, 2, "same column"), ("model: *x\n", 1, 8, "quotes"),
        ("data: {train: a}\ntest: *.csv\n", 2, 8, "begins with *"),
    ],
)  # fmt: skip
def test_a_fault_in_yaml_names_its_place_and_what_to_do(text: str, line: int, column: int, advice: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with refused(f"a.yaml, line {line}, column {column}:", advice):
        read_document(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("schema", "raw", "facts"),
    [
        ("training", {"class_weights": True}, ("'balanced'", "settings by name", "null")),
        ("training", {"early_stopping": False}, ("a number", "null")),
        ("training", {"learning_rate": True}, ("a number", "'auto'")),
        ("strategy", {"name": "partial", "frozen_layers": False}, ("a number", "'all'", "'half'")),
        ("task", {"name": "text_classification", "labels": "good,bad"}, ('"[good, bad]"',)),
        ("data", {"columns": "text, label"}, ('"[text, label]"',)),
        ("task", {"name": "text_classification", "labels": ["good", ""]}, ("empty",)),
        ("task", {"name": "text_classification", "labels": ["good", " "]}, ("empty",)),
        ("strategy", {"name": "zero_shot", "labels": ["good", ""]}, ("empty",)),
        ("strategy", {"name": "zero_shot", "labels": {"good": "fine", "": "bad"}}, ("empty",)),
        ("data", {"delimiter": ";;"}, ("one character", "tab", "semicolon")),
    ],
)
def test_all_allowed_values_are_named(schema: str, raw: dict[str, Any], facts: tuple[str, ...]) -> None:
    facts = (list(raw)[-1], *facts)
    if schema in ("task", "strategy"):
        with refused(*facts):
            (task_from if schema == "task" else strategy_from)(raw)
    else:
        message = " ".join(problems_of(TrainingConfig if schema == "training" else DataConfig, raw, schema))
        assert [fact for fact in facts if fact not in message] == []


def test_a_list_may_hold_names_with_commas() -> None:
    assert DataConfig(columns=["a,b", "c"]).columns == ["a,b", "c"]
