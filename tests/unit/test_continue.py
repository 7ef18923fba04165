"""Fine-tuning of a fine-tuned model: its head is kept if it has the labels of the task."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from nlp_transfer import load_predictor
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.models.preparation import describe_head
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies.distill.teachers import Teacher
from nlp_transfer.strategies.l2_sp import L2Sp
from nlp_transfer.tasks import task_from
from nlp_transfer.tasks.common.pretrained_head import output_layer
from tests.builders import opened, refused, run, write
from tests.helpers.classifiers import ENCODER_DECODERS, save_encoder_decoder
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

LABELS = ["a", "b", "c"]
OTHER_ORDER = ["c", "a", "b"]
IDS = torch.tensor([[2, 7, 9, 12, 3], [2, 8, 12, 20, 3]])
TEXTS = ["a good film", "the awful dull plot", "the scene was quite bright"]


def build(model: Path, **task: Any) -> Any:
    with quiet():
        return task_from({"name": "text_classification", **task}).build_model(opened(model), TrainingConfig()).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def save_classifier(base: Path, folder: Path, auto_class: Any = AutoModelForSequenceClassification, **config: Any) -> Path:
    """Save the base with a head of clearly different outputs, as plain transformers does."""
    torch.manual_seed(1)
    fields = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}} | config
    with quiet():
        model = auto_class.from_pretrained(base, **fields)
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifiers(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier of every family with the labels a, b, c; `own-head` has a custom head with a hidden layer."""
    folder = tmp_path_factory.mktemp("classifiers")
    bases = tiny | {family: save_encoder_decoder(family, folder / f"{family}-base") for family in ENCODER_DECODERS}
    saved = {family: save_classifier(base, folder / family) for family, base in bases.items()}
    saved["own-head"] = folder / "own-head"
    torch.manual_seed(1)
    with quiet():
        model = build(tiny["bert"], labels=LABELS, head={"hidden": [8], "pooling": "mean"})
        for parameter in model.classifier.parameters():
            torch.nn.init.normal_(parameter)
        model.save_pretrained(saved["own-head"])
        AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(saved["own-head"])
    return saved


KINDS = [*FAMILIES, *ENCODER_DECODERS, "own-head"]


@pytest.mark.parametrize("family", KINDS)
def test_outputs_are_permuted_with_their_labels(family: str, classifiers: dict[str, Path]) -> None:
    model = build(classifiers[family], labels=OTHER_ORDER)
    with quiet():
        before = AutoModelForSequenceClassification.from_pretrained(classifiers[family]).eval()
    order = [LABELS.index(label) for label in OTHER_ORDER]
    assert torch.allclose(logits(model), logits(before)[:, order], atol=1e-6)
    assert float(logits(before).std(1).min()) > 1e-3, "outputs differ, so that their order shows"
    assert not new_parameters(model)
    assert [model.config.id2label[i] for i in range(3)] == OTHER_ORDER
    (note,) = describe_head(model)
    assert "kept" in note
    assert "'c', 'a', 'b'" in note


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("labels", [["x", "y", "z"], ["a", "b", "z"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["a", "b"]])
def test_other_labels_get_a_new_output_layer(labels: list[str], family: str, classifiers: dict[str, Path]) -> None:
    model = build(classifiers[family], labels=labels)
    with quiet():
        before = dict(AutoModelForSequenceClassification.from_pretrained(classifiers[family]).named_parameters())
    layer = output_layer(model)
    assert new_parameters(model) == layer.keys()
    assert len(layer) in (1, 2), "a weight, and perhaps a bias"
    for name, parameter in model.named_parameters():
        if name not in layer:
            assert torch.equal(parameter, before[name]), name
        elif parameter.ndim > 1:
            assert not torch.isclose(parameter, before[name][: len(labels)]).any()
            assert 0 < float(parameter.detach().std()) < 0.5
    (note,) = describe_head(model)
    assert "new" in note
    assert all(repr(label) in note for label in [*LABELS, *labels])


def test_an_encoder_without_a_head_has_nothing_to_report(tiny: dict[str, Path]) -> None:
    assert describe_head(build(tiny["bert"], labels=LABELS)) == []


def one_output(name: str, problem: str | None) -> dict[str, Any]:
    return {"id2label": {0: name}, "label2id": {name: 0}, "problem_type": problem}


@pytest.mark.parametrize(
    ("before", "task"),
    [
        (one_output("score", "regression"), {"name": "multi_label", "labels": ["score"]}),
        (one_output("score", None), {"name": "multi_label", "labels": ["score"]}),
        (one_output("score", "multi_label_classification"), {"name": "regression", "label": "score"}),
        (one_output("price", "regression"), {"name": "regression", "label": "score"}),
    ],
)
def test_head_of_another_task_is_not_reused(
    before: dict[str, Any], task: dict[str, Any], tiny: dict[str, Path], tmp_path: Path
) -> None:
    model = build(save_classifier(tiny["bert"], tmp_path / "saved", **before), **task)
    assert new_parameters(model) == {"classifier.weight", "classifier.bias"}
    assert float(model.classifier.weight.detach().std()) < 0.1
    assert "new" in describe_head(model)[0]


def test_regression_of_the_same_column_keeps_its_head(tiny: dict[str, Path], tmp_path: Path) -> None:
    saved = save_classifier(tiny["bert"], tmp_path / "saved", **one_output("score", "regression"))
    model = build(saved, name="regression", label="score")
    assert not new_parameters(model)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_token_classifier_is_not_reused_as_classifier(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    saved = save_classifier(tiny[family], tmp_path / "tagger", AutoModelForTokenClassification)
    model = build(saved, labels=LABELS)
    assert output_layer(model).keys() <= new_parameters(model)
    with refused("ForTokenClassification"):
        load_predictor(saved)
    with refused("strategy.teacher: ", "ForTokenClassification"):
        Teacher.open(str(saved), model)


def test_head_with_the_same_settings_is_kept(classifiers: dict[str, Path]) -> None:
    head = {"hidden": [8], "pooling": "mean"}
    same = build(classifiers["own-head"], labels=OTHER_ORDER, head=head | {"dropout": 0.3})
    assert not new_parameters(same)
    assert same.config.head_dropout == 0.3
    order = [LABELS.index(label) for label in OTHER_ORDER]
    before = build(classifiers["own-head"], labels=LABELS)
    assert torch.allclose(logits(same), logits(before)[:, order], atol=1e-6)
    other = build(classifiers["own-head"], labels=LABELS, head=head | {"pooling": "max"})
    assert new_parameters(other) == {name for name, _ in other.named_parameters() if name.startswith("classifier.")}
    assert "new" in describe_head(other)[0]
    encoders = [dict(model.encoder.named_parameters()) for model in (before, other)]
    assert all(torch.equal(value, encoders[1][name]) for name, value in encoders[0].items())


def test_l2_sp_starts_from_the_permuted_head(classifiers: dict[str, Path]) -> None:
    model = build(classifiers["bert"], labels=OTHER_ORDER)
    strategy = L2Sp()
    strategy.wrap(model)
    assert torch.equal(strategy._references["classifier.weight"], model.classifier.weight)


@pytest.fixture(scope="module")
def first(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with three labels, and its data."""
    folder = tmp_path_factory.mktemp("first")
    words = ("good", "bad", "bright")
    data = write(
        folder / "train.csv",
        [(f"{words[i % 3]} {'film plot story'.split()[i // 3 % 3]} {'the ' * i}", LABELS[i % 3]) for i in range(30)],
    )
    return train(tiny["bert"], data, folder / "run", max_steps=30, learning_rate=3e-3), data


def train(model: Path, data: Path, output: Path, strategy: Any = "full", labels: Any = None, **training: Any) -> Path:
    return run(
        model=model,
        data={"train": data},
        task={"labels": labels, "max_length": 40},
        strategy=strategy,
        training={"batch_size": 10, "dropout": 0, "attention_dropout": 0} | training,
        output_dir=output,
    ).output_dir


KEEP_THE_HEAD = ["full", "lora", "partial", "layerwise_lr", "l2_sp", "bitfit", "gradual_unfreezing", "peft"]


@pytest.mark.parametrize("strategy", KEEP_THE_HEAD)
def test_run_continues_with_reordered_labels(
    strategy: Any, first: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, data = first
    after = train(before, data, tmp_path / "run", strategy, OTHER_ORDER, max_steps=1, learning_rate=1e-7)
    assert "head: kept" in capsys.readouterr().err
    old, new = (load_predictor(folder)(TEXTS, probabilities=True) for folder in (before, after))
    for a, b in zip(old, new, strict=True):
        assert {name: a[name] for name in a if name != "prediction"} == pytest.approx(
            {name: b[name] for name in a if name != "prediction"}, abs=1e-3
        )
        assert a["prediction"] == b["prediction"]
    assert load_predictor(after).task.labels == OTHER_ORDER


def test_each_of_several_tasks_reports_its_head(
    first: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, data = first
    other = write(tmp_path / "other.csv", [(f"{word} film {'the ' * i}", word) for i in range(6) for word in ("x", "y", "z")])
    task = {"name": "more", "data": {"train": str(other), "validation_share": 0}, "task": {"name": "text_classification"}}
    train(before, data, tmp_path / "run", {"name": "multitask", "tasks": [task]}, OTHER_ORDER, max_steps=1)
    said = capsys.readouterr().err
    assert "more: head: its output layer is new" in said
    assert "head: kept" in said
