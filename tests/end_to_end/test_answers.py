"""Question answering from files to files: a run by the command, its model in plain transformers, and predictions of files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BartConfig,
    GPT2Config,
    PretrainedConfig,
    XLNetConfig,
)

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.saved_models.load import read_record
from nlp_transfer.saved_models.probe import probe_difference
from nlp_transfer.settings.applicability import usage
from nlp_transfer.tasks.question_answering import QuestionAnswering
from nlp_transfer.tasks.question_answering.squad_metrics import AnswerScorer
from tests.builders import command, document, prepared, printed, read_table, succeed, write
from tests.helpers.models import VOCABULARY
from tests.helpers.questions import QA, by_example, columns, questions, squad

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the command, on files in SQuAD's format."""
    folder = tmp_path_factory.mktemp("squad")
    train, test = (write(folder / f"{name}.json", squad(questions(n))) for name, n in (("train", 40), ("test", 15)))
    settings = {"max_steps": 4, "batch_size": 8, "precision": "fp32", "learning_rate": 1e-2}
    data = {"train": train, "test": test, "validation_share": 0}
    plan = document(model=tiny["bert"], task=QA, data=data, training=settings, output_dir=folder / "run")
    succeed("train", write(folder / "run.yaml", plan))
    return folder / "run"


def test_a_run_by_the_command(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert {"exact_match", "f1", "f1/has_answer", "exact_match/no_answer"} <= set(result["metrics"]["test"])
    saved, made = read_table(trained / "predictions/test.parquet"), questions(15)
    assert [row["reference"] for row in saved] == [row["answers"]["text"] for row in made]
    metrics = AnswerScorer("f1").compute(
        {"prediction": np.array([row["prediction"] for row in saved], object)}, {"answers": [row["reference"] for row in saved]}
    )
    assert metrics == pytest.approx({name: result["metrics"]["test"][name] for name in metrics})
    card = (trained / "model/README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "AutoModelForQuestionAnswering" in card
    assert "type: exact_match" in card
    found = printed("evaluate", trained, "--data.test", trained.parent / "test.json")
    assert found["f1"] == pytest.approx(result["metrics"]["test"]["f1"])


@pytest.mark.parametrize("processes", [1, 2])
def test_files_in_the_format_of_squad_are_predicted(processes: int, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    succeed("predict", trained, "--input", trained.parent / "test.json", "--output", output, "--processes", processes)
    found, made = read_table(output), questions(15)
    assert [(row["id"], row["title"], row["question"]) for row in found] == [
        (str(i), "films", row["question"]) for i, row in enumerate(made)
    ]
    expected = load_predictor(trained)([(row["question"], row["context"]) for row in made])
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_files_are_predicted(ending: str, trained: Path, tmp_path: Path) -> None:
    made = questions(15)
    source = write(tmp_path / f"new.{ending}", [{name: row[name] for name in ("question", "context")} for row in made])
    succeed("predict", trained, "--input", source, "--output", tmp_path / f"out.{ending}")
    found = read_table(tmp_path / f"out.{ending}")
    in_python = load_predictor(trained)([(row["question"], row["context"]) for row in made])
    for row, predicted in zip(found, in_python, strict=True):
        assert {name: str(row[name]) for name in predicted} == {name: str(value) for name, value in predicted.items()}
        assert row["context"][int(row["start"]) : int(row["end"])] == row["prediction"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("question", "other"), ("context", "other"), ("max_length", 14), ("stride", 0), ("max_answer_length", 1),
        ("no_answer_threshold", 1e9),
    ],
)  # fmt: skip
def test_what_predict_takes_changes_predictions(name: str, value: Any, trained: Path, tmp_path: Path) -> None:
    made = [{"question": row["question"], "context": row["context"], "other": "the tree was good"} for row in questions(15)]
    source = write(tmp_path / "new.csv", made)
    for output, more in (("a.csv", ()), ("b.csv", (f"--task.{name}", value))):
        succeed("predict", trained, "--input", source, "--output", tmp_path / output, *more)
    assert (tmp_path / "a.csv").read_text() != (tmp_path / "b.csv").read_text()
    marked = {
        name for name in QuestionAnswering.model_fields if "predict" in getattr(usage(QuestionAnswering, name), "commands", ())
    }
    assert name in marked
    assert len(marked) == 6, "each is shown to have an effect"


def test_there_are_no_probabilities_by_label(trained: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "new.jsonl", questions(2))
    status, _, output = command("predict", trained, "--input", source, "--output", tmp_path / "out.csv", "--probabilities")
    assert status == 2
    assert "--probabilities" in output
    assert "question_answering" in output


def test_settings_change_when_a_model_is_loaded(trained: Path) -> None:
    made = [(row["question"], row["context"]) for row in questions(15)]
    never = load_predictor(trained, settings={"no_answer_threshold": 1e9, "max_answer_length": 1})(made)
    assert all(len(row["prediction"].split()) == 1 for row in never)
    assert not any(row["prediction"] for row in load_predictor(trained, settings={"no_answer_threshold": -1e9})(made))


def test_plain_transformers_loads_the_model(trained: Path) -> None:
    model, report = AutoModelForQuestionAnswering.from_pretrained(trained / "model", output_loading_info=True)
    assert not report["missing_keys"]
    tokenizer, predictor = AutoTokenizer.from_pretrained(trained / "model"), load_predictor(trained)
    expected = by_example(model, tokenizer, questions(15), 0.0)
    answers = predictor([(row["question"], row["context"]) for row in questions(15)])
    assert [answer["prediction"] for answer in answers] == expected


def test_a_trained_head_is_kept(trained: Path) -> None:
    kept = prepared(trained / "model", QA, data=columns(questions(8)))
    assert not kept.new
    saved = AutoModelForQuestionAnswering.from_pretrained(trained / "model")
    assert torch.equal(kept.model.qa_outputs.weight, saved.qa_outputs.weight)
    assert "question answering" in kept.model.head_note


def test_metrics_of_users_get_texts_and_lists(tiny: dict[str, Path], tmp_path: Path) -> None:
    data = {"train": write(tmp_path / "train.jsonl", questions(20)), "test": write(tmp_path / "test.jsonl", questions(10))}
    seen: list[Any] = []

    def length(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        seen.append((predictions, references))
        return {"length": sum(len(text.split()) for text in predictions) + 0.0 * len(references[0])}

    done = fine_tune(document(model=tiny["bert"], task=QA, data=data, output_dir=tmp_path / "run"), metrics=[length])
    assert done.metrics["test"]["length"] >= 0
    assert all(isinstance(text, str) for predictions, _ in seen for text in predictions)
    assert seen[-1][1] == [row["answers"]["text"] for row in questions(10)]


def test_models_of_other_programs_answer(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(tiny["bert"])
    model.save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / "theirs")
    made = questions(5)
    predictor = load_predictor(tmp_path / "theirs", settings={"max_length": 24, "stride": 4})
    found = predictor([(row["question"], row["context"]) for row in made])
    assert [row["prediction"] for row in found] == by_example(model, predictor.tokenizer, made, float("inf"))


@pytest.mark.parametrize("output", [0, 1])
def test_a_changed_head_is_noticed(output: int, trained: Path) -> None:
    model, record = load_predictor(trained).model, read_record(trained / "model") or {}
    assert probe_difference(model, record["probe"]) is None
    with torch.no_grad():
        model.qa_outputs.weight[output] *= 1.1
    assert "differ" in (probe_difference(model, record["probe"]) or "")


OTHERS: dict[str, PretrainedConfig] = {
    "xlnet": XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=48, vocab_size=len(VOCABULARY)),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=len(VOCABULARY)),
    "bart": BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=64, vocab_size=len(VOCABULARY), eos_token_id=3, forced_eos_token_id=3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", list(OTHERS))
def test_other_families_answer(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    AutoModel.from_config(OTHERS[family]).save_pretrained(tmp_path / family)
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / family)
    made = questions(20)
    data = {"train": write(tmp_path / "train.jsonl", made)}
    fine_tune(document(model=tmp_path / family, task=QA, data=data, output_dir=tmp_path / "run"))
    predictor = load_predictor(tmp_path / "run", settings={"no_answer_threshold": 1e9})
    found = predictor([(row["question"], row["context"]) for row in made])
    assert [row["prediction"] for row in found] == [
        row["context"][answer["start"] : answer["end"]] for row, answer in zip(made, found, strict=True)
    ]
    assert all(row["prediction"] for row in found)
