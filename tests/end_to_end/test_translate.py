"""Texts through a saved translation model: every format, every kind of text, order and number of rows kept."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Translation, Value
from sacrebleu import corpus_bleu, corpus_chrf
from safetensors.torch import load_file, save_file
from transformers import EncoderDecoderModel

from nlp_transfer import load_predictor, load_translator
from tests import builders
from tests.builders import exit_status, printed, read_lines, read_table, refused, succeed, write
from tests.helpers.hub import environment, serve
from tests.helpers.models import WORDS
from tests.helpers.seq2seq_models import PAIRS

pytestmark = pytest.mark.hub

ENGLISH, GERMAN = ([pair[side] for pair in PAIRS] for side in (0, 1))
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
BLANK = ["", " ", "\t \t", "\u3000\xa0"]
ODD = [
    "the dog \U0001f415\u200d\U0001f9ba\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1ea\U0001f1f8 ran",
    "\u05d4\u05db\u05dc\u05d1 \u200f(the dog)\u202b \u0645\u0631\u062d\u0628\u0627\u202c",
    "e\u0301\u0323\u0303" * 20 + " Z͑ͫ̓a̡͊͠l͏g̨o", "a\0dog\0", "\ufeffthe dog\ufeff", "the dog\u2028ran\x85on\x0cthe\x0bmat",
    "the\u200bdog\u00adran\u2060", "\ue000\U0010fffd\x01\x1b[31m\x7f", "漢字かな交じり文。" * 40, "the dog ran on the mat. " * 60,
    "x" * 3000, ". " * 400, "<s> [SEP] <pad> </s> [MASK] [UNK]", '"quoted", \'single\', ,;\\ {"en": 1}',
    "ﷺ ㎏ ǆ İstanbul ſtraße",
]  # fmt: skip
TEXTS = [*ENGLISH[:6], *BLANK, *ODD, *BLANK[::-1], "the very last row"]


def train(folder: Path, encoder: Path, **changes: Any) -> Path:
    """A run with two optimizer steps."""
    files = {
        side: write(folder / f"train.{name}", texts)
        for side, name, texts in (("source", "en", ENGLISH), ("target", "de", GERMAN))
    }
    task = {"name": "translation", "target_vocabulary": 350, "beams": 2}
    data = {"train": files, "validation_share": 0.1}
    return builders.run(model=encoder, data=data, task=task, output_dir=folder / "run", **changes).output_dir


@pytest.fixture(scope="module")
def run(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose model has learned nothing, but says something else to each text."""
    folder = train(tmp_path_factory.mktemp("translate") / "first", tiny["bert"])
    make_loud(folder / "model")
    return folder


def make_loud(model: Path) -> None:
    """Scales an encoder-decoder's weights, so that without having learned anything it says something else to each text."""
    weights = load_file(model / "model.safetensors")
    loud = {
        name: tensor * (20 if name == "encoder.embeddings.word_embeddings.weight" else 4) if tensor.dim() == 2 else tensor
        for name, tensor in weights.items()
    }
    save_file(loud, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models say what they are told; the list holds all that they were told."""
    told: list[str] = []

    def say(model: Any, sides: Any, texts: list[str], *settings: Any) -> tuple[list[str], np.ndarray]:
        told.extend(texts)
        return list(texts), np.zeros(len(texts), bool)

    monkeypatch.setattr("nlp_transfer.models.seq2seq.generation.generate_texts", say)
    return told


def kept(text: str | None) -> str:
    """What becomes of a text that is translated by itself: blank ones stay, others lose the spaces around them."""
    return (text.strip() or text) if text else ""


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_keep_rows_columns_and_order(run: Path, echo: list[str], tmp_path: Path, ending: str) -> None:
    texts = [*TEXTS, "two\nlines", "the\r dog", *map(str, range(50))]
    rows = [{"id": f"n{i}", "source": text, "note": text[::-1][:9]} for i, text in enumerate(texts)]
    source, output = write(tmp_path / f"in{ending}", rows), tmp_path / f"out{ending}"
    succeed("translate", run, "--input", source, "--output", output)
    assert read_table(output) == [row | {"translation": kept(row["source"])} for row in rows]
    assert len(echo) > len(rows) - len(BLANK) * 2


def test_text_files_keep_their_lines(run: Path, echo: list[str], tmp_path: Path) -> None:
    texts = [text for text in TEXTS if not set(text) & set(LINE_ENDS)]
    (tmp_path / "in.txt").write_bytes("".join(f"{text}\n" for text in texts).encode())
    succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert read_lines(tmp_path / "out.txt") == [kept(text) for text in texts]
    assert not [text for text in echo if not text.strip()]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_do_not_change_the_number_of_lines(run: Path, echo: list[str], tmp_path: Path, end: str, last: bool) -> None:
    texts = ["", "", "the dog\rran", "", "the\u2028cat\x85", " \x0c ", "\ufeff", "x", "", "y"]
    (tmp_path / "in.txt").write_bytes((end.join(texts) + end * last).encode())
    succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert read_lines(tmp_path / "out.txt") == ["", "", "the dog ran", "", "the cat", "   ", "\ufeff", "x", "", "y"]
    assert echo == ["the dog\rran", "the\u2028cat", "\ufeff", "x", "y"]


def test_blank_lines_alone(run: Path, echo: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n\n \n")
    succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "\n\n \n"
    assert echo == []


@pytest.mark.parametrize("mark", LINE_ENDS)
def test_an_answer_is_one_line_whatever_it_says(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mark: str) -> None:
    monkeypatch.setattr(
        "nlp_transfer.models.seq2seq.generation.generate_texts",
        lambda model, sides, texts, *settings: ([f"{mark}a{mark}{mark}b{mark}" for _ in texts], np.zeros(len(texts), bool)),
    )
    (tmp_path / "in.txt").write_text("one\n\ntwo\n")
    succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == b" a b \n\n a b \n"


@pytest.mark.parametrize(
    ("first", "second"), [(".txt", ".csv"), (".csv", ".txt"), (".jsonl", ".parquet"), (".parquet", ".jsonl")]
)
def test_from_one_format_to_another(run: Path, echo: list[str], tmp_path: Path, first: str, second: str) -> None:
    texts = ["a dog", "", "two words", "ein Hund"]
    source = write(tmp_path / f"in{first}", texts if first == ".txt" else [{"text": text} for text in texts])
    output = tmp_path / f"out{second}"
    succeed("translate", run, "--input", source, "--output", output, "--task.source", "text")
    if second == ".txt":
        assert read_lines(output) == texts
    else:
        assert read_table(output) == [{"text": text, "translation": text} for text in texts]


def test_missing_cells_have_no_translation(run: Path, echo: list[str], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"source": "a"}, {"source": None}, {"id": 3}, {"source": ""}, {"source": 5}]
    rows.append({"id": 4, "source": "b"})
    source = write(tmp_path / "in.jsonl", rows)
    _, said = succeed("translate", run, "--input", source, "--output", tmp_path / "out.jsonl")
    assert [row["translation"] for row in read_table(tmp_path / "out.jsonl")] == ["a", None, None, "", None, "b"]
    assert echo == ["a", "b"]
    assert "4 of 6 rows have no prediction: 3 with an empty text, 1 with a cell that is not text" in said
    assert "in.jsonl, row 5, column 'source': found 5 (int); allowed: text" in said


def test_over_many_windows(run: Path, echo: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nlp_transfer.inference.translator.CHUNK_ROWS", 16)
    texts = ["" if i % 16 in (0, 15) or 48 <= i < 80 else f"{WORDS[i % 40]} {'the dog. ' * (i % 30)}{i}" for i in range(200)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert read_lines(tmp_path / "out.txt") == texts
    assert len(echo) > 200


def test_long_texts_go_in_pieces_that_fit(run: Path, echo: list[str], tmp_path: Path) -> None:
    translate = load_translator(run)
    long = ["the dog ran on the mat. " * 50 + "\nred " * 200, "the cat", "hill, " * 500, "a dog sat on", "猫" * 100]
    assert translate(long) == [text.strip() for text in long]
    assert translate.in_pieces == 2  # the tiny tokenizer takes a run of Chinese characters for one word
    sides = translate.task.tokenizers
    assert max(len(ids) for ids in sides.source_ids(echo, 1 << 30)[0]) <= translate.task.longest_source
    assert echo[:2] == ["the dog ran on the mat."] * 2
    (tmp_path / "in.txt").write_text("\n".join(text.replace("\n", " ") for text in long))
    _, said = succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert "2 texts were longer than task.longest_source of the model and were translated in pieces" in said


def test_a_run_is_scored_on_what_translate_gives(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long rows among short ones: in `result.json`, in drafts while training, by `evaluate` and by hand, one and the same."""
    loud = load_translator(run)
    long = ["the dog ran on the mat. a cat was here. " * 12, "hill, river and tree " * 30, "我们iPhone。他来了。" * 40]
    sources = [*ENGLISH[:5], *long, ENGLISH[9]]
    targets = [text.replace("a", "o", 1) + " and" for text in loud(sources)]  # nearly what it will say
    assert loud.in_pieces >= 2
    pairs = [{"source": source, "target": target} for source, target in zip(sources, targets, strict=True)]
    train_file = [{"source": source, "target": target} for source, target in PAIRS]
    files = {name: write(tmp_path / f"{name}.csv", rows) for name, rows in (("train", train_file), ("test", pairs))}
    again = builders.run(
        model=run / "model", data=files | {"validation": files["test"]}, output_dir=tmp_path / "run",
        task={"name": "translation", "beams": 2, "longest_source": loud.task.longest_source},
        training={"max_steps": 1, "learning_rate": 1e-12, "dropout": 0},
    )  # fmt: skip
    assert "sources have more than" in capsys.readouterr().err
    translations = again.translator()(sources)
    assert again.predictions["test"]["prediction"].tolist() == translations
    assert (again.predictions["test"]["pieces"] > 1).sum() == loud.in_pieces
    by_hand = {
        "bleu": corpus_bleu(translations, [targets]).score,
        "chrf": corpus_chrf(translations, [targets], word_order=2).score,
    }
    assert by_hand["bleu"] > 30
    evaluated = printed("evaluate", again.output_dir, "--data.test", files["test"], "--precision", "fp32", "--batch-size", 3)
    for name, value in by_hand.items():
        assert again.metrics["test"][name] == again.metrics["validation"][name] == pytest.approx(value)
        assert evaluated[name] == pytest.approx(value)

    greedy = load_translator(again.output_dir, settings={"beams": 1})(sources)
    log = [json.loads(line) for line in (again.output_dir / "log.jsonl").read_text().splitlines()]
    drafts = [line["validation"]["chrf"] for line in log if "validation" in line]
    assert drafts == [pytest.approx(corpus_chrf(greedy, [targets], word_order=2).score)]
    predicted = load_predictor(again.output_dir)(sources)
    assert [row["translation"] for row in predicted] == translations


def test_a_model_translates_every_kind_of_text(run: Path, tmp_path: Path) -> None:
    """The same in a file, in a list and one after the other in a generator; blank ones stay, and answers differ."""
    rows = [{"source": text} for text in TEXTS]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    succeed("translate", run, "--input", source, "--output", output, "--precision", "fp32")
    found = [row["translation"] for row in read_table(tmp_path / "out.jsonl")]
    translate = load_translator(run)
    assert translate(TEXTS) == translate(iter(TEXTS)) == translate(tuple(TEXTS)) == found
    blank = [i for i, text in enumerate(TEXTS) if not text.strip()]
    assert [found[i] for i in blank] == [TEXTS[i] for i in blank]
    assert len(set(found)) > 10


def test_order_is_that_of_the_texts(run: Path) -> None:
    """Batches are sorted by length; a text alone is answered as it is among others."""
    translate = load_translator(run, batch_size=7)
    texts = [" ".join(WORDS[(i * 7 + k * 3) % len(WORDS)] for k in range(1 + i * 5 % 9)) for i in range(40)]
    together, backwards = translate(texts), translate(texts[::-1])[::-1]
    alone = [translate([text])[0] for text in texts]
    assert len(set(alone)) > 15
    for others in (together, backwards):
        assert sum(one == other for one, other in zip(others, alone, strict=True)) >= 36  # rounding may part two near ones


def test_no_texts_no_answers(run: Path) -> None:
    assert load_translator(run)([]) == []


def test_beams_are_those_of_the_command(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    generate = EncoderDecoderModel.generate

    def spy(model: Any, *arguments: Any, **more: Any) -> Any:
        asked.append(more["generation_config"].num_beams)
        return generate(model, *arguments, **more)

    monkeypatch.setattr(EncoderDecoderModel, "generate", spy)
    (tmp_path / "in.txt").write_text("a dog\n")
    for number, more in enumerate([(), ("--beams", 1), ("--task.beams", 3), ("--beams", 4, "--task.beams", 3)]):
        succeed("translate", run, "--input", tmp_path / "in.txt", "--output", tmp_path / f"{number}.txt", *more)
    assert asked == [2, 1, 3, 4]


def test_a_run_a_model_and_an_adapter_answer_alike(tiny: dict[str, Path], tmp_path: Path) -> None:
    run = train(tmp_path / "lora", tiny["bert"], strategy={"name": "lora", "r": 4})
    assert (run / "adapter/target_tokenizer/tokenizer.json").is_file()
    (tmp_path / "in.txt").write_text("\n".join(ENGLISH[:8]) + "\n\n")
    for name, model in (("run", run), ("model", run / "model"), ("adapter", run / "adapter")):
        succeed("translate", model, "--input", tmp_path / "in.txt", "--output", tmp_path / f"{name}.txt")
    first, *others = (read_lines(tmp_path / f"{name}.txt") for name in ("run", "model", "adapter"))
    assert others == [first, first]
    assert len(first) == 9
    assert all(first[:8])


def test_evaluate_gives_the_same_figures_for_files_and_a_table(run: Path, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [{"id": i, "translation": {"en": en, "de": de}} for i, (en, de) in enumerate(PAIRS)])
    write(tmp_path / "pairs.tsv", [{"source": en, "target": de} for en, de in PAIRS])
    files = ("--data.test.source", run.parent / "train.en", "--data.test.target", run.parent / "train.de")
    by_language = ("--data.test", tmp_path / "pairs.jsonl", "--task.source", "en", "--task.target", "de")
    figures = [printed("evaluate", run, *data) for data in (files, ("--data.test", tmp_path / "pairs.tsv"), by_language)]
    assert figures[0]["rows"] == len(PAIRS)
    assert {"token_accuracy", "bleu", "chrf"} <= figures[0].keys()
    assert figures[1] == figures[2] == pytest.approx(figures[0])


def test_a_killed_translation_resumes(run: Path, tmp_path: Path) -> None:
    texts = ["" if i % 50 == 0 else f"{WORDS[i % 40]} {WORDS[i % 37]} {WORDS[i % 31]}" for i in range(4 * 1024)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    output, journal = tmp_path / "out.txt", tmp_path / ".out.txt.partial"
    arguments = ["translate", run, "--input", tmp_path / "in.txt", "--beams", 1, "--batch-size", 256, "--output"]
    process = subprocess.Popen([sys.executable, "-m", "nlp_transfer", *map(str, arguments), str(output)])
    try:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b'\n{"window"')):
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it was killed"
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    succeed(*arguments, output)
    succeed(*arguments, tmp_path / "whole.txt")
    assert output.read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt", "whole.txt"]
    found = read_lines(output)
    assert [i for i, line in enumerate(found) if not line] == [i for i, text in enumerate(texts) if not text]


def test_python_translates_the_texts_among_other_things(run: Path, echo: list[str]) -> None:
    translate = load_translator(run)
    assert translate(["a", None, "", 5, "b \ud83d", "c"], on_bad_rows="skip") == ["a", None, "", None, None, "c"]


def test_texts_of_the_command_line(run: Path, echo: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status("translate", run, "a dog", "", "a cat") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert rows == [{"source": text, "translation": text} for text in ("a dog", "", "a cat")]


CHILD = """
from nlp_transfer import load_translator
from nlp_transfer.cli import cli
from nlp_transfer.utils.errors import UserError

cli(["train", "run.yaml"], standalone_mode=False)
cli(["translate", "tester/tuned", "--input", "in.txt", "--output", "out.jsonl", "--precision", "fp32"], standalone_mode=False)
print(len(load_translator("tester/tuned")(["the dog", ""])))
try:
    cli(["train", "run.yaml", "--task.target", "fr", "--output_dir", "other"], standalone_mode=False)
except UserError as error:
    print("refused:", str(error).replace("\\n", " "))
"""


def test_data_and_models_by_hub_id(run: Path, tiny: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "hub"
    shutil.copytree(tiny["bert"], root / "models/tester/tiny")
    shutil.copytree(run / "model", root / "models/tester/tuned")
    features = Features({"id": Value("string"), "translation": Translation(["en", "de"])})
    cells = [{"id": str(i), "translation": {"en": en, "de": de}} for i, (en, de) in enumerate(PAIRS)]
    for name in ("pairs", "plain"):
        (root / f"datasets/tester/{name}").mkdir(parents=True)
    Dataset.from_list(cells, features=features).to_parquet(root / "datasets/tester/pairs/train.parquet")
    write(root / "datasets/tester/plain/test.jsonl", cells[:8])
    plan = builders.document(
        model="tester/tiny",
        data={"train": "tester/pairs", "test": "tester/plain"},
        task={"name": "translation", "source": "en", "target": "de", "target_vocabulary": 350},
        training={"max_steps": 1},
        output_dir="run",
    )
    write(tmp_path / "run.yaml", plan)
    (tmp_path / "in.txt").write_text("\n".join(["", *ENGLISH[:5]]) + "\n")
    with serve(root) as (address, hub):
        around = environment(address, tmp_path / "cache")
        done = subprocess.run(
            [sys.executable, "-c", CHILD], cwd=tmp_path, env=around, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    answers, refused = done.stdout.splitlines()
    assert answers == "2"
    assert "tester/pairs has no column 'fr'; found: id, translation, en, de" in refused
    assert [row["translation"] for row in read_table(tmp_path / "out.jsonl")] == load_translator(run)(["", *ENGLISH[:5]])
    assert any("tester/tuned/resolve" in line and "target_tokenizer/tokenizer.json" in line for line in hub.asked)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert {"bleu", "chrf", "token_accuracy"} <= result["metrics"]["test"].keys()
    assert (tmp_path / "run/model/target_tokenizer/tokenizer.json").is_file()
    assert not (tmp_path / "other").exists()


def test_training_goes_on_from_a_saved_run(run: Path, tmp_path: Path) -> None:
    """Its weights and both of its tokenizers are taken over: with a rate of next to nothing it translates as before."""
    ratio = json.loads((run / "model/nlp_transfer.json").read_text(encoding="utf-8"))["settings"]["length_ratio"]
    data = {"train": write(tmp_path / "pairs.jsonl", PAIRS, ("source", "target"))}
    settings: Any = {"model": run, "data": data, "training": {"max_steps": 1, "learning_rate": 1e-12}}
    task = {"name": "translation", "beams": 2, "length_ratio": ratio}
    more = builders.run(**settings, task=task, output_dir=tmp_path / "more").output_dir
    target = "model/target_tokenizer/tokenizer.json"
    assert (more / target).read_bytes() == (run / target).read_bytes()
    first, second = (load_translator(folder)(ENGLISH[:6]) for folder in (run, more))
    assert first == second
    assert len(set(first)) > 1
    with refused("task.decoder_layers: found 1;", "seq2seq", "decoder"):
        builders.run(**settings, task={"name": "translation", "decoder_layers": 1}, output_dir=tmp_path / "other")
