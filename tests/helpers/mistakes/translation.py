"""Mistakes in the data, settings and commands of translation."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoTokenizer

from tests.helpers.mistakes import case
from tests.helpers.mistakes.case import GONE, Case, setting, table, wrong
from tests.helpers.seq2seq_models import PAIRS

ENGLISH, GERMAN = ([pair[side] for pair in PAIRS[:16]] for side in (0, 1))
TSV = "source\ttarget\n" + "".join(f"{source}\t{target}\n" for source, target in zip(ENGLISH, GERMAN, strict=True))  # rows 2-17
JSONL = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in zip(ENGLISH, GERMAN, strict=True))
HUB_LIKE = "".join(json.dumps({"translation": dict(zip(("en", "de"), pair, strict=True))}) + "\n" for pair in PAIRS[:16])
SIDES = {"source": "train.en", "target": "train.de"}


def lines(texts: list[str], number: int = 0, line: str = "") -> str:
    """A side, with another line at `number`, counted from 1."""
    return "".join((line if i == number else text) + "\n" for i, text in enumerate(texts, start=1))


def translate(*more: str, model: str = "translator", source: str = "new.txt", output: str = "answers.txt") -> tuple[str, ...]:
    return ("translate", model, "--input", source, "--output", output, *more)


def decoder(id: str, name: str, says: str, files: dict[str, Any] | None = None) -> Case:
    """A decoder that has a tokenizer, and so a vocabulary, of its own."""
    return Case(id, says, {"task.decoder": name, "task.target_vocabulary": GONE}, files or {})


jsonl = partial(case.jsonl, good=JSONL)


def tsv(id: str, line: str, says: str) -> Case:
    return table(id, TSV + line, says, name="train.tsv")


def broken(path: Path) -> None:
    (path / "tokenizer.json").write_text('{"model": ')


def without_tokenizer(path: Path) -> None:
    shutil.copytree("base", path, ignore=shutil.ignore_patterns("tokenizer*"))


def of_another(path: Path) -> None:
    """A tokenizer that is whole, and not the one that the model was trained with."""
    AutoTokenizer.from_pretrained("base").save_pretrained(path)


VALID = {
    "model": "base",
    "data": {"train": SIDES, "validation_share": 0.25},
    "task": {"name": "translation", "target_vocabulary": 300},
    "training": {"max_steps": 1, "precision": "fp32"},
    "output_dir": "run",
}

TABLE: list[Case] = [
    Case("other numbers of lines", "train.en has 16 lines, train.de has 15 lines; allowed: the same number of lines",
        files={"train.de": lines(GERMAN[:-1])}),
    Case("one blank line too many", "train.en has 17 lines, train.de has 16 lines … allowed: the same number of lines",
        files={"train.en": lines(ENGLISH) + "\n"}),
    Case("a side is missing", "trian.de: there is no such file … did you mean 'train.de'?", {"data.train.target": "trian.de"}),
    Case("both sides are missing", "2 problems … nowhere.en: there is no such file … nowhere.de: there is no such file",
        {"data.train": {"source": "nowhere.en", "target": "nowhere.de"}}),
    Case("a side is a folder", "folder: is a folder; allowed: a file", {"data.train.target": "folder"}, {"folder": Path.mkdir}),
    Case("a side's name is too long", "x: cannot be read (File name too long)", {"data.train.target": "x" * 300}),
    Case("a side is an empty file", "train.de: the file is empty; allowed:", files={"train.de": ""}),
    Case("an empty line in the source",
        "train.en + train.de, row 5, column 'source': this side is empty; allowed: text (or remove the pair)",
        files={"train.en": lines(ENGLISH, 5)}),
    Case("a line of white space in the target", "train.en + train.de, row 16, column 'target': this side is empty",
        files={"train.de": lines(GERMAN, 16, " \t\u3000")}),
    Case("empty lines in train and test",
        "data: 2 problems … train.en + train.de, row 2, column 'source' … test.en + test.de, row 1, column 'target'",
        {"data.test": {"source": "test.en", "target": "test.de"}},
        {"train.en": lines(ENGLISH, 2), "test.en": "a dog\n", "test.de": "\n"}),
    Case("more empty lines than are shown", "30 problems … row 1, … row 20, … ... and 10 more",
        files={"train.en": "\n" * 30 + "a dog\n" * 30, "train.de": "ein Hund\n" * 60}, silent=("row 21,",)),
    Case("the same file twice", "data.train: train.en is given as both source and target … one file for each",
        {"data.train.target": "train.en"}),
    Case("the same text in two files",
        "train.en + train.de, row 1: source and target are the same text in this and in total 16 of 16 pairs … the wrong file",
        files={"train.de": lines(ENGLISH)}),
    Case("mostly the same text",
        "row 2: source and target are the same text in this and in total 60 of 100 pairs … allowed: a translation",
        files={"train.en": lines([f"one {i}" for i in range(100)]),
            "train.de": lines([f"{('eins', 'one')[0 < i < 61]} {i}" for i in range(100)])}),
    wrong("data.train", {"source": "train.en"}, "allowed: … {source: FILE, target: FILE}"),
    Case("a third side",
        "data.train: found {'pivot': 'train.fr', 'source': 'train.en', 'target': 'train.de'} … {source: FILE, target: FILE}",
        {"data.train": SIDES | {"pivot": "train.fr"}}),
    Case("a side called otherwise", "data.train: found {'de': 'train.de', 'en': 'train.en'} … {source: FILE, target: FILE}",
        {"data.train": {"en": "train.en", "de": "train.de"}}),
    Case("a side's name is empty", "data.train: found {'source': 'train.en', 'target': ''} … {source: FILE, target: FILE}",
        {"data.train.target": ""}),
    Case("a side is a list", "data.train: found {'source': 'train.en', 'target': ['train.de']} … {source: FILE, target: FILE}",
        {"data.train.target": ["train.de"]}),
    Case("aligned files for a classification",
        "data.train: found two line-aligned files … allowed: a table with the columns text, label",
        {"task": "text_classification"}),
    wrong("data.group", "document", "(data.train) … allowed: null, or a table"),
    Case("latin-1 in one side", "train.de, row 3 … byte 0xfc is not utf-8 … set data.encoding",
        files={"train.de": lines(GERMAN, 3, "über").encode("latin-1", "replace")}),
    Case("UTF-16 in one side", "train.de: … a byte order mark of UTF-16 … set data.encoding: utf-16",
        files={"train.de": lines(GERMAN).encode("utf-16")}),
    Case("UTF-16 without its mark in one side", "train.de", files={"train.de": lines(GERMAN).encode("utf-16-le")}),
    Case("no UTF-16 in one side", "train.en, at or after row 1 … set data.encoding", {"data.encoding": "utf-16"}),
    Case("in none of the encodings", "train.de: is in none of the encodings given in data.encoding: utf-8, ascii",
        {"data.encoding": ["utf-8", "ascii"]}, {"train.de": lines(GERMAN, 3, "über").encode("latin-1", "replace")}),
    table("no such column in a TSV", TSV,
        "data.train: train.tsv: there is no column 'sorce' … did you mean 'source'? … found: source, target",
        {"task.source": "sorce"}, name="train.tsv"),
    table("no such column in a JSONL", JSONL,
        "data.train: train.jsonl: there is no column 'traget' … did you mean 'target'? … found: source, target",
        {"task.target": "traget"}, name="train.jsonl"),
    Case("a table's name is too long", "x.tsv: cannot be read (File name too long)", {"data.train": "x" * 300 + ".tsv"}),
    table("text file for a table", lines(ENGLISH),
        "train.txt: there is no column 'source' … found: text … no column 'target'",
        name="train.txt"),
    Case("no such column in test", "data.test: test.tsv: there is no column 'target'",
        {"data.train": "train.tsv", "data.test": "test.tsv"}, {"train.tsv": TSV, "test.tsv": "source\na dog\n"}),
    jsonl("a number for a text", '{"source": "a dog", "target": 5}\n',
        "train.jsonl, row 17, column 'target': found 5 (int); allowed: text"),
    jsonl("an object for a text", json.dumps({"source": {"en": "x" * 5000}, "target": "ein Hund"}) + "\n",
        "train.jsonl, row 17, column 'source': found {'en': 'xxxx … (dict); allowed: text",
        silent=("x" * 200, "(dict) (dict)")),
    jsonl("null for a text", '{"source": null, "target": "ein Hund"}\n',
        "train.jsonl, row 17, column 'source': found nothing; allowed: text"),
    table("null on both sides of all rows", '{"source": null, "target": null}\n' * 10,
        "20 problems … row 10, column 'target': found nothing", name="train.jsonl", silent=("the same text",)),
    jsonl("a side is not there", '{"source": "a dog"}\n', "train.jsonl, row 17, column 'target': found nothing; allowed: text"),
    jsonl("a line that is no JSON", '{"source": "a dog", "target": "ein\n', "train.jsonl, row 17: is not JSON"),
    tsv("a row with three cells", "a dog\tein Hund\tun chien\n",
        "train.tsv, row 18: found 3 cells; the header has 2 (source, target)"),
    tsv("an empty cell", "a dog\t\n",
        "train.tsv, row 18, column 'target': this side is empty; allowed: text (or remove the pair)"),
    tsv("an open quote", '"a dog\tein Hund\n', "train.tsv, row 18 (up to line 18) … set data.quoting: none"),
    table("a language that no row has", HUB_LIKE,
        "data.train: train.jsonl: there is no column 'fr' … found: translation, en, de",
        {"task.source": "en", "task.target": "fr"}, name="train.jsonl"),
    table("a language that one row lacks", HUB_LIKE + '{"translation": {"en": "a dog"}}\n',
        "train.jsonl, row 17, column 'de': found nothing; allowed: text", {"task.source": "en", "task.target": "de"},
        name="train.jsonl"),
    table("a translation that is no object", HUB_LIKE + '{"translation": "a dog"}\n',
        "train.jsonl, row 17, column 'en': found nothing … row 17, column 'de': found nothing",
        {"task.source": "en", "task.target": "de"}, name="train.jsonl"),
    table("Parquet with a lost text", lambda path: pd.DataFrame({"source": ["a", "b"], "target": ["x", None]}).to_parquet(path),
        "train.parquet, row 2, column 'target': found nothing", name="train.parquet"),
    Case("share too small for a pair", "data.validation_share: 0.01 of 16 rows leaves no row for validation",
        {"data.validation_share": 0.01}),
    Case("source is the target column", "task.target: found 'text', which is task.source as well … allowed: another column",
        {"task.source": "text", "task.target": "text"}),
    setting("training.class_weights", "balanced",
        "training.class_weights: found 'balanced'; a translation has no classes … allowed: null"),
    Case("oversampling and focal loss",
        "training.focal_gamma: found 2.0; a translation has no classes … training.oversample: found 0.5; a translation",
        {"training.focal_gamma": 2.0, "training.oversample": 0.5}),
    Case("augmented sources", "training.augment: … allowed: null", {"training.augment": {"drop": 0.1}}),
    wrong("training.best_metric", "blue", "did you mean 'bleu'? … allowed: token_accuracy, bleu, chrf, loss"),
    setting("training.best_metric", "accuracy",
        "training.best_metric: found 'accuracy', which translation does not compute … allowed: token_accuracy"),
    Case("bleu without translations", "training.best_metric: found 'bleu' with task.translated_rows 0 … allowed: 1 or more",
        {"training.best_metric": "bleu", "task.translated_rows": 0}),
    Case("early stopping without validation", "training.early_stopping … needs a validation split",
        {"training.early_stopping": 2, "data.validation_share": 0}),
    Case("seq2seq for an encoder", "task.architecture: found seq2seq; base is … allowed: encoder_decoder",
        {"task.architecture": "seq2seq", "task.target_vocabulary": GONE}),
    Case("encoder_decoder for a seq2seq checkpoint", "task.architecture: found encoder_decoder; marian is … allowed: seq2seq",
        {"model": "marian", "task.architecture": "encoder_decoder"}),
    wrong("task.architecture", "seq2sec", "allowed: 'encoder_decoder' or 'seq2seq'"),
    Case("settings of an encoder_decoder for a seq2seq checkpoint",
        "task.decoder_layers: found 2 … task.target_vocabulary: found 300 … task.decoder: found 'new' … leave it out",
        {"model": "marian", "task.decoder_layers": 2, "task.decoder": "new"}),
    Case("languages that a model does not know", "task.source_language: found 'english' … ; allowed:",
        {"model": "nllb", "task": {"name": "translation", "source_language": "english", "target_language": "deu_Latn"}}),
    Case("languages that a model needs", "task.source_language: is required by this multilingual model",
        {"model": "nllb", "task": {"name": "translation"}}),
    decoder("decoder not there", "./nowhere", "task.decoder: … no folder './nowhere' … allowed:"),
    decoder("decoder without a model", "folder",
        "task.decoder: … the folder folder … no config.json … found: notes.txt",
        {"folder": Path.mkdir, "folder/notes.txt": "x"}),
    decoder("decoder is a file", "train.en", "task.decoder: … train.en is a file … allowed:"),
    decoder("decoder not on the hub", "no/such-model", "task.decoder: … no/such-model cannot be opened"),
    wrong("task.decoder", "", "at least 1 character"),
    decoder("decoder without cross-attention", "distilbert",
        "task.decoder: distilbert cannot be loaded … no ModelForCausalLM for distilbert models … allowed: a BERT, RoBERTa"),
    decoder("decoder is an encoder-decoder", "marian",
        "task.decoder: marian has no cross-attention … allowed: a BERT, RoBERTa"),
    Case("max_length beyond the decoder", "task.max_length: found 30; allowed: up to 16, the limit of short",
        {"task.decoder": "short", "task.max_length": 30, "task.target_vocabulary": GONE}),
    wrong("task.decoder_layers", 0, "greater than or equal to 1"),
    wrong("task.decoder_layers", -2, "greater"),
    Case("more decoder layers than the decoder has", "task.decoder_layers: found 9 … allowed: up to 2, the layers of base",
        {"task.decoder": "base", "task.decoder_layers": 9, "task.target_vocabulary": GONE}),
    Case("target tokenizer not there", "task.target_tokenizer: … no folder './nowhere'",
        {"task.target_tokenizer": "./nowhere", "task.target_vocabulary": GONE}),
    Case("target tokenizer without files", "task.target_tokenizer: … no tokenizer",
        {"task.target_tokenizer": "bare", "task.target_vocabulary": GONE}, {"bare": without_tokenizer}),
    wrong("task.target_vocabulary", 100, "greater than or equal to 259"),
    wrong("task.target_vocabulary", "large", "allowed: a whole number"),
    Case("target vocabulary and no trained tokenizer", "task.target_vocabulary: found 300 … 'source' … allowed: null",
        {"task.target_tokenizer": "source"}),
    wrong("task.max_length", 0, "greater than or equal to 1"),
    wrong("task.max_length", 2, "allowed: 3 to 64"),
    wrong("task.max_length", 65, "allowed: 3 to 64"),
    Case("prefix without room", "task.prefix: found 'the dog … of at most 64 … room for a text",
        {"task.prefix": "the dog " * 40}),
    wrong("task.longest_source", 2, "allowed: 3 or more"),
    wrong("task.beams", 0, "greater than or equal to 1"),
    wrong("task.length_ratio", 0, "greater than 0"),
    Case("infinite length_penalty", "task.length_penalty: found inf … finite", {"task.length_penalty": float("inf")}),
    wrong("task.translated_rows", -1, "greater than or equal to 0"),
    Case("unknown setting", "task.target_langauge: unknown setting (did you mean 'target_language'?) … known here: … beams",
        {"task.target_langauge": "de"}),
    Case("setting of another task", "task.label: unknown setting … known here:", {"task.label": "label"}),
    setting("task.warm_start", "maybe", "task.warm_start: found 'maybe'; allowed: a boolean\n"),
    Case("several mistakes at once",
        "4 problems … data.trian: unknown setting … task.decoder: found '' … task.beams: found 0 … task.sorce: unknown setting",
        {"task.beams": 0, "task.decoder": "", "task.sorce": "x", "data.trian": "x"}),
    Case("translate with a classifier", "classifier: is a text_classification model … nlp-transfer predict",
        run=translate(model="classifier")),
    Case("translate with a classifier and beams", "classifier: is a text_classification model … nlp-transfer predict",
        run=translate("--beams", "2", model="classifier")),
    Case("predict with a translation model", "translator: is a translation model … use nlp-transfer translate",
        run=("predict", "translator", "--input", "new.txt", "--output", "answers.txt")),
    Case("translate with an encoder", "model: base has no weights for", run=translate(model="base")),
    Case("translate with no model", "model: there is no folder './nowhere'", run=translate(model="./nowhere")),
    Case("input missing", "--input: there is no file nowhere.txt", run=translate(source="nowhere.txt")),
    Case("input of unknown ending", "--input: found the … '.docx' … allowed: .csv", run=translate(source="new.docx")),
    Case("input empty", "new.txt: the file is empty", files={"new.txt": ""}, run=translate()),
    Case("output of unknown ending", "--output: found the … '.doc' … allowed: .csv", run=translate(output="a.doc")),
    Case("output is the input", "--output: new.txt is the input … allowed: another file", run=translate(output="new.txt")),
    Case("output is the input by another name", "--output: other.txt is the input",
        files={"other.txt": lambda path: path.symlink_to("new.txt")}, run=translate(output="other.txt")),
    Case("output's name is too long", "--output: xxx … too long", run=translate(output="x" * 300 + ".txt")),
    Case("input's name is too long", "--input: xxx … too long", run=translate(source="x" * 300 + ".txt")),
    Case("output is a folder", "--output: a.txt is a folder", files={"a.txt": Path.mkdir}, run=translate(output="a.txt")),
    Case("output below a file", "--output: new.txt/a.txt cannot be written", run=translate(output="new.txt/a.txt")),
    Case("input column missing", "new.tsv: there is no column 'source' … found: sauce, target",
        files={"new.tsv": "sauce\ttarget\nx\ty\n"}, run=translate(source="new.tsv")),
    Case("input column missing, new folder", "new.tsv: there is no column 'english'", files={"new.tsv": TSV},
        run=translate("--task.source", "english", source="new.tsv", output="new/folder/a.tsv")),
    Case("answer column is there already", "new.tsv … column 'translation' … rename it",
        files={"new.tsv": "source\ttranslation\nx\ty\n"}, run=translate(source="new.tsv")),
    Case("answer column comes late", "new.jsonl … column 'translation' … rename it",
        files={"new.jsonl": '{"source": ""}\n' * 1024 + '{"source": "a", "translation": "b"}\n'},
        run=translate(source="new.jsonl")),
    Case("UTF-16 to translate", "new.txt: … a byte order mark of UTF-16 … set data.encoding: utf-16",
        files={"new.txt": "a dog\n".encode("utf-16")}, run=translate()),
    Case("a prefix without room for translate",
        "task.longest_source: found 1 … the prefix and the special tokens alone are 82 … allowed: 83 or more",
        run=translate("--task.prefix", "the dog " * 40)),
    Case("no beams for translate", "--beams … 0 is not in the range", run=translate("--beams", "0")),
    Case("beams in words", "--beams … 'many' is not a valid integer", run=translate("--beams", "many")),
    Case("no beams by its setting", "task.beams: found 0 … greater than or equal to 1", run=translate("--task.beams", "0")),
    Case("no length_ratio", "task.length_ratio: found 0 … greater than 0", run=translate("--task.length_ratio", "0")),
    Case("longer than the model", "--task.max_length: found 1000 … allowed: up to 64",
        run=translate("--task.max_length", "1000")),
    Case("longer than a model from elsewhere", "--task.max_length: found 1000 … allowed: up to 64",
        run=translate("--task.max_length", "1000", model="marian")),
    Case("no room for a source", "task.longest_source: found 2 … allowed: 3 or more",
        run=translate("--task.longest_source", "2")),
    Case("another architecture",
        "--task.architecture: found 'seq2seq' … allowed: 'encoder_decoder', which the model was trained for",
        run=translate("--task.architecture", "seq2seq")),
    Case("another task", "--task.name: found 'regression' … allowed: 'translation'",
        run=translate("--task.name", "regression")),
    Case("unknown setting for translate", "task.beam: unknown setting (did you mean 'beams'?)",
        run=translate("--task.beam", "2")),
    Case("setting of another command", "--training: not a setting of this command … allowed: --data.NAME",
        run=translate("--training.epochs", "3")),
    Case("fp16 on a CPU", "--precision: found fp16", run=translate("--precision", "fp16")),
    Case("target tokenizer removed", "model: translator has no folder target_tokenizer/ … copy the complete model again",
        files={"translator/target_tokenizer": shutil.rmtree}, run=translate()),
    Case("target tokenizer broken", "model: translator: target_tokenizer/tokenizer.json: cannot be read",
        files={"translator/target_tokenizer": broken}, run=translate()),
    Case("target tokenizer's vocabulary removed", "model: translator has no tokenizer that can be loaded in target_tokenizer/",
        files={"translator/target_tokenizer/tokenizer.json": None}, run=translate()),
    Case("target tokenizer of another model",
        "model: translator has a decoder for 300 tokens, but the tokenizer in target_tokenizer/ has 45, "
        "so one of them was changed",
        files={"translator/target_tokenizer": of_another}, run=translate()),
    Case("record broken", "translator/nlp_transfer.json: cannot be read", files={"translator/nlp_transfer.json": "{"},
        run=translate()),
    Case("weights truncated", "translator/model.safetensors … cannot be read",
        files={"translator/model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-3000])}, run=translate()),
    Case("evaluate without the target", "test.tsv: there is no column 'target' … found: source, traget",
        files={"test.tsv": TSV.replace("target", "traget", 1)}, run=("evaluate", "translator", "--data.test", "test.tsv")),
    Case("evaluate an empty side", "test.tsv, row 18, column 'target': this side is empty",
        files={"test.tsv": TSV + "a dog\t\n"}, run=("evaluate", "translator", "--data.test", "test.tsv")),
    Case("evaluate a text file", "train.txt: there is no column 'source' … found: text", files={"train.txt": lines(ENGLISH)},
        run=("evaluate", "translator", "--data.test", "train.txt")),
    Case("evaluate a file with too long a name", "x.tsv: cannot be read (File name too long)",
        run=("evaluate", "translator", "--data.test", "x" * 300 + ".tsv")),
    Case("evaluate other numbers of lines", "train.en has 16 lines, test.de has 15 lines", files={"test.de": lines(GERMAN[:-1])},
        run=("evaluate", "translator", "--data.test.source", "train.en", "--data.test.target", "test.de")),
    Case("evaluate a classifier on aligned files",
        "data.test: found two line-aligned files … allowed: a table with the columns text, label",
        run=("evaluate", "classifier", "--data.test.source", "train.en", "--data.test.target", "train.de")),
]  # fmt: skip
