"""Encoder-decoders (BART, T5) as classifiers: trained, saved and read as what they are, or refused by name before training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartForCausalLM,
    T5EncoderModel,
)

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.models.layers import Layers, find_layers, has_decoder
from nlp_transfer.saved_models.load import quiet
from tests.builders import edit, refused, run, write
from tests.helpers.classifiers import ENCODER_DECODERS, save_encoder_decoder
from tests.helpers.seq2seq_models import save_tiny_seq2seq
from tests.helpers.strategies import IMPOSSIBLE, NAMES, TASKS, document, files

pytestmark = pytest.mark.model

TEXTS = ["a good film", "the awful plot was very bad and dull", "two cats"]
REFUSED = {"features", "few_shot", "prototypes", "zero_shot", "distill", "prune"}  # they need another head, or a stack of layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoder-decoders")


@pytest.fixture(scope="module")
def bases(folder: Path) -> dict[str, Path]:
    return {family: save_encoder_decoder(family, folder / family) for family in ENCODER_DECODERS}


def train(model: Path, folder: Path, output: Path, strategy: Any = "full", task: Any = None, **training: Any) -> Path:
    data = files(folder / "data")
    return run(
        model=model,
        data={"train": data["train"], "test": data["test"]},
        task=task or TASKS["single"],
        strategy=strategy,
        training={"batch_size": 16, "learning_rate": 2e-3} | training,
        output_dir=output,
    ).output_dir


def answers_alone(folder: Path) -> None:
    """A saved model answers each text alike in a batch and by itself, and as plain transformers does."""
    predictor = load_predictor(folder)
    together = predictor(TEXTS, probabilities=True)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = predictor([text], probabilities=True)
        assert {k: v for k, v in alone.items() if "proba" in k} == pytest.approx(
            {k: v for k, v in found.items() if "proba" in k}, abs=1e-5
        )
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with torch.inference_mode():
        scores = plain(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    labels = [plain.config.id2label[i] for i in range(plain.config.num_labels)]
    for row, found in zip(scores, together, strict=True):
        assert [found[f"probability:{label}"] for label in labels] == pytest.approx(row.tolist(), abs=1e-5)


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_what_was_trained_is_a_classifier(
    family: str, strategy: str, bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    output = train(bases[family], folder, tmp_path / "run", strategy)
    answers_alone(output)
    assert json.loads((output / "result.json").read_text())["plain"] is True
    (output / "model/nlp_transfer.json").unlink()
    model: Any = load_predictor(output / "model").model
    assert type(model).__name__.endswith("ForSequenceClassification"), "its configuration says so as well"
    assert not has_decoder(model)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_it_learns_its_rows(family: str, bases: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    rows = files(folder / "data")["train"]
    training = {"max_steps": 40, "learning_rate": 2e-3, "dropout": 0, "attention_dropout": 0}
    done = run(model=bases[family], data={"train": rows, "test": rows}, training=training, output_dir=tmp_path / "run")
    assert done.metrics["test"]["accuracy"] > 0.95


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("task", ["single", "multi_label", "regression"])
def test_every_strategy_works_or_refuses_before_training(
    task: str, strategy: str, bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    settings = document(strategy, task, bases["bart"], files(folder / "data"), tmp_path / "run", folder)
    if strategy in REFUSED or (strategy, task) in IMPOSSIBLE:
        with pytest.raises(UserError, match=r"bart|allowed"):
            fine_tune(**settings, with_report=False)
        assert not (tmp_path / "run").exists()
    else:
        assert fine_tune(**settings, with_report=False).metrics["test"]
        load_predictor(tmp_path / "run")


def test_depth_counts_through_the_encoder_and_then_the_decoder(bases: dict[str, Path]) -> None:
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(bases["bart"])
    layers = find_layers(model)
    assert layers == Layers("model", "model.encoder.layers", 5, False, upper="model.decoder.layers", lower=2)
    depths = {name: layers.depth_of(name) for name, _ in model.named_parameters()}
    assert depths["model.shared.weight"] == depths["model.decoder.embed_positions.weight"] == 0
    assert depths["model.encoder.layers.1.fc1.weight"] == 2
    assert depths["model.decoder.layers.0.fc1.weight"] == 3
    assert depths["model.decoder.layers.2.encoder_attn.q_proj.weight"] == 5
    assert depths["classification_head.out_proj.weight"] == depths["classification_head.dense.bias"] == 6


@pytest.mark.parametrize("family", ["marian", "m2m100"])
def test_a_family_without_a_classifier_is_refused_by_name(family: str, folder: Path, tmp_path: Path) -> None:
    model = save_tiny_seq2seq(family, tmp_path / "base")
    with refused("m2m_100" if family == "m2m100" else family):
        train(model, folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_adds_no_end_token_is_refused(bases: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    base = save_encoder_decoder("bart", tmp_path / "base")
    edit(base / "config.json", eos_token_id=40)
    with refused("bart ", "end token 40"):
        train(base, folder, tmp_path / "run")


def test_an_end_token_that_a_text_spells_out_is_text(bases: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    predictor = load_predictor(train(bases["bart"], folder, tmp_path / "run", task={"max_length": 8}))
    long = "good [SEP] " * 20  # truncated, and yet with an end
    texts = ["a [SEP] good film", "a film", long]
    assert len(predictor(texts)) == 3
    table = predictor.task.encode({"text": texts}, predictor.tokenizer, targets=False).ragged
    ends = [list(table["input_ids"][row]).count(3) for row in range(3)]
    assert ends == [1, 1, 1]


def saved_as(base: Path, folder: Path, auto_class: Any, **config: Any) -> Path:
    with quiet():
        auto_class.from_pretrained(base).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return edit(folder / "config.json", **config).parent


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_classifier_from_elsewhere_is_no_translator(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    saved = saved_as(bases[family], tmp_path / "saved", AutoModelForSequenceClassification)
    (answer,) = load_predictor(saved)(["a good film"])
    assert answer["prediction"].startswith("LABEL_")
    assert 0 < answer["probability"] < 1


def test_an_encoder_decoder_of_unknown_kind_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    saved = saved_as(bases["bart"], tmp_path / "saved", AutoModelForSequenceClassification, architectures=None)
    with refused("architectures"):
        load_predictor(saved)


def test_a_head_for_questions_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    saved = saved_as(bases["bart"], tmp_path / "saved", AutoModelForQuestionAnswering)
    with refused("BartForQuestionAnswering"):
        load_predictor(saved)


def test_a_translation_record_beside_a_classifier_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    saved = saved_as(bases["bart"], tmp_path / "saved", AutoModelForSequenceClassification)
    (saved / "nlp_transfer.json").write_text(json.dumps({"settings": {"name": "translation", "architecture": "seq2seq"}}))
    with refused("BartForSequenceClassification"):
        load_predictor(saved)


@pytest.mark.parametrize(
    ("family", "half"), [("t5", T5EncoderModel), ("bart", BartForCausalLM)], ids=["encoder alone", "decoder alone"]
)
@pytest.mark.parametrize("says_it_is_whole", [False, True])
def test_half_of_an_encoder_decoder_is_no_classifier(
    family: str, half: Any, says_it_is_whole: bool, bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "half"
    shutil.copytree(bases[family], place)
    config = AutoConfig.from_pretrained(place, is_encoder_decoder=False)
    (place / "model.safetensors").unlink()
    half(config).save_pretrained(place)
    if says_it_is_whole:
        edit(place / "config.json", is_encoder_decoder=True)
    with refused("decoder"):
        train(place, folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_translation_model_of_an_encoder_is_no_classifier(tiny: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"source": text, "target": text.upper()} for text in TEXTS * 4])
    translator = run(
        model=tiny["bert"], data={"train": pairs}, task={"name": "translation", "target_vocabulary": 300},
        training={"max_steps": 1}, output_dir=tmp_path / "translator",
    )  # fmt: skip
    with refused("encoder-decoder"):
        train(translator.output_dir / "model", folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
