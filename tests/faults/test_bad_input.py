"""Bad input, through the command's own code path: exit status 2, a message that says where, what and what is allowed, and
nothing left behind."""

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer.cli import cli
from nlp_transfer.commands.exit_status import run_command
from tests.builders import sentiment_rows

pytestmark = pytest.mark.process

GONE = object()  # as a setting's value: the setting is left out
TRAIN = sentiment_rows(16)
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in TRAIN)  # rows 2 to 17
SCORES = "text,label\n" + "".join(f"{text},{i / 4}\n" for i, (text, _) in enumerate(TRAIN))
TOPICS = "text,label\n" + "".join(f"{text},{('a', 'b', 'a|b', '')[i % 4]}\n" for i, (text, _) in enumerate(TRAIN))
JSONL = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in TRAIN)
HUGE = "word " * 60_000


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        says: what the message must hold.
        files: written before the command; None: removed, a function: called with the path.
        settings: changes to the good run's document, by dotted name.
        arguments: the whole command line after `nlp-transfer`, where it is not `train run.yaml`.
        silent: what the message must not hold.
    """

    id: str
    says: tuple[str, ...]
    files: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("train", "run.yaml")
    silent: tuple[str, ...] = ()


def train(*more: str) -> tuple[str, ...]:
    return ("train", "run.yaml", *more)


def predict(*more: str, source: str = "train.csv", output: str = "answers.csv") -> tuple[str, ...]:
    return ("predict", "classifier", "--input", source, "--output", output, *more)


def evaluate(*more: str) -> tuple[str, ...]:
    return ("evaluate", "classifier", *more)


def row(number: int, line: str, good: str = CSV) -> str:
    """The good table with another line at `number`, counted as a person does."""
    lines = good.splitlines(keepends=True)
    lines[number - 1] = line
    return "".join(lines)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def finished_run(path: Path) -> None:
    path.mkdir()
    (path / "result.json").write_text('{"metrics": {}}')
    (path / "config.yaml").write_text("model: m\n")


def unfinished_run(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("model: another\ntraining: {epochs: 7}\n")


def classes(path: Path) -> None:
    path.mkdir()
    (path / "readme.md").write_text("no classes")


def parquet(path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": [1.0, float("nan")]}).to_parquet(path)


SETTINGS = [
    Case("yaml missing", ("nowhere.yaml", "there is no such file", "give a YAML file"), arguments=("train", "nowhere.yaml")),
    Case("yaml is a folder", ("folder", "no class folders"), {"folder": Path.mkdir}, arguments=("train", "folder")),
    Case("not yaml", ("run.yaml", "is not valid YAML", "line 2"), {"run.yaml": "model: [a\ndata: }"}),
    Case("yaml with an impossible date", ("task: is required",), {"run.yaml": "model: 2020-13-45\n"}),
    Case("yaml in another encoding", ("run.yaml", "cannot be read", "utf-8"), {"run.yaml": "model: é".encode("latin-1")}),
    Case("yaml key twice", ("run.yaml", "'model' is given twice", "line 2"), {"run.yaml": "model: a\nmodel: b\n"}),
    Case("yaml is a list", ("run.yaml", "['a']", "allowed: settings by name"), {"run.yaml": "- a\n"}),
    Case("yaml is empty", ("run.yaml", "found nothing", "allowed: settings by name"), {"run.yaml": ""}),
    Case("yaml key is a number", ("1: found", "allowed: names of settings"), {"run.yaml": "1: a\nmodel: m\n"}),
    Case("model not given", ("model: is required and was not given",), settings={"model": GONE}),
    Case("data not given", ("data.train: is required and was not given",), settings={"data": GONE}),
    Case("train not given", ("data.train: is required and was not given",), settings={"data.train": GONE}),
    Case("task not given", ("task: is required and was not given",), settings={"task": GONE}),
    Case("task without name", ("task.name: is required", "text_classification"), settings={"task": {"text": "text"}}),
    Case("task name is a number", ("task.name: found 5", "known: ", "regression"), settings={"task.name": 5}),
    Case("output_dir not given", ("output_dir: is required and was not given",), settings={"output_dir": GONE}),
    Case("output_dir empty", ("output_dir: found ''", "allowed: "), settings={"output_dir": ""}),
    Case("unknown setting at the top", ("modle: unknown setting (did you mean 'model'?)",), settings={"modle": "x"}),
    Case("unknown setting in data", ("data.tset: unknown setting (did you mean 'test'?)",), settings={"data.tset": "x"}),
    Case(
        "unknown setting in training",
        ("training.bach_size: unknown setting (did you mean 'batch_size'?)", "known here: ", "learning_rate"),
        settings={"training.bach_size": 8},
    ),
    Case("unknown setting in task", ("task.texts: unknown setting (did you mean 'text'?)",), settings={"task.texts": "text"}),
    Case(
        "unknown setting in head",
        ("task.head.poling: unknown setting (did you mean 'pooling'?)",),
        settings={"task.head": {"poling": "mean"}},
    ),
    Case(
        "unknown setting in strategy",
        ("strategy.rank: unknown setting", "known here: ", "target_modules"),
        settings={"strategy": {"name": "lora", "rank": 4}},
    ),
    Case(
        "unknown setting in a list of strategies",
        ("strategy.1.ranc: unknown setting",),
        settings={"strategy": ["full", {"name": "lora", "ranc": 4}]},
    ),
    Case(
        "unknown task",
        ("there is no task 'text_clasification'", "did you mean 'text_classification'?", "known: "),
        settings={"task.name": "text_clasification"},
    ),
    Case("unknown strategy", ("there is no strategy 'lorra'", "did you mean 'lora'?", "known: "), settings={"strategy": "lorra"}),
    Case("strategy is a number", ("strategy: found 5", "allowed: "), settings={"strategy": 5}),
    Case("strategy is an empty list", ("strategy: the list is empty", "known: "), settings={"strategy": []}),
    Case("share of 1", ("data.validation_share: found 1", "less than 1"), settings={"data.validation_share": 1}),
    Case("negative share", ("data.test_share: found -0.1", "greater than or equal to 0"), settings={"data.test_share": -0.1}),
    Case("batch size 0", ("training.batch_size: found 0", "greater than or equal to 1"), settings={"training.batch_size": 0}),
    Case(
        "not a number",
        ("training.learning_rate: found 'fast'", "'auto'", "a number"),
        settings={"training.learning_rate": "fast"},
    ),
    Case("infinite", ("training.learning_rate: found inf", "finite"), settings={"training.learning_rate": float("inf")}),
    Case(
        "unknown choice",
        ("training.schedule: found 'step'", "'linear', 'cosine', 'inverse_sqrt' or 'constant'"),
        settings={"training.schedule": "step"},
    ),
    Case("training is null", ("training: found None", "allowed: settings by name (epochs, "), settings={"training": None}),
    Case("data is a text", ("data: found 'train.csv'", "allowed: settings by name (train, "), settings={"data": "train.csv"}),
    Case(
        "train is a list",
        ("data.train: found ['train.csv']", "allowed: a path or glob"),
        settings={"data.train": ["train.csv"]},
        silent=("allowed: allowed",),
    ),
    Case("text is a list", ("task.text: found ['text']", "allowed: text"), settings={"task.text": ["text"]}),
    Case("delimiter of two characters", ("data.delimiter: found '||'", "one character"), settings={"data.delimiter": "||"}),
    Case("line break as delimiter", ("data.delimiter: found '\\n'", "line break", ";"), settings={"data.delimiter": "\n"}),
    Case("no encodings", ("data.encoding: found []", "at least 1 item"), settings={"data.encoding": []}),
    Case(
        "several problems at once",
        ("4 problems", "bach_size", "data.validation_share: found 2", "there is no task 'x'", "there is no strategy 'y'"),
        settings={"training.bach_size": 1, "data.validation_share": 2, "task.name": "x", "strategy": "y"},
    ),
    Case(
        "test and test_share",
        ("data.test_share: found 0.2 together with data.test", "one of the two"),
        settings={"data.test": "train.csv", "data.test_share": 0.2},
    ),
    Case(
        "shares of 1 together",
        ("data.validation_share: found 0.6 with test_share 0.4", "a sum below 1"),
        settings={"data.validation_share": 0.6, "data.test_share": 0.4},
    ),
    Case(
        "early stopping without validation",
        ("training.early_stopping", "needs a validation split"),
        settings={"training.early_stopping": 2, "data.validation_share": 0},
    ),
    Case(
        "unknown best_metric",
        ("training.best_metric: found 'f1_makro'", "did you mean 'f1_macro'?", "allowed: accuracy"),
        settings={"training.best_metric": "f1_makro"},
    ),
    Case(
        "best_metric of another task",
        ("training.best_metric: found 'pearson', which text_classification does not compute", "mcc"),
        settings={"training.best_metric": "pearson"},
    ),
    Case(
        "mcc of several labels",
        ("training.best_metric: found 'mcc', which multi_label does not compute", "f1_macro"),
        {"train.csv": TOPICS},
        {"task.name": "multi_label", "training.best_metric": "mcc"},
    ),
    Case(
        "class weights for a regression",
        ("training.class_weights", "a regression has no classes", "allowed: null"),
        {"train.csv": SCORES},
        {"task.name": "regression", "training.class_weights": "balanced"},
    ),
    Case(
        "focal loss for a regression",
        ("training.focal_gamma: found 2.0; a regression has no classes", "allowed: null"),
        {"train.csv": SCORES},
        {"task.name": "regression", "training.focal_gamma": 2.0},
    ),
    Case(
        "oversampling for a regression",
        ("training.oversample: found 'balanced'; a regression has no classes", "allowed: null"),
        {"train.csv": SCORES},
        {"task.name": "regression", "training.oversample": "balanced"},
    ),
    Case("negative gamma", ("training.focal_gamma", "found -1", "0"), settings={"training.focal_gamma": -1}),
    Case(
        "oversampling beyond balance",
        ("training.oversample: found 1.5; allowed: 'balanced'", "less than or equal to 1"),
        settings={"training.oversample": 1.5},
    ),
    Case(
        "augmentation that leaves nothing",
        ("training.augment: found {'drop': 0.5, 'mask': 0.5}", "drop, mask and replace together below 1"),
        settings={"training.augment": {"drop": 0.5, "mask": 0.5}},
    ),
    Case(
        "unknown augmentation",
        ("training.augment.dorp: unknown setting (did you mean 'drop'?)",),
        settings={"training.augment": {"dorp": 0.5}},
    ),
    Case(
        "label smoothing for a regression",
        ("training.label_smoothing: found 0.1", "a regression has no labels"),
        {"train.csv": SCORES},
        {"task.name": "regression", "training.label_smoothing": 0.1},
    ),
    Case(
        "class weights for an unknown label",
        ("training.class_weights: there is no label 'positiv'", "did you mean 'positive'?", "no weight for 'positive'"),
        settings={"training.class_weights": {"negative": 1, "positiv": 2}},
    ),
    Case(
        "negative class weight",
        ("training.class_weights", "found {'negative': -1, 'positive': 1}", "greater than 0"),
        settings={"training.class_weights": {"negative": -1, "positive": 1}},
    ),
    Case(
        "label twice in the schema",
        ("task.labels", "each label once", "'positive' appears twice"),
        settings={"task.labels": ["positive", "positive"]},
    ),
    Case("no labels in the schema", ("task.labels: found []", "at least 1 item"), settings={"task.labels": []}),
    Case("unquoted no in the schema", ("task.labels", "False", "put quotes around"), settings={"task.labels": [False, True]}),
    Case(
        "schema with a label that no row has",
        ("task.labels: no row of train has the label 'neutral'", "found in train: 'negative'"),
        settings={"task.labels": ["negative", "neutral", "positive"]},
    ),
    Case("text is the label column", ("task.label: found 'label', which is task.text as well",), settings={"task.text": "label"}),
    Case(
        "pair is the same column",
        ("task.text_pair: found 'text', which is task.text as well",),
        settings={"task.text_pair": "text"},
    ),
    Case("max_length 0", ("task.max_length: found 0", "greater than or equal to 1"), settings={"task.max_length": 0}),
    Case("max_length without room", ("task.max_length: found 2", "allowed: 3 to 64"), settings={"task.max_length": 2}),
    Case("max_length beyond the model", ("task.max_length: found 65", "64"), settings={"task.max_length": 65}),
    Case(
        "more frozen layers than there are",
        ("strategy.frozen_layers: found 9", "allowed: 0 to 2"),
        settings={"strategy": {"name": "partial", "frozen_layers": 9}},
    ),
    Case(
        "unknown target modules",
        ("strategy.target_modules", "'atention.self.query'", "did you mean 'attention.self.query'?", "known: "),
        settings={"strategy": {"name": "lora", "target_modules": ["atention.self.query"]}},
    ),
    Case(
        "no target modules",
        ("strategy.target_modules: found []", "at least 1 item"),
        settings={"strategy": {"name": "lora", "target_modules": []}},
    ),
    Case(
        "fp16 on a CPU", ("training.precision: found fp16", "allowed: auto, bf16, fp32"), settings={"training.precision": "fp16"}
    ),
    Case(
        "foreign metric not allowed",
        ("training.hub_metrics", "'rouge'", "--allow-hub-metrics"),
        settings={"training.hub_metrics": ["rouge"]},
    ),
    Case(
        "unknown tracker",
        ("training.trackers: found 'tensorbord'", "did you mean 'tensorboard'?", "allowed: "),
        settings={"training.trackers": ["tensorbord"]},
    ),
    Case(
        "tracker not installed",
        ("training.trackers: found 'dvclive', which is not installed",),
        settings={"training.trackers": ["dvclive"]},
    ),
    Case("output_dir below a file", ("output_dir: ", "train.csv", "cannot be written"), settings={"output_dir": "train.csv/run"}),
    Case("output_dir is a file", ("output_dir: train.csv cannot be written",), settings={"output_dir": "train.csv"}),
    Case("output_dir too long", ("output_dir: ", "cannot be written", "too long"), settings={"output_dir": "x" * 300}),
    Case("finished run", ("output_dir: run", "already holds a finished run", "give another output_dir"), {"run": finished_run}),
    Case("foreign model folder", ("output_dir: run already holds model",), {"run": Path.mkdir, "run/model": Path.mkdir}),
    Case(
        "unfinished run with other settings",
        (
            "output_dir: run holds an unfinished run with other settings",
            "model: 'another' before",
            "training.epochs: 7 before, 1.0 now",
        ),
        {"run": unfinished_run},
    ),
    Case(
        "unfinished run that cannot be read",
        ("run/config.yaml", "is not valid YAML"),
        {"run": Path.mkdir, "run/config.yaml": "a: ["},
    ),
    Case("flag without value", ("--training.epochs: needs a value",), arguments=train("--training.epochs")),
    Case("flag for a value", ("--training.epochs: needs a value",), arguments=train("--training.epochs", "--training.seed", "1")),
    Case(
        "flag for an unknown setting",
        ("training.epoch: unknown setting (did you mean 'epochs'?)",),
        arguments=train("--training.epoch", "5"),
    ),
    Case(
        "flag for a part of a number", ("--training.epochs.x: training.epochs is 1",), arguments=train("--training.epochs.x", "5")
    ),
    Case(
        "flag for a strategy that is not there",
        ("--strategy.3.r: found '3'", "allowed: a position from 0 to 1"),
        settings={"strategy": ["full", "lora"]},
        arguments=train("--strategy.3.r", "5"),
    ),
    Case("word instead of a flag", ("'epochs=5'", "allowed: settings by dotted name"), arguments=train("epochs=5")),
    Case("no file named", ("nlp-transfer train reviews.csv",), arguments=("train",)),
    Case("unknown command", ("No such command 'trian'",), arguments=("trian",)),
]

MODELS = [
    Case(
        "model folder without a model",
        ("model: the folder folder does not contain a model", "no config.json", "found: notes.txt"),
        {"folder": Path.mkdir, "folder/notes.txt": "x"},
        {"model": "folder"},
    ),
    Case("model is a file", ("model: train.csv is a file", "allowed: a folder"), settings={"model": "train.csv"}),
    Case(
        "model path missing",
        ("model: there is no folder './nowhere'", "allowed: a folder with a config.json, a hub id"),
        settings={"model": "./nowhere"},
    ),
    Case("model is a whole sentence", ("model: there is no folder", "allowed: "), settings={"model": "a model " * 60}),
    Case("model not on the hub", ("model: no/such-model cannot be opened",), settings={"model": "no/such-model"}),
    Case("model weights truncated", ("base/model.safetensors", "cannot be read", "75,720"), {"base/model.safetensors": truncate}),
    Case("model weights are not there", ("model: base cannot be loaded",), {"base/model.safetensors": None}),
    Case("model configuration broken", ("model: base cannot be opened",), {"base/config.json": '{"model_type": '}),
    Case("model configuration a list", ("model: base cannot be opened",), {"base/config.json": "[]"}),
    Case("model type unknown", ("model: base", "model_type", "martian"), {"base/config.json": '{"model_type": "martian"}'}),
    Case("no tokenizer", ("model: base has no tokenizer",), {"base/tokenizer.json": None, "base/tokenizer_config.json": None}),
    Case("tokenizer broken", ("model: base: tokenizer.json: cannot be read",), {"base/tokenizer.json": "{"}),
    Case(
        "wheel without a version",
        ("model: 'pypi:some-model#m'", "the version is missing", "pypi:NAME==VERSION#PATH"),
        settings={"model": "pypi:some-model#m"},
    ),
]

DATA = [
    Case("file missing", ("tarin.csv: there is no such file", "did you mean 'train.csv'?"), settings={"data.train": "tarin.csv"}),
    Case(
        "all files missing",
        ("data: 3 problems", "a.csv: there is no such file", "b.csv: there is", "c.csv: there is"),
        settings={"data.train": "a.csv", "data.validation": "b.csv", "data.test": "c.csv"},
    ),
    Case(
        "unknown ending",
        ("data.xls", "found the file extension '.xls'", "allowed: .csv, .tsv, .jsonl, .json, .parquet, .txt"),
        {"data.xls": "x"},
        {"data.train": "data.xls"},
    ),
    Case(
        "not on the hub",
        ("data.train: cannot load 'no/such-data' (split 'train')", "allowed: an existing file or folder"),
        settings={"data.train": "no/such-data"},
    ),
    Case(
        "no form of a source",
        ("data.train: there is no file or folder", "allowed: a file or glob"),
        settings={"data.train": "some words, many of them " * 20},
    ),
    Case(
        "wheel without a path",
        ("data.train: 'pypi:some-data==1.0'", "the path is missing"),
        settings={"data.train": "pypi:some-data==1.0"},
    ),
    Case("glob without matches", ("data.train: no file matches 'part-*.csv'",), settings={"data.train": "part-*.csv"}),
    Case(
        "one of many files broken",
        ("part-2.csv, row 3: found 1 cells", "part-3.csv: there is no column 'label'"),
        {"part-1.csv": CSV, "part-2.csv": "text,label\na,b\nc\n", "part-3.csv": "text\na\n"},
        {"data.train": "part-*.csv"},
    ),
    Case(
        "folder without classes",
        ("folder: found no class folders", "allowed: FOLDER/<class>/<file>.txt"),
        {"folder": classes},
        {"data.train": "folder"},
    ),
    Case(
        "file of a class empty",
        ("folder/a/1.txt, column 'text': the cell is empty",),
        {
            "folder": Path.mkdir,
            **{f"folder/{name}": Path.mkdir for name in "ab"},
            "folder/a/1.txt": "",
            "folder/a/2.txt": "x",
            "folder/b/1.txt": "y",
            "folder/b/2.txt": "z",
        },
        {"data.train": "folder"},
    ),
    Case(
        "file of a class in latin-1",
        ("folder/a/1.txt: byte 0xe9 is not utf-8", "set data.encoding"),
        {"folder": Path.mkdir, "folder/a": Path.mkdir, "folder/a/1.txt": "é".encode("latin-1")},
        {"data.train": "folder"},
    ),
    Case("empty file", ("train.csv: the file is empty", "allowed: "), {"train.csv": ""}),
    Case("header only", ("train.csv: has a header but no rows",), {"train.csv": "text,label\n"}),
    Case("blank header", ("train.csv, row 1: the line is blank", "allowed: a header"), {"train.csv": "\ntext,label\na,b\n"}),
    Case(
        "no header, names given",
        ("train.csv, row 1: found 2 cells; the header has 3", "text, label, more"),
        {"train.csv": "a,b\nc,d\n"},
        {"data.columns": ["text", "label", "more"]},
    ),
    Case(
        "missing column",
        ("data.train: train.csv: there is no column 'txt'", "did you mean 'text'?", "found: text, label"),
        settings={"task.text": "txt"},
    ),
    Case(
        "both columns missing", ("2 problems", "no column 'a'", "no column 'b'"), settings={"task.text": "a", "task.label": "b"}
    ),
    Case(
        "missing column in test",
        ("data.test: test.csv: there is no column 'label'",),
        {"test.csv": "text\na\n"},
        {"data.test": "test.csv"},
    ),
    Case("other separator", ("row 1", "'text;label'", "set data.delimiter: semicolon"), {"train.csv": CSV.replace(",", ";")}),
    Case("missing group column", ("there is no column 'author'",), settings={"data.group": "author"}),
    Case(
        "row without group",
        ("train.csv, row 3, column 'by': the cell is empty", "allowed: the group"),
        {"train.csv": row(3, "a b c,positive,\n", CSV.replace("\n", ",x\n").replace("label,x", "label,by"))},
        {"data.group": "by"},
    ),
    Case("column twice", ("train.csv: column 'text' occurs twice in the header",), {"train.csv": "text,text,label\na,b,c\n"}),
    Case("row too long", ("train.csv, row 4: found 3 cells; the header has 2 (text, label)",), {"train.csv": row(4, "a,b,c\n")}),
    Case("row too short", ("train.csv, row 5: found 1 cells; the header has 2",), {"train.csv": row(5, "a\n")}),
    Case("blank line", ("train.csv, row 6: the line is blank; remove it",), {"train.csv": row(6, "\n")}),
    Case("unclosed quote", ("train.csv, row 7 (up to line 17)", "set data.quoting: none"), {"train.csv": row(7, '"a,b\n')}),
    Case(
        "text after a quote",
        ("train.csv, row 7 (up to line 7)", "set data.quoting: none"),
        {"train.csv": row(7, '"a"b,positive\n')},
    ),
    Case(
        "ragged row and unclosed quote",
        ("row 3: found 1 cells", "row 17 (up to line 17)"),
        {"train.csv": row(17, '"a,b\n', row(3, "a\n"))},
    ),
    Case(
        "empty cell", ("train.csv, row 2, column 'text': the cell is empty; allowed: text",), {"train.csv": row(2, ",positive\n")}
    ),
    Case(
        "blank cell",
        ("train.csv, row 3, column 'text': the cell is empty; allowed: text",),
        {"train.csv": row(3, " \t ,positive\n")},
    ),
    Case(
        "broken rows of train and test together",
        ("data: 2 problems", "train.csv, row 4, column 'text'", "test.csv, row 2, column 'label': the label 'odd' is not known"),
        {"train.csv": row(4, ",positive\n"), "test.csv": "text,label\na b,odd\n"},
        {"data.test": "test.csv"},
    ),
    Case(
        "train unreadable, test as well",
        ("2 problems", "train.csv, row 4: found 1", "test.csv, row 2, column 'text'"),
        {"train.csv": row(4, "a\n"), "test.csv": "text,label\n,odd\n"},
        {"data.test": "test.csv"},
        silent=("'odd'",),
    ),
    Case(
        "more broken rows than are shown",
        ("30 problems", "row 2:", "row 21:", "... and 10 more"),
        {"train.csv": "text,label\n" + "a\n" * 30},
        silent=("row 22",),
    ),
    Case(
        "number instead of text",
        ("train.jsonl, row 17, column 'text': found 5 (int); allowed: text",),
        {"train.jsonl": JSONL + '{"text": 5, "label": "positive"}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "truth instead of text",
        ("train.jsonl, row 17, column 'text': found True (bool); allowed: text",),
        {"train.jsonl": JSONL + '{"text": true, "label": "positive"}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "nothing instead of text",
        ("train.jsonl, row 17, column 'text': found nothing; allowed: text",),
        {"train.jsonl": JSONL + '{"label": "positive"}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "line that is no JSON",
        ("train.jsonl, row 17: is not JSON",),
        {"train.jsonl": JSONL + "{text\n"},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "line that is a list",
        ("train.jsonl, row 17: found ['a'] (list)", "allowed: an object"),
        {"train.jsonl": JSONL + '["a"]\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "blank line of JSON",
        ("train.jsonl, row 17: the line is blank",),
        {"train.jsonl": JSONL + "\n{}\n"},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "half a character",
        ("train.jsonl, row 17: found \\ud83d, half of a character",),
        {"train.jsonl": JSONL + '{"text": "\\ud83d", "label": "positive"}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "Parquet that is none",
        ("train.parquet: cannot be read as Parquet",),
        {"train.parquet": CSV},
        {"data.train": "train.parquet"},
    ),
    Case(
        "Parquet with a lost label",
        ("train.parquet, row 2, column 'label': the label is missing",),
        {"train.parquet": parquet},
        {"data.train": "train.parquet"},
    ),
    Case(
        "latin-1 bytes",
        ("train.csv, row 3, column 'text': byte 0xe9 is not utf-8", "set data.encoding"),
        {"train.csv": row(3, "café,positive\n").encode("latin-1")},
    ),
    Case(
        "latin-1 bytes in the header",
        ("train.csv, row 1, column 'caf\\udce9'", "byte 0xe9 is not utf-8"),
        {"train.csv": "text,café\na,b\n".encode("latin-1")},
    ),
    Case(
        "byte that cp1252 has not",
        ("train.csv, row 3, column 'text': byte 0x81 is not cp1252",),
        {"train.csv": row(3, "caf\x81,positive\n").encode("latin-1")},
        {"data.encoding": "cp1252"},
    ),
    Case(
        "UTF-16 file",
        ("train.csv: ", "a byte order mark of UTF-16", "set data.encoding: utf-16"),
        {"train.csv": CSV.encode("utf-16")},
    ),
    Case(
        "no UTF-16 file", ("train.csv, at or after row 1", "set data.encoding"), {"train.csv": CSV}, {"data.encoding": "utf-16"}
    ),
    Case("unknown encoding", ("data.encoding: there is no encoding 'utf-9'", "cp1252"), settings={"data.encoding": "utf-9"}),
    Case("encoding of no text", ("data.encoding: there is no encoding 'rot13'",), settings={"data.encoding": "rot13"}),
    Case(
        "in none of the encodings",
        ("train.csv: is in none of the encodings given in data.encoding: utf-8, ascii",),
        {"train.csv": row(3, "café,positive\n").encode("latin-1")},
        {"data.encoding": ["utf-8", "ascii"]},
    ),
    Case(
        "label missing",
        ("train.csv, row 8, column 'label': the label is missing; allowed: one of 'negative', 'positive'",),
        {"train.csv": row(8, "a b c,\n")},
    ),
    Case(
        "no labels at all",
        ("row 2, column 'label': the label is missing; allowed: a label",),
        {"train.csv": "text,label\na,\nb,\n"},
    ),
    Case(
        "lost label",
        ("train.csv, row 8, column 'label': found 'nan', a missing value", "task.labels"),
        {"train.csv": row(8, "a b c,nan\n")},
    ),
    Case(
        "list as label",
        ("train.jsonl, row 17, column 'label': found the list ['positive']", "allowed: one label", "multi_label"),
        {"train.jsonl": JSONL + '{"text": "a", "label": ["positive"]}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "class with a single row",
        ("train.csv, row 9, column 'label': the only row with the label 'neutral'", "two rows or more"),
        {"train.csv": row(9, "a b c,neutral\n")},
    ),
    Case(
        "one class only",
        ("column 'label': every row has the label 'positive'", "at least two"),
        {"train.csv": CSV.replace("negative", "positive")},
    ),
    Case(
        "unknown label in test",
        ("test.csv, row 2, column 'label': the label 'postive' is not known", "did you mean 'positive'?"),
        {"test.csv": "text,label\na b,postive\n"},
        {"data.test": "test.csv"},
    ),
    Case(
        "label outside the schema",
        ("row 3, column 'label': the label 'positive' is not known", "allowed: 'bad', 'negative'"),
        settings={"task.labels": ["bad", "negative"]},
    ),
    Case(
        "share too small for a row",
        ("data.validation_share: 0.01 of 16 rows leaves no row for validation", "allowed: a larger share, 0"),
        settings={"data.validation_share": 0.01},
    ),
    Case(
        "target is no number",
        ("train.csv, row 4, column 'label': found 'much'; allowed: a finite number",),
        {"train.csv": row(4, "a b,much\n", SCORES)},
        {"task.name": "regression"},
    ),
    Case(
        "target missing",
        ("train.csv, row 4, column 'label': found nothing; allowed: a finite number",),
        {"train.csv": row(4, "a b,\n", SCORES)},
        {"task.name": "regression"},
    ),
    Case(
        "target infinite",
        ("train.csv, row 4, column 'label': found 'inf'; allowed: a finite number",),
        {"train.csv": row(4, "a b,inf\n", SCORES)},
        {"task.name": "regression"},
    ),
    Case(
        "target too large",
        ("train.csv, row 4, column 'label': found '1e300'; allowed: a finite number of at most 3.4e+38",),
        {"train.csv": row(4, "a b,1e300\n", SCORES)},
        {"task.name": "regression"},
    ),
    Case(
        "target too large an integer",
        ("train.jsonl, row 17, column 'label'", "allowed: a finite number"),
        {
            "train.jsonl": JSONL.replace('"negative"', "1").replace('"positive"', "2")
            + '{"text": "a", "label": 1'
            + "0" * 400
            + "}\n"
        },
        {"task.name": "regression", "data.train": "train.jsonl"},
    ),
    Case(
        "target constant",
        ("train, column 'label': every row has the same value", "two different numbers"),
        {"train.csv": "text,label\na,1\nb,1.0\nc,1\n"},
        {"task.name": "regression"},
    ),
    Case(
        "multi_label without a label",
        ("train, column 'label': no row has a label", "joined by '|'"),
        {"train.csv": "text,label\na,\nb,\n"},
        {"task.name": "multi_label"},
    ),
    Case(
        "multi_label with an object",
        ("train.jsonl, row 1, column 'label': found {'x': 1} (dict)", "allowed: a list of labels"),
        {"train.jsonl": '{"text": "a", "label": {"x": 1}}\n{"text": "b", "label": ["x", {}]}\n'},
        {"task.name": "multi_label", "data.train": "train.jsonl"},
    ),
    Case(
        "multi_label with an object in a list",
        ("train.jsonl, row 2, column 'label': found {} (dict)",),
        {"train.jsonl": '{"text": "a", "label": []}\n{"text": "b", "label": ["x", {}]}\n'},
        {"task.name": "multi_label", "data.train": "train.jsonl"},
    ),
    Case(
        "multi_label with the same label on all rows",
        ("every row has the label 'a'", "nothing to tell apart"),
        {"train.csv": "text,label\nx,a\ny,a|b\n"},
        {"task.name": "multi_label"},
    ),
    Case(
        "unknown label in a multi_label test",
        ("test.csv, row 2, column 'label': the label 'c' is not known", "allowed: 'a', 'b'"),
        {"train.csv": TOPICS, "test.csv": "text,label\nx y,a|c\n"},
        {"task.name": "multi_label", "data.test": "test.csv"},
    ),
]

ANSWERS = [
    Case("input missing", ("--input: there is no file nowhere.csv",), arguments=predict(source="nowhere.csv")),
    Case(
        "input of unknown ending",
        ("--input: found the file extension '.xls'", "allowed: .csv"),
        arguments=predict(source="data.xls"),
    ),
    Case(
        "input not named",
        ("--input: not given", "--input new.csv --output", '"a text"'),
        arguments=("predict", "classifier", "--output", "a.csv"),
    ),
    Case(
        "output of unknown ending",
        ("--output: found the file extension '.xlsx'", "allowed: .csv"),
        arguments=predict(output="a.xlsx"),
    ),
    Case(
        "output is the input",
        ("--output: train.csv is the input", "allowed: another file"),
        arguments=predict(output="train.csv"),
    ),
    Case(
        "output is there already",
        ("--output: test.csv already exists", "--overwrite"),
        {"test.csv": "precious\n"},
        arguments=predict(output="test.csv"),
    ),
    Case(
        "figures are there already",
        ("--output: figures.json already exists", "--overwrite"),
        {"figures.json": "precious\n"},
        arguments=evaluate("--data.test", "train.csv", "--output", "figures.json"),
    ),
    Case("output is a folder", ("--output: a.csv is a folder",), {"a.csv": Path.mkdir}, arguments=predict(output="a.csv")),
    Case("output below a file", ("--output: train.csv/a.csv cannot be written",), arguments=predict(output="train.csv/a.csv")),
    Case(
        "probabilities as text",
        ("--probabilities: a .txt file", "allowed: "),
        arguments=predict("--probabilities", output="a.txt"),
    ),
    Case(
        "input column missing",
        ("train.csv: there is no column 'review'", "found: text, label"),
        arguments=predict("--task.text", "review"),
    ),
    Case(
        "input column missing, new folder",
        ("there is no column 'review'",),
        arguments=predict("--task.text", "review", output="new/folder/a.csv"),
    ),
    Case(
        "answer column is there already",
        ("train.csv", "column 'prediction'", "rename it"),
        {"train.csv": "text,prediction\na,b\n"},
        arguments=predict(),
    ),
    Case(
        "column of two types",
        ("--output: a .parquet column has one type", "allowed: .jsonl"),
        {"in.jsonl": '{"text": "a", "id": 1}\n{"text": "a", "id": "x"}\n'},
        arguments=predict(source="in.jsonl", output="a.parquet"),
    ),
    Case(
        "longer than the model",
        ("--task.max_length: found 1000", "allowed: up to 64"),
        arguments=predict("--task.max_length", "1000"),
    ),
    Case(
        "another task",
        ("--task.name: found 'regression'", "allowed: 'text_classification'"),
        arguments=predict("--task.name", "regression"),
    ),
    Case(
        "other labels",
        ("--task.labels: found ['x', 'y']", "allowed: ['negative', 'positive']"),
        arguments=predict("--task.labels", "[x, y]"),
    ),
    Case(
        "setting of another command",
        ("--training: not a setting of this command", "allowed: --data.NAME"),
        arguments=predict("--training.epochs", "3"),
    ),
    Case(
        "predict with a bare encoder",
        ("model: base has no weights for classifier", "nlp-transfer train"),
        arguments=("predict", "base", "--input", "train.csv", "--output", "a.csv"),
    ),
    Case("batch size 0 for predict", ("--batch-size", "0 is not in the range"), arguments=predict("--batch-size", "0")),
    Case("evaluate without data", ("--data.test: is required",), arguments=evaluate()),
    Case("evaluate a missing file", ("nowhere.csv: there is no such file",), arguments=evaluate("--data.test", "nowhere.csv")),
    Case(
        "evaluate with unknown labels",
        ("2 problems", "test.csv, row 3, column 'label': the label 'odd' is not known", "row 4"),
        {"test.csv": "text,label\na,positive\nb,odd\nc,odd\n"},
        arguments=evaluate("--data.test", "test.csv"),
    ),
    Case(
        "evaluate without labels",
        ("test.csv: there is no column 'label'",),
        {"test.csv": "text\na\n"},
        arguments=evaluate("--data.test", "test.csv"),
    ),
    Case(
        "figures below a file",
        ("--output: train.csv/figures.json cannot be written",),
        arguments=evaluate("--data.test", "train.csv", "--output", "train.csv/figures.json"),
    ),
    Case(
        "figures of unknown ending",
        ("--output: found the file extension '.txt'", "allowed: .json"),
        arguments=evaluate("--data.test", "train.csv", "--output", "figures.txt"),
    ),
]

TABLE = [*SETTINGS, *MODELS, *DATA, *ANSWERS]


@pytest.fixture(scope="module")
def classifier(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier; what it answers does not matter."""
    folder = tmp_path_factory.mktemp("classifier") / "classifier"
    names = {0: "negative", 1: "positive"}
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny["bert"], id2label=names, label2id={name: i for i, name in names.items()}
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tiny: dict[str, Path], classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a good run, for a case to spoil."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny["bert"], "base")
    shutil.copytree(classifier, "classifier")
    Path("train.csv").write_text(CSV)
    return tmp_path


def good_run() -> dict[str, Any]:
    return {
        "model": "base",
        "data": {"train": "train.csv", "validation_share": 0.25},
        "task": {"name": "text_classification"},
        "training": {"epochs": 1, "precision": "fp32"},
        "output_dir": "run",
    }


def set_dotted(document: dict[str, Any], name: str, value: Any) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        document = document.setdefault(folder, {})
    if value is GONE:
        del document[last]
    else:
        document[last] = value


def put(path: Path, content: Any) -> None:
    if content is None:
        path.unlink()
    elif isinstance(content, Callable):  # type: ignore[arg-type]
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def prepare(case: Case, document: dict[str, Any] | None = None) -> None:
    """Writes `run.yaml`, a good document (null: `good_run`) with the case's settings in it, and the case's files."""
    document = copy.deepcopy(document or good_run())
    for name, value in case.settings.items():
        set_dotted(document, name, copy.deepcopy(value) if isinstance(value, (dict, list)) else value)
    Path("run.yaml").write_text(yaml.safe_dump(document))
    for name, content in case.files.items():
        put(Path(name), content)


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder, with the content's hash."""
    found = sorted(folder.rglob("*"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder" for path in found}


def command(*arguments: str) -> int:
    """The exit status of `nlp-transfer` with these arguments, run in this process."""
    try:
        run_command(lambda: cli.main(list(arguments), standalone_mode=False))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id.replace(" ", "-"))
def test_mistake_is_named_and_leaves_nothing(case: Case, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(case)
    before = listing(place)
    status = command(*case.arguments)
    out, said = capfd.readouterr()
    assert status == 2, said
    assert "Traceback" not in said
    assert [part for part in case.says if part not in said] == [], said
    assert [part for part in case.silent if part in said] == [], said
    assert listing(place) == before
    assert out == ""


def test_the_table_is_whole() -> None:
    """Every id names one case, and every case looks at the message."""
    assert len({case.id for case in TABLE}) == len(TABLE) > 120
    assert all(case.says and all(case.says) for case in TABLE)


def test_odd_but_good_input_trains(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A mark at the start, line ends of Windows, labels with spaces around them, a huge cell: none is a mistake."""
    table = row(3, f"{HUGE},positive \n").replace("\n", "\r\n")
    Path("train.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    prepare(Case("good", ()))
    assert command("train", "run.yaml", "--training.max_steps", "1") == 0, capfd.readouterr().err
    assert json.loads(Path("run/model/nlp_transfer.json").read_text())["labels"] == ["negative", "positive"]


def test_numbers_as_labels_train(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """JSON numbers are labels; in the schema of a YAML file as well."""
    Path("train.jsonl").write_text(JSONL.replace('"negative"', "0").replace('"positive"', "1"))
    prepare(
        Case("good", (), settings={"data.train": "train.jsonl", "task.labels": [0, 1], "training.class_weights": {0: 1, 1: 2}})
    )
    assert command("train", "run.yaml", "--training.max_steps", "1") == 0, capfd.readouterr().err
    assert json.loads(Path("run/model/nlp_transfer.json").read_text())["labels"] == ["0", "1"]


def test_foreign_metric_that_cannot_be_had(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_network(name: str) -> None:
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr("evaluate.load", no_network)
    prepare(Case("foreign metric", (), settings={"training.hub_metrics": ["rouge"]}))
    assert command("train", "run.yaml", "--allow-hub-metrics") == 2
    assert "training.hub_metrics: cannot load 'rouge' from the hub: the hub cannot be reached" in capfd.readouterr().err
    assert not Path("run").exists()


def test_exit_status_of_the_process(place: Path) -> None:
    """What a shell sees: 2 for a mistake, 0 for help."""
    run = [sys.executable, "-m", "nlp_transfer"]
    wrong = subprocess.run([*run, "train", "nowhere.yaml"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: nowhere.yaml: there is no such file")
    helped = subprocess.run([*run, "train", "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "--training.epochs" in helped.stdout


def test_crash_is_one_with_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def crash() -> None:
        raise RuntimeError("a fault of the program")

    with pytest.raises(SystemExit) as ended:
        run_command(crash)
    assert ended.value.code == 1
    assert "Traceback" in (said := capfd.readouterr().err)
    assert "a fault of the program" in said
