"""Question answering: windows, labels and loss, checks, predictions, and transformers' own evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlp_transfer import fine_tune
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.tasks import encode_table, task_from
from nlp_transfer.tasks.question_answering import QuestionAnswering
from nlp_transfer.tasks.question_answering.squad_format import read_squad
from nlp_transfer.tasks.question_answering.squad_metrics import AnswerScorer
from nlp_transfer.utils.errors import Problems
from tests.builders import document, opened, prepared, read_table, refused, write
from tests.helpers.models import FAMILIES
from tests.helpers.questions import QA, by_example, columns, questions, squad

pytestmark = pytest.mark.model


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_tokens_of_the_answer(family: str, tiny: dict[str, Path]) -> None:
    made = questions(12)
    model, _, table, _, checkpoint = prepared(tiny[family], QA, data=columns(made))
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


def test_all_forms_of_a_table_give_the_same_tokens(tiny: dict[str, Path]) -> None:
    made = questions(10)
    pairs = [(row["answers"]["text"][:1] or [""], row["answers"]["answer_start"][:1] or [None]) for row in made]
    flat = [row | {"answers": text, "at": start} for row, ([text], [start]) in zip(made, pairs, strict=True)]
    cells = [row | {"answers": json.dumps(row["answers"])} for row in made]
    tables = [prepared(tiny["bert"], QA, data=columns(form)).table for form in (made, cells)]
    tables.append(prepared(tiny["bert"], QA | {"answer_start": "at"}, data=columns(flat)).table)
    for table in tables[1:]:
        assert all(np.array_equal(table.ragged[name].values, tables[0].ragged[name].values) for name in tables[0].ragged)
        assert table.texts["answers"][1][:1] == tables[0].texts["answers"][1][:1] == [pairs[1][0][0]]


def test_tokens_are_cached(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLP_TRANSFER_CACHE", str(tmp_path / "cache"))
    source, names = str(write(tmp_path / "train.json", squad(questions(10)))), ["question", "context", "answers"]
    data = read_rows(source, "train", DataConfig(), names, QuestionAnswering.traits.readers)
    checkpoint = opened(tiny["bert"])
    task = task_from(QA).fit(data, Problems()).prepare(checkpoint, data)
    first, second = (encode_table(task, data, checkpoint.tokenizer, "disk") for _ in range(2))
    assert list(second.texts["answers"]) == list(first.texts["answers"]) == [row["answers"]["text"] for row in questions(10)]
    assert all(np.array_equal(second.ragged[name].values, first.ragged[name].values) for name in first.ragged)


def test_a_file_that_changes_while_the_task_reads_it_is_refused(tmp_path: Path) -> None:
    def read(path: Path) -> list[dict[str, Any]]:
        rows = list(read_squad(path) or ())
        write(path, squad(questions(2)))
        return rows

    source = str(write(tmp_path / "train.json", squad(questions(10))))
    with refused(source, "changed while it was read"):
        read_rows(source, "train", DataConfig(), ["question"], {".json": read})


def test_a_model_needs_the_positions_of_tokens(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tiny["bert"])
    monkeypatch.setattr(type(checkpoint.tokenizer), "is_fast", False)
    with refused("tokenizer", "allowed: a checkpoint with a fast tokenizer"):
        prepared(checkpoint, QA, data=columns(questions(4)))
