"""Explanations: attributions by word, the deletion test, similar training rows, and the command `explain`."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from nlp_transfer import explain, load_adapters, load_predictor
from nlp_transfer.inference.attribution import attribute
from nlp_transfer.inference.explanation import explain_texts
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.report.explanation_page import write_explanations
from tests.builders import GOOD, command, prepared, refused, run, sentiment_rows, succeed, write

pytestmark = pytest.mark.model
TEXT = "the film was very good and the story was not dull"


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has learned which words decide."""
    folder = tmp_path_factory.mktemp("trained")
    training = {"epochs": 12, "batch_size": 8, "learning_rate": 3e-3}
    return run(model=tiny["bert"], data=sentiment, training=training, output_dir=folder / "run").output_dir


def untrained(folder: Path, task: Any = "text_classification") -> Predictor:
    torch.manual_seed(0)
    parts = prepared(folder, task)
    return Predictor(parts.model, parts.checkpoint.tokenizer, parts.task)


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "roberta", "electra", "deberta-v2", "albert", "mpnet", "modernbert", "xlm-roberta"]
)
def test_scores_add_up_to_the_difference(tiny: dict[str, Path], family: str) -> None:
    found = attribute(untrained(tiny[family]), [TEXT], 1)
    assert found.converged
    assert sum(word.score for word in found.words) == pytest.approx(found.value - found.baseline + found.error, abs=1e-5)
    assert [word.text for word in found.words] == TEXT.split()
    assert all(TEXT[word.start : word.end] == word.text for word in found.words)


def test_scores_equal_integrated_gradients_of_embeddings(tiny: dict[str, Path]) -> None:
    """The plain method of captum on vectors that are given to a plain model, without layers and hooks."""
    predictor = untrained(tiny["bert"])
    found, model = attribute(predictor, [TEXT], 1), predictor.model
    ids = predictor.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    blank = ids.clone()
    blank[:, 1:-1] = predictor.tokenizer.mask_token_id
    vectors, baseline = (model.get_input_embeddings()(each).detach() for each in (ids, blank))

    def log_odds(states: torch.Tensor) -> torch.Tensor:
        logits = model(inputs_embeds=states).logits
        return logits[:, 1] - logits[:, 0]

    expected = IntegratedGradients(log_odds).attribute(vectors, baseline, n_steps=found.steps).sum(-1)[0, 1:-1]
    np.testing.assert_allclose([word.score for word in found.words], expected.tolist(), rtol=1e-4, atol=1e-6)


def test_pairs_are_explained_in_both_texts(tiny: dict[str, Path]) -> None:
    predictor = untrained(tiny["bert"], {"name": "text_classification", "text_pair": "other"})
    [found] = explain_texts(predictor, [("a good film", "the plot was slow")])
    words = found.attribution.words
    assert [word.column for word in words] == ["text"] * 3 + ["other"] * 4
    assert "".join(text for text, _ in found.segments("other")) == "the plot was slow"


def test_regression_scores_have_the_unit_of_the_column(tiny: dict[str, Path]) -> None:
    predictor = untrained(tiny["bert"], {"name": "regression", "label": "score"})
    [found] = explain_texts(predictor, [TEXT])
    assert found.label is None
    assert found.attribution.value == pytest.approx(found.prediction["prediction"], abs=1e-4)
    with refused("--label"):
        explain_texts(predictor, [TEXT], label="good")


def test_the_requested_label_is_explained(tiny: dict[str, Path]) -> None:
    predictor = untrained(tiny["bert"], {"name": "multi_label", "label": "tags"})
    labels = predictor.task.scorer.labels
    for label in labels:
        [found] = explain_texts(predictor, [TEXT], label=label)
        probability = predictor(TEXT, probabilities=True)[f"probability:{label}"]
        assert found.attribution.value == pytest.approx(np.log(probability / (1 - probability)), abs=1e-4)
        assert found.deletion is not None
        assert found.deletion.output == pytest.approx(probability, abs=1e-5)
    with refused("--label", "evne", *labels):
        explain_texts(predictor, [TEXT], label="evne")


def test_a_baseline_more_extreme_than_the_text_is_noted(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The scores then add up to a negative number, and nearly every word can be red."""
    predictor = untrained(tiny["bert"])
    for label in predictor.task.scorer.labels:
        [found] = explain_texts(predictor, [TEXT], label=label)
        page = tmp_path / f"{label}.html"
        write_explanations(page, [found])
        is_negative = sum(word.score for word in found.attribution.words) < 0
        assert any("negative, so" in note for note in found.notes()) == is_negative
        assert ("negative, so" in page.read_text()) == is_negative


def test_deciding_words_have_the_largest_scores(trained: Path) -> None:
    texts = [text for text, label in sentiment_rows(160)[136:] if label == "positive"]
    found = explain_texts(load_predictor(trained), texts, label="positive")
    assert np.mean([each.top_words(1)[0].text in GOOD for each in found]) > 0.8
    assert np.mean([each.deletion.top > each.deletion.random for each in found if each.deletion]) > 0.8


def test_adapters_need_not_be_merged(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    settings: Any = {"strategy": {"name": "lora"}, "training": {"max_steps": 5, "learning_rate": 1e-2}}
    folder = run(model=tiny["bert"], data=sentiment, output_dir=tmp_path / "run", **settings).output_dir
    separate = load_adapters(str(tiny["bert"]), {"a": folder}).predictor("a")
    scores = [[word.score for word in attribute(each, [TEXT], 1).words] for each in (separate, load_predictor(folder))]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_single_word_has_no_deletion_test(trained: Path) -> None:
    [found] = explain(trained, "good")
    assert found.deletion is None
    assert len(found.attribution.words) == 1


def test_words_beyond_the_maximum_length_have_no_scores(tiny: dict[str, Path]) -> None:
    predictor = untrained(tiny["bert"], {"name": "text_classification", "max_length": 6})
    [found] = explain_texts(predictor, [TEXT])
    assert found.truncated
    assert [score is None for _, score in found.segments("text")][-1]
    assert len(found.attribution.words) == 4


def test_neighbors_are_training_rows(trained: Path, sentiment: dict[str, Path]) -> None:
    text, label = sentiment_rows(1)[0]
    [found] = explain(trained, text, neighbors=3)
    assert found.neighbors is not None
    assert found.neighbors[0].columns == {"text": text, "label": label}
    assert found.neighbors[0].similarity == pytest.approx(1, abs=1e-5)
    assert found.neighbors[0].where == f"{sentiment['train']}, row 2"
    stored = trained / "explanations" / "train_vectors.safetensors"
    written = stored.stat().st_mtime_ns
    assert explain(trained, text, neighbors=3)[0].neighbors == found.neighbors
    assert stored.stat().st_mtime_ns == written


def test_changed_training_data_gives_no_neighbors(tiny: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "train.csv", sentiment_rows(40))
    folder = run(model=tiny["bert"], data={"train": data}, output_dir=tmp_path / "run").output_dir
    write(data, sentiment_rows(40, seed=1))
    status, _, output = command("explain", folder, "--text", TEXT)
    assert status == 0
    assert str(data) in output
    assert "similar training rows are left out" in output


def test_the_command_writes_json_and_a_page(trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = "a good film <script>alert(1)</script>"
    output, _ = succeed("explain", trained, "--text", text, "--neighbors", "1", "--format", "json", "--output", page)
    document = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert document["texts"] == {"text": text}
    assert document["deletion"].keys() >= {"top", "random", "draws"}
    content = page.read_text(encoding="utf-8")
    assert "<script>" not in content
    assert "http" not in content.replace("http-equiv", "")
    assert command("explain", trained, "--text", text, "--output", page)[0] == 2


def test_the_terminal_shows_words_without_colors(trained: Path) -> None:
    output, _ = succeed("explain", trained, "--text", TEXT, "--neighbors", "0")
    assert TEXT in output
    assert "\x1b" not in output
    assert "completeness" in output.lower()


def test_models_without_a_vector_per_text_are_refused(tiny: dict[str, Path]) -> None:
    task = {"name": "token_classification", "tokens": "text", "tags": "words"}
    with refused("text_classification"):
        explain_texts(untrained(tiny["bert"], task), [TEXT])


def test_a_missing_captum_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    monkeypatch.delitem(sys.modules, "nlp_transfer.inference.attribution")
    with refused('pip install "nlp_transfer[explain]"'):
        import_module("nlp_transfer.inference.attribution")
