"""Mistakes with strategies, their settings, unlabelled data and comparisons: exit status 2, a message that says where, what and
what is allowed, and nothing left behind."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.builders import sentiment_rows
from tests.faults.test_bad_input import (
    CSV,
    GONE,
    SCORES,
    TRAIN,
    Case,
    command,
    finished_run,
    listing,
    prepare,
    row,
    set_dotted,
)
from tests.helpers.models import save_tiny

pytestmark = pytest.mark.process

UNLABELLED = "text\n" + "".join(f"{text}\n" for text, _ in sentiment_rows(40, 3)[20:])
PAIRS = "source\ttarget\n" + "".join(f"{text}\t{text[::-1]}\n" for text, _ in TRAIN)
ALONE = "text,label\nthe good film,positive\nthe bad film,negative\n"
OTHER = {"name": "other", "data": {"train": "train.csv", "validation_share": 0.25}, "task": "text_classification"}
TRANSLATION = {
    "data": {"train": "pairs.tsv"},
    "task": {"name": "translation", "source": "source", "target": "target", "target_vocabulary": 300},
}


def chosen(name: str, **settings: Any) -> dict[str, Any]:
    """A strategy as settings of a case."""
    return {"strategy": {"name": name, **settings}}


def many(*strategies: Any) -> dict[str, Any]:
    return {"strategy": list(strategies)}


def other(**changes: Any) -> dict[str, Any]:
    """A task beside the run's own; `data__train` changes `data.train`."""
    document = copy.deepcopy(OTHER)
    for name, value in changes.items():
        set_dotted(document, name.replace("__", "."), value)
    return document


def tasks(*documents: Any, **settings: Any) -> dict[str, Any]:
    return chosen("multitask", tasks=list(documents), **settings)


def peft(kind: str, **settings: Any) -> dict[str, Any]:
    return chosen("peft", type=kind, settings=settings)


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


def albert(path: Path) -> None:
    save_tiny("albert", path)


def unfinished(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("model: m\n")


def as_entailment(path: Path) -> None:
    """A bare encoder whose configuration speaks of labels."""
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    path.write_text(json.dumps(json.loads(path.read_text()) | labels))


def without_mask(path: Path) -> None:
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "mask_token"}))


def setting(name: str, value: Any, *says: str) -> Case:
    """One wrong value of a run's setting."""
    return Case(f"{name} {value}", says or (f"{name}: found {value!r}; allowed: ",), settings={name: value})


def own(strategy: str, name: str, value: Any, *says: str, **given: Any) -> Case:
    """One wrong value of a strategy's setting; `given` are what it needs besides."""
    expected = says or (f"strategy.{name}: found {value!r}; allowed: ",)
    return Case(f"{strategy} {name} {value}", expected, settings=chosen(strategy, **given, **{name: value}))


def compare(*more: str) -> tuple[str, ...]:
    return ("compare", "run.yaml", *more)


def compared(*strategies: str, says: tuple[str, ...]) -> Case:
    return Case(f"compare {' '.join(strategies)}", says, arguments=compare("--strategies", *strategies))


def flag(*words: str, says: tuple[str, ...], **settings: Any) -> Case:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return Case(f"compare {' '.join(words)[:40]}", says, settings=dotted, arguments=compare("--strategies", "full", *words))


USED = chosen("self_training")  # a strategy that uses text without labels
UNLABELLED_DATA = [
    Case("unlabelled missing", ("unlabeled.csv: there is no such file",), settings={"data.unlabelled": "unlabeled.csv", **USED}),
    Case(
        "unlabelled without the column",
        ("data.unlabelled: u.csv: there is no column 'text' (did you mean 'texts'?); found: texts",),
        {"u.csv": "texts\na\n"},
        {"data.unlabelled": "u.csv", **USED},
    ),
    Case(
        "unlabelled and train with an empty text",
        ("2 problems", "train.csv, row 3, column 'text': the cell is empty", "u.csv, row 3, column 'text': the cell is empty"),
        {"u.csv": 'text\na\n""\n', "train.csv": row(3, ",positive\n")},
        {"data.unlabelled": "u.csv", **USED},
    ),
    Case(
        "unlabelled without a text",
        ("u.jsonl, row 2, column 'text': found nothing; allowed: text",),
        {"u.jsonl": '{"text": "a"}\n{"text": null}\n'},
        {"data.unlabelled": "u.jsonl", **USED},
    ),
    Case(
        "unlabelled lines with a blank one",
        ("u.txt, row 2, column 'text': the cell is empty",),
        {"u.txt": "a\n\nb\n"},
        {"data.unlabelled": "u.txt", **USED},
    ),
    Case(
        "unlabelled lines for pairs",
        ("data.unlabelled: u.txt: there is no column 'other'; found: text",),
        {"u.txt": "a\n", "train.csv": "text,label,other\na,x,c\nb,y,d\na b,x,c\nb a,y,d\n"},
        {"data.unlabelled": "u.txt", **USED, "task.text_pair": "other"},
    ),
    Case(
        "unlabelled all known",
        ("data.unlabelled: each of its 16 rows also occurs in another split", "allowed: new texts"),
        {"u.csv": CSV},
        {"data.unlabelled": "u.csv", **USED},
    ),
    Case(
        "unlabelled header only", ("u.csv: has a header but no rows",), {"u.csv": "text\n"}, {"data.unlabelled": "u.csv", **USED}
    ),
    Case(
        "unlabelled ending",
        ("u.xls: found the file extension '.xls'", "allowed: .csv"),
        {"u.xls": "x"},
        {"data.unlabelled": "u.xls", **USED},
    ),
    setting("data.unlabelled", ["u.csv"]),
    setting("data.unlabelled", 5),
    setting("data.unlabeled", "u.csv", "data.unlabeled: unknown setting (did you mean 'unlabelled'?)"),
]

COMMON = [
    *(setting("data.shots", value) for value in (0, -1, "few", 1.5, True, [8])),
    *(setting("training.focal_gamma", value) for value in (-1, "strong", True, float("inf"))),
    *(setting("training.oversample", value) for value in ("balanceed", 0, 2, True, {})),
    setting("training.augment", 0.1, "training.augment: found 0.1; allowed: settings by name (drop, swap, mask, replace"),
    setting("training.augment", {"drop": 1}, "training.augment.drop: found 1; allowed: less than 1"),
    setting("training.augment", {"dorp": 0.1}, "training.augment.dorp: unknown setting (did you mean 'drop'?)"),
    setting("training.augment", {"drop": 0.5, "mask": 0.5}, "allowed: drop, mask and replace together below 1"),
    Case(
        "augment without a mask token",
        ("training.augment.mask: found 0.1", "no mask token"),
        {"base/tokenizer_config.json": without_mask},
        {"training.augment": {"mask": 0.1}},
    ),
    setting("task.head", "familly", "task.head: found 'familly'; allowed: ", "'family'"),
    setting("task.head", 5),
    setting("task.head", {"layers": "all"}, "task.head.layers: found 'all'; allowed: 'last' or 'mix'"),
    setting("task.head", {"normalize": "often"}, "task.head.normalize: found 'often'; allowed: a boolean"),
    setting("task.head", {"normalise": True}, "task.head.normalise: unknown setting (did you mean 'normalize'?)"),
    setting("task.head", {"family": True, "hidden": [8]}, "task.head.family: unknown setting; known here: dropout, hidden"),
    setting("task.head", {"hidden": [0]}, "task.head.hidden: found 0; allowed: greater than or equal to 1"),
    Case(
        "head of a translation",
        ("task.head: unknown setting", "known here: architecture"),
        {"pairs.tsv": PAIRS},
        {**TRANSLATION, "task.head": {"hidden": [8]}},
    ),
]

NOT_FOR_TRANSLATION: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("features", "few_shot", "prototypes", "zero_shot", "self_training")},
    "distill": {"teacher": "classifier"},
    "multitask": {"tasks": [OTHER]},
}
TASKS = [
    *(
        Case(
            f"{name} for translation",
            (f"strategy.name: found {name}",),
            {"pairs.tsv": PAIRS},
            {**TRANSLATION, **chosen(name, **more)},
        )
        for name, more in NOT_FOR_TRANSLATION.items()
    ),
    *(
        Case(
            f"{name} for regression",
            (f"strategy.name: found {name}",),
            {"train.csv": SCORES},
            {"task.name": "regression", **chosen(name)},
        )
        for name in ("prototypes", "zero_shot", "self_training")
    ),
    *(
        Case(
            f"{name} logistic for regression",
            ("strategy.classifier: found logistic_regression", "allowed: trained"),
            {"train.csv": SCORES},
            {"task.name": "regression", **chosen(name, classifier="logistic_regression")},
        )
        for name in ("features", "few_shot")
    ),
]

ALONES = [
    setting("strategy", "few-shot", "there is no strategy 'few-shot'", "did you mean 'few_shot'?"),
    setting("strategy", "l2sp", "there is no strategy 'l2sp'", "did you mean 'l2_sp'?"),
    own("features", "classifier", "logistic"),
    own("features", "cache", "ram"),
    own("features", "regularization", 0),
    own("features", "C", 1, "strategy.C: unknown setting; known here: cache, classifier, regularization"),
    own("bitfit", "biases", "some"),
    own("bitfit", "normalization", True, "strategy.normalization: unknown setting (did you mean 'normalisation'?)"),
    own("gradual_unfreezing", "layers_at_a_time", 0),
    own("gradual_unfreezing", "by", "epochs"),
    own("gradual_unfreezing", "patience", 0, by="plateau"),
    Case(
        "plateau without validation",
        ("strategy.by: found plateau", "there is no validation", "allowed: epoch"),
        settings={**chosen("gradual_unfreezing", by="plateau"), "data.validation_share": 0},
    ),
    *(
        Case(
            f"{name} of shared layers",
            (f"strategy.name: found {name}", "albert model shares one set of weights"),
            {"albert": albert},
            {**chosen(name), "model": "albert"},
        )
        for name in ("gradual_unfreezing", "layerwise_lr")
    ),
    *(own("layerwise_lr", "decay", value) for value in (0, 2, "slow", True)),
    own("l2_sp", "alpha", -1),
    own("l2_sp", "beta", "much"),
    own("few_shot", "group", 2),
    own("few_shot", "group", "all"),
    own("few_shot", "epochs", -1),
    own("few_shot", "temperature", 0),
    own("few_shot", "compare", "pairs"),
    own("few_shot", "labels", {"postive": "x"}, "strategy.labels: there is no label 'postive' (did you mean 'positive'?)"),
    own("few_shot", "labels", {"positive": ""}, "strategy.labels: found ''; allowed: text of at least 1 character"),
    own("few_shot", "labels", ["good"]),
    own("few_shot", "groups", 8, "strategy.groups: unknown setting (did you mean 'group'?)"),
    Case(
        "few_shot on a family's head",
        ("task.head: found family", "allowed: null"),
        settings={**chosen("few_shot"), "task.head": "family"},
    ),
    Case(
        "few_shot with averaged weights",
        ("training.ema: found 0.9", "allowed: null"),
        settings={**chosen("few_shot", classifier="logistic_regression"), "training.ema": 0.9},
    ),
    *(
        Case(
            f"{name} on a row a class",
            ("train.csv, row 2, column 'label': the only row with the label 'positive'", "allowed: two rows or more"),
            {"train.csv": ALONE},
            {**chosen(name), "data.validation_share": 0.25},
        )
        for name in ("few_shot", "prototypes")
    ),
    *(
        Case(
            f"{name} with a deep head",
            (f"found {found}", "task.head.hidden [8]", "allowed: no hidden layers"),
            settings={**chosen(name, **more), "task.head": {"hidden": [8], "normalize": True}},
        )
        for name, found, more in (
            ("prototypes", "prototypes", {}),
            ("zero_shot", "zero_shot", {}),
            ("features", "logistic_regression", {"classifier": "logistic_regression"}),
            ("few_shot", "logistic_regression", {"classifier": "logistic_regression"}),
        )
    ),
    own("prototypes", "metric", "cosine", "strategy.metric: unknown setting; known here: none"),
    own("zero_shot", "by", "nli"),
    *(own("zero_shot", "template", value, "allowed: text with one {}") for value in ("no gap", "{} and {}", "{label}", "")),
    own("zero_shot", "labels", {"postive": "x"}, "there is no label 'postive'", "known: negative, positive\n"),
    own("zero_shot", "scale", 0),
    own("zero_shot", "similarity", "high"),
    Case(
        "zero_shot without unit length",
        ("task.head: found normalize false", "allowed: normalize true, layers last"),
        settings={**chosen("zero_shot"), "task.head": {"pooling": "mean"}},
    ),
    Case(
        "zero_shot by a classifier of something else",
        ("strategy.by: found entailment; classifier", "negative, positive", "allowed: a model", "fine-tuned"),
        settings={**chosen("zero_shot", by="entailment"), "model": "classifier"},
    ),
    Case(
        "zero_shot by a model that only claims to entail",
        ("model: base has no weights for classifier", "Fine-tune it first"),
        {"base/config.json": as_entailment},
        chosen("zero_shot", by="entailment"),
    ),
    Case("self_training without texts", ("data.unlabelled: is required by self_training",), settings=chosen("self_training")),
    *(own("self_training", *pair) for pair in (("rounds", 0), ("confidence", 1), ("share", 0), ("balance", "maybe"))),
    own("self_training", "threshold", 0.9, "strategy.threshold: unknown setting", "known here: balance, confidence"),
]

PEFT = [
    setting("strategy", {"name": "peft", "type": "LORRA"}, "strategy.type: found 'LORRA'", "did you mean 'LORA'?"),
    setting("strategy", {"name": "peft", "type": ["LORA"]}, "strategy.type: found ['LORA']; allowed: text"),
    setting("strategy", {"name": "peft", "type": "LORA", "r": 8}, "strategy.r: unknown setting; known here: settings, type"),
    setting("strategy", {"name": "peft", "settings": "r=8"}, "strategy.settings: found 'r=8'; allowed: settings by name"),
    Case("peft unknown setting", ("strategy.settings: found", "LORA, which has no 'rank'"), settings=peft("LORA", rank=4)),
    *(
        Case(
            f"peft {name} {value}",
            (f"peft cannot put LORA with {{'{name}': {value!r}}}", "bert"),
            settings=peft("LORA", **{name: value}),
        )
        for name, value in (("r", "many"), ("r", 0), ("r", 2.5), ("lora_dropout", 2), ("bias", "some"))
    ),
    Case(
        "peft pattern that peft could not load again",
        ("strategy.settings: found {'target_modules': '(['}", "for target_modules", "allowed: "),
        settings=peft("LORA", target_modules="(["),
    ),
    Case(
        "peft target misspelt",
        ("strategy.settings.target_modules", "did you mean 'attention.self.query'?", "known: "),
        settings=peft("LORA", target_modules=["atention.self.query"]),
    ),
    *(
        Case(
            f"peft layers {value}",
            (f"strategy.settings.layers_to_transform: found {shown!r}; allowed: 0 to 1",),
            settings=peft("LORA", layers_to_transform=value),
        )
        for value, shown in (([7], 7), ("last", "last"), (1.5, 1.5))
    ),
    Case("peft moving ranks", ("strategy.type: found ADALORA", "allowed: methods of a fixed size"), settings=peft("ADALORA")),
    Case("peft head of its own", ("which has no 'modules_to_save'",), settings=peft("LORA", modules_to_save=["x"])),
    Case(
        "peft prompt before an own head",
        ("strategy.type: found PROMPT_TUNING", "allowed with this head: "),
        settings={**peft("PROMPT_TUNING"), "task.head": {"pooling": "mean"}},
    ),
    Case("peft long prompt", ("'num_virtual_tokens': 500",), settings=peft("PROMPT_TUNING", num_virtual_tokens=500)),
]

LISTS = [
    *(
        Case(f"{one} and {two}", (f"strategy: {one} and {two} both", what, "allowed: one of them"), settings=many(one, two))
        for one, two, what in (
            ("lora", "bitfit", "parameters"),
            ("features", "prototypes", "parameters"),
            ("peft", "lora", "parameters"),
            ("few_shot", "self_training", "phases"),
            ("gradual_unfreezing", "few_shot", "phases"),
        )
    ),
    *(Case(f"{name} twice", (f"strategy: {name}", "twice"), settings=many(name, name)) for name in ("l2_sp", "layerwise_lr")),
    Case("list with a number", ("strategy: found", "5", "allowed: settings by name"), settings=many("lora", 5)),
    Case("few_shot behind features", ("strategy: ", "few_shot", "strategy.cache: none"), settings=many("features", "few_shot")),
    Case(
        "augment with kept features",
        ("strategy.cache: features are computed once", "training.augment"),
        settings={**chosen("features"), "training.augment": {"drop": 0.1}},
    ),
    Case(
        "multitask on an adapter",
        ("strategy.1: multitask", "cannot be combined", "multitask alone"),
        settings=many("lora", tasks(OTHER)["strategy"]),
    ),
    Case(
        "adapter on a shortened student",
        ("strategy.student_layers: ", "adapter", "all layers", "null"),
        settings=many({"name": "distill", "teacher": "classifier", "student_layers": 1}, "lora"),
    ),
]

TEACHERS = [
    Case("nothing to distil", ("strategy: found {}; allowed: a teacher, or student_layers",), settings=chosen("distill")),
    Case(
        "no such teacher", ("strategy.teacher: there is no folder './nowhere'",), settings=chosen("distill", teacher="./nowhere")
    ),
    Case("teacher is the run itself", ("strategy.teacher: run cannot be opened",), settings=chosen("distill", teacher="run")),
    Case("teacher is a file", ("strategy.teacher: train.csv is a file",), settings=chosen("distill", teacher="train.csv")),
    Case(
        "teacher not tuned", ("strategy.teacher: base has no weights for classifier",), settings=chosen("distill", teacher="base")
    ),
    own("distill", "teacher", []),
    own("distill", "teacher", {"a": 1}),
    own("distill", "techer", "t", "strategy.techer: unknown setting (did you mean 'teacher'?)"),
    Case(
        "second teacher missing",
        ("strategy.teacher: there is no folder './nowhere'",),
        settings=chosen("distill", teacher=["classifier", "./nowhere"]),
    ),
    *(
        Case(id, says, {"t": made}, chosen("distill", teacher="t"))
        for id, says, made in (
            (
                "teacher of other labels",
                ("t does not know 'negative', 'positive' and also knows 'good'",),
                teacher("good", "bad"),
            ),
            ("teacher of more labels", ("t also knows 'neutral'; allowed: ",), teacher("positive", "negative", "neutral")),
            (
                "teacher of another task",
                ("strategy.teacher: t ", "regression", "single_label"),
                teacher("score", problem_type="regression"),
            ),
            ("teacher that is unfinished", ("strategy.teacher: the folder t ", "config.json", "config.yaml"), unfinished),
        )
    ),
    Case(
        "teacher without a tokenizer",
        ("strategy.teacher: t has no tokenizer",),
        {"t": teacher("positive", "negative"), "t/tokenizer.json": None, "t/tokenizer_config.json": None},
        chosen("distill", teacher="t"),
    ),
    Case(
        "teacher with a broken record",
        ("strategy.teacher: ", "t/nlp_transfer.json: cannot be read"),
        {"t": teacher("positive", "negative"), "t/nlp_transfer.json": "{"},
        chosen("distill", teacher="t"),
    ),
    Case(
        "states of another width",
        ("strategy.hidden: ", " t ", "width 16", "32"),
        {"t": narrow},
        chosen("distill", teacher="t", hidden=1),
    ),
    *(own("distill", *pair, teacher="classifier") for pair in (("alpha", 0), ("alpha", 2), ("temperature", 0), ("hidden", -1))),
    own("distill", "student_layers", 3, "strategy.student_layers: found 3; allowed: 1 to 2"),
    Case(
        "augment beside a teacher",
        ("training.augment: found {'drop': 0.1}", "strategy.teacher: null"),
        settings={**chosen("distill", teacher="classifier"), "training.augment": {"drop": 0.1}},
    ),
]

FIRST = "strategy.tasks.0"
SEVERAL = [
    Case("no further tasks", ("strategy.tasks: is required",), settings=chosen("multitask")),
    Case("further tasks empty", ("strategy.tasks: found []",), settings=tasks()),
    Case("further task is a word", (f"{FIRST}: found 'other'; allowed: settings by name",), settings=tasks("other")),
    Case("further tasks of one name", ("different names", "'other' appears twice"), settings=tasks(OTHER, OTHER)),
    Case("further task called own", ("different names", "'own' appears twice"), settings=tasks(other(name="own"))),
    Case(
        "further name with a slash",
        (f"{FIRST}.name: found 'a/b'; allowed: text that matches",),
        settings=tasks(other(name="a/b")),
    ),
    *(
        Case(f"further {n} missing", (f"{FIRST}.{n}: is required",), settings=tasks(other(**{n: GONE})))
        for n in ("name", "data", "task")
    ),
    Case("further train not given", ("strategy.tasks, other: data.train: is required",), settings=tasks(other(data__train=GONE))),
    Case(
        "further file missing",
        ("strategy.tasks, other: ", "tarin.csv: there is no such file (did you mean 'train.csv'?)"),
        settings=tasks(other(data__train="tarin.csv")),
    ),
    Case(
        "further validation missing",
        ("strategy.tasks, other: ", "valid.csv: there is no such file"),
        settings=tasks(other(data__validation="valid.csv")),
    ),
    Case(
        "further empty text",
        ("strategy.tasks, other: ", "o.csv, row 4, column 'text': the cell is empty"),
        {"o.csv": row(4, ",positive\n")},
        tasks(other(data__train="o.csv")),
    ),
    Case(
        "further shares",
        ("strategy.tasks, other: ", "data.validation_share: found 0.5 with test_share 0.6"),
        settings=tasks(other(data__validation_share=0.5, data__test_share=0.6)),
    ),
    Case(
        "further test twice",
        ("strategy.tasks, other: ", "data.test_share: found 0.2 together with data.test"),
        settings=tasks(other(data__test="train.csv", data__test_share=0.2)),
    ),
    Case("further unknown task", (f"{FIRST}.task: found 'topics'", "there is no task"), settings=tasks(other(task="topics"))),
    Case(
        "further unknown data setting",
        (f"{FIRST}.data.tset: unknown setting (did you mean 'test'?)",),
        settings=tasks(other(data__tset="a")),
    ),
    Case("further share of 1", (f"{FIRST}.data.validation_share: found 1",), settings=tasks(other(data__validation_share=1))),
    Case(
        "further translation",
        ("strategy.tasks, other: task: ", "head on an encoder", "allowed: classification and regression"),
        {"pairs.tsv": PAIRS},
        tasks(other(task=TRANSLATION["task"], data__train="pairs.tsv")),
    ),
    Case("weight of no task", ("strategy.weights: there is no task 'otter'",), settings=tasks(OTHER, weights={"otter": 2})),
    Case("weight 0", ("strategy.weights: found 0; allowed: greater than 0",), settings=tasks(OTHER, weights={"other": 0})),
    Case("sharing", ("strategy.sharing: found 'medium'; allowed: 'hard' or 'soft'",), settings=tasks(OTHER, sharing="medium")),
    Case("temperature 0", ("strategy.temperature: found 0",), settings=tasks(OTHER, temperature=0)),
    Case(
        "heads of two kinds",
        ("strategy.tasks: other has another kind of head",),
        settings=tasks(other(task={"name": "text_classification", "head": {"hidden": [8]}})),
    ),
    Case(
        "augment beside several tasks",
        ("training.augment: ", "multitask", "allowed: null"),
        settings={**tasks(OTHER), "training.augment": {"drop": 0.1}},
    ),
]

ONE_FLAG = ("whole numbers from", "each once")
COMPARISONS = [
    Case("compare nothing", ("Missing option '--strategies'",), arguments=compare()),
    Case("compare with an empty flag", ("--strategies: needs one or more values",), arguments=compare("--strategies")),
    Case("compare no file", ("Missing argument 'FILE'",), arguments=("compare", "--strategies", "full")),
    Case(
        "compare file missing",
        ("nowhere.yaml: there is no such file",),
        arguments=("compare", "nowhere.yaml", "--strategies", "full"),
    ),
    Case(
        "compare file behind the flags",
        ("Missing argument 'FILE', which precedes the flags",),
        arguments=("compare", "--strategies", "full", "run.yaml"),
    ),
    compared("lorra", says=("--strategies lorra: ", "there is no strategy 'lorra'", "did you mean 'lora'?")),
    compared("full", "{name: full}", says=("--strategies: found 'full' twice",)),
    compared("full", "5", says=("--strategies: found '5'; allowed: a name",)),
    compared("{frozen_layers: 1}", says=("--strategies: found '{frozen_layers: 1}'; allowed: a name",)),
    compared("{name: partial, frozen: 1}", says=("strategy.frozen: unknown setting (did you mean 'frozen_layers'?)",)),
    compared("full", "lora+bitfit", says=("--strategies lora+bitfit: strategy: lora and bitfit both", "parameters")),
    compared("full,lora", says=("there is no strategy 'full,lora'",)),
    compared("distill", says=("--strategies distill: strategy: found {}; allowed: a teacher",)),
    *(flag("--seeds", v, says=(f"--seeds: found '{v}'", *ONE_FLAG)) for v in ("x", "-1", "1.5", "5000000000", "0,1")),
    *(flag("--shots", v, says=(f"--shots: found '{v}'", *ONE_FLAG)) for v in ("0", "every", "8.5")),
    *(flag("--rates", v, says=(f"--rates: found '{v}'; allowed: numbers above 0",)) for v in ("0", "fast", "inf")),
    flag("--seeds", "1", "01", says=("--seeds: found '01' twice",)),
    flag("--shots", "all", "all", says=("--shots: found 'all' twice",)),
    flag(
        "--rates",
        "1",
        "2",
        says=("--rates: found no validation split",),
        data__validation_share=0,
        data__test_share=0.2,
    ),
    flag("--rates", "1", "4", says=("--rates: ", "found training.learning_rate 0.001"), training__learning_rate=1e-3),
    flag("--seeds", "0", says=("compare: found no rows to compare on", "data.test_share"), data__validation_share=0),
    flag("--output", "train.csv/c", says=("--output: train.csv/c cannot be written",)),
    flag("--output", "train.csv", says=("--output: train.csv cannot be written",)),
    flag("--output", "x" * 300, says=("--output: xxx", "cannot be written")),
    flag("--verbose", says=("--output: is required",), output_dir=GONE),
    Case(
        "compare in a run's folder",
        ("--output: r already holds config.yaml, result.json of a run",),
        {"r": finished_run},
        arguments=compare("--strategies", "full", "--output", "r"),
    ),
    flag("--training.epoch", "3", says=("training.epoch: unknown setting (did you mean 'epochs'?)",)),
    flag("--training.epochs", says=("--training.epochs: needs a value",)),
    flag("--trainng.epochs", "3", says=("trainng: unknown setting (did you mean 'training'?)",)),
    flag("--seed", "1", says=("seed: unknown setting",)),
    flag("--keep-models", "--task.max_length", "3.5", says=("task.max_length: found 3.5",)),
    flag("--seeds", "3", says=("training: found 'fast'; allowed: settings by name",), training="fast"),
    flag("--seeds", "4", says=("data: found 'train.csv'; allowed: settings by name",), data="train.csv"),
    flag("--seeds", "5", says=("data.train: is required",), data=GONE),
    flag("--seeds", "6", says=("model: there is no folder './nowhere'",), model="./nowhere"),
    flag("--seeds", "7", says=("tarin.csv: there is no such file",), data__train="tarin.csv"),
    Case(
        "compare with many mistakes",
        ("compare: 4 problems", "'lorra'", "--seeds: found 'x'", "--shots: found '0'", "--rates: found 'y'"),
        arguments=compare("--strategies", "lorra", "--seeds", "x", "--shots", "0", "--rates", "y"),
    ),
]

TABLE = [*UNLABELLED_DATA, *COMMON, *TASKS, *ALONES, *PEFT, *LISTS, *TEACHERS, *SEVERAL, *COMPARISONS]


@pytest.fixture(scope="module")
def models(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder, and a classifier that could teach; what it answers does not matter."""
    folder = tmp_path_factory.mktemp("models") / "classifier"
    save(folder, ("negative", "positive"), str(tiny["bert"]))
    return {"base": tiny["bert"], "classifier": folder}


@pytest.fixture
def place(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a good run, for a case to spoil."""
    monkeypatch.chdir(tmp_path)
    for name, folder in models.items():
        shutil.copytree(folder, name)
    Path("train.csv").write_text(CSV)
    return tmp_path


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id.replace(" ", "-"))
def test_mistake_is_reported_and_leaves_nothing(case: Case, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(case)
    before = listing(place)
    capfd.readouterr()  # what making the files said
    status = command(*case.arguments)
    out, said = capfd.readouterr()
    assert status == 2, said
    assert "Traceback" not in said
    assert [part for part in case.says if part not in said] == [], said
    assert listing(place) == before
    assert out == ""


def test_the_table_is_complete() -> None:
    assert len({case.id for case in TABLE}) == len(TABLE) > 150
    assert all(case.says and all(case.says) for case in TABLE)


def test_cache_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "train.csv"))
    prepare(Case("cache below a file", (), settings=chosen("features", cache="disk")))
    before = listing(place)
    assert command("train", "run.yaml") == 2
    said = capfd.readouterr().err
    assert f"strategy.cache: {place / 'train.csv'}/nlp_transfer/features cannot be written" in said
    assert "allowed: memory" in said
    assert listing(place) == before


def test_lines_of_text_are_unlabeled_rows(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A .txt file has no header: its first line is a row."""
    Path("u.txt").write_text(UNLABELLED)
    settings = {**chosen("self_training", rounds=1), "data.unlabelled": "u.txt", "training.max_steps": 1}
    prepare(Case("good", (), settings=settings))
    assert command("train", "run.yaml") == 0, capfd.readouterr().err
    assert "unlabelled: 21 rows" in capfd.readouterr().err


def test_more_shots_than_rows_use_all_rows(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(Case("good", (), settings={"data.shots": 1000, "training.max_steps": 1}))
    assert command("train", "run.yaml") == 0
    assert "12 of 12 rows kept, 1000 of each label (drawn with seed 0); 2 labels have fewer" in capfd.readouterr().err
