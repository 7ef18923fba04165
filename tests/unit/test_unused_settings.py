"""Settings that would have no effect: every command takes exactly those of its table, and a run refuses or reports the others."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from nlp_transfer import fine_tune, load_predictor, load_translator
from nlp_transfer.cli import cli, recipe
from nlp_transfer.data.token_cache import cached_table
from nlp_transfer.data.tokens import Features
from nlp_transfer.data.unused_settings import unused_columns
from nlp_transfer.experiments.plan import PlannedRun, make_plan
from nlp_transfer.inference.model_evaluation import evaluate_model
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings import registry
from nlp_transfer.settings.applicability import COMMAND_SETTINGS, FORMAT, IDENTITY, NO_STEPS, command_settings, takes, usage
from nlp_transfer.settings.schema import RunConfig, TrainingConfig
from nlp_transfer.settings.validation import all_settings
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import task_from
from nlp_transfer.tasks.common.pretrained_head import prefer_head
from nlp_transfer.tasks.multi_label import MultiLabel
from nlp_transfer.training.optimizer import ineffective_strategies
from nlp_transfer.utils.errors import Problems, UserError
from tests.builders import opened, refused, rows, run, sentiment_rows, write
from tests.helpers.seq2seq_models import PAIRS, save_tiny_seq2seq

pytestmark = pytest.mark.model

KNOWN = sorted({name for name, _, _ in all_settings()})
ON_SAVED_MODELS = ("evaluate", "predict", "translate")
VALUES = {
    "data.columns": "[text, label]", "data.delimiter": ";", "data.quoting": "none", "data.encoding": "latin-1",
    "data.on_bad_rows": "skip",
}  # fmt: skip
ROOT = Path(__file__).parents[2]


def command(*arguments: object) -> None:
    cli.main([str(argument) for argument in arguments], standalone_mode=False)


def message(*arguments: object) -> str:
    """What a command that cannot work, at the latest for want of a model, complains of."""
    with pytest.raises((UserError, click.UsageError)) as error:
        command(*arguments)
    return str(error.value)


# Commands that work with a saved model


@pytest.mark.parametrize("command", ON_SAVED_MODELS)
def test_a_command_refuses_every_setting_outside_of_its_table(command: str, tmp_path: Path) -> None:
    """Before a model is looked for: the one that is named here does not exist."""
    source = write(tmp_path / "a.csv", sentiment_rows(4))
    files = () if command == "evaluate" else ("--input", source, "--output", tmp_path / "b.csv")
    needed = () if command != "evaluate" else ("--data.test", source)
    rejected = []
    for name in KNOWN:
        if name == "data.test" and command == "evaluate":
            continue
        said = message(command, tmp_path / "none", *files, *needed, f"--{name}", VALUES.get(name, "a.csv"))
        if "there is no folder" not in said:
            assert said.startswith((f"--{name}: has no effect on {command}", f"--{name.partition('.')[0]}: not a setting of"))
            rejected.append(name)
    taken = {name for name in KNOWN if name not in rejected}
    assert taken - set(IDENTITY) == set(command_settings(command)) - {"data.test"} | (taken & {"data.test"})


@pytest.mark.parametrize("name", ["data.train", "task.text", "training.seed", "output_dir"])
def test_push_takes_no_setting(name: str, tmp_path: Path) -> None:
    assert f"--{name}" in message("push", tmp_path, "me/model", f"--{name}", "x")


@pytest.mark.parametrize("command", sorted(COMMAND_SETTINGS))
def test_help_lists_exactly_the_settings_that_a_command_takes(command: str) -> None:
    flag = "--help-all" if takes(command, "training.epochs") else "--help"
    shown = CliRunner().invoke(cli, [command, flag], terminal_width=200).output
    listed = set(re.findall(r"^  --((?:data|task|strategy|training)\.\w+|model|output_dir|provenance) \[", shown, re.MULTILINE))
    assert listed == {name for name in KNOWN if takes(command, name)}


@pytest.mark.parametrize("name", registry.names("task"))
def test_commands_are_marked_alike_in_source_and_class(name: str) -> None:
    """Commands read the marker from the source, loaded models from the class."""
    used = {command: set(command_settings(command)) for command in ON_SAVED_MODELS}
    for setting in (task := registry.load("task", name)).model_fields:
        if (marker := usage(task, setting)) is not None:
            assert set(marker.commands) <= used.keys()
            assert set(marker.commands) <= {command for command in used if f"task.{setting}" in used[command]}


def test_the_table_names_settings_that_exist() -> None:
    named = {name.removeprefix("!") for names in COMMAND_SETTINGS.values() for name in names} | set(IDENTITY) | set(FORMAT)
    assert named - {"*"} <= set(KNOWN)
    others = {
        "precision",
        "attention",
        "hub_metrics",
        "process_timeout",
        "seed",
        "metrics",
        "callbacks",
    }  # used without optimizer steps as well
    assert NO_STEPS | others == set(TrainingConfig.model_fields)
    assert not NO_STEPS & others


@pytest.fixture(scope="module")
def tags(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-label model that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("tags")
    cells = [(text, text.split()[0], ("a", "b", "a|b", "")[i % 4]) for i, (text, _) in enumerate(sentiment_rows(24))]
    write(folder / "train.csv", cells, ("text", "other", "label"))
    data, training = {"train": folder / "train.csv"}, {"max_steps": 1, "batch_size": 8}
    return run(model=tiny["bert"], data=data, task="multi_label", training=training, output_dir=folder / "run").output_dir


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("translators")
    return {family: save_tiny_seq2seq(family, folder / family) for family in ("marian", "nllb", "marian-multilingual")}


@pytest.mark.parametrize(
    ("name", "value"), [("text", "other"), ("text_pair", "other"), ("max_length", 4), ("separator", "+"), ("threshold", 0.01)]
)
def test_what_predict_takes_changes_predictions(name: str, value: Any, tags: Path, tmp_path: Path) -> None:
    source = tags.parent / "train.csv"
    several = () if name == "threshold" else ("--task.threshold", 0.01)  # so that there is something to separate
    for output, more in (("a.csv", ()), ("b.csv", (f"--task.{name}", value))):
        command("predict", tags, "--input", source, "--output", tmp_path / output, "--precision", "fp32", *several, *more)
    assert (tmp_path / "a.csv").read_text() != (tmp_path / "b.csv").read_text()
    shown_here = {f"task.{setting}" for setting in ("text", "text_pair", "max_length", "separator", "threshold")}
    marked = {f"task.{name}" for name in MultiLabel.model_fields if "predict" in getattr(usage(MultiLabel, name), "commands", ())}
    assert shown_here | {"task.label_type"} == marked, "each is shown to have an effect"
    assert marked | set(FORMAT) <= set(command_settings("predict"))


@pytest.mark.parametrize(("name", "value"), [("label_type", "int"), ("label_format", "indicators")])
def test_columns_of_zeros_and_ones_have_neither_type_nor_format(name: str, value: str) -> None:
    task = task_from({"name": "multi_label", "label": ["a", "b"], name: value})
    task.fit(None, problems := Problems(), TrainingConfig())
    assert [message.startswith(f"task.{name}: has no effect") for message in problems.messages] == [True]


SUMMARY: list[dict[str, Any]] = [
    {"prefix": "dog "}, {"beams": 1}, {"beams": 2, "length_penalty": 9.0}, {"max_new_tokens": 2}, {"text": "other"},
    {"max_length": 8}, {"source_language": "fra_Latn"}, {"target_language": "fra_Latn"},
]  # fmt: skip


@pytest.mark.parametrize("changed", SUMMARY, ids=str)
def test_what_predict_takes_for_generated_text(changed: dict[str, Any], translators: dict[str, Path], tmp_path: Path) -> None:
    """Its effect is seen in what goes into the model and into the search, as the weights are random."""
    folder, texts = shutil.copytree(translators["nllb"], tmp_path / "model"), [" ".join(pair[0] for pair in PAIRS[:3])]
    saved = task_from({"name": "summarization", **NLLB}).document()
    (folder / "nlp_transfer.json").write_text(json.dumps({"settings": saved}))

    def seen(settings: dict[str, Any]) -> str:
        task: Any = load_predictor(folder, settings=settings).task
        sides, search = task.tokenizers, [task.beams, task.length_penalty, task.target_limit(9), task.longest_piece, task.text]
        return str([sides.source_ids(texts, task.max_length), sides.start, sides.forced, search])

    assert seen(changed) != seen({})


NLLB = {"source_language": "eng_Latn", "target_language": "deu_Latn"}


@pytest.mark.parametrize(
    "changed",
    [
        {"source_language": "fra_Latn"}, {"target_language": "fra_Latn"}, {"prefix": "dog "}, {"length_ratio": 0.2},
        {"max_length": 8}, {"longest_source": 6}, {"beams": 2, "length_penalty": 9.0}, {"source": "other"}, {"beams": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_translate_takes_changes_what_is_computed(changed: dict[str, Any], translators: dict[str, Path]) -> None:
    """Its effect is seen in what goes into the model and into the search, as the weights are random."""
    texts = [" ".join(pair[0] for pair in PAIRS[:3])]

    def seen(settings: dict[str, Any]) -> str:
        translator = load_translator(translators["nllb"], settings=NLLB | settings)
        task, sides = translator.task, translator.task.tokenizers
        search = [task.beams, task.length_penalty, task.target_limit(9), task.longest_piece, task.source]
        return str([sides.source_ids(texts, task.max_length), sides.start, sides.forced, search])

    assert seen(changed) != seen({})


@pytest.mark.parametrize(
    ("family", "settings", "unused"),
    [
        ("marian", {"target_language": "fr"}, "task.target_language"),
        ("marian", {"source_language": "en"}, "task.source_language"),
        ("marian", {"beams": 1, "length_penalty": 2.0}, "task.length_penalty"),
        ("marian", {"decoder_layers": 7}, "task.decoder_layers"),
        ("marian", {"warm_start": False}, "task.warm_start"),
        ("marian", {"target_tokenizer": "source"}, "task.target_tokenizer"),
        ("marian-multilingual", {"target_language": "fr", "source_language": "en"}, "task.source_language"),
        ("marian-multilingual", {"target_language": "fr"}, None),
        ("nllb", NLLB, None),
        ("marian", {"beams": 1, "prefix": "dog "}, None),
    ],
)
def test_a_translator_refuses_what_changes_no_translation(
    family: str, settings: dict[str, Any], unused: str | None, translators: dict[str, Path]
) -> None:
    if unused is None:
        load_translator(translators[family], settings=settings)
        return
    with refused() as error:
        load_translator(translators[family], settings=settings)
    assert str(error.value).startswith(f"{unused}: has no effect: ")


def test_a_target_language_decides_how_translations_are_scored(translators: dict[str, Path]) -> None:
    """So that `evaluate` takes it for a model of one direction, which `translate` does not."""
    predictor = load_predictor(translators["marian"], settings={"target_language": "zh"})
    assert "zh" in str(predictor.task.scorer.signatures())
    with refused("task.source_language"):
        load_predictor(translators["marian"], settings={"source_language": "zh"})


def test_a_predictor_refuses_what_was_settled_in_training(tags: Path) -> None:
    with refused("task.head: has no effect"):
        load_predictor(tags, settings={"head": {"hidden": [8]}})
    saved = json.loads((tags / "model" / "nlp_transfer.json").read_text())["settings"]
    assert load_predictor(tags, settings=saved).task.labels == ["a", "b"], "a task as it was saved changes nothing"


@pytest.mark.parametrize(
    ("ending", "used"),
    [
        (".csv", set(FORMAT)),
        (".tsv", set(FORMAT)),
        (".jsonl", {"data.encoding"}),
        (".txt", {"data.encoding"}),
        (".parquet", set()),
    ],
)
def test_how_a_file_is_read_is_refused_for_other_formats(ending: str, used: set[str], tmp_path: Path) -> None:
    source = tmp_path / f"a{ending}"
    write(source, {"text": ["a", "b"]})
    commands = [("predict", tmp_path / "none", "--input", source, "--output", tmp_path / "b.csv")]
    commands.append(("evaluate", tmp_path / "none", "--data.test", source))
    for command in commands:
        for name in FORMAT:
            said = message(*command, f"--{name}", VALUES.get(name, "latin-1"))
            assert said.startswith("model: there is no folder" if name in used else f"{name}: has no effect"), said


def test_numbers_have_no_probabilities(tiny: dict[str, Path], tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", [(text, i) for i, (text, _) in enumerate(sentiment_rows(8))])
    run(model=tiny["bert"], data={"train": source}, task="regression", training={"max_steps": 1}, output_dir=tmp_path / "run")
    said = message("predict", tmp_path / "run", "--input", source, "--output", tmp_path / "b.csv", "--probabilities")
    assert said.startswith("--probabilities: ")
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize("more", [("--task.longest_source", 8), ()])
def test_translate_says_why_texts_went_in_pieces(
    more: tuple[Any, ...], translators: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(f"{PAIRS[0][0]} {PAIRS[1][0]}\n")
    command(
        "translate", translators["marian"], "--input", tmp_path / "a.txt", "--output", tmp_path / "b.txt", "--beams", 1, *more
    )
    shown = capsys.readouterr().err
    assert ("task.longest_source" in shown) == ("in pieces" in shown) == bool(more)
    assert "in training" not in shown


def test_a_longest_source_above_the_longest_input_is_refused(translators: dict[str, Path]) -> None:
    with refused("task.longest_source: found 10000; allowed: up to task.max_length"):
        load_translator(translators["marian"], settings={"longest_source": 10_000})


# Runs

BASE: dict[str, Any] = {"model": "m", "data": {"train": "a.csv"}, "task": {"name": "text_classification"}, "output_dir": "run"}
TRANSLATION = {"name": "translation", "source": "a", "target": "b"}
OTHER = {"name": "other", "data": {"train": "b.csv"}, "task": "regression"}


def settings(**changes: Any) -> dict[str, Any]:
    """The base with other settings, `data__shots=8` for `data.shots`."""
    merged: dict[str, Any] = {name: dict(value) if isinstance(value, dict) else value for name, value in BASE.items()}
    for name, value in changes.items():
        part, _, setting = name.partition("__")
        merged[part] = merged.get(part, {}) | {setting: value} if setting else value
    return merged


REPORTED: list[tuple[dict[str, Any], set[str]]] = [
    ({"training__epochs": 2, "training__max_steps": 5}, {"training.epochs"}),
    ({"training__batch_size": 8, "training__batch_tokens": 512}, {"training.batch_size"}),
    ({"training__batch_size": 8, "training__batch_tokens": 512, "strategy": "few_shot"}, set()),
    ({"data__validation": "b.csv", "data__validation_share": 0.3}, {"data.validation_share"}),
    ({"data__validation": "b.csv", "data__group": "g"}, {"data.group"}),
    ({"data__group": "g"}, set()),
    ({"data__validation": "b.csv", "data__test_share": 0.1, "data__group": "g"}, set()),
    ({"data__train": "a.parquet", "data__delimiter": ";", "data__encoding": "latin-1"}, {"data.delimiter", "data.encoding"}),
    ({"data__train": "a.parquet", "data__test": "a.csv", "data__delimiter": ";"}, set()),
    ({"data__train": "a.jsonl", "data__columns": ["a"], "data__encoding": "latin-1"}, {"data.columns"}),
    ({"data__train": pd.DataFrame({"text": ["a"]}), "data__quoting": "none"}, {"data.quoting"}),
    ({"data__train": "org/name:config#train", "data__quoting": "none"}, {"data.quoting"}),
    ({"data__train": "org/name#train[:10%]", "data__quoting": "none"}, {"data.quoting"}),
    ({"data__train": "data/*", "data__quoting": "none"}, set()),
    ({"data__train": {"source": "a.en", "target": "a.de"}, "data__quoting": "none", "task": TRANSLATION}, {"data.quoting"}),
    ({"data__validation_share": 0, "training__best_metric": "accuracy"}, {"training.best_metric"}),
    ({"data__validation_share": 0, "training__evaluate_every": 5}, {"training.evaluate_every"}),
    ({"data__validation_share": 0, "task": TRANSLATION | {"translated_rows": 9}}, {"task.translated_rows"}),
    ({"task": TRANSLATION | {"beams": 1, "length_penalty": 2.0}}, {"task.length_penalty"}),
    ({"strategy": "prototypes", "training__warmup": 5, "training__ema": 0.9}, {"training.warmup", "training.ema"}),
    ({"strategy": "prototypes", "training__precision": "fp32", "training__seed": 3}, set()),
    ({"strategy": {"name": "features", "classifier": "logistic_regression"}, "training__epochs": 9}, {"training.epochs"}),
    ({"strategy": {"name": "features"}, "training__epochs": 9}, set()),
    (
        {"strategy": "zero_shot", "data__shots": 4, "training__class_weights": "balanced"},
        {"data.shots", "training.class_weights"},
    ),
    ({"strategy": "l2_sp", "training__weight_decay": 0.1}, {"training.weight_decay"}),
    ({"strategy": {"name": "l2_sp", "beta": 0}, "training__weight_decay": 0.1}, set()),
    ({"strategy": [{"name": "lora"}, {"name": "l2_sp"}], "training__weight_decay": 0.1}, {"training.weight_decay"}),
    ({"strategy": {"name": "gradual_unfreezing", "by": "plateau"}, "training__early_stopping": 3}, {"training.early_stopping"}),
    ({"strategy": {"name": "distill", "teacher": "t", "alpha": 1}, "training__focal_gamma": 2}, {"training.focal_gamma"}),
    ({"strategy": {"name": "distill", "teacher": "t"}, "training__focal_gamma": 2}, set()),
    ({"strategy": {"name": "few_shot", "classifier": "logistic_regression"}, "training__epochs": 2}, {"training.epochs"}),
    (
        {"strategy": {"name": "multitask", "tasks": [OTHER | {"data": {"train": "b.jsonl", "delimiter": ";"}}]}},
        {"strategy.tasks.0.data.delimiter"},
    ),
    ({"strategy": "self_training", "data__unlabelled": "u.txt"}, set()),
    ({"strategy": {"name": "zero_shot", "by": "entailment"}, "data__unlabelled": "u.txt"}, set()),
]


@pytest.mark.parametrize(("changes", "unused"), REPORTED, ids=lambda value: str(value)[:80] if isinstance(value, dict) else "")
def test_a_run_reports_what_has_no_effect(changes: dict[str, Any], unused: set[str]) -> None:
    assert set(resolve(settings(**changes)).unused) == unused


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data__unlabelled": "u.txt"}, "data.unlabelled"),
        ({"data__unlabelled": "u.txt", "strategy": ["lora", "layerwise_lr"]}, "data.unlabelled"),
        ({"data__unlabelled": "u.txt", "strategy": {"name": "distill", "student_layers": 1}}, "data.unlabelled"),
        ({"data__unlabelled": "u.txt", "strategy": "zero_shot"}, "data.unlabelled"),
        ({"strategy": {"name": "features", "regularization": 2}}, "strategy.regularization"),
        ({"strategy": {"name": "few_shot", "compare": "cosine", "temperature": 1}}, "strategy.temperature"),
        ({"strategy": {"name": "few_shot", "epochs": 0, "group": 8}}, "strategy.group"),
        ({"strategy": {"name": "few_shot", "learn_labels": False, "labels": {"a": "x"}}}, "strategy.labels"),
        ({"strategy": {"name": "few_shot", "learn_labels": False}, "task__text_pair": "b"}, "strategy.learn_labels"),
        ({"strategy": {"name": "gradual_unfreezing", "patience": 2}}, "strategy.patience"),
        ({"strategy": {"name": "partial", "frozen_layers": 0, "cache": "disk"}}, "strategy.cache"),
        ({"strategy": ["layerwise_lr", {"name": "partial", "frozen_layers": 0, "cache": "disk"}]}, "strategy.1.cache"),
        ({"strategy": {"name": "distill", "student_layers": 1, "alpha": 0.7}}, "strategy.alpha"),
        ({"strategy": {"name": "distill", "teacher": "t", "temperature": 3}, "task": "regression"}, "strategy.temperature"),
        ({"strategy": {"name": "zero_shot", "by": "entailment", "scale": 3}}, "strategy.scale"),
        ({"strategy": {"name": "zero_shot", "similarity": 0.5}}, "strategy.similarity"),
        ({"strategy": {"name": "multitask", "tasks": [OTHER], "tie": 1}}, "strategy.tie"),
        (
            {"strategy": {"name": "multitask", "tasks": [OTHER | {"data": {"train": "b.csv", "unlabelled": "u"}}]}},
            "strategy.tasks.0.data.unlabelled",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_refuses_what_its_strategy_rules_out(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(settings(**changes))
    assert str(error.value).startswith(("settings: 1 problem\n", f"{name}: "))
    assert f"{name}: has no effect: " in str(error.value)


def test_training_settings_do_not_matter_without_steps(
    train: Any, sentiment: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run's own document can be run again without a word about what it resolved."""
    other: dict[str, Any] = {
        "learning_rate": 0.5, "epochs": 7, "batch_size": 3, "warmup": 9, "class_weights": "balanced", "label_smoothing": 0.4,
        "dropout": 0.5, "attention_dropout": 0.5, "kernels": "plain", "gradient_checkpointing": True, "evaluate_every": 1,
    }  # fmt: skip
    runs = [
        train(data=sentiment | {"validation_share": 0.2}, strategy="prototypes", training=training, output_dir=tmp_path / str(i))
        for i, training in enumerate(({"max_steps": None}, other))
    ]
    assert runs[0].metrics == runs[1].metrics
    shown = capsys.readouterr().err
    assert shown.count("no effect: ") == 1
    assert all(f"training.{name}" in shown for name in other)
    fine_tune(tmp_path / "0" / "config.yaml", output_dir=str(tmp_path / "again"))
    assert "no effect" not in capsys.readouterr().err


def test_a_document_that_a_run_wrote_is_silent(train: Any, tmp_path: Path) -> None:
    train(training={"max_steps": 1, "batch_tokens": 512})
    assert resolve(tmp_path / "run" / "config.yaml").unused == {}
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["max_steps"] == 1


def test_compare_names_the_strategies_and_omits_the_setting(capsys: pytest.CaptureFixture[str]) -> None:
    raw = settings(
        data__unlabelled="u.txt", data__validation_share=0, data__test="t.csv", training__epochs=5, training__seed=7,
        training__best_metric="accuracy", strategy={"name": "bitfit", "biases": "all"},
    )  # fmt: skip
    plan, _ = make_plan(raw, ["full", "self_training", "prototypes"], [0], None, None)
    shown = capsys.readouterr().err
    lines = {line.split(" (")[0].removeprefix("no effect: "): line for line in shown.splitlines() if line}
    assert set(lines) == {"data.unlabelled", "training.epochs", "training.seed", "strategy.biases"}
    assert "full" in lines["data.unlabelled"]
    assert "prototypes" in lines["training.epochs"]
    assert "self_training" not in lines["data.unlabelled"]
    documents = {variant.label: plan.document(PlannedRun(variant, None, 0), Path("c")) for variant in plan.variants}
    assert [name for name, found in documents.items() if "unlabelled" in found["data"]] == ["self_training"]
    assert [name for name, found in documents.items() if "epochs" in found["training"]] == ["full", "self_training"]
    assert all(found["training"]["best_metric"] == "accuracy" for found in documents.values())
    for found in documents.values():
        assert set(resolve(found).unused) <= {"training.best_metric"}, "each run is accepted"


@pytest.mark.parametrize(
    ("strategies", "idle"),
    [
        (["features", "layerwise_lr"], {"strategy.1"}),
        ([{"name": "partial", "frozen_layers": "all"}, "layerwise_lr"], {"strategy.1"}),
        (["partial", "layerwise_lr"], {"strategy.1"}),  # of two layers one is frozen, and the upper one keeps the whole rate
        ([{"name": "partial", "frozen_layers": 0}, "layerwise_lr"], set()),
        (["prototypes", "l2_sp"], {"strategy.1"}),
        (["prototypes", {"name": "full", "head_scale": 3}], {"strategy.1"}),
        ([{"name": "full", "head_scale": 3}, "gradual_unfreezing"], {"strategy.0"}),
        (["gradual_unfreezing", {"name": "full", "head_scale": 3}], set()),
        (["lora", "layerwise_lr"], set()),
        ([{"name": "full", "head_scale": 3}, "layerwise_lr"], set()),
    ],
    ids=str,
)
def test_a_strategy_of_a_list_that_changes_nothing_is_found(strategies: list[Any], idle: set[str], tiny: dict[str, Path]) -> None:
    checkpoint = opened(tiny["bert"])
    strategy = strategy_from([{"name": part} if isinstance(part, str) else part for part in strategies])
    task = prefer_head(task_from({"name": "text_classification", "labels": ["a", "b"]}), strategy.traits.head)
    model = strategy.prepare_model(task.build_model(checkpoint, TrainingConfig()))
    assert set(ineffective_strategies(model, TrainingConfig(), strategy)) == idle


def test_tokens_that_cannot_be_cached_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    texts = rows({"text": ["a", "b"]})

    def encode(columns: Any) -> Features:
        return Features({"input_ids": [[1]] * len(columns["text"])}, {"input_ids": 0})

    for keep, reported in (("disk", True), ("auto", False), ("none", False)):
        cached_table(texts, encode, None, keep, "train")
        assert ("data.token_cache" in capsys.readouterr().err) == reported


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", "other"), ("text_pair", "other"), ("max_length", 4), ("separator", "+"), ("threshold", 0.99), ("label", "other")],
)
def test_what_evaluate_takes_changes_figures_or_what_is_read(name: str, value: Any, tags: Path) -> None:
    def figures(**settings: Any) -> Any:
        settings = {"threshold": 0.45, **settings}
        try:
            return evaluate_model(str(tags), {"data": {"test": str(tags.parent / "train.csv")}, "task": settings}, 8, "fp32")[0]
        except UserError as error:
            return str(error)

    assert figures(**{name: value}) != figures()


@pytest.mark.parametrize(
    ("source", "reported"),
    [("a.txt", ["task.label", "task.text"]), ({"source": "a.en", "target": "a.de"}, ["task.label", "task.text"]), ("a.csv", [])],
)
def test_names_of_columns_are_reported_for_sources_without_names(source: Any, reported: list[str]) -> None:
    task = task_from({"name": "multi_label", "text": "review", "label": "topics", "separator": ";"})
    task._changed.update({"text", "label", "separator"})
    lines = unused_columns(task, source)
    assert [name for name in ("task.label", "task.separator", "task.text") if name in str(lines)] == reported


def test_a_file_that_the_task_reads_has_names_of_columns(tmp_path: Path) -> None:
    for name, reported in (("a.conll", False), ("a.words", True)):
        (tmp_path / name).write_text("Ada B-person\n", encoding="utf-8")
        task = task_from({"name": "token_classification", "tokens": "words"})
        task._changed.add("tokens")
        assert ("task.tokens" in str(unused_columns(task, str(tmp_path / name)))) == reported


@pytest.mark.parametrize("flags", [["--resume", "must"], ["--push-to", "me/model"], ["--allow-hub-metrics"]])
def test_a_recipe_that_compares_refuses_flags_of_a_single_run(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(**BASE)
    with pytest.raises(SystemExit) as ended:
        recipe(config, flags, strategies=["full", "lora"])
    assert ended.value.code == 2
    assert f"{flags[0]}: has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_sets_nothing_without_an_effect(path: Path) -> None:
    settings = runpy.run_path(str(path))
    assert resolve(settings["config"]).unused == {}
