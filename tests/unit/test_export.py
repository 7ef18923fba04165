"""What is saved is what was trained, says so truthfully, and is refused where two files contradict each other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.export.card import write_card
from nlp_transfer.export.save import save_model, write_json
from nlp_transfer.tasks.text_classification import TextClassification


@pytest.fixture
def saved(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> Path:
    run = fine_tune(
        model=str(tiny["bert"]),
        data={"train": str(sentiment["train"]), "validation_share": 0},
        task="text_classification",
        training={"max_steps": 1},
        output_dir=tmp_path / "run",
    )
    return run.output_dir / "model"


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_swapped_labels_are_refused(saved: Path) -> None:
    change(saved / "config.json", id2label={"0": "positive", "1": "negative"}, label2id={"positive": 0, "negative": 1})
    with pytest.raises(UserError, match="answers would carry wrong names"):
        load_predictor(saved)


def test_a_classifier_from_elsewhere_answers_with_its_own_labels(saved: Path) -> None:
    (saved / "nlp_transfer.json").unlink()
    answers = load_predictor(saved)(["a good film", "an awful plot"])
    assert {answer["prediction"] for answer in answers} <= {"negative", "positive"}


def test_an_encoder_without_head_is_no_predictor(tiny: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="Fine-tune it first"):
        load_predictor(tiny["bert"])


def test_a_record_of_another_program_is_refused(saved: Path) -> None:
    (saved / "nlp_transfer.json").write_text("{}")
    with pytest.raises(UserError, match="is it a file of this toolkit"):
        load_predictor(saved)


def test_an_unfaithful_save_is_noticed_and_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    model.register_forward_hook(lambda module, inputs, output: output.__class__(logits=output.logits + 1))
    task = TextClassification(labels=["negative", "positive"], max_length=16)
    probe = {"input_ids": torch.tensor([[2, 7, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(RuntimeError, match="was not saved faithfully"):
        save_model(model, AutoTokenizer.from_pretrained(saved), task, tmp_path / "again", probe)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_json_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "result.json", {"accuracy": float("nan")})
    assert not (tmp_path / "result.json").exists()


def test_no_path_of_this_machine_is_saved(saved: Path, tiny: dict[str, Path]) -> None:
    for path in saved.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tiny["bert"]) not in path.read_text(), path.name
    assert AutoConfig.from_pretrained(saved).id2label == {0: "negative", 1: "positive"}


def test_a_card_shows_odd_words_as_they_stand(tmp_path: Path) -> None:
    task = TextClassification(labels=["a`b", "|c|\n# d", "<script>"], max_length=8)
    result = {
        "model": "folder/<b>x</b>",
        "strategy": {"name": "full"},
        "metrics": {"test": {"accuracy": 0.5, "loss": 1.0}},
        "plain": True,
        "seed": 0,
        "versions": {"torch": "2"},
    }
    write_card(tmp_path, task, result, {"train": "x: {y}: `z`.csv", "test": None, "rows": {"train": 3, "test": 1}}, {"epochs": 3})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == 0.5
    text = card.text
    assert "`a'b`, `|c| # d`, `<script>`" in text
    assert "`x: {y}: 'z'.csv`" in text
    assert "\n# d" not in text
