"""Families that differ from BERT in what usually goes unnoticed: positions, padding, tokens, kernels and precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from nlp_transfer import load_predictor, load_translator
from nlp_transfer.models.compatibility import position_limit
from tests.builders import opened, refused, run, write
from tests.helpers.families import family_config, family_tokenizer, save_family
from tests.helpers.models import POSITIONS, VOCABULARY, WORDS

pytestmark = pytest.mark.model

TEXTS = ["a good film", "the plot was awful and dull and the music was very cold", "a bright film"]


def train(model: Path, source: Path, output: Path, strategy: Any = "full", task: Any = None, **training: Any) -> Any:
    return run(
        model=model, data={"train": source}, task=task or {}, strategy=strategy, output_dir=output,
        training={"batch_size": 4, **training},
    )  # fmt: skip


def change_tokenizer(folder: Path, **names: Any) -> PreTrainedTokenizerBase:
    """Save the folder's tokenizer with other special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in names.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("family", "strategy", "precision", "works_in"),
    [
        ("xlnet", "full", "fp32", ("fp32", "fast")),  # no limit of positions, and it reads the last column
        ("canine", "full", "fp32", ("fp32", "fast")),  # no table of words, and it mixes tokens with padding
        ("fnet", "full", "fp32", ("fp32", "fast")),
        ("perceiver", "full", "fp32", ("fp32", "fast")),  # its input embeddings are not those of words
        ("opt", "full", "bf16", ("bf16", "fast")),
        ("llama", "lora", "bf16", ("bf16", "fast")),
        ("gpt2", "lora", "fp32", ("fp32", "fast")),  # linear layers under other names
        ("squeezebert", "lora", "fp32", ("fp32", "fast")),
        ("squeezebert", "features", "fp32", ("fp32", "fast")),  # always calls its pooler, which the head replaces
        ("longformer", "full", "bf16", ("bf16", "fast")),  # changes the result of a linear layer in place
        ("big_bird", "full", "bf16", ("bf16", "fast")),
        ("deberta", "full", "bf16", ("fp32", "fast")),  # fails in bf16 by itself
        ("xmod", "lora", "bf16", ("fp32", "fast")),
    ],
)
def test_each_family_trains_and_loads_with_transformers(
    family: str, strategy: str, precision: str, works_in: tuple[str, str], sentiment: dict[str, Path], tmp_path: Path
) -> None:
    train(save_family(family, tmp_path / "base"), sentiment["train"], tmp_path / "run", strategy, precision=precision)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert (f"precision: {works_in[0]}" in text, f"kernels: {works_in[1]}" in text) == (True, True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    predicted = load_predictor(tmp_path / "run")(TEXTS, probabilities=True)
    for text, prediction in zip(TEXTS, predicted, strict=True):
        with torch.inference_mode():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert prediction["probability:positive"] == pytest.approx(float(expected[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        ("bert", POSITIONS), ("nystromformer", POSITIONS), ("opt", POSITIONS), ("gpt2", POSITIONS), ("xlnet", 512),
        ("data2vec-text", POSITIONS), ("ibert", POSITIONS), ("esm", POSITIONS), ("luke", POSITIONS), ("markuplm", POSITIONS),
        ("longformer", POSITIONS), ("xmod", POSITIONS), ("xlm-roberta-xl", POSITIONS), ("roberta-prelayernorm", POSITIONS),
        ("camembert", POSITIONS), ("mpnet", POSITIONS), ("prophetnet", POSITIONS - 1),
    ],
)  # fmt: skip
def test_max_length_is_that_of_the_position_embeddings(family: str, limit: int) -> None:
    """Tables of relatives of RoBERTa have `POSITIONS` + 2 rows here, and pad with 1; ProphetNet's has `POSITIONS`, and pads
    with 0."""
    config = family_config(family)
    assert position_limit(config) == limit
    if family not in ("xlnet", "prophetnet"):
        model = AutoModelForSequenceClassification.from_config(config).eval()
        ids = torch.full((1, limit), 5)
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


@pytest.mark.parametrize("family", ["canine", "funnel"])
def test_states_of_shortened_layers_cannot_be_mixed(family: str, sentiment: dict[str, Path], tmp_path: Path) -> None:
    task = {"name": "text_classification", "head": {"layers": "mix"}}
    with refused("task.head.layers: found mix", family, "allowed: last"):
        train(save_family(family, tmp_path / "base"), sentiment["train"], tmp_path / "run", task=task)


@pytest.mark.parametrize("family", ["ibert", "data2vec-text"])
def test_long_rows_are_truncated_to_the_positions(family: str, tmp_path: Path) -> None:
    rows = [(" ".join([*WORDS, *WORDS, word]), ("negative", "positive")[i % 2]) for i, word in enumerate(WORDS)]
    base = save_family(family, tmp_path / "base")
    change_tokenizer(base, model_max_length=10**6)
    train(base, write(tmp_path / "train.csv", rows), tmp_path / "run")
    assert load_predictor(tmp_path / "run").task.max_length == POSITIONS


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_classifier_without_padding_token_gets_one(
    family: str, sentiment: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_family(family, tmp_path / "base", pad_token_id=None)
    change_tokenizer(base, pad_token=None, eos_token="[MASK]")
    train(base, sentiment["train"], tmp_path / "run")
    assert "'[MASK]'" in capsys.readouterr().err
    predictor = load_predictor(tmp_path / "run")
    assert predictor.model.config.pad_token_id == predictor.tokenizer.pad_token_id == VOCABULARY["[MASK]"]
    alone = [predictor(text)["probability"] for text in TEXTS]
    assert [row["probability"] for row in predictor(TEXTS)] == pytest.approx(alone, abs=1e-6)


def test_classifier_pools_before_the_tokenizers_padding(sentiment: dict[str, Path], tmp_path: Path) -> None:
    base = save_family("gpt2", tmp_path / "base", pad_token_id=VOCABULARY["hill"])
    train(base, sentiment["train"], tmp_path / "run")
    predictor = load_predictor(tmp_path / "run")
    alone = [predictor(text)["probability"] for text in TEXTS]
    assert [row["probability"] for row in predictor(TEXTS)] == pytest.approx(alone, abs=1e-6)


def test_regression_without_bias_message_advises_a_head(tmp_path: Path) -> None:
    rows = [(" ".join(WORDS[i : i + 5]), 2000 + i) for i in range(30)]
    source, base = write(tmp_path / "train.csv", rows), save_family("gpt2", tmp_path / "base")
    with refused("pooling: mean") as found:
        train(base, source, tmp_path / "run", task={"name": "regression"})
    assert "task.mean" not in str(found.value)
    train(base, source, tmp_path / "run", task={"name": "regression", "head": {"pooling": "mean"}})
    assert load_predictor(tmp_path / "run")(rows[0][0])["prediction"] == pytest.approx(2015, abs=30)


def test_first_token_pooling_is_refused_for_decoders(sentiment: dict[str, Path], tmp_path: Path) -> None:
    base = save_family("llama", tmp_path / "base")
    with refused("task.head", "cls", "mean"):
        train(base, sentiment["train"], tmp_path / "run", task={"head": {"pooling": "cls"}})


def add_tokens(folder: Path, *tokens: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("strategy", ["full", "lora", "features"])
def test_added_tokens_get_embeddings(
    strategy: str, sentiment: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_family("bert", tmp_path / "base")
    add_tokens(base, "<url>", "<user>")
    train(base, sentiment["train"], tmp_path / "run", strategy)
    assert f"2 rows were added to the {len(VOCABULARY)}" in capsys.readouterr().err
    predictor = load_predictor(tmp_path / "run")
    assert predictor.model.get_input_embeddings().weight.shape[0] == len(VOCABULARY) + 2
    assert predictor("a <url> by <user>")["probability"] > 0.5
    if strategy == "lora":  # its base is given the same rows each time it is loaded
        adapted = load_predictor(tmp_path / "run" / "adapter")
        assert adapted("a <url>")["probability"] == pytest.approx(predictor("a <url>")["probability"], abs=1e-5)


def test_new_embeddings_are_near_the_mean_and_reproducible(tmp_path: Path) -> None:
    base = save_family("bert", tmp_path / "base")
    add_tokens(base, "<url>")
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = opened(base).load(AutoModelForSequenceClassification)
        found.append(model.get_input_embeddings().weight.detach())
    assert torch.equal(found[0], found[1])
    assert (found[0][-1] - found[0][:-1].mean(0)).abs().max() < 0.1 * found[0][:-1].std()


def test_tokenizer_of_another_model_is_refused(sentiment: dict[str, Path], tmp_path: Path) -> None:
    base = save_family("bert", tmp_path / "base", vocab_size=len(VOCABULARY) - 4)
    with refused(len(VOCABULARY) - 1, f"{len(VOCABULARY) - 4} embeddings", "another model"):
        train(base, sentiment["train"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_saved_model_with_extended_tokenizer_is_refused(sentiment: dict[str, Path], tmp_path: Path) -> None:
    train(save_family("bert", tmp_path / "base"), sentiment["train"], tmp_path / "run")
    add_tokens(tmp_path / "run" / "model", "<url>")
    with refused("1 more ids", "embeddings"):
        load_predictor(tmp_path / "run")


def test_token_types_without_embeddings_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_family("roberta", tmp_path / "base")
    tokenizer = family_tokenizer(family_config("roberta"))
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(base)
    pairs = [(" ".join(WORDS[i : i + 3]), ("no", "yes")[i % 2], " ".join(WORDS[i + 1 : i + 4])) for i in range(30)]
    source = write(tmp_path / "train.csv", pairs, ("text", "label", "second"))
    train(base, source, tmp_path / "run", task={"text_pair": "second"})
    assert "types up to 1, the model has 1" in capsys.readouterr().err
    assert load_predictor(tmp_path / "run")([("a good film", "bad")])[0]["prediction"] in ("no", "yes")


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [("bert", AutoModel), ("prophetnet", AutoModelForSeq2SeqLM), ("switch_transformers", AutoModelForSeq2SeqLM)],
)
def test_added_tokens_of_translations_get_embeddings(family: str, auto_class: Any, tmp_path: Path) -> None:
    base = save_family(family, tmp_path / "base", auto_class)
    add_tokens(base, "<url>")
    pairs = [(f"{' '.join(WORDS[i : i + 3])} <url>", f"<url> {' '.join(WORDS[i : i + 3])}") for i in range(30)]
    source = write(tmp_path / "train.csv", pairs, ("source", "target"))
    task = {"name": "translation", "beams": 1} | ({"target_tokenizer": "source"} if family == "bert" else {})
    train(base, source, tmp_path / "run", task=task)
    translator = load_translator(tmp_path / "run")
    for table in (translator.predictor.model.get_input_embeddings(), translator.predictor.model.get_output_embeddings()):
        assert len(table.weight) == len(VOCABULARY) + 1
    assert len(translator(["a good <url>"])) == 1


@pytest.mark.parametrize(("family", "reads"), [("layoutlm", "box"), ("tapas", "table")])
def test_families_with_other_inputs_are_refused(family: str, reads: str, sentiment: dict[str, Path], tmp_path: Path) -> None:
    with refused(f"{family} model", reads):
        train(save_family(family, tmp_path / "base"), sentiment["train"], tmp_path / "run")


def test_texts_below_the_minimum_length_are_padded(sentiment: dict[str, Path], tmp_path: Path) -> None:
    train(save_family("canine", tmp_path / "base"), sentiment["train"], tmp_path / "run")
    predictor = load_predictor(tmp_path / "run")
    assert predictor("bright")["probability"] == predictor(["bright", *TEXTS])[0]["probability"]


def test_encoder_without_token_vectors_refuses_other_heads(sentiment: dict[str, Path], tmp_path: Path) -> None:
    with refused("task.head", "perceiver"):
        train(save_family("perceiver", tmp_path / "base"), sentiment["train"], tmp_path / "run", "features")


def test_a_family_without_linear_layers_has_no_lora(sentiment: dict[str, Path], tmp_path: Path) -> None:
    with refused("ibert model", "linear module"):
        train(save_family("ibert", tmp_path / "base"), sentiment["train"], tmp_path / "run", "lora")
