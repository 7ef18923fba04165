"""Bad input for translation, through the command's own code path: exit status 2, a message that says where, what and what is
allowed, and nothing left behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import fine_tune
from tests.faults.test_bad_input import GONE, Case, command, listing, prepare
from tests.helpers.models import save_tiny
from tests.helpers.seq2seq_models import PAIRS, save_tiny_seq2seq

pytestmark = pytest.mark.process

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


def broken(path: Path) -> None:
    (path / "tokenizer.json").write_text('{"model": ')


def without_tokenizer(path: Path) -> None:
    shutil.copytree("base", path, ignore=shutil.ignore_patterns("tokenizer*"))


def of_another(path: Path) -> None:
    """A tokenizer that is whole, and not the one that the model was trained with."""
    AutoTokenizer.from_pretrained("base").save_pretrained(path)


ALIGNED = [
    Case(
        "other numbers of lines",
        ("train.en has 16 lines, train.de has 15 lines; allowed: the same number of lines",),
        {"train.de": lines(GERMAN[:-1])},
    ),
    Case(
        "one blank line too many",
        ("train.en has 17 lines, train.de has 16 lines", "allowed: the same number of lines"),
        {"train.en": lines(ENGLISH) + "\n"},
    ),
    Case(
        "a side is missing",
        ("trian.de: there is no such file", "did you mean 'train.de'?"),
        settings={"data.train.target": "trian.de"},
    ),
    Case(
        "both sides are missing",
        ("2 problems", "nowhere.en: there is no such file", "nowhere.de: there is no such file"),
        settings={"data.train": {"source": "nowhere.en", "target": "nowhere.de"}},
    ),
    Case(
        "a side is a folder", ("folder: is a folder; allowed: a file",), {"folder": Path.mkdir}, {"data.train.target": "folder"}
    ),
    Case("a side's name is too long", ("x: cannot be read (File name too long)",), settings={"data.train.target": "x" * 300}),
    Case("a side is an empty file", ("train.de: the file is empty; allowed: ",), {"train.de": ""}),
    Case(
        "an empty line in the source",
        ("train.en + train.de, row 5, column 'source': this side is empty; allowed: text (or remove the pair)",),
        {"train.en": lines(ENGLISH, 5)},
    ),
    Case(
        "a line of white space in the target",
        ("train.en + train.de, row 16, column 'target': this side is empty",),
        {"train.de": lines(GERMAN, 16, " \t\u3000")},
    ),
    Case(
        "empty lines in train and test",
        ("data: 2 problems", "train.en + train.de, row 2, column 'source'", "test.en + test.de, row 1, column 'target'"),
        {"train.en": lines(ENGLISH, 2), "test.en": "a dog\n", "test.de": "\n"},
        {"data.test": {"source": "test.en", "target": "test.de"}},
    ),
    Case(
        "more empty lines than are shown",
        ("30 problems", "row 1,", "row 20,", "... and 10 more"),
        {"train.en": "\n" * 30 + "a dog\n" * 30, "train.de": "ein Hund\n" * 60},
        silent=("row 21,",),
    ),
    Case(
        "the same file twice",
        ("data.train: train.en is given as both source and target", "one file for each"),
        settings={"data.train.target": "train.en"},
    ),
    Case(
        "the same text in two files",
        (
            "train.en + train.de, row 1: source and target are the same text in this and in 16 of 16 pairs",
            "the wrong file",
        ),
        {"train.de": lines(ENGLISH)},
    ),
    Case(
        "mostly the same text",
        ("row 2: source and target are the same text in this and in 60 of 100 pairs", "allowed: a translation"),
        {
            "train.en": lines([f"one {i}" for i in range(100)]),
            "train.de": lines([f"{('eins', 'one')[0 < i < 61]} {i}" for i in range(100)]),
        },
    ),
    Case(
        "a side is not given",
        ("data.train: found {'source': 'train.en'}", "allowed: ", "{source: FILE, target: FILE}"),
        settings={"data.train": {"source": "train.en"}},
    ),
    Case(
        "a third side",
        ("data.train: found {'pivot': 'train.fr', 'source': 'train.en', 'target': 'train.de'}", "{source: FILE, target: FILE}"),
        settings={"data.train": SIDES | {"pivot": "train.fr"}},
    ),
    Case(
        "a side called otherwise",
        ("data.train: found {'de': 'train.de', 'en': 'train.en'}", "{source: FILE, target: FILE}"),
        settings={"data.train": {"en": "train.en", "de": "train.de"}},
    ),
    Case(
        "a side's name is empty",
        ("data.train: found {'source': 'train.en', 'target': ''}", "{source: FILE, target: FILE}"),
        settings={"data.train.target": ""},
    ),
    Case(
        "a side is a list",
        ("data.train: found {'source': 'train.en', 'target': ['train.de']}", "{source: FILE, target: FILE}"),
        settings={"data.train.target": ["train.de"]},
    ),
    Case(
        "aligned files for a classification",
        ("data.train: found two line-aligned files", "allowed: a table with the columns text, label"),
        settings={"task": "text_classification"},
    ),
    Case(
        "aligned files with a group",
        ("data.group: found 'document'", "(data.train)", "allowed: null, or a table"),
        settings={"data.group": "document"},
    ),
    Case(
        "latin-1 in one side",
        ("train.de, row 3", "byte 0xfc is not utf-8", "set data.encoding"),
        {"train.de": lines(GERMAN, 3, "über").encode("latin-1", "replace")},
    ),
    Case(
        "UTF-16 in one side",
        ("train.de: ", "a byte order mark of UTF-16", "set data.encoding: utf-16"),
        {"train.de": lines(GERMAN).encode("utf-16")},
    ),
    Case(
        "UTF-16 without its mark in one side",
        ("train.de",),
        {"train.de": lines(GERMAN).encode("utf-16-le")},
    ),
    Case("no UTF-16 in one side", ("train.en, at or after row 1", "set data.encoding"), settings={"data.encoding": "utf-16"}),
    Case(
        "in none of the encodings",
        ("train.de: is in none of the encodings given in data.encoding: utf-8, ascii",),
        {"train.de": lines(GERMAN, 3, "über").encode("latin-1", "replace")},
        {"data.encoding": ["utf-8", "ascii"]},
    ),
]

TABLES = [
    Case(
        "no such column in a TSV",
        ("data.train: train.tsv: there is no column 'sorce'", "did you mean 'source'?", "found: source, target"),
        {"train.tsv": TSV},
        {"data.train": "train.tsv", "task.source": "sorce"},
    ),
    Case(
        "no such column in a JSONL",
        ("data.train: train.jsonl: there is no column 'traget'", "did you mean 'target'?", "found: source, target"),
        {"train.jsonl": JSONL},
        {"data.train": "train.jsonl", "task.target": "traget"},
    ),
    Case(
        "a table's name is too long", ("x.tsv: cannot be read (File name too long)",), settings={"data.train": "x" * 300 + ".tsv"}
    ),
    Case(
        "text file for a table",
        ("train.txt: there is no column 'source'", "no column 'target'", "found: text"),
        {"train.txt": lines(ENGLISH)},
        {"data.train": "train.txt"},
    ),
    Case(
        "no such column in test",
        ("data.test: test.tsv: there is no column 'target'",),
        {"train.tsv": TSV, "test.tsv": "source\na dog\n"},
        {"data.train": "train.tsv", "data.test": "test.tsv"},
    ),
    Case(
        "a number for a text",
        ("train.jsonl, row 17, column 'target': found 5 (int); allowed: text",),
        {"train.jsonl": JSONL + '{"source": "a dog", "target": 5}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "an object for a text",
        ("train.jsonl, row 17, column 'source': found {'en': 'xxxx", "(dict); allowed: text"),
        {"train.jsonl": JSONL + json.dumps({"source": {"en": "x" * 5000}, "target": "ein Hund"}) + "\n"},
        {"data.train": "train.jsonl"},
        silent=("x" * 200, "(dict) (dict)"),
    ),
    Case(
        "null for a text",
        ("train.jsonl, row 17, column 'source': found nothing; allowed: text",),
        {"train.jsonl": JSONL + '{"source": null, "target": "ein Hund"}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "null on both sides of all rows",
        ("20 problems", "row 10, column 'target': found nothing"),
        {"train.jsonl": '{"source": null, "target": null}\n' * 10},
        {"data.train": "train.jsonl"},
        silent=("the same text",),
    ),
    Case(
        "a side is not there",
        ("train.jsonl, row 17, column 'target': found nothing; allowed: text",),
        {"train.jsonl": JSONL + '{"source": "a dog"}\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "a line that is no JSON",
        ("train.jsonl, row 17: is not JSON",),
        {"train.jsonl": JSONL + '{"source": "a dog", "target": "ein\n'},
        {"data.train": "train.jsonl"},
    ),
    Case(
        "a row with three cells",
        ("train.tsv, row 18: found 3 cells; the header has 2 (source, target)",),
        {"train.tsv": TSV + "a dog\tein Hund\tun chien\n"},
        {"data.train": "train.tsv"},
    ),
    Case(
        "an empty cell",
        ("train.tsv, row 18, column 'target': this side is empty; allowed: text (or remove the pair)",),
        {"train.tsv": TSV + "a dog\t\n"},
        {"data.train": "train.tsv"},
    ),
    Case(
        "an open quote",
        ("train.tsv, row 18 (up to line 18)", "set data.quoting: none"),
        {"train.tsv": TSV + '"a dog\tein Hund\n'},
        {"data.train": "train.tsv"},
    ),
    Case(
        "a language that no row has",
        ("data.train: train.jsonl: there is no column 'fr'", "found: translation, en, de"),
        {"train.jsonl": HUB_LIKE},
        {"data.train": "train.jsonl", "task.source": "en", "task.target": "fr"},
    ),
    Case(
        "a language that one row lacks",
        ("train.jsonl, row 17, column 'de': found nothing; allowed: text",),
        {"train.jsonl": HUB_LIKE + '{"translation": {"en": "a dog"}}\n'},
        {"data.train": "train.jsonl", "task.source": "en", "task.target": "de"},
    ),
    Case(
        "a translation that is no object",
        ("train.jsonl, row 17, column 'en': found nothing", "row 17, column 'de': found nothing"),
        {"train.jsonl": HUB_LIKE + '{"translation": "a dog"}\n'},
        {"data.train": "train.jsonl", "task.source": "en", "task.target": "de"},
    ),
    Case(
        "Parquet with a lost text",
        ("train.parquet, row 2, column 'target': found nothing",),
        {"train.parquet": lambda path: pd.DataFrame({"source": ["a", "b"], "target": ["x", None]}).to_parquet(path)},
        {"data.train": "train.parquet"},
    ),
    Case(
        "share too small for a pair",
        ("data.validation_share: 0.01 of 16 rows leaves no row for validation",),
        settings={"data.validation_share": 0.01},
    ),
]

SETTINGS = [
    Case(
        "source is the target column",
        ("task.target: found 'text', which is task.source as well", "allowed: another column"),
        settings={"task.source": "text", "task.target": "text"},
    ),
    Case(
        "class weights",
        ("training.class_weights: found 'balanced'; a translation has no classes", "allowed: null"),
        settings={"training.class_weights": "balanced"},
    ),
    Case(
        "oversampling and focal loss",
        ("training.focal_gamma: found 2.0; a translation has no classes", "training.oversample: found 0.5; a translation"),
        settings={"training.focal_gamma": 2.0, "training.oversample": 0.5},
    ),
    Case(
        "augmented sources",
        ("training.augment: ", "allowed: null"),
        settings={"training.augment": {"drop": 0.1}},
    ),
    Case(
        "unknown best_metric",
        ("training.best_metric: found 'blue'", "did you mean 'bleu'?", "allowed: token_accuracy, bleu, chrf, loss"),
        settings={"training.best_metric": "blue"},
    ),
    Case(
        "best_metric of another task",
        ("training.best_metric: found 'accuracy', which translation does not compute", "allowed: token_accuracy"),
        settings={"training.best_metric": "accuracy"},
    ),
    Case(
        "bleu without translations",
        ("training.best_metric: found 'bleu' with task.translated_rows 0", "allowed: 1 or more"),
        settings={"training.best_metric": "bleu", "task.translated_rows": 0},
    ),
    Case(
        "early stopping without validation",
        ("training.early_stopping", "needs a validation split"),
        settings={"training.early_stopping": 2, "data.validation_share": 0},
    ),
    Case(
        "seq2seq for an encoder",
        (
            "task.architecture: found seq2seq; base is",
            "allowed: encoder_decoder",
        ),
        settings={"task.architecture": "seq2seq", "task.target_vocabulary": GONE},
    ),
    Case(
        "encoder_decoder for a seq2seq checkpoint",
        (
            "task.architecture: found encoder_decoder; marian is",
            "allowed: seq2seq",
        ),
        settings={"model": "marian", "task.architecture": "encoder_decoder"},
    ),
    Case(
        "unknown architecture",
        ("task.architecture: found 'seq2sec'", "allowed: 'encoder_decoder' or 'seq2seq'"),
        settings={"task.architecture": "seq2sec"},
    ),
    Case(
        "settings of an encoder_decoder for a seq2seq checkpoint",
        ("task.decoder_layers: found 2", "task.target_vocabulary: found 300", "task.decoder: found 'new'", "leave it out"),
        settings={"model": "marian", "task.decoder_layers": 2, "task.decoder": "new"},
    ),
    Case(
        "languages that a model does not know",
        ("task.source_language: found 'english'", "; allowed: "),
        settings={"model": "nllb", "task": {"name": "translation", "source_language": "english", "target_language": "deu_Latn"}},
    ),
    Case(
        "languages that a model needs",
        ("task.source_language: is required by this multilingual model",),
        settings={"model": "nllb", "task": {"name": "translation"}},
    ),
    Case(
        "decoder not there",
        ("task.decoder: ", "no folder './nowhere'", "allowed: "),
        settings={"task.decoder": "./nowhere", "task.target_vocabulary": GONE},
    ),
    Case(
        "decoder without a model",
        ("task.decoder: ", "the folder folder ", "config.json", "no config.json", "found: notes.txt"),
        {"folder": Path.mkdir, "folder/notes.txt": "x"},
        {"task.decoder": "folder", "task.target_vocabulary": GONE},
    ),
    Case(
        "decoder is a file",
        ("task.decoder: ", "train.en is a file", "allowed: "),
        settings={"task.decoder": "train.en", "task.target_vocabulary": GONE},
    ),
    Case(
        "decoder not on the hub",
        ("task.decoder: ", "no/such-model cannot be opened"),
        settings={"task.decoder": "no/such-model", "task.target_vocabulary": GONE},
    ),
    Case("decoder is empty", ("task.decoder: found ''", "at least 1 character"), settings={"task.decoder": ""}),
    Case(
        "decoder without cross-attention",
        (
            "task.decoder: distilbert cannot be loaded",
            "no ModelForCausalLM for distilbert models",
            "allowed: a BERT, RoBERTa",
        ),
        settings={"task.decoder": "distilbert", "task.target_vocabulary": GONE},
    ),
    Case(
        "decoder is an encoder-decoder",
        ("task.decoder: marian has no cross-attention", "allowed: a BERT, RoBERTa"),
        settings={"task.decoder": "marian", "task.target_vocabulary": GONE},
    ),
    Case(
        "max_length beyond the decoder",
        ("task.max_length: found 30; allowed: up to 16, the limit of short",),
        settings={"task.decoder": "short", "task.max_length": 30, "task.target_vocabulary": GONE},
    ),
    Case(
        "no decoder layers", ("task.decoder_layers: found 0", "greater than or equal to 1"), settings={"task.decoder_layers": 0}
    ),
    Case("negative decoder layers", ("task.decoder_layers: found -2", "greater"), settings={"task.decoder_layers": -2}),
    Case(
        "more decoder layers than the decoder has",
        ("task.decoder_layers: found 9", "allowed: up to 2, the layers of base"),
        settings={"task.decoder": "base", "task.decoder_layers": 9, "task.target_vocabulary": GONE},
    ),
    Case(
        "target tokenizer not there",
        ("task.target_tokenizer: ", "no folder './nowhere'"),
        settings={"task.target_tokenizer": "./nowhere", "task.target_vocabulary": GONE},
    ),
    Case(
        "target tokenizer without files",
        ("task.target_tokenizer: ", "no tokenizer"),
        {"bare": without_tokenizer},
        {"task.target_tokenizer": "bare", "task.target_vocabulary": GONE},
    ),
    Case(
        "target vocabulary too small",
        ("task.target_vocabulary: found 100", "greater than or equal to 259"),
        settings={"task.target_vocabulary": 100},
    ),
    Case(
        "target vocabulary in words",
        ("task.target_vocabulary: found 'large'", "allowed: a whole number"),
        settings={"task.target_vocabulary": "large"},
    ),
    Case(
        "target vocabulary and no trained tokenizer",
        ("task.target_vocabulary: found 300", "'source'", "allowed: null"),
        settings={"task.target_tokenizer": "source"},
    ),
    Case("max_length 0", ("task.max_length: found 0", "greater than or equal to 1"), settings={"task.max_length": 0}),
    Case("max_length without room", ("task.max_length: found 2", "allowed: 3 to 64"), settings={"task.max_length": 2}),
    Case("max_length beyond the model", ("task.max_length: found 65", "allowed: 3 to 64"), settings={"task.max_length": 65}),
    Case(
        "prefix without room",
        ("task.prefix: found 'the dog", "of at most 64", "room for a text"),
        settings={"task.prefix": "the dog " * 40},
    ),
    Case(
        "longest_source without room", ("task.longest_source: found 2", "allowed: 3 or more"), settings={"task.longest_source": 2}
    ),
    Case("no beams", ("task.beams: found 0", "greater than or equal to 1"), settings={"task.beams": 0}),
    Case("length_ratio 0", ("task.length_ratio: found 0", "greater than 0"), settings={"task.length_ratio": 0}),
    Case("infinite length_penalty", ("task.length_penalty: found inf", "finite"), settings={"task.length_penalty": float("inf")}),
    Case(
        "negative translated_rows",
        ("task.translated_rows: found -1", "greater than or equal to 0"),
        settings={"task.translated_rows": -1},
    ),
    Case(
        "unknown setting",
        ("task.target_langauge: unknown setting (did you mean 'target_language'?)", "known here: ", "beams"),
        settings={"task.target_langauge": "de"},
    ),
    Case("setting of another task", ("task.label: unknown setting", "known here: "), settings={"task.label": "label"}),
    Case("warm_start in words", ("task.warm_start: found 'maybe'; allowed: a boolean\n",), settings={"task.warm_start": "maybe"}),
    Case(
        "several mistakes at once",
        (
            "4 problems",
            "task.beams: found 0",
            "task.decoder: found ''",
            "task.sorce: unknown setting",
            "data.trian: unknown setting",
        ),
        settings={"task.beams": 0, "task.decoder": "", "task.sorce": "x", "data.trian": "x"},
    ),
]

ANSWERS = [
    Case(
        "translate with a classifier",
        ("classifier: is a text_classification model", "nlp-transfer predict"),
        arguments=translate(model="classifier"),
    ),
    Case(
        "translate with a classifier and beams",
        ("classifier: is a text_classification model", "nlp-transfer predict"),
        arguments=translate("--beams", "2", model="classifier"),
    ),
    Case(
        "predict with a translation model",
        ("translator: is a translation model", "use nlp-transfer translate"),
        arguments=("predict", "translator", "--input", "new.txt", "--output", "answers.txt"),
    ),
    Case("translate with an encoder", ("model: base has no weights for",), arguments=translate(model="base")),
    Case("translate with no model", ("model: there is no folder './nowhere'",), arguments=translate(model="./nowhere")),
    Case("input missing", ("--input: there is no file nowhere.txt",), arguments=translate(source="nowhere.txt")),
    Case(
        "input of unknown ending",
        ("--input: found the ", "'.docx'", "allowed: .csv"),
        arguments=translate(source="new.docx"),
    ),
    Case("input empty", ("new.txt: the file is empty",), {"new.txt": ""}, arguments=translate()),
    Case(
        "output of unknown ending",
        ("--output: found the ", "'.doc'", "allowed: .csv"),
        arguments=translate(output="a.doc"),
    ),
    Case(
        "output is the input", ("--output: new.txt is the input", "allowed: another file"), arguments=translate(output="new.txt")
    ),
    Case(
        "output is the input by another name",
        ("--output: other.txt is the input",),
        {"other.txt": lambda path: path.symlink_to("new.txt")},
        arguments=translate(output="other.txt"),
    ),
    Case("output's name is too long", ("--output: xxx", "too long"), arguments=translate(output="x" * 300 + ".txt")),
    Case("input's name is too long", ("--input: xxx", "too long"), arguments=translate(source="x" * 300 + ".txt")),
    Case("output is a folder", ("--output: a.txt is a folder",), {"a.txt": Path.mkdir}, arguments=translate(output="a.txt")),
    Case("output below a file", ("--output: new.txt/a.txt cannot be written",), arguments=translate(output="new.txt/a.txt")),
    Case(
        "input column missing",
        ("new.tsv: there is no column 'source'", "found: sauce, target"),
        {"new.tsv": "sauce\ttarget\nx\ty\n"},
        arguments=translate(source="new.tsv"),
    ),
    Case(
        "input column missing, new folder",
        ("new.tsv: there is no column 'english'",),
        {"new.tsv": TSV},
        arguments=translate("--task.source", "english", source="new.tsv", output="new/folder/a.tsv"),
    ),
    Case(
        "answer column is there already",
        ("new.tsv", "column 'translation'", "rename it"),
        {"new.tsv": "source\ttranslation\nx\ty\n"},
        arguments=translate(source="new.tsv"),
    ),
    Case(
        "answer column comes late",
        ("new.jsonl", "column 'translation'", "rename it"),
        {"new.jsonl": '{"source": ""}\n' * 1024 + '{"source": "a", "translation": "b"}\n'},
        arguments=translate(source="new.jsonl"),
    ),
    Case(
        "UTF-16 to translate",
        ("new.txt: ", "a byte order mark of UTF-16", "set data.encoding: utf-16"),
        {"new.txt": "a dog\n".encode("utf-16")},
        arguments=translate(),
    ),
    Case(
        "a prefix without room for translate",
        ("task.longest_source: found 1", "the prefix and the special tokens alone are 82", "allowed: 83 or more"),
        arguments=translate("--task.prefix", "the dog " * 40),
    ),
    Case("no beams for translate", ("--beams", "0 is not in the range"), arguments=translate("--beams", "0")),
    Case("beams in words", ("--beams", "'many' is not a valid integer"), arguments=translate("--beams", "many")),
    Case(
        "no beams by its setting", ("task.beams: found 0", "greater than or equal to 1"), arguments=translate("--task.beams", "0")
    ),
    Case("no length_ratio", ("task.length_ratio: found 0", "greater than 0"), arguments=translate("--task.length_ratio", "0")),
    Case(
        "longer than the model",
        ("--task.max_length: found 1000", "allowed: up to 64"),
        arguments=translate("--task.max_length", "1000"),
    ),
    Case(
        "longer than a model from elsewhere",
        ("--task.max_length: found 1000", "allowed: up to 64"),
        arguments=translate("--task.max_length", "1000", model="marian"),
    ),
    Case(
        "no room for a source",
        ("task.longest_source: found 2", "allowed: 3 or more"),
        arguments=translate("--task.longest_source", "2"),
    ),
    Case(
        "another architecture",
        ("--task.architecture: found 'seq2seq'", "allowed: 'encoder_decoder', which the model was trained for"),
        arguments=translate("--task.architecture", "seq2seq"),
    ),
    Case(
        "another task",
        ("--task.name: found 'regression'", "allowed: 'translation'"),
        arguments=translate("--task.name", "regression"),
    ),
    Case(
        "unknown setting for translate",
        ("task.beam: unknown setting (did you mean 'beams'?)",),
        arguments=translate("--task.beam", "2"),
    ),
    Case(
        "setting of another command",
        ("--training: not a setting of this command", "allowed: --data.NAME"),
        arguments=translate("--training.epochs", "3"),
    ),
    Case("fp16 on a CPU", ("--precision: found fp16",), arguments=translate("--precision", "fp16")),
    Case(
        "target tokenizer removed",
        ("model: translator has no folder target_tokenizer/", "copy the complete model again"),
        {"translator/target_tokenizer": shutil.rmtree},
        arguments=translate(),
    ),
    Case(
        "target tokenizer broken",
        ("model: translator: target_tokenizer/tokenizer.json: cannot be read",),
        {"translator/target_tokenizer": broken},
        arguments=translate(),
    ),
    Case(
        "target tokenizer's vocabulary removed",
        ("model: translator has no tokenizer that can be loaded in target_tokenizer/",),
        {"translator/target_tokenizer/tokenizer.json": None},
        arguments=translate(),
    ),
    Case(
        "target tokenizer of another model",
        ("model: translator has a decoder of 300 tokens, and in target_tokenizer/ a tokenizer of 45", "was changed"),
        {"translator/target_tokenizer": of_another},
        arguments=translate(),
    ),
    Case(
        "record broken",
        ("translator/nlp_transfer.json: cannot be read",),
        {"translator/nlp_transfer.json": "{"},
        arguments=translate(),
    ),
    Case(
        "weights truncated",
        ("translator/model.safetensors", "cannot be read"),
        {"translator/model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-3000])},
        arguments=translate(),
    ),
    Case(
        "evaluate without the target",
        ("test.tsv: there is no column 'target'", "found: source, traget"),
        {"test.tsv": TSV.replace("target", "traget", 1)},
        arguments=("evaluate", "translator", "--data.test", "test.tsv"),
    ),
    Case(
        "evaluate an empty side",
        ("test.tsv, row 18, column 'target': this side is empty",),
        {"test.tsv": TSV + "a dog\t\n"},
        arguments=("evaluate", "translator", "--data.test", "test.tsv"),
    ),
    Case(
        "evaluate a text file",
        ("train.txt: there is no column 'source'", "found: text"),
        {"train.txt": lines(ENGLISH)},
        arguments=("evaluate", "translator", "--data.test", "train.txt"),
    ),
    Case(
        "evaluate a file with too long a name",
        ("x.tsv: cannot be read (File name too long)",),
        arguments=("evaluate", "translator", "--data.test", "x" * 300 + ".tsv"),
    ),
    Case(
        "evaluate other numbers of lines",
        ("train.en has 16 lines, test.de has 15 lines",),
        {"test.de": lines(GERMAN[:-1])},
        arguments=("evaluate", "translator", "--data.test.source", "train.en", "--data.test.target", "test.de"),
    ),
    Case(
        "evaluate a classifier on aligned files",
        ("data.test: found two line-aligned files", "allowed: a table with the columns text, label"),
        arguments=("evaluate", "classifier", "--data.test.source", "train.en", "--data.test.target", "train.de"),
    ),
]

TABLE = [*ALIGNED, *TABLES, *SETTINGS, *ANSWERS]


@pytest.fixture(scope="module")
def models(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of this file, by name; what they answer does not matter."""
    folder = tmp_path_factory.mktemp("models")
    for name, source in (("base", "bert"), ("distilbert", "distilbert")):
        shutil.copytree(tiny[source], folder / name)
    save_tiny("bert", folder / "short", max_position_embeddings=16)
    for family in ("marian", "nllb"):
        save_tiny_seq2seq(family, folder / family)
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny["bert"], num_labels=2)
    classifier.save_pretrained(folder / "classifier")
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(folder / "classifier")
    for side, texts in (("en", ENGLISH), ("de", GERMAN)):
        (folder / f"train.{side}").write_text(lines(texts))
    run = fine_tune(good_run(folder) | {"output_dir": str(folder / "run")})
    (run.output_dir / "model").rename(folder / "translator")
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a good run and a saved model, for a case to spoil."""
    for name in ("base", "distilbert", "short", "marian", "nllb", "classifier", "translator"):
        shutil.copytree(models / name, tmp_path / name)
    for name in ("train.en", "train.de"):
        shutil.copy(models / name, tmp_path)
    (tmp_path / "new.txt").write_text("a good film\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def good_run(folder: Path = Path()) -> dict[str, Any]:
    return {
        "model": str(folder / "base"),
        "data": {"train": {side: str(folder / name) for side, name in SIDES.items()}, "validation_share": 0.25},
        "task": {"name": "translation", "target_vocabulary": 300},
        "training": {"max_steps": 1, "precision": "fp32"},
        "output_dir": "run",
    }


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id.replace(" ", "-"))
def test_mistake_is_reported_and_leaves_nothing(case: Case, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(case, good_run())
    before = listing(place)
    status = command(*case.arguments)
    out, said = capfd.readouterr()
    assert status == 2, said
    assert "Traceback" not in said
    assert [part for part in case.says if part not in said] == [], said
    assert [part for part in case.silent if part in said] == [], said
    assert said.count("error: ") + said.count("Error: ") == 1, said
    assert listing(place) == before
    assert out == ""


def test_the_table_is_complete() -> None:
    """Every id names one case, and every case looks at the message."""
    assert len({case.id for case in TABLE}) == len(TABLE) > 100
    assert all(case.says and all(case.says) for case in TABLE)


def test_the_good_run_trains_and_translates(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the cases spoil is whole, and so each of them shows its own mistake."""
    prepare(Case("good", ()), good_run())
    assert command("train", "run.yaml") == 0, capfd.readouterr().err
    assert command(*translate(model="run")) == 0, capfd.readouterr().err
    assert len(Path("answers.txt").read_text().splitlines()) == 1
