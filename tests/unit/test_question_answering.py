"""Question answering: windows, labels and loss, checks, predictions, files, and transformers' own evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.tasks.question_answering.squad_metrics import AnswerScorer
from nlp_transfer.utils.errors import Problems
from tests.builders import answer_in, document, opened, prepared, read_table, refused, rows, sentiment_rows, succeed, write
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

QA = {"name": "question_answering", "max_length": 24, "stride": 4}


def questions(count: int, unanswerable: bool = True, sentences: int = 3) -> list[dict[str, Any]]:
    """Rows whose context has several windows; every fifth question has no answer, others have one or two."""
    texts = [text for text, _ in sentiment_rows(count * sentences)]
    made = []
    for i in range(count):
        parts = texts[i * sentences : (i + 1) * sentences]
        before = len("".join(f"{part} " for part in parts[: i % sentences]))
        word, start = answer_in(parts[i % sentences])
        answers = {"text": [word, word][: 1 + i % 2], "answer_start": [before + start, before + start][: 1 + i % 2]}
        if unanswerable and i % 5 == 0:
            answers = {"text": [], "answer_start": []}
        made.append({"question": f"was the film {i % 3 * 'very '}good", "context": " ".join(parts), "answers": answers})
    return made


def columns(made: list[dict[str, Any]]) -> Any:
    return rows({name: [row[name] for row in made] for name in made[0]})


def squad(made: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows in SQuAD's format."""

    def question(number: int, row: dict[str, Any]) -> dict[str, Any]:
        answers = [dict(zip(("text", "answer_start"), pair, strict=True)) for pair in zip(*row["answers"].values(), strict=True)]
        return {"id": str(number), "question": row["question"], "answers": answers, "is_impossible": not answers}

    paragraphs = [{"context": row["context"], "qas": [question(i, row)]} for i, row in enumerate(made)]
    return {"version": "v2.0", "data": [{"title": "films", "paragraphs": paragraphs}]}


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_tokens_of_the_answer(family: str, tiny: dict[str, Path]) -> None:
    made = questions(12)
    model, task, table, _, checkpoint = prepared(tiny[family], QA, data=columns(made))
    batch = table.batch(np.arange(len(made)))
    windows = batch["target_row"].bincount()
    assert windows.min() >= 2, "contexts are longer than a window"
    assert batch["input_ids"].shape[1] <= 24
    first_id = int(batch["input_ids"][0, 0])
    for row, expected in enumerate(made):
        answers, found = expected["answers"], 0
        for window in (batch["target_row"] == row).nonzero().flatten():
            labels, ids = batch["labels"][window], batch["input_ids"][window]
            start, end = int((labels & 1).argmax()), int((labels & 2).argmax())
            assert (int((labels & 1).sum()), int((labels & 2).sum())) == (1, 2)
            if start == 0:
                assert (end, int(ids[0])) == (0, first_id)
                continue
            first, last = int(batch["target_start"][window, start]), int(batch["target_end"][window, end])
            assert (expected["context"][first:last], first) == (answers["text"][0], answers["answer_start"][0])
            assert checkpoint.tokenizer.decode(ids[start : end + 1]).strip() == answers["text"][0]
            found += 1
        assert bool(found) == bool(answers["text"]), "some window has the answer"
    outputs = model(**model_inputs(batch))
    assert outputs.start_logits.shape == batch["input_ids"].shape


def test_the_loss_is_that_of_transformers(tiny: dict[str, Path]) -> None:
    model, task, table, _, _ = prepared(tiny["bert"], QA, data=columns(questions(12)))
    batch, objective = table.batch(np.arange(12)), task.objective(TrainingConfig())
    full = batch["attention_mask"].all(1)  # transformers' loss depends on padding
    equal = {name: values[full] for name, values in batch.items()}
    positions = {name: (equal["labels"] & bit).argmax(-1) for name, bit in (("start_positions", 1), ("end_positions", 2))}
    with torch.inference_mode():
        outputs = model.eval()(**model_inputs(equal), **positions)
        loss = objective.loss(outputs, equal)["cross_entropy"] / full.sum()
        assert torch.allclose(loss, outputs.loss)
        every = objective.items(model(**model_inputs(batch)), batch)["cross_entropy"]
        alone = [table.batch(np.array([i])) for i in range(12)]
        single = [objective.items(model(**model_inputs(one)), one)["cross_entropy"] for one in alone]
    assert every == pytest.approx(tuple(map(sum, zip(*single, strict=True))), rel=1e-5), "padding has no effect"
    assert objective.count(table.targets(np.arange(12))) == {"rows": 12, "cross_entropy": len(batch["labels"])}


def test_an_answer_that_no_window_holds_is_not_trained_on(tiny: dict[str, Path]) -> None:
    context = " ".join(["cat"] * 40)
    made = [{"question": "what", "context": context, "answers": {"text": [context], "answer_start": [0]}}, *questions(3, False)]
    _, task, table, _, _ = prepared(tiny["bert"], QA, data=columns(made))
    assert table.truncated == 1
    batch = table.batch(np.array([0]))
    assert not batch["labels"].any()
    assert task.objective().count(batch) == {"rows": 1, "cross_entropy": 0}


def test_a_long_question_is_truncated(tiny: dict[str, Path]) -> None:
    made = [row | {"question": "good " * 100} for row in questions(4)]
    model, task, table, _, _ = prepared(tiny["bert"], QA, data=columns(made))
    assert table.truncated == 4
    assert table.batch(np.arange(4))["input_ids"].shape[1] <= 24
    assert len(predict_table(model, task, table)[0]["prediction"]) == 4


def test_long_answers_are_reported(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tiny["bert"], QA, data=columns(questions(4)))
    assert "max_answer_length" not in capsys.readouterr().err
    made = [{"question": "what", "context": "the cat sat", "answers": {"text": ["the cat sat"], "answer_start": [0]}}]
    prepared(tiny["bert"], QA | {"max_answer_length": 2}, data=columns(made))
    assert "1 of 1 answers in train have more than task.max_answer_length (2) tokens, up to 3" in capsys.readouterr().err


def test_the_threshold_decides_on_no_answer(tiny: dict[str, Path]) -> None:
    made = questions(20)
    model, task, table, _, _ = prepared(tiny["bert"], QA, data=columns(made))
    assert task.no_answer_threshold == 0, "some training rows have no answer"

    def predicted(threshold: float | None) -> Any:
        return predict_table(model, task.model_copy(update={"no_answer_threshold": threshold}), table)[0]

    never, always = predicted(None), predicted(-1e9)
    assert all(never["prediction"])
    assert list(always["prediction"]) == [""] * 20
    assert (always["start"] == -1).all()
    assert (always["end"] == -1).all()
    assert (never["probability"] + always["probability"] <= 1 + 1e-6).all()
    for row, text in enumerate(never["prediction"]):
        assert made[row]["context"][never["start"][row] : never["end"][row]] == text
    counts = [int((predicted(threshold)["prediction"] == "").sum()) for threshold in (-1e9, -1.0, -0.5, 0.0, 0.5, 1e9)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (20, 0)


def test_without_unanswerable_questions_each_gets_an_answer(tiny: dict[str, Path]) -> None:
    model, task, table, _, _ = prepared(tiny["bert"], QA, data=columns(questions(8, unanswerable=False)))
    assert task.no_answer_threshold is None
    assert all(predict_table(model, task, table)[0]["prediction"])


def by_example(model: Any, tokenizer: Any, made: list[dict[str, Any]], threshold: float, longest: int = 30) -> list[str]:
    """Predict as transformers' example script does: the n-best list of each window, merged; one row after the other."""
    predictions = []
    for row in made:
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=24, stride=4, padding="max_length",
            return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        offsets, _ = encoded.pop("offset_mapping").tolist(), encoded.pop("overflow_to_sample_mapping")
        with torch.inference_mode():
            outputs = model.eval()(**encoded)
        candidates, lowest = [], float("inf")
        for window, (starts, ends) in enumerate(zip(outputs.start_logits.numpy(), outputs.end_logits.numpy(), strict=True)):
            lowest = min(lowest, float(starts[0] + ends[0]))
            sides = encoded.sequence_ids(window)
            for i in np.argsort(-starts)[:20]:
                for j in np.argsort(-ends)[:20]:
                    if sides[i] == 1 and sides[j] == 1 and i <= j < i + longest:
                        candidates.append((float(starts[i] + ends[j]), offsets[window][i][0], offsets[window][j][1]))
        score, first, last = max(candidates)
        predictions.append("" if lowest - score > threshold else row["context"][first:last])
    return predictions


def test_predictions_equal_those_of_the_example_script(tiny: dict[str, Path]) -> None:
    made = questions(30)
    model, task, table, _, checkpoint = prepared(tiny["bert"], QA, data=columns(made))
    with torch.no_grad():
        model.qa_outputs.weight.mul_(50)  # clear differences between spans
    for threshold in (-0.2, 0.0, 1e9):
        expected = by_example(model, checkpoint.tokenizer, made, threshold)
        task = task.model_copy(update={"no_answer_threshold": threshold})
        predictions, _ = predict_table(model, task, table)
        assert predictions["prediction"].tolist() == expected
        references = {"answers": table.references["answers"]}
        found = AnswerScorer("f1").compute({"prediction": np.array(expected, object)}, references)
        assert task.scorer.compute(predictions, table.references) == found
    assert len(set(expected)) > 3


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"task": {"context": "question"}}, ("task.context", "'question'", "task.question")),
        ({"task": {"stride": 20}}, ("task.stride: found 20", "max_length 24", "0 to 9")),
        ({"task": {"max_length": 3}}, ("task.max_length: found 3",)),
        ({"training": {"label_smoothing": 0.1}}, ("training.label_smoothing: found 0.1", "allowed: 0")),
        ({"training": {"augment": {"drop": 0.1}}}, ("training.augment", "allowed: null")),
        ({"training": {"class_weights": "balanced"}}, ("training.class_weights", "allowed: null")),
        ({"task": {"answers": "text"}}, ("there is no column 'text'", "question, context, answers")),
        ({"strategy": {"name": "prototypes"}}, ("found prototypes", "question_answering", "allowed")),
    ],
)
def test_settings_are_refused(change: dict[str, Any], facts: tuple[str, ...], tiny: dict[str, Path], tmp_path: Path) -> None:
    base: dict[str, Any] = {"task": QA, "data": {"train": write(tmp_path / "train.jsonl", questions(20))}}
    settings = base | {name: base.get(name, {}) | value for name, value in change.items()}
    with refused(*facts):
        fine_tune(document(model=tiny["bert"], output_dir=tmp_path / "run", **settings))


@pytest.mark.parametrize(
    ("cell", "facts"),
    [
        ({"answers": {"text": ["cat"], "answer_start": [1]}}, ("row 3", "'answers'", "'cat'", "at 1")),
        ({"answers": "good"}, ("row 3", "'answers'", "found 'good'", "answer_start")),
        ({"answers": None}, ("row 3", "'answers'", "found nothing")),
        ({"context": " "}, ("row 3", "'context'", "empty")),
        ({"question": 7}, ("row 3", "'question'", "found 7")),
    ],
)
def test_bad_rows_are_named(cell: dict[str, Any], facts: tuple[str, ...], tiny: dict[str, Path], tmp_path: Path) -> None:
    made = questions(20)
    made[2] |= cell
    data = {"train": write(tmp_path / "train.jsonl", made)}
    with refused("train.jsonl", *facts, "allowed"):
        fine_tune(document(model=tiny["bert"], task=QA, data=data, output_dir=tmp_path / "run"))
    data["on_bad_rows"] = "skip"
    done = fine_tune(document(model=tiny["bert"], task=QA, data=data, output_dir=tmp_path / "run"))
    assert len(read_table(done.output_dir / "skipped_rows.csv")) == 1


def test_all_forms_of_a_table_give_the_same_tokens() -> None:
    made = questions(6)
    parsed = [task_from(QA).check(columns(made), problems := Problems()), problems]
    assert not parsed[1]
    flat = [row | {"answers": row["answers"]["text"][:1], "at": row["answers"]["answer_start"][:1]} for row in made]
    task = task_from(QA | {"answer_start": "at"})
    assert task.targets == ["answers", "at"]
    first = task._all_answers(columns(flat).columns)
    second = task_from(QA)._all_answers(columns(made).columns)
    assert [(row or [None])[0] for row in first] == [(row or [None])[0] for row in second]


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
    output = succeed("evaluate", trained, "--data.test", trained.parent / "test.json")
    assert json.loads(output[output.index("{") :])["f1"] == pytest.approx(result["metrics"]["test"]["f1"])


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


def test_a_model_needs_the_positions_of_tokens(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tiny["bert"])
    monkeypatch.setattr(type(checkpoint.tokenizer), "is_fast", False)
    with refused("tokenizer", "allowed: a checkpoint with a fast tokenizer"):
        prepared(checkpoint, QA, data=columns(questions(4)))
