"""Mistakes with strategies, their settings, unlabelled data and comparisons."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.helpers.mistakes.case import CSV, SCORES, TRAIN, Case, row, set_dotted, setting, table, unknown
from tests.helpers.models import save_tiny

PAIRS = "source\ttarget\n" + "".join(f"{text}\t{text[::-1]}\n" for text, _ in TRAIN)
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


def as_entailment(path: Path) -> None:
    """A bare encoder whose configuration speaks of labels."""
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    path.write_text(json.dumps(json.loads(path.read_text()) | labels))


def without_mask(path: Path) -> None:
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "mask_token"}))


def option(strategy: str, name: str, value: Any, says: str = "", **needed: Any) -> Case:
    """One wrong value of a strategy's setting, beside the settings that it needs."""
    says = says or f"strategy.{name}: found {value!r}; allowed:"
    return Case(f"{strategy} {name} {value}", says, chosen(strategy, **needed, **{name: value}))


def unlabelled(id: str, name: str, content: str, says: str, **more: Any) -> Case:
    return Case(f"unlabelled {id}", says, {"data.unlabelled": name, "strategy": "self_training", **more}, {name: content})


NEED_CLASSES, NEED_VECTORS = ("prototypes", "zero_shot", "self_training"), ("features", "few_shot", "distill", "multitask")
NEEDS = dict.fromkeys(NEED_CLASSES, "a task whose rows have classes")
NEEDS |= dict.fromkeys(NEED_VECTORS, "a task that predicts from one vector per text")
REQUIRED: dict[str, dict[str, Any]] = {"distill": {"teacher": "classifier"}, "multitask": {"tasks": [OTHER]}}

TABLE: list[Case] = [
    Case("unlabelled missing", "unlabeled.csv: there is no such file",
        {"data.unlabelled": "unlabeled.csv", "strategy": "self_training"}),
    unlabelled("without the column", "u.csv", "texts\na\n",
        "data.unlabelled: u.csv: there is no column 'text' (did you mean 'texts'?); found: texts"),
    Case("unlabelled and train with an empty text",
        "2 problems … train.csv, row 3, column 'text': the cell is empty … u.csv, row 3, column 'text': the cell is empty",
        {"data.unlabelled": "u.csv", "strategy": "self_training"},
        {"u.csv": 'text\na\n""\n', "train.csv": row(3, ",positive\n")}),
    unlabelled("without a text", "u.jsonl", '{"text": "a"}\n{"text": null}\n',
        "u.jsonl, row 2, column 'text': found nothing; allowed: text"),
    unlabelled("lines with a blank one", "u.txt", "a\n\nb\n", "u.txt, row 2, column 'text': the cell is empty"),
    Case("unlabelled lines for pairs", "data.unlabelled: u.txt: there is no column 'other'; found: text",
        {"data.unlabelled": "u.txt", "strategy": "self_training", "task.text_pair": "other"},
        {"u.txt": "a\n", "train.csv": "text,label,other\na,x,c\nb,y,d\na b,x,c\nb a,y,d\n"}),
    unlabelled("all known", "u.csv", CSV,
        "data.unlabelled: each of its 16 rows also occurs in another split … allowed: new texts"),
    unlabelled("header only", "u.csv", "text\n", "u.csv: has a header but no rows"),
    unlabelled("ending", "u.xls", "x", "u.xls: found the file extension '.xls' … allowed: .csv"),
    setting("data.unlabelled", ["u.csv"]),
    setting("data.unlabelled", 5),
    unknown("data.unlabeled", "unlabelled"),
    *(setting("data.shots", value) for value in (0, -1, "few", 1.5, True, [8])),
    *(setting("training.focal_gamma", value) for value in (-1, "strong", True, float("inf"))),
    *(setting("training.oversample", value) for value in ("balanceed", 0, 2, True, {})),
    setting("training.augment", 0.1, "training.augment: found 0.1; allowed: settings by name (drop, swap, mask, replace"),
    setting("training.augment", {"drop": 1}, "training.augment.drop: found 1; allowed: less than 1"),
    Case("augment without a mask token", "training.augment.mask: found 0.1 … no mask token",
        {"training.augment": {"mask": 0.1}}, {"base/tokenizer_config.json": without_mask}),
    setting("task.head", "familly", "task.head: found 'familly'; allowed: … 'family'"),
    setting("task.head", 5),
    setting("task.head", {"layers": "all"}, "task.head.layers: found 'all'; allowed: 'last' or 'mix'"),
    setting("task.head", {"normalize": "often"}, "task.head.normalize: found 'often'; allowed: a boolean"),
    setting("task.head", {"normalise": True}, "task.head.normalise: unknown setting (did you mean 'normalize'?)"),
    setting("task.head", {"family": True, "hidden": [8]}, "task.head.family: unknown setting; known here: dropout, hidden"),
    setting("task.head", {"hidden": [0]}, "task.head.hidden: found 0; allowed: greater than or equal to 1"),
    Case("head of a translation", "task.head: unknown setting … known here: architecture",
        {**TRANSLATION, "task.head": {"hidden": [8]}}, {"pairs.tsv": PAIRS}),
    *(Case(f"{name} for translation",
        f"strategy.name: found {name} with the task translation, which predicts text; allowed: {allowed};",
        {**TRANSLATION, **chosen(name, **REQUIRED.get(name, {}))}, {"pairs.tsv": PAIRS}) for name, allowed in NEEDS.items()),
    *(table(f"{name} for regression", SCORES,
        f"strategy.name: found {name} with the task regression, which predicts number; allowed: {NEEDS[name]};",
        {"task.name": "regression", **chosen(name)}) for name in NEED_CLASSES),
    *(table(f"{name} logistic for regression", SCORES, "strategy.classifier: found logistic_regression … allowed: trained",
        {"task.name": "regression", **chosen(name, classifier="logistic_regression")}) for name in ("features", "few_shot")),
    setting("strategy", "few-shot", "there is no strategy 'few-shot' … did you mean 'few_shot'?"),
    setting("strategy", "l2sp", "there is no strategy 'l2sp' … did you mean 'l2_sp'?"),
    option("features", "classifier", "logistic"),
    option("features", "cache", "ram"),
    option("features", "regularization", 0),
    option("features", "C", 1, "strategy.C: unknown setting; known here: cache, classifier, regularization"),
    option("bitfit", "biases", "some"),
    option("bitfit", "normalization", True, "strategy.normalization: unknown setting (did you mean 'normalisation'?)"),
    option("gradual_unfreezing", "layers_at_a_time", 0),
    option("gradual_unfreezing", "by", "epochs"),
    option("gradual_unfreezing", "patience", 0, by="plateau"),
    Case("plateau without validation", "strategy.by: found plateau … there is no validation … allowed: epoch",
        {**chosen("gradual_unfreezing", by="plateau"), "data.validation_share": 0}),
    *(Case(f"{name} of shared layers", f"strategy.name: found {name} … albert model shares one set of weights",
        {**chosen(name), "model": "albert"}, {"albert": partial(save_tiny, "albert")})
        for name in ("gradual_unfreezing", "layerwise_lr")),
    *(option("layerwise_lr", "decay", value) for value in (0, 2, "slow", True)),
    option("l2_sp", "alpha", -1),
    option("l2_sp", "beta", "much"),
    option("few_shot", "group", 2),
    option("few_shot", "group", "all"),
    option("few_shot", "epochs", -1),
    option("few_shot", "temperature", 0),
    option("few_shot", "compare", "pairs"),
    option("few_shot", "labels", {"postive": "x"}, "strategy.labels: there is no label 'postive' (did you mean 'positive'?)"),
    option("few_shot", "labels", {"positive": ""}, "strategy.labels: found ''; allowed: text of at least 1 character"),
    option("few_shot", "labels", ["good"]),
    option("few_shot", "groups", 8, "strategy.groups: unknown setting (did you mean 'group'?)"),
    Case("few_shot on a family's head", "task.head: found family … allowed: null",
        {**chosen("few_shot"), "task.head": "family"}),
    Case("few_shot with averaged weights", "training.ema: found 0.9 … allowed: null",
        {**chosen("few_shot", classifier="logistic_regression"), "training.ema": 0.9}),
    *(table(f"{name} on a row a class", "text,label\nthe good film,positive\nthe bad film,negative\n",
        "allowed: two rows or more … train.csv, row 2, column 'label': the only row with the label 'positive'",
        {**chosen(name), "data.validation_share": 0.25}) for name in ("few_shot", "prototypes")),
    *(Case(f"{name} with a deep head",
        f"found {more.get('classifier', name)} … task.head.hidden [8] … allowed: no hidden layers",
        {**chosen(name, **more), "task.head": {"hidden": [8], "normalize": True}})
        for name, more in (
            ("prototypes", {}), ("zero_shot", {}), ("features", {"classifier": "logistic_regression"}),
            ("few_shot", {"classifier": "logistic_regression"}))),
    option("prototypes", "metric", "cosine", "strategy.metric: unknown setting; known here: none"),
    option("zero_shot", "by", "nli"),
    *(option("zero_shot", "template", value, f"strategy.template: found {value!r} … allowed: text with one {{}}")
        for value in ("no gap", "{} and {}", "{label}", "")),
    option("zero_shot", "labels", {"postive": "x"}, "there is no label 'postive' … known: negative, positive\n"),
    option("zero_shot", "scale", 0),
    option("zero_shot", "similarity", "high"),
    Case("zero_shot without unit length", "task.head: found normalize false … allowed: normalize true, layers last",
        {**chosen("zero_shot"), "task.head": {"pooling": "mean"}}),
    Case("zero_shot by a classifier of something else",
        "strategy.by: found entailment; classifier … negative, positive … allowed: a model … fine-tuned",
        {**chosen("zero_shot", by="entailment"), "model": "classifier"}),
    Case("zero_shot by a model that only claims to entail", "model: base has no weights for classifier … Fine-tune it first",
        chosen("zero_shot", by="entailment"), {"base/config.json": as_entailment}),
    Case("self_training without texts", "data.unlabelled: is required by self_training", chosen("self_training")),
    *(option("self_training", *pair) for pair in (("rounds", 0), ("confidence", 1), ("share", 0), ("balance", "maybe"))),
    option("self_training", "threshold", 0.9, "strategy.threshold: unknown setting … known here: balance, confidence"),
    setting("strategy", {"name": "peft", "type": "LORRA"}, "strategy.type: found 'LORRA' … did you mean 'LORA'?"),
    setting("strategy", {"name": "peft", "type": ["LORA"]}, "strategy.type: found ['LORA']; allowed: text"),
    setting("strategy", {"name": "peft", "type": "LORA", "r": 8}, "strategy.r: unknown setting; known here: settings, type"),
    setting("strategy", {"name": "peft", "settings": "r=8"}, "strategy.settings: found 'r=8'; allowed: settings by name"),
    Case("peft unknown setting",
        "strategy.settings: found … LORA, which has no 'rank'; known: … , r, … use_rslora", peft("LORA", rank=4)),
    *(Case(f"peft {name} {value}", f"peft cannot put LORA with {{'{name}': {value!r}}} … bert", peft("LORA", **{name: value}))
        for name, value in (("r", "many"), ("r", 0), ("r", 2.5), ("lora_dropout", 2), ("bias", "some"),
            ("target_modules", "nothing.like.that"))),
    Case("peft pattern that peft could not load again",
        "strategy.settings: found {'target_modules': '(['} … allowed: for target_modules:",
        peft("LORA", target_modules="([")),
    Case("peft target misspelt", "strategy.settings.target_modules … did you mean 'attention.self.query'? … known:",
        peft("LORA", target_modules=["atention.self.query"])),
    *(Case(f"peft layers {value}", f"strategy.settings.layers_to_transform: found {shown!r}; allowed: 0 to 1",
        peft("LORA", layers_to_transform=value)) for value, shown in (([7], 7), ("last", "last"), (1.5, 1.5))),
    Case("peft moving ranks", "strategy.type: found ADALORA … allowed: methods of a fixed size", peft("ADALORA")),
    Case("peft head of its own", "which has no 'modules_to_save'", peft("LORA", modules_to_save=["x"])),
    Case("peft prompt before an own head", "strategy.type: found PROMPT_TUNING … allowed with this head:",
        {**peft("PROMPT_TUNING"), "task.head": {"pooling": "mean"}}),
    Case("peft long prompt", "'num_virtual_tokens': 500", peft("PROMPT_TUNING", num_virtual_tokens=500)),
    *(Case(f"{one} and {two}", f"strategy: {one} and {two} both … {what} … allowed: one of them", many(one, two))
        for one, two, what in (
            ("lora", "bitfit", "parameters"), ("features", "prototypes", "parameters"), ("peft", "lora", "parameters"),
            ("bitfit", "partial", "parameters"), ("gradual_unfreezing", "lora", "parameters"),
            ("few_shot", "self_training", "phases"), ("gradual_unfreezing", "few_shot", "phases"))),
    Case("distill and gradual_unfreezing", "strategy: distill and gradual_unfreezing both … phases … allowed: one of them",
        many({"name": "distill", "teacher": "classifier"}, "gradual_unfreezing")),
    *(Case(f"{name} twice", f"strategy: {name} … twice", many(name, name)) for name in ("l2_sp", "layerwise_lr")),
    Case("list with a number", "strategy: found … 5 … allowed: settings by name", many("lora", 5)),
    Case("few_shot behind features", "strategy: … few_shot … strategy.cache: none", many("features", "few_shot")),
    Case("augment with kept features", "strategy.cache: features are computed once … training.augment",
        {**chosen("features"), "training.augment": {"drop": 0.1}}),
    Case("multitask on an adapter", "strategy.1: multitask … cannot be combined … multitask alone",
        many("lora", tasks(OTHER)["strategy"])),
    Case("prune beside lora", "strategy.0: prune cannot be combined … prune alone", many("prune", "lora")),
    option("prune", "width", 1),
    option("prune", "rows", 0),
    Case("prune a pretrained model", "strategy.name: found prune … not fine-tuned … First train with", chosen("prune")),
    Case("adapter on a shortened student", "strategy.student_layers: … adapter … all layers … null",
        many({"name": "distill", "teacher": "classifier", "student_layers": 1}, "lora")),
]  # fmt: skip
