"""Mistakes with teachers, several tasks and comparisons."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.helpers.mistakes.case import GONE, Case, finished_run, row
from tests.helpers.mistakes.strategies import OTHER, PAIRS, TRANSLATION, chosen, option, other, tasks
from tests.helpers.models import save_tiny

FIRST = "strategy.tasks.0"
ONE_FLAG = "whole numbers from … each once"


def save(path: Path, labels: tuple[str, ...], base: str = "base", **more: Any) -> None:
    torch.manual_seed(1)
    names = dict(enumerate(labels))
    model = AutoModelForSequenceClassification.from_pretrained(
        base, id2label=names, label2id={name: i for i, name in names.items()}, **more
    )
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)


def teacher(*labels: str, **more: Any) -> Callable[[Path], None]:
    return lambda path: save(path, labels, **more)


def narrow(path: Path) -> None:
    """A teacher of another width."""
    save_tiny("bert", Path("w"), hidden_size=16)
    save(path, ("negative", "positive"), "w")
    shutil.rmtree("w")


def unfinished(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("model: m\n")


def compare(*more: str) -> tuple[str, ...]:
    return ("compare", "run.yaml", *more)


def compared(says: str, *strategies: str) -> Case:
    return Case(f"compare {' '.join(strategies)}", says, run=compare("--strategies", *strategies))


def flag(says: str, *words: str, **settings: Any) -> Case:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return Case(f"compare {' '.join(words)[:40]}", says, dotted, run=compare("--strategies", "full", *words))


def distilled(id: str, says: str, made: Callable[[Path], None]) -> Case:
    return Case(id, says, chosen("distill", teacher="t"), {"t": made})


TABLE: list[Case] = [
    Case("nothing to distil", "strategy: found {}; allowed: a teacher, or student_layers", chosen("distill")),
    Case("no such teacher", "strategy.teacher: there is no folder './nowhere'", chosen("distill", teacher="./nowhere")),
    Case("teacher is the run itself", "strategy.teacher: run cannot be opened", chosen("distill", teacher="run")),
    Case("teacher is a file", "strategy.teacher: train.csv is a file", chosen("distill", teacher="train.csv")),
    Case("teacher not tuned", "strategy.teacher: base has no weights for classifier", chosen("distill", teacher="base")),
    option("distill", "teacher", []),
    option("distill", "teacher", {"a": 1}),
    option("distill", "techer", "t", "strategy.techer: unknown setting (did you mean 'teacher'?)"),
    Case("second teacher missing", "strategy.teacher: there is no folder './nowhere'",
        chosen("distill", teacher=["classifier", "./nowhere"])),
    distilled("teacher of other labels", "t does not know 'negative', 'positive' and also knows 'good'", teacher("good", "bad")),
    distilled("teacher of more labels", "t also knows 'neutral'; allowed:", teacher("positive", "negative", "neutral")),
    distilled("teacher of another task", "strategy.teacher: t … regression … single_label",
        teacher("score", problem_type="regression")),
    distilled("unfinished teacher", "strategy.teacher: the folder t … config.json … config.yaml", unfinished),
    Case("teacher without a tokenizer", "strategy.teacher: t has no tokenizer", chosen("distill", teacher="t"),
        {"t": teacher("positive", "negative"), "t/tokenizer.json": None, "t/tokenizer_config.json": None}),
    Case("teacher with a broken record", "strategy.teacher: … t/nlp_transfer.json: cannot be read",
        chosen("distill", teacher="t"), {"t": teacher("positive", "negative"), "t/nlp_transfer.json": "{"}),
    Case("states of another width", "strategy.hidden: … t … width 16 … 32", chosen("distill", teacher="t", hidden=1),
        {"t": narrow}),
    *(option("distill", name, value, teacher="classifier")
        for name, value in (("alpha", 0), ("alpha", 2), ("temperature", 0), ("hidden", -1))),
    option("distill", "student_layers", 3, "strategy.student_layers: found 3; allowed: 1 to 2"),
    Case("augment beside a teacher", "training.augment: found {'drop': 0.1} … strategy.teacher: null",
        {**chosen("distill", teacher="classifier"), "training.augment": {"drop": 0.1}}),
    Case("no further tasks", "strategy.tasks: is required", chosen("multitask")),
    Case("further tasks empty", "strategy.tasks: found []", tasks()),
    Case("further task is a word", f"{FIRST}: found 'other'; allowed: settings by name", tasks("other")),
    Case("further tasks of one name", "different names … 'other' appears twice", tasks(OTHER, OTHER)),
    Case("further task called own", "different names … 'own' appears twice", tasks(other(name="own"))),
    Case("further name with a slash", f"{FIRST}.name: found 'a/b'; allowed: text that matches", tasks(other(name="a/b"))),
    *(Case(f"further {n} missing", f"{FIRST}.{n}: is required", tasks(other(**{n: GONE}))) for n in ("name", "data", "task")),
    Case("further train not given", "strategy.tasks, other: data.train: is required", tasks(other(data__train=GONE))),
    Case("further file missing", "strategy.tasks, other: … tarin.csv: there is no such file (did you mean 'train.csv'?)",
        tasks(other(data__train="tarin.csv"))),
    Case("further validation missing", "strategy.tasks, other: … valid.csv: there is no such file",
        tasks(other(data__validation="valid.csv"))),
    Case("further empty text", "strategy.tasks, other: … o.csv, row 4, column 'text': the cell is empty",
        tasks(other(data__train="o.csv")), {"o.csv": row(4, ",positive\n")}),
    Case("further shares", "strategy.tasks, other: … data.validation_share: found 0.5 with test_share 0.6",
        tasks(other(data__validation_share=0.5, data__test_share=0.6))),
    Case("further test twice", "strategy.tasks, other: … data.test_share: found 0.2 together with data.test",
        tasks(other(data__test="train.csv", data__test_share=0.2))),
    Case("further unknown task", f"{FIRST}.task: found 'topics' … there is no task", tasks(other(task="topics"))),
    Case("further misspelled task", f"{FIRST}.task: found 'regresion' … did you mean 'regression'?",
        tasks(other(task="regresion"))),
    Case("further unknown task setting", f"{FIRST}.task.tetx: unknown setting (did you mean 'text'?)",
        tasks(other(task={"name": "regression", "tetx": 1}))),
    Case("further unknown data setting", f"{FIRST}.data.tset: unknown setting (did you mean 'test'?)",
        tasks(other(data__tset="a"))),
    Case("further share of 1", f"{FIRST}.data.validation_share: found 1", tasks(other(data__validation_share=1))),
    Case("further translation", "strategy.tasks, other: … multitask … translation … allowed: … one vector per text",
        tasks(other(task=TRANSLATION["task"], data__train="pairs.tsv")), {"pairs.tsv": PAIRS}),
    Case("weight of no task", "strategy.weights: there is no task 'otter'; known: own, other",
        tasks(OTHER, weights={"otter": 2})),
    Case("weight 0", "strategy.weights: found 0; allowed: greater than 0", tasks(OTHER, weights={"other": 0})),
    Case("sharing", "strategy.sharing: found 'medium'; allowed: 'hard' or 'soft'", tasks(OTHER, sharing="medium")),
    Case("temperature 0", "strategy.temperature: found 0", tasks(OTHER, temperature=0)),
    Case("heads of two kinds", "strategy.tasks: other has another kind of head",
        tasks(other(task={"name": "text_classification", "head": {"hidden": [8]}}))),
    Case("augment beside several tasks", "training.augment: … multitask … allowed: null",
        {**tasks(OTHER), "training.augment": {"drop": 0.1}}),
    Case("compare nothing", "Missing option '--strategies'", run=compare()),
    Case("compare with an empty flag", "--strategies: needs one or more values", run=compare("--strategies")),
    Case("compare no file", "Missing argument 'FILE'", run=("compare", "--strategies", "full")),
    Case("compare file missing", "nowhere.yaml: there is no such file", run=("compare", "nowhere.yaml", "--strategies", "full")),
    Case("compare file behind the flags", "Missing argument 'FILE', which precedes the flags",
        run=("compare", "--strategies", "full", "run.yaml")),
    compared("--strategies lorra: … there is no strategy 'lorra' … did you mean 'lora'?", "lorra"),
    compared("--strategies: found 'full' twice", "full", "{name: full}"),
    compared("--strategies: found '5'; allowed: a name", "full", "5"),
    compared("--strategies: found '{frozen_layers: 1}'; allowed: a name", "{frozen_layers: 1}"),
    compared("strategy.frozen: unknown setting (did you mean 'frozen_layers'?)", "{name: partial, frozen: 1}"),
    compared("--strategies lora+bitfit: strategy: lora and bitfit both … parameters", "full", "lora+bitfit"),
    compared("there is no strategy 'full,lora'", "full,lora"),
    compared("--strategies distill: strategy: found {}; allowed: a teacher", "distill"),
    *(flag(f"--seeds: found '{v}' … {ONE_FLAG}", "--seeds", v) for v in ("x", "-1", "1.5", "5000000000", "0,1")),
    *(flag(f"--shots: found '{v}' … {ONE_FLAG}", "--shots", v) for v in ("0", "every", "8.5")),
    *(flag(f"--rates: found '{v}'; allowed: numbers above 0", "--rates", v) for v in ("0", "fast", "inf")),
    flag("--seeds: found '01' twice", "--seeds", "1", "01"),
    flag("--shots: found 'all' twice", "--shots", "all", "all"),
    flag("--rates: found no validation split", "--rates", "1", "2", data__validation_share=0, data__test_share=0.2),
    flag("--rates: … found training.learning_rate 0.001", "--rates", "1", "4", training__learning_rate=1e-3),
    flag("compare: found no rows to compare on … data.test_share", "--seeds", "0", data__validation_share=0),
    flag("--output: train.csv/c cannot be written", "--output", "train.csv/c"),
    flag("--output: train.csv cannot be written", "--output", "train.csv"),
    flag("--output: xxx … cannot be written", "--output", "x" * 300),
    flag("--output: is required", "--verbose", output_dir=GONE),
    Case("compare in a run's folder", "--output: r already holds config.yaml, result.json of a run", files={"r": finished_run},
        run=compare("--strategies", "full", "--output", "r")),
    flag("training.epoch: unknown setting (did you mean 'epochs'?)", "--training.epoch", "3"),
    flag("--training.epochs: needs a value", "--training.epochs"),
    flag("trainng: unknown setting (did you mean 'training'?)", "--trainng.epochs", "3"),
    flag("--seed: unknown option of compare (did you mean '--seeds'?)", "--seed", "1"),
    flag("task.max_length: found 3.5", "--keep-models", "--task.max_length", "3.5"),
    flag("training: found 'fast'; allowed: settings by name", "--seeds", "3", training="fast"),
    flag("data: found 'train.csv'; allowed: settings by name", "--seeds", "4", data="train.csv"),
    flag("data.train: is required", "--seeds", "5", data=GONE),
    flag("model: there is no folder './nowhere'", "--seeds", "6", model="./nowhere"),
    flag("tarin.csv: there is no such file", "--seeds", "7", data__train="tarin.csv"),
    Case("compare with many mistakes",
        "compare: 4 problems … --shots: found '0' … --seeds: found 'x' … --rates: found 'y' … 'lorra'",
        run=compare("--strategies", "lorra", "--seeds", "x", "--shots", "0", "--rates", "y")),
]  # fmt: skip
