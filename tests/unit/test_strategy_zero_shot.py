"""Labels described in words: nothing of their rows is learned from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import fine_tune, load_predictor
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.strategies import Job, check_strategy
from nlp_transfer.strategies.zero_shot import ZeroShot, entailments, fit_soft_labels
from nlp_transfer.tasks import task_from
from nlp_transfer.utils.errors import Problems
from tests.builders import columns, opened, refused, rows, run, sentiment_rows, write

pytestmark = pytest.mark.model

WORDS = {"negative": "bad awful dull", "positive": "good great bright"}
HOW = {"labels": WORDS, "template": "{}"}


def train(folder: Path, model: Path, flip: bool = False, task: Any = None, **strategy: Any) -> Any:
    cells = columns(24, "text", "label") | {"tags": ["positive", "negative|positive", "positive", ""] * 6}
    if flip:
        cells["label"] = [{"negative": "positive", "positive": "negative"}[label] for label in cells["label"]]
    return run(
        model=model, data={"train": write(folder / "train.csv", cells), "validation_share": 0.25}, task=task or {},
        strategy={"name": "zero_shot", **strategy}, training={"max_steps": None}, output_dir=folder / "run",
    )  # fmt: skip


def vectors(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Unit vectors of texts, one at a time, so that nothing is padded."""
    found = [model.encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return F.normalize(torch.stack(found), dim=-1)


@pytest.mark.parametrize("several", [False, True])
def test_logits_are_scaled_cosines_with_the_descriptions(several: bool, tiny: dict[str, Path], tmp_path: Path) -> None:
    task = {"name": "multi_label", "label": "tags"} if several else {"name": "text_classification"}
    similarity = {"similarity": 0.4} if several else {}
    done = train(tmp_path / "a", tiny["bert"], task=task, **HOW, scale=7.0, **similarity)
    assert done.result["train"]["steps"] == 0
    predictor = load_predictor(tmp_path / "a/run")
    texts = ["a good film", "the bad plot was dull"]
    with torch.inference_mode():
        logits = predictor.model(**predictor.tokenizer(texts, padding=True, return_tensors="pt")).logits
        seen = vectors(predictor.model, predictor.tokenizer, texts)
        expected = seen @ vectors(predictor.model, predictor.tokenizer, list(WORDS.values())).T
    assert torch.allclose(logits, 7 * (expected - 0.4 * several), atol=1e-4)


def test_labels_of_rows_are_not_used(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "a", tiny["bert"], **HOW)
    assert "at random" not in capsys.readouterr().err  # the head was computed
    train(tmp_path / "b", tiny["bert"], flip=True, **HOW)
    one, two = (load_predictor(tmp_path / name / "run").model.state_dict() for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_default_description_is_the_label_name() -> None:
    strategy = ZeroShot(labels={"b": "sunny weather"})
    assert strategy.sentences(["lost_card", "b"]) == ["This text is about lost card.", "This text is about sunny weather."]


def entailer(tiny: Path, folder: Path, labels: list[str]) -> Path:
    """A tiny model with drawn weights that says it was fine-tuned on entailment."""
    names = dict(enumerate(labels))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny, id2label=names, label2id={v: k for k, v in names.items()})
    model.classifier.weight.data.mul_(20)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("labels", [["contradiction", "neutral", "ENTAILMENT"], ["entailment", "not_entailment"]])
def test_entailment_of_every_text_and_description(labels: list[str], tiny: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = opened(entailer(tiny["bert"], tmp_path / "nli", labels))
    texts, words = [text for text, _ in sentiment_rows(9)], ["bad awful", "good", "the dog ran"]
    job = Job(task_from({"name": "text_classification"}), {}, {}, checkpoint, TrainingConfig(), torch.device("cpu"))
    found = entailments(job, rows({"text": texts}), words)
    judge = checkpoint.load(AutoModelForSequenceClassification).eval()
    chosen = [[label.lower() for label in labels].index("entailment"), 0 if len(labels) == 3 else 1]
    with torch.inference_mode():
        for i, text in enumerate(texts):
            for j, sentence in enumerate(words):
                alone = judge(**checkpoint.tokenizer(text, sentence, return_tensors="pt")).logits[0]
                assert torch.allclose(found[i, j], alone[chosen], atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_layer_learns_the_entailment_predictions(several: bool, tiny: dict[str, Path], tmp_path: Path) -> None:
    source = entailer(tiny["bert"], tmp_path / "nli", ["entailment", "neutral", "contradiction"])
    task = {"name": "multi_label", "label": "tags"} if several else {"name": "text_classification"}
    train(tmp_path / "a", source, task=task, by="entailment", **HOW)
    predictor = load_predictor(tmp_path / "a/run")
    judge, tokenizer = AutoModelForSequenceClassification.from_pretrained(source).eval(), predictor.tokenizer
    texts = [text for text, _ in sentiment_rows(24)]
    with torch.inference_mode():
        answers = torch.stack(
            [judge(**tokenizer(texts, [words] * 24, padding=True, return_tensors="pt")).logits for words in WORDS.values()], 1
        )
        wanted = (answers[..., 0] - answers[..., 2]).sigmoid() if several else answers[..., 0].softmax(-1)
        logits = predictor.model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    given = logits.sigmoid() if several else logits.softmax(-1)
    assert torch.allclose(given, wanted, atol=5e-3)
    assert not several or float((wanted - 0.5).abs().min()) > 0.01, "answers that a layer has to learn"


def test_representable_targets_are_fitted_exactly() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(40, 3)).astype(np.float32)
    weight, bias = generator.normal(size=(4, 3)), generator.normal(size=4)
    answers = torch.from_numpy(inputs @ weight.T + bias).softmax(-1)
    found = fit_soft_labels(inputs, answers, multi_label=False, penalty=1e-9)
    assert np.allclose(found[0] - found[0].mean(0), weight - weight.mean(0), atol=1e-2)
    assert np.allclose(found[1] - found[1].mean(), bias - bias.mean(), atol=1e-2)


def test_head_of_the_family_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    with refused("task.head: found family", "allowed: null"):
        train(tmp_path / "a", tiny["bert"], task={"head": "family"})


LABELS = {"name": "text_classification", "labels": ["negative", "positive"]}


def without_train(
    folder: Path, model: Path, data: dict[str, Any], task: Any = LABELS, name: str = "zero_shot", **strategy: Any
) -> Any:
    defaults = {"validation_share": None}
    return run(model=model, data=defaults | data, task=task, strategy={"name": name, **strategy}, output_dir=folder)


def test_predictions_do_not_depend_on_train(tiny: dict[str, Path], tmp_path: Path) -> None:
    texts = [text for text, _ in sentiment_rows(12, seed=3)]
    expected = load_predictor(train(tmp_path / "with", tiny["bert"], **HOW).output_dir)(texts)
    test = str(write(tmp_path / "test.csv", sentiment_rows(24, seed=5)))
    unlabelled = str(write(tmp_path / "texts.csv", [(text,) for text in texts], ("text",)))
    data: list[dict[str, Any]] = [{}, {"test": test}, {"validation": test}, {"unlabelled": unlabelled}]
    for i, given in enumerate(data):
        done = without_train(tmp_path / f"run{i}", tiny["bert"], given, **HOW)
        assert load_predictor(done.output_dir)(texts) == expected
        assert list(done.metrics) == [name for name in given if name != "unlabelled"]
        assert done.result["train"]["steps"] == 0
    scored = load_predictor(tmp_path / "run1")([text for text, _ in sentiment_rows(24, seed=5)])
    hits = [found["prediction"] == label for found, (_, label) in zip(scored, sentiment_rows(24, seed=5), strict=True)]
    figure = fine_tune(str(tmp_path / "run1/config.yaml"), output_dir=str(tmp_path / "again")).metrics["test"]["accuracy"]
    assert figure == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        ({"name": "text_classification"}, WORDS, ["negative", "positive"]),
        ({"name": "text_classification"}, ["b", "a_c"], ["b", "a_c"]),
        ({"name": "text_classification", "labels": [3, 1]}, {}, [3, 1]),
        ({"name": "multi_label"}, WORDS, ["negative", "positive"]),
    ],
)
def test_labels_in_settings_suffice(task: Any, labels: Any, expected: list[Any], tiny: dict[str, Path], tmp_path: Path) -> None:
    done = without_train(tmp_path / "run", tiny["bert"], {}, task, labels=labels)
    found = load_predictor(done.output_dir)(["a good film"], probabilities=True)[0]
    assert [name.removeprefix("probability:") for name in found if ":" in name] == list(map(str, expected))
    answer = found["prediction"]
    assert all(label in expected for label in (answer if isinstance(answer, list) else [answer]))


def test_unlabeled_texts_suffice_for_entailment(tiny: dict[str, Path], tmp_path: Path) -> None:
    nli = entailer(tiny["bert"], tmp_path / "nli", ["contradiction", "neutral", "entailment"])
    with refused("data.unlabelled: is required"):
        without_train(tmp_path / "none", nli, {}, by="entailment", **HOW)
    texts = str(write(tmp_path / "texts.csv", [(text,) for text, _ in sentiment_rows(24)], ("text",)))
    done = without_train(tmp_path / "run", nli, {"unlabelled": texts}, by="entailment", **HOW)
    assert {found["prediction"] for found in load_predictor(done.output_dir)(["a good film", "bad"])} <= set(WORDS)


@pytest.mark.parametrize(
    ("name", "task", "facts"),
    [
        ("zero_shot", {"name": "text_classification"}, ("task.labels", "strategy.labels")),
        ("zero_shot", {"name": "text_classification", "labels": "one"}, ("task.labels", "two labels")),
        ("zero_shot", {"name": "regression"}, ("zero_shot with the task regression", "number", "a task whose rows have classes")),
        ("prototypes", LABELS, ("data.train: is required", "prototypes", "rows with their labels", "zero_shot")),
        ("few_shot", LABELS, ("data.train: is required", "few_shot", "rows with their labels", "zero_shot")),
        ("full", LABELS, ("data.train: is required", "full", "zero_shot")),
        ("full", {"name": "translation"}, ("data.train: is required", "full")),
        ("self_training", LABELS, ("data.train: is required",)),
    ],
)
def test_missing_data_is_reported(name: str, task: Any, facts: tuple[str, ...], tiny: dict[str, Path], tmp_path: Path) -> None:
    for data in ({}, {"test": str(write(tmp_path / "test.csv", sentiment_rows(8)))}):
        with refused(*facts):
            without_train(tmp_path / "run", tiny["bert"], data, task, name)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("by", ["embedding", "entailment"])
def test_task_without_labels_is_one_problem(by: Any) -> None:
    problems = Problems()
    check_strategy(ZeroShot(by=by), DataConfig(test="test.csv"), task_from({"name": "regression"}), problems)
    assert [message.split(",")[0] for message in problems.messages] == ["strategy.name: found zero_shot with the task regression"]


def test_settings_about_train_have_no_effect_without_it(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_train(tmp_path / "run", tiny["bert"], {"validation_share": 0.3, "shots": 2, "test_share": 0.2})
    shown = " ".join(capsys.readouterr().err.split())
    for name in ("data.validation_share", "data.test_share", "data.shots"):
        assert name in shown.partition("parameters are trained")[0]
