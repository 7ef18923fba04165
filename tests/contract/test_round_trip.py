"""Train two steps, save, load in another process with plain transformers: the same answers, labels by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from nlp_transfer import load_predictor
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.layers import output_logits
from nlp_transfer.saved_models.load import open_adapter
from tests.builders import columns, run, sentiment_rows, write
from tests.helpers.models import FAMILIES
from tests.helpers.processes import CHILDREN, in_child

pytestmark = pytest.mark.process

DEEP = {"name": "text_classification", "head": {"hidden": [16], "pooling": "mean"}}
KINDS: dict[str, Any] = {
    "pair": {"name": "text_classification", "text_pair": "other"},
    "multi_label": {"name": "multi_label", "label": "tags"},
    "regression": {"name": "regression", "label": "score"},
}
STRATEGIES = ["full", "partial", "lora"]  # all others: test_matrix.py, on BERT
PLAIN = {f"{family}-{name}": (family, name, "text_classification") for family in FAMILIES for name in STRATEGIES}
PLAIN["bert-peft"] = ("bert", "peft", "text_classification")
PLAIN |= {f"bert-{kind}": ("bert", "full", task) for kind, task in KINDS.items()}
HEADS: dict[str, Any] = {f"deep-{strategy}": ("bert", strategy, DEEP) for strategy in [*STRATEGIES, "peft"]}
HEADS |= {f"deep-{how}": ("roberta", "full", DEEP | {"head": {"pooling": how}}) for how in ("cls", "max")}


@pytest.fixture(scope="module")
def runs(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family x every strategy, and every kind of task and head, trained for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    source = write(folder / "train.csv", columns(32))
    for name, (family, strategy, task) in (PLAIN | HEADS).items():
        frozen = {"frozen_layers": "all"} if (family, strategy) == ("albert", "partial") else {}
        run(
            model=tiny[family],
            data={"train": source},
            task=task,
            strategy={"name": strategy, **frozen},
            training={"batch_size": 16, "learning_rate": 1e-2},
            output_dir=folder / name,
        )
    return {name: folder / name for name in PLAIN | HEADS}


def texts_of(name: str) -> list[tuple[str, ...]]:
    texts = [text for text, _ in sentiment_rows(7, seed=3)]
    return [(text, texts[-i - 1]) if name.endswith("pair") else (text,) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def child(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process found that loaded all of them."""
    folder = tmp_path_factory.mktemp("child")
    jobs = {name: {"folder": str(run / "model"), "texts": texts_of(name)} for name, run in runs.items()}
    plan = {"plain": {name: jobs[name] for name in PLAIN}, "deep": {name: jobs[name] for name in HEADS}}
    return in_child(CHILDREN / "plain_models.py", plan, folder)


def logits_of(predictor: Predictor, texts: list[tuple[str, ...]]) -> torch.Tensor:
    columns = [list(column) for column in zip(*texts, strict=True)]
    with torch.inference_mode():
        return output_logits(predictor.model(**predictor.tokenizer(*columns, padding=True, return_tensors="pt")))


def test_all_families_and_strategies_are_covered(runs: dict[str, Path]) -> None:
    assert len(PLAIN) == len(FAMILIES) * len(STRATEGIES) + len(KINDS) + 1
    assert all((run / "result.json").is_file() for run in runs.values())


@pytest.mark.parametrize("name", list(PLAIN | HEADS))
def test_another_process_gives_the_same_logits(name: str, runs: dict[str, Path], child: dict[str, Any]) -> None:
    ours = logits_of(load_predictor(runs[name]), texts_of(name))
    assert torch.allclose(ours, torch.tensor(child[name]["logits"]), atol=1e-5)
    assert float(ours.std(0).max()) > 1e-6, "answers that differ between texts"


@pytest.mark.parametrize("name", list(PLAIN | HEADS))
def test_the_pipeline_gives_the_probabilities_of_predict(name: str, runs: dict[str, Path], child: dict[str, Any]) -> None:
    predictor = load_predictor(runs[name])
    answers = predictor(texts_of(name), probabilities=True)
    for answer, scores in zip(answers, child[name]["pipeline"], strict=True):
        if name.endswith("regression"):
            assert list(scores) == ["score"]
            assert answer["prediction"] == pytest.approx(scores["score"], abs=1e-4)
            continue
        assert len(scores) == 2
        for label, probability in scores.items():
            assert answer[f"probability:{label}"] == pytest.approx(probability, abs=1e-4), label


@pytest.mark.parametrize("name", list(HEADS))
def test_custom_head_is_refused_without_the_toolkit(name: str, runs: dict[str, Path], child: dict[str, Any]) -> None:
    assert "nlp_transfer_encoder_head" in child[name]["error"]
    assert child[name]["encoder_missing"] == []
    assert json.loads((runs[name] / "result.json").read_text())["plain"] is False


@pytest.mark.parametrize("name", [name for name in PLAIN | HEADS if name.endswith(("lora", "peft"))])
def test_adapter_predicts_like_the_merged_model(name: str, runs: dict[str, Path], tiny: dict[str, Path]) -> None:
    adapter = runs[name] / "adapter"
    assert sorted(path.name for path in adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "nlp_transfer.json",
    ]
    assert json.loads((adapter / "nlp_transfer.json").read_text())["labels"] == ["negative", "positive"]
    merged = logits_of(load_predictor(runs[name]), texts_of(name))
    ours = load_predictor(adapter)
    assert torch.allclose(merged, logits_of(ours, texts_of(name)), atol=1e-5)
    assert ours(texts_of(name))[0]["prediction"] in ("negative", "positive")
    if name in PLAIN:
        base = AutoModelForSequenceClassification.from_pretrained(tiny[PLAIN[name][0]], num_labels=2)
        by_peft = PeftModel.from_pretrained(base, str(adapter)).eval()
        assert torch.allclose(merged, logits_of(Predictor(by_peft, ours.tokenizer, ours.task), texts_of(name)), atol=1e-5)


def test_merged_weights_equal_w_plus_ba(runs: dict[str, Path], tiny: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    settings = json.loads((runs["bert-lora"] / "adapter/adapter_config.json").read_text())
    adapter = load_file(runs["bert-lora"] / "adapter/adapter_model.safetensors")
    base, merged = load_file(tiny["bert"] / "model.safetensors"), open_adapter(runs["bert-lora"] / "adapter")[0].state_dict()
    path = "encoder.layer.0.attention.self.query"
    down, up = (adapter[f"base_model.model.bert.{path}.lora_{part}.weight"] for part in "AB")
    expected = base[f"{path}.weight"] + up @ down * settings["lora_alpha"] / settings["r"]
    assert torch.allclose(merged[f"bert.{path}.weight"], expected, atol=1e-6)
    assert not torch.allclose(base[f"{path}.weight"], expected, atol=1e-6), "two steps have changed it"
    assert settings["base_model_name_or_path"] is None, "no path of this machine"
