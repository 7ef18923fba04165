"""Distillation: what a student is taught, by whom, and what is left of its layers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.models.layers import find_layers, new_parameters
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Job, State, strategy_from
from nlp_transfer.strategies.distill import DistillationObjective, soft_targets
from nlp_transfer.strategies.distill.layer_reduction import evenly_spaced, keep_layers
from nlp_transfer.tasks import Objective, task_from
from nlp_transfer.training import Trainer
from nlp_transfer.utils.errors import Problems
from tests.builders import opened, prepared, refused, rows, run, sentiment_rows, write
from tests.helpers.models import FAMILIES, save_tiny

pytestmark = pytest.mark.model

KINDS: dict[str, dict[str, Any]] = {
    "single": {"name": "text_classification", "label": "label"},
    "multi_label": {"name": "multi_label", "label": "tags"},
    "regression": {"name": "regression", "label": "score"},
}
HEAD = {"single": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression"}
LABELS = {"single": ["negative", "positive"], "multi_label": ["even", "third"], "regression": ["score"]}
TEXTS = [text for text, _ in sentiment_rows(40)]


def save_teacher(base: Path, folder: Path, kind: str = "single", labels: list[str] | None = None, seed: int = 1) -> str:
    """A finished model whose answers differ from text to text."""
    torch.manual_seed(seed)
    names = labels or LABELS[kind]
    model = AutoModelForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, problem_type=HEAD[kind]
    )
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def job_of(base: str | Path, kind: str = "single", **training: Any) -> tuple[Job, PreTrainedModel]:
    """16 rows of train and 24 unlabelled ones, and the student's model, not wrapped yet."""
    checkpoint, train = opened(Path(base)), rows(16, "text", "label", "tags", "score")
    task = task_from(KINDS[kind]).fit(train, Problems()).prepare(checkpoint, train)
    settings = TrainingConfig(precision="fp32", dropout=0, attention_dropout=0, **training)
    parts = {"train": train, "unlabelled": rows({"text": TEXTS[16:]})}
    job = Job(task, {}, parts, checkpoint, settings, torch.device("cpu"))
    tables = {name: job.encode(part, targets=name == "train") for name, part in parts.items()}
    return replace(job, tables=tables), task.build_model(checkpoint, settings)


def distilled(base: str | Path, kind: str = "single", training: Any = None, **settings: Any) -> tuple[Job, PreTrainedModel]:
    """The prepared job and the wrapped student."""
    strategy = strategy_from({"name": "distill", **settings})
    job, model = job_of(base, kind, **(training or {}))
    model = strategy.wrap(model)
    return strategy.prepare_data(job, model), model


def logits_of(folder: str | Path, texts: list[str]) -> np.ndarray:
    """float32 (rows, labels), by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        found: np.ndarray = model(
            **AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        ).logits.numpy()
    return found


def gradient_of(model: PreTrainedModel, objective: Objective, table: TokenTable, parts: int = 1) -> torch.Tensor:
    """The whole gradient over a table, as the loop computes it, in so many micro-batches."""
    model.zero_grad()
    model.eval()
    options = objective.loss_options(TrainingConfig(), table)
    rows = np.arange(len(table))
    counts = objective.counts(table.targets(rows), options)
    for own in np.array_split(rows, parts):
        batch = table.batch(own)
        terms = objective.loss(model(**model_inputs(batch)), batch, options)
        torch.stack([value / counts[name] for name, value in terms.items()]).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", list(KINDS))
def test_loss_of_an_identical_student_is_zero(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher", kind)
    job, model = distilled(teacher, kind, teacher=teacher, alpha=1, hidden=1.0, temperature=3)
    assert float(gradient_of(model, job.objectives["distill"], job.tables["train"]).abs().max()) < 1e-4
    with torch.no_grad():
        dict(model.named_parameters())["classifier.bias"] += torch.arange(len(LABELS[kind])) + 1.0
    assert float(gradient_of(model, job.objectives["distill"], job.tables["train"]).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", list(KINDS))
def test_distillation_loss_matches_the_formula(kind: str) -> None:
    generator, heat = torch.Generator().manual_seed(0), 2.5
    labels = len(LABELS[kind])
    ours, theirs = (torch.randn(6, labels, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    objective = DistillationObjective(task_from(KINDS[kind]), HEAD[kind], heat, 0.3, 0.0)
    found = objective.soft(ours.float(), torch.from_numpy(soft_targets(theirs.float().numpy(), HEAD[kind], heat)))
    expected = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if kind == "regression":
            expected += float((a - b) ** 2)
        elif kind == "single":
            p, q = ((z / heat).exp() / (z / heat).exp().sum() for z in (b, a))
            expected += heat**2 * float((p * (p / q).log()).sum())
        else:
            p, q = (1 / (1 + (-z / heat).exp()) for z in (b, a))
            expected += heat**2 * float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_certain_teacher_gives_finite_gradients() -> None:
    sure = np.array([[200.0, -200.0]], np.float32)
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    for kind in ("single", "multi_label"):
        objective = DistillationObjective(task_from(KINDS[kind]), HEAD[kind], 1.0, 0.5, 0.0)
        loss = objective.soft(logits, torch.from_numpy(soft_targets(sure, HEAD[kind], 1.0)))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert float(loss.detach()) > 0


def test_probabilities_of_teachers_are_averaged(tiny: dict[str, Path], tmp_path: Path) -> None:
    teachers = [save_teacher(tiny["bert"], tmp_path / f"{seed}", seed=seed) for seed in (1, 2)]
    job, _ = distilled(tiny["bert"], teacher=teachers, temperature=4)
    expected = sum(softmax(logits_of(teacher, TEXTS) / 4, -1) for teacher in teachers) / 2
    found = job.tables["train"].dense["target_soft"]
    assert np.allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, softmax(logits_of(teachers[0], TEXTS) / 4, -1), atol=1e-3)


def test_labels_are_matched_by_name(tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher", labels=["positive", "negative"])
    job, _ = distilled(tiny["bert"], teacher=teacher, temperature=1)
    assert job.task.document()["labels"] == ["negative", "positive"]
    expected = softmax(logits_of(teacher, TEXTS), -1)[:, ::-1]
    assert np.allclose(job.tables["train"].dense["target_soft"], expected, atol=1e-5)


def test_teacher_uses_its_own_tokenizer_and_length(tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["roberta"], tmp_path / "teacher")
    words = json.loads((tmp_path / "teacher/tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    plain = [word for word in ids if not word.startswith("[")]
    words["model"]["vocab"] = ids | {word: ids[other] for word, other in zip(plain, reversed(plain), strict=True)}
    (tmp_path / "teacher/tokenizer.json").write_text(json.dumps(words))
    Tokenizer.from_file(str(tmp_path / "teacher/tokenizer.json"))
    (tmp_path / "teacher/nlp_transfer.json").write_text(json.dumps({"max_length": 6}))
    job, _ = distilled(tiny["bert"], teacher=teacher, temperature=1)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    assert tokenizer("good")["input_ids"] != AutoTokenizer.from_pretrained(tiny["bert"])("good")["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    with torch.inference_mode():
        logits = model(**tokenizer(TEXTS, truncation=True, max_length=6, padding=True, return_tensors="pt")).logits
    assert np.allclose(job.tables["train"].dense["target_soft"], logits.softmax(-1), atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_unlabeled_rows_count_for_the_teacher_only(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher", kind)
    job, model = distilled(tiny["bert"], kind, teacher=teacher, alpha=0.25)
    table, objective = job.tables["train"], job.objectives["distill"]
    assert len(table) == 40
    assert table.dense["target_hard"].tolist() == [True] * 16 + [False] * 24
    batch, labelled = table.batch(np.arange(40)), table.batch(np.arange(16))
    assert not any(name.startswith("target_") or name == "labels" for name in model_inputs(batch))
    counts, own = objective.counts(table.targets(np.arange(40))), job.task.counts(labelled)
    by_label = len(LABELS[kind]) if kind == "multi_label" else 1
    hard = {name: count * 40 / 16 for name, count in own.items()}  # so a labelled row weighs as one of 40
    assert counts == hard | {"rows": 40.0, "soft": 40.0 * by_label, "hidden": 40.0}
    model.eval()
    with torch.inference_mode():
        terms = objective.loss(model(**model_inputs(batch)), batch)
        expected = job.task.loss(model(**model_inputs(labelled)), labelled)
        table.dense["labels"][16:] = 1
        again = table.batch(np.arange(40))
        changed = objective.loss(model(**model_inputs(again)), again)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(0.75 * float(value), rel=1e-4)
        assert float(terms[name]) == float(changed[name]), "the labels of unlabelled rows mean nothing"
    alone = objective.counts(table.targets(np.arange(16, 40)))
    assert all(count > 0 for count in alone.values()), "a step without any labelled row is divided by something"


@pytest.mark.parametrize("kind", list(KINDS))
def test_micro_batches_give_the_same_gradient(kind: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher", kind)
    job, model = distilled(tiny["bert"], kind, teacher=teacher, hidden=2.0, student_layers=1)
    whole, cut = (gradient_of(model, job.objectives["distill"], job.tables["train"], parts) for parts in (1, 5))
    assert float((whole - cut).norm() / whole.norm()) < 1e-5
    assert float(whole.norm()) > 0


def test_hidden_states_are_compared_by_layer(tiny: dict[str, Path], tmp_path: Path) -> None:
    deep = save_tiny("bert", tmp_path / "deep", num_hidden_layers=6)
    teacher = save_teacher(deep, tmp_path / "teacher")
    job, model = distilled(tiny["bert"], teacher=teacher, hidden=1)
    found = job.tables["train"].dense["target_states"]
    assert found.shape == (40, 2, 32)
    whole = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    inputs = AutoTokenizer.from_pretrained(teacher)(TEXTS[3], return_tensors="pt")
    with torch.inference_mode():
        states = whole(**inputs, output_hidden_states=True).hidden_states
    for place, layer in enumerate((3, 6)):
        mean = states[layer][0].mean(0)
        assert np.allclose(found[3, place], mean / mean.norm(), atol=1e-5)
    batch = job.tables["train"].batch(np.arange(8))
    outputs = model(**model_inputs(batch))
    objective = job.objectives["distill"]
    assert isinstance(objective, DistillationObjective)
    expected = 0.0
    for row in range(8):
        for place, layer in enumerate((1, 2)):
            own = outputs.hidden_states[layer][row][batch["attention_mask"][row].bool()].mean(0)
            expected += float((own / own.norm() - torch.from_numpy(found[row, place])).square().sum().detach()) / 2
    assert float(objective.loss(outputs, batch)["hidden"].detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_returns_hidden_states(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher")
    strategy = strategy_from({"name": "distill", "teacher": teacher, "hidden": 1.0, "student_layers": 1, "alpha": 1})
    job, model = job_of(tiny[family])
    model = strategy.wrap(model)
    job = strategy.prepare_data(job, model)
    assert job.tables["train"].dense["target_states"].shape == (40, 1, 32)
    Trainer(
        model, job.task, job.tables, strategy=strategy, training=TrainingConfig(max_steps=1, precision="fp32"),
        objectives=job.objectives,
    ).train()  # fmt: skip
    batch = model_inputs(job.tables["train"].batch(np.arange(2)))
    assert model(**batch).hidden_states is not None
    assert strategy.unwrap(model, tmp_path)(**batch).hidden_states is None


def test_student_learns_from_unlabeled_rows(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Train says nothing about the words of half of the texts; the teacher does."""
    pairs = sentiment_rows(136)
    teach, few = write(tmp_path / "teach.csv", pairs[:96]), write(tmp_path / "few.csv", pairs[:8])
    more = write(tmp_path / "more.csv", [row[:1] for row in pairs[8:96]], ("text",))
    test = write(tmp_path / "test.csv", pairs[96:])
    training = {"learning_rate": 2e-3, "batch_size": 16, "dropout": 0, "max_steps": 100}
    common = {"model": tiny["bert"], "training": training}
    run(**common, data={"train": teach, "test": test}, output_dir=tmp_path / "teacher")
    found = {}
    for name, unlabelled in (("without", None), ("with", more)):
        done = run(
            **common,
            data={"train": few, "test": test, "unlabelled": unlabelled},
            strategy={"name": "distill", "teacher": str(tmp_path / "teacher"), "student_layers": 1},
            output_dir=tmp_path / name,
        )
        found[name] = done.metrics["test"]["accuracy"]
        config = json.loads((tmp_path / name / "model/config.json").read_text())
        assert config["num_hidden_layers"] == 1
        assert not config.get("output_hidden_states")
        assert done.result["plain"] is True
    assert found["with"] > found["without"] + 0.1
    assert found["with"] > 0.9


@pytest.mark.parametrize(
    ("depth", "count", "kept"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 2, 5]), (12, 4, [0, 4, 7, 11]), (2, 1, [0]), (3, 2, [0, 2]), (4, 4, [0, 1, 2, 3])],
)
def test_selected_layers_are_evenly_spaced(depth: int, count: int, kept: list[int]) -> None:
    assert evenly_spaced(depth, count) == kept


@pytest.mark.parametrize("family", FAMILIES)
def test_reduced_model_of_every_family_loads_plainly(family: str, tmp_path: Path) -> None:
    deep = save_tiny(
        family, tmp_path / "deep", num_hidden_layers=4, **({"layer_types": MODERN} if family == "modernbert" else {})
    )
    checkpoint = opened(deep)
    model: Any = checkpoint.load(AutoModelForSequenceClassification, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    before = {name: value.clone() for name, value in model.named_parameters()}
    new, layers = new_parameters(model), find_layers(model)
    short = keep_layers(model, 2, "strategy.student_layers")
    assert new_parameters(short) == new
    assert short.config.num_hidden_layers == 2
    if not layers.shared:
        assert find_layers(short).depth == 2
        for own, old in ((0, 0), (1, 3)):
            stacks = [
                {name: value for name, value in given.items() if name.startswith(f"{layers.prefix}.{i}.")}
                for given, i in ((dict(short.named_parameters()), own), (before, old))
            ]
            assert len(stacks[0]) == len(stacks[1]) > 4
            for ours, theirs in zip(stacks[0].values(), stacks[1].values(), strict=True):
                assert torch.equal(ours, theirs)
    short.save_pretrained(tmp_path / "short")
    again, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "short", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert again.config.num_hidden_layers == 2
    inputs = checkpoint.tokenizer(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        ours, theirs = short.eval()(**inputs).logits, again.eval()(**inputs).logits
        whole = AutoModelForSequenceClassification.from_pretrained(deep).eval()(**inputs, output_hidden_states=True)
        states = short(**inputs, output_hidden_states=True).hidden_states
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert len(states) == 3
    assert torch.allclose(states[1], whole.hidden_states[1], atol=1e-5), "the first layer is the first one"


MODERN = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def test_new_parameters_are_renamed_with_their_layers(tiny: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = opened(save_tiny("bert", tmp_path / "deep", num_hidden_layers=3))
    model: Any = checkpoint.load(AutoModelForSequenceClassification)
    layer = "bert.encoder.layer"
    model.new_parameters = frozenset({"classifier.weight", f"{layer}.1.output.dense.bias", f"{layer}.2.output.dense.bias"})
    short = keep_layers(model, 2, "strategy.student_layers")
    assert new_parameters(short) == {"classifier.weight", f"{layer}.1.output.dense.bias"}


@pytest.mark.parametrize("layers", ["last", "mix"])
def test_layers_below_a_custom_head_are_reduced(layers: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    done = run(
        model=tiny["distilbert"],
        data={"train": write(tmp_path / "train.csv", sentiment_rows(32))},
        task={"head": {"layers": layers}},
        strategy={"name": "distill", "student_layers": 1},
        output_dir=tmp_path / "run",
    )
    assert find_layers(done.predictor().model).depth == 1
    saved = json.loads((tmp_path / "run/model/config.json").read_text())
    assert saved["encoder"]["n_layers"] == 1


def test_phases(tiny: dict[str, Path], tmp_path: Path) -> None:
    view: Any = SimpleNamespace()
    alone = strategy_from({"name": "distill", "student_layers": 1})
    taught = strategy_from({"name": "distill", "teacher": "x"})
    first, second = alone.next_phase(State(), view), taught.next_phase(State(), view)
    assert first is not None
    assert first.objective is None
    assert second is not None
    assert second.objective == "distill"
    assert taught.next_phase(State(finished=["train"]), view) is None


def test_narrow_teacher_works_without_hidden_states(tmp_path: Path, tiny: dict[str, Path]) -> None:
    narrow = save_teacher(save_tiny("bert", tmp_path / "narrow", hidden_size=16), tmp_path / "teacher")
    job, _ = distilled(tiny["bert"], teacher=narrow)
    assert "target_states" not in job.tables["train"].dense


@pytest.mark.parametrize(("name", "value"), [("augment", {"drop": 0.1}), ("oversample", "balanced")])
def test_changing_rows_are_refused_with_a_teacher(name: str, value: Any, tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher")
    with refused(f"training.{name}", value, "strategy.teacher: null"):
        distilled(tiny["bert"], training={name: value}, teacher=teacher)
    distilled(tiny["bert"], training={name: value}, student_layers=1)


def test_unsuitable_students_are_refused(tiny: dict[str, Path]) -> None:
    with refused("strategy.student_layers", "found 0"):
        strategy_from({"name": "distill", "student_layers": 0})
    with refused("strategy.1", "distill", "first of the list"):
        strategy_from([{"name": "lora"}, {"name": "distill", "student_layers": 1}])
    head = prepared(tiny["bert"], KINDS["single"] | {"head": {"pooling": "mean"}}).model
    with refused("strategy.hidden", "head of this toolkit"):
        strategy_from({"name": "distill", "teacher": "x", "hidden": 1}).wrap(head)


def test_teacher_with_an_adapter(tiny: dict[str, Path], tmp_path: Path) -> None:
    teacher = save_teacher(tiny["bert"], tmp_path / "teacher")
    done = run(
        model=tiny["bert"],
        data={"train": write(tmp_path / "train.csv", sentiment_rows(32))},
        strategy=[{"name": "distill", "teacher": teacher, "hidden": 1}, {"name": "lora"}],
        output_dir=tmp_path / "run",
    )
    assert (done.output_dir / "adapter").is_dir()
    assert not json.loads((done.output_dir / "model/config.json").read_text()).get("output_hidden_states")
