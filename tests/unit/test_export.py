"""What is saved is what was trained, says so truthfully, and is refused where two files contradict each other."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import load_predictor
from nlp_transfer.report.language_codes import language_code
from nlp_transfer.report.model_card import write_card
from nlp_transfer.saved_models.save import save_model
from nlp_transfer.tasks.text_classification import TextClassification
from nlp_transfer.utils.atomic_files import write_json
from tests.builders import edit, refused, run, write
from tests.helpers.seq2seq_models import PAIRS, languages, save_tiny_seq2seq

pytestmark = pytest.mark.model


@pytest.fixture
def saved(train: Any, sentiment: dict[str, Path]) -> Path:
    folder: Path = train(data={"train": sentiment["train"]}, training={"max_steps": 1}).output_dir
    return folder / "model"


def test_swapped_labels_are_refused(saved: Path) -> None:
    edit(saved / "config.json", id2label={"0": "positive", "1": "negative"}, label2id={"positive": 0, "negative": 1})
    with refused("predictions would have wrong labels"):
        load_predictor(saved)


def test_foreign_classifier_predicts_its_labels(saved: Path) -> None:
    (saved / "nlp_transfer.json").unlink()
    answers = load_predictor(saved)(["a good film", "an awful plot"])
    assert {answer["prediction"] for answer in answers} <= {"negative", "positive"}


def test_encoder_without_head_is_refused(tiny: dict[str, Path]) -> None:
    with refused("Fine-tune it first"):
        load_predictor(tiny["bert"])


def test_record_of_another_program_is_refused(saved: Path) -> None:
    (saved / "nlp_transfer.json").write_text("{}")
    with refused("is it a file of this toolkit"):
        load_predictor(saved)


def test_unfaithful_save_is_detected_and_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    model.register_forward_hook(lambda module, inputs, output: output.__class__(logits=output.logits + 1))
    task = TextClassification(labels=["negative", "positive"], max_length=16)
    probe = {"input_ids": torch.tensor([[2, 7, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(RuntimeError, match="was not saved faithfully"):
        save_model(model, AutoTokenizer.from_pretrained(saved), task, tmp_path / "again", probe)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nan_is_recorded_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"accuracy": float("nan")})
    assert json.loads((tmp_path / "result.json").read_text()) == {"accuracy": None}


def test_no_local_path_is_saved(saved: Path, tiny: dict[str, Path]) -> None:
    for path in saved.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tiny["bert"]) not in path.read_text(), path.name
    assert AutoConfig.from_pretrained(saved).id2label == {0: "negative", 1: "positive"}


def test_card_escapes_markup(tmp_path: Path) -> None:
    task = TextClassification(labels=["a`b", "|c|\n# d", "<script>"], max_length=8)
    result = {
        "model": "folder/<b>x</b>", "strategy": {"name": "full"}, "metrics": {"test": {"accuracy": 0.5, "loss": 1.0}},
        "plain": True, "seed": 0, "versions": {"torch": "2"},
    }  # fmt: skip
    write_card(tmp_path, task, result, {"train": "x: {y}: `z`.csv", "test": None, "rows": {"train": 3, "test": 1}}, {"epochs": 3})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == 0.5
    text = card.text
    assert "`a'b`, `|c| # d`, `<script>`" in text
    assert "`x: {y}: 'z'.csv`" in text
    assert "\n# d" not in text


def blocks(card: ModelCard) -> list[str]:
    """The card's code."""
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


def printed(code: str, folder: Path, text: str = "some text") -> str:
    """What a card's code prints for a model that lies in `folder`."""
    assert "path/or/id" in code
    assert "some text" in code
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code.replace("path/or/id", str(folder)).replace("some text", text), {})
    return output.getvalue()


def test_card_code_runs(saved: Path) -> None:
    card = ModelCard.load(saved / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.language is None
    (code,) = blocks(card)
    (answer,) = ast.literal_eval(printed(code, saved))
    assert answer["label"] in ("negative", "positive")
    assert "## Metrics\n\nNo split was scored.\n" in card.text


TRANSLATORS = ["bert", "marian", "marian-multilingual"]


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of both architectures that know some pairs by heart, and one of a family that wants the language in its input."""
    folder = tmp_path_factory.mktemp("translators")
    pairs = write(folder / "pairs.csv", PAIRS, ("source", "target"))
    given = {"bert": {"source_language": "eng_Latn", "target_language": "de-DE"}} | {
        name: languages(name) for name in TRANSLATORS[1:]
    }
    for name in TRANSLATORS:
        run(
            model=save_tiny_seq2seq(name, folder / name),
            data={"train": pairs, "validation": pairs},
            task={"name": "translation", "beams": 2, "length_penalty": 0.8, **given[name]},
            training={
                "max_steps": 60, "evaluate_every": 60, "learning_rate": 1e-2, "label_smoothing": 0, "dropout": 0,
                "attention_dropout": 0,
            },
            output_dir=folder / f"{name}-run",
        )  # fmt: skip
    return {name: folder / f"{name}-run" for name in TRANSLATORS}


@pytest.mark.parametrize("name", TRANSLATORS)
def test_card_translation_code_agrees_with_plain_transformers(name: str, translators: dict[str, Path]) -> None:
    card = ModelCard.load(translators[name] / "model/README.md")
    assert card.data.pipeline_tag == "translation"
    ours, plain = blocks(card)
    assert "nlp_transfer" not in plain
    assert "pipeline" not in ours + plain, "transformers has none for translation"
    assert ("target_tokenizer" in plain) == (name == "bert")
    assert ('">>de<< some text"' in plain) == (name == "marian-multilingual")
    for source, _ in PAIRS[:3]:
        found = printed(plain, translators[name] / "model", source)
        assert found == printed(ours, translators[name] / "model", source)
        assert len(ast.literal_eval(found)[0]) > 3


def test_translation_card_shows_intervals_and_signatures(translators: dict[str, Path]) -> None:
    card = ModelCard.load(translators["bert"] / "model/README.md")
    result = json.loads((translators["bert"] / "result.json").read_text())
    figures = result["metrics"]["validation"]
    assert set(result["signatures"]) == {"bleu", "chrf", "ter"}
    for name, signature in result["signatures"].items():
        value, low, high = (figures[f"{name}{end}"] for end in ("", "_low", "_high"))
        assert f"| {name} | {value:.2f} | {low:.2f} to {high:.2f} |\n" in card.text
        assert f"- {name}: `{signature}`\n" in card.text
    assert f"| token_accuracy | {figures['token_accuracy']:.4f} |  |\n" in card.text
    assert "_low" not in card.text
    assert {entry.metric_name: entry.metric_value for entry in card.data.eval_results or []} == pytest.approx(
        {name: figures[name] for name in ("bleu", "chrf", "ter")}, abs=1e-6
    )


def test_translation_card_lists_settings(translators: dict[str, Path]) -> None:
    model = translators["bert"] / "model"
    text, settings = (model / "README.md").read_text(), json.loads((model / "nlp_transfer.json").read_text())["settings"]
    assert "- architecture: encoder_decoder\n" in text
    assert "- languages: `eng_Latn` to `de-DE`\n" in text
    assert "- beams: 2, length penalty 0.8\n" in text
    assert f"- maximum length of source and target: {settings['max_length']} tokens each;" in text
    assert f"at most {settings['length_ratio']:g} x (source tokens + 8) tokens" in text
    assert f"splits texts of more than {settings['longest_source']} tokens" in text
    assert "- architecture: seq2seq\n" in (translators["marian"] / "model/README.md").read_text()


def test_card_languages(translators: dict[str, Path]) -> None:
    found = {name: ModelCard.load(run / "model/README.md").data.language for name, run in translators.items()}
    assert found == {"bert": ["eng", "de"], "marian": None, "marian-multilingual": ["de"]}


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "en"), ("en_XX", "en"), ("EN-us", "en"), ("zh_CN", "zh"), ("eng_Latn", "eng"), ("zho_Hans", "zho"),
        ("cmn_Hant", "cmn"), ("German", None), ("xx", None), ("qqq", None), ("", None), ("mul", None), ("latin", None),
    ],
)  # fmt: skip
def test_iso_639_language_codes(language: str, expected: str | None) -> None:
    assert language_code(language) == expected
