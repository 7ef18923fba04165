"""Summarization: learned by heart, predicted in files, the same with plain transformers, repeated from its configuration."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nlp_transfer import compare, fine_tune, load_predictor, load_translator
from nlp_transfer.models.seq2seq import generation
from nlp_transfer.tasks.translation import Translation
from tests.builders import command, printed, read_table, refused, run, succeed, write
from tests.helpers.seq2seq_models import PAIRS, languages, save_tiny_seq2seq

pytestmark = pytest.mark.model

TEXTS, SUMMARIES = ([pair[side] for pair in PAIRS] for side in (0, 1))
LONG = " ".join(TEXTS[:20])
TRAINING = {"max_steps": 150, "learning_rate": 1e-2, "label_smoothing": 0, "dropout": 0, "attention_dropout": 0, "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("summaries")
    write(place / "pairs.csv", PAIRS, ("text", "summary"))
    return place


def train(family: str, folder: Path, **changes: Any) -> Path:
    """A run that knows all pairs by heart; its texts are scored on themselves."""
    output = folder / (changes.get("strategy") or family)
    if not (folder / f"{family}-base").exists():
        save_tiny_seq2seq(family, folder / f"{family}-base")
    task = {"name": "summarization", "beams": 2, "summarized_rows": 3, **languages(family)}
    data, training = dict.fromkeys(("train", "validation"), folder / "pairs.csv"), TRAINING | {"evaluate_every": 75}
    run(model=folder / f"{family}-base", data=data, task=task, training=training, output_dir=output, **changes)
    return output


@pytest.fixture(scope="module", params=["bert", "t5", "mbart"])
def learned(request: pytest.FixtureRequest, folder: Path) -> Path:
    return train(request.param, folder)


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    return folder / "bert" if (folder / "bert/result.json").exists() else train("bert", folder)


def test_training_pairs_are_summarized_exactly(learned: Path) -> None:
    predictor = load_predictor(learned)
    assert predictor(TEXTS) == [{"prediction": summary} for summary in SUMMARIES]
    assert predictor(TEXTS[0]) == {"prediction": SUMMARIES[0]}
    result = json.loads((learned / "result.json").read_text())
    assert [result["metrics"]["validation"][f"rouge{kind}"] for kind in ("1", "2", "L", "Lsum")] == pytest.approx([100] * 4)
    assert set(result["signatures"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    saved = predictor.task.document()
    assert max(len(ids) for ids in predictor.task.tokenizers.target_ids(SUMMARIES, 64)[0]) <= saved["max_new_tokens"] < 64


def test_models_of_other_programs_summarize(learned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(learned / "model", theirs, ignore=shutil.ignore_patterns("nlp_transfer.json"))
    settings = {"name": "summarization", **languages(learned.name)}
    capfd.readouterr()
    assert load_predictor(theirs, settings=settings)(TEXTS) == [{"prediction": summary} for summary in SUMMARIES]
    assert "assumed" not in capfd.readouterr().err
    assert isinstance(load_predictor(theirs, settings=languages(learned.name)).task, Translation)
    assert "translation is assumed" in " ".join(capfd.readouterr().err.split())
    flags = [word for name, value in languages(learned.name).items() for word in (f"--task.{name}", value)]
    succeed("predict", theirs, "--task.name", "summarization", *flags, TEXTS[0])
    assert json.loads(capfd.readouterr().out) == {"text": TEXTS[0], "prediction": SUMMARIES[0]}
    with refused("task.name: found regression", "theirs", "allowed"):
        load_predictor(theirs, settings={"name": "regression"})


def test_plain_transformers_generates_the_same(learned: Path) -> None:
    texts = [*TEXTS[:9], "The dog", LONG]
    model = AutoModelForSeq2SeqLM.from_pretrained(learned / "model").eval()
    tokenizer = target = AutoTokenizer.from_pretrained(learned / "model")
    if (learned / "model/target_tokenizer").is_dir():
        target = AutoTokenizer.from_pretrained(learned / "model", subfolder="target_tokenizer")
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs)
    plain = target.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ends = (ids[:, 1:] == model.generation_config.eos_token_id).any(1).tolist()
    assert sum(ends) >= 9
    for row, text, is_ended in zip(load_predictor(learned)(texts), plain, ends, strict=True):
        # At the limit, the last token is the end here, and one of the text in transformers.
        assert row["prediction"] == text.strip() if is_ended else text.strip().startswith(row["prediction"])
    assert model.generation_config.num_beams == 2


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".txt"])
def test_files_get_a_column_of_predictions(ending: str, bert: Path, tmp_path: Path) -> None:
    source, output = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    texts = [*TEXTS[:3], "", LONG]
    write(source, texts if ending == ".txt" else [{"id": i, "text": text} for i, text in enumerate(texts)])
    _, said = succeed("predict", bert, "--input", source, "--output", output, "--beams", 2)
    assert "1 texts were longer than task.max_length" in said
    assert "1 of 5 rows have no prediction" in said
    if ending == ".txt":
        assert output.read_text().split("\n")[:4] == [*SUMMARIES[:3], ""]
        return
    rows = read_table(output)
    assert [row["prediction"] or "" for row in rows[:4]] == [*SUMMARIES[:3], ""]
    assert [list(row) for row in rows] == [["id", "text", "prediction"]] * 5


def test_long_texts_are_truncated_and_counted(bert: Path) -> None:
    predictor = load_predictor(bert)
    limit = predictor.task.max_length
    ids = predictor.tokenizer(LONG, truncation=True, max_length=limit)["input_ids"]
    start = predictor.tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) == limit
    assert predictor([LONG, TEXTS[0]]) == predictor([start, TEXTS[0]])
    assert predictor.truncated == 1


def test_truncated_texts_are_found_if_texts_are_tokenized_in_chunks(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "TOKENIZED_CHARACTERS", 1)
    predictor = load_predictor(bert)
    found = predictor.task.generate(predictor.model, [TEXTS[0], LONG, TEXTS[1], LONG])
    assert found["truncated"].tolist() == [False, True, False, True]


def test_settings_of_the_search_can_be_changed(bert: Path) -> None:
    short = load_predictor(bert, settings={"max_new_tokens": 3})
    lengths = short.task.tokenizers.target_ids([row["prediction"] for row in short(TEXTS)], 64)[0]
    assert max(map(len, lengths)) <= 4, "with the end token"
    with refused("task.max_new_tokens: found 99", "64"):
        load_predictor(bert, settings={"max_new_tokens": 99})
    with refused("task.summarized_rows"):
        load_predictor(bert, settings={"summarized_rows": -1})


@pytest.mark.parametrize("arguments", [["translate"], ["predict", "--probabilities"]], ids=str)
def test_commands_that_do_not_apply_are_refused(arguments: list[str], bert: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", {"text": TEXTS[:2]})
    status, _, said = command(arguments[0], bert, *arguments[1:], "--input", source, "--output", tmp_path / "out.csv")
    assert status == 2
    assert ("nlp-transfer predict" if arguments == ["translate"] else "--probabilities") in said
    assert not (tmp_path / "out.csv").exists()


def test_a_translator_is_not_made_of_a_summarizer(bert: Path) -> None:
    with refused("summarization", "load_predictor"):
        load_translator(bert)


def test_a_classifier_has_no_beams(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    done = run(model=tiny["bert"], data={"train": sentiment["train"]}, training={"max_steps": 1}, output_dir=tmp_path / "run")
    source = write(tmp_path / "in.csv", {"text": TEXTS[:2]})
    status, _, said = command("predict", done.output_dir, "--beams", 2, "--input", source, "--output", tmp_path / "out.csv")
    assert status == 2
    assert "--beams" in said
    assert "text_classification" in said


def test_evaluation_equals_the_run(bert: Path, folder: Path) -> None:
    metrics = json.loads((bert / "result.json").read_text())["metrics"]["validation"]
    found = printed("evaluate", bert, "--data.test", folder / "pairs.csv")
    assert {name: value for name, value in found.items() if name in metrics} == pytest.approx(metrics)


def test_drafts_are_marked(bert: Path) -> None:
    lines = map(json.loads, (bert / "log.jsonl").read_text().splitlines())
    drafts = [line["validation"] for line in lines if "validation" in line]
    assert [(draft["summarized_rows"], draft["beams"]) for draft in drafts] == [(3, 1)] * 2
    assert all("rougeL" in draft and "rougeL_low" not in draft for draft in drafts)


def test_the_configuration_repeats_the_run(bert: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((bert / "config.yaml").read_text()) | {"output_dir": str(tmp_path / "again")}
    again = fine_tune(**document)
    assert again.result["metrics"] == json.loads((bert / "result.json").read_text())["metrics"]
    assert (tmp_path / "again/model/model.safetensors").read_bytes() == (bert / "model/model.safetensors").read_bytes()


def test_predictions_of_splits_are_written(bert: Path) -> None:
    rows = read_table(bert / "predictions/validation.parquet")
    assert [row["prediction"] for row in rows] == [row["reference"] for row in rows] == SUMMARIES
    assert [row["text"] for row in rows] == TEXTS


def test_the_card_describes_the_task(bert: Path) -> None:
    card = (bert / "model/README.md").read_text()
    for fact in (
        "pipeline_tag: summarization",
        "type: rougeL\n",
        "| rouge2 | 100.00 |",
        "stem:no",
        "64 tokens",
        "AutoModelForSeq2SeqLM",
    ):
        assert fact in card
    assert "load_translator" not in card


def test_an_adapter_summarizes_like_the_merged_model(folder: Path) -> None:
    output = train("bert", folder, strategy="lora")
    assert load_predictor(output / "adapter")(TEXTS) == load_predictor(output)(TEXTS)


def test_strategies_are_compared_by_rouge(folder: Path, bert: Path, tmp_path: Path) -> None:
    document = {
        "model": str(folder / "bert-base"),
        "data": {"train": str(folder / "pairs.csv"), "test_share": 0.3, "validation_share": 0},
        "task": {"name": "summarization", "beams": 1, "target_vocabulary": 300},
        "training": {"max_steps": 2},
        "output_dir": str(tmp_path / "run"),
    }
    found = compare(document, ["full", "partial"], seeds=[0])
    assert (found.metric, found.failed) == ("rougeL", [])
    assert all(row.mean is not None and 0 <= row.mean <= 100 for row in found.rows)


def test_line_aligned_files(folder: Path, bert: Path, tmp_path: Path) -> None:
    files = {"source": write(tmp_path / "a.source", TEXTS), "target": write(tmp_path / "a.target", SUMMARIES)}
    task, training = {"name": "summarization", "target_vocabulary": 300, "beams": 1}, {"max_steps": 1}
    data = {"train": files, "validation_share": 0.2, "filter": ["copies", "duplicates"]}
    done = run(model=folder / "bert-base", data=data, task=task, training=training, output_dir=tmp_path / "run")
    assert "rouge1" in done.metrics["validation"]
