"""Jobs whose result must not depend on how the work is divided; run in this process, or in two by `python -m`.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tests.helpers.children.gradient_jobs CHECKPOINT OUTPUT
"""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlp_transfer import DataConfig, TrainingConfig, UserError, fine_tune, load_predictor
from nlp_transfer.data.sources import find_model, read_rows
from nlp_transfer.inference import predictor as inference
from nlp_transfer.inference.model_evaluation import evaluate_model
from nlp_transfer.inference.scoring import score
from nlp_transfer.models.accelerator import make_accelerator
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.run.folder import check_same_on_all
from nlp_transfer.strategies import Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.tasks import encode_table
from nlp_transfer.tasks.common.objectives import TokenCrossEntropy
from nlp_transfer.tasks.text_classification import TextClassification
from nlp_transfer.training import Trainer, automatic_settings
from nlp_transfer.training import validation_scores as validation
from nlp_transfer.training.checkpointer import Checkpointer
from nlp_transfer.training.position import Position
from tests.builders import sentiment_rows, trainer, write
from tests.helpers.models import WORDS

ROWS = 75  # windows of 32: two full ones, and a last one of 11 rows that two processes and four micro-batches cannot share evenly
CASES: dict[str, dict[str, Any]] = {
    "classification": {"task": "text_classification"},
    "class_weights": {
        "task": "text_classification",
        "training": {"class_weights": {"negative": 3.0, "positive": 0.5}, "label_smoothing": 0.1},
    },
    "multi_label": {"task": {"name": "multi_label", "label": "tags"}},
    "focal": {
        "task": "text_classification",
        "training": {"focal_gamma": 2.0, "class_weights": {"negative": 3.0, "positive": 0.5}, "label_smoothing": 0.1},
    },
    "oversample": {"task": {"name": "multi_label", "label": "tags"}, "training": {"oversample": "balanced", "focal_gamma": 1.0}},
    "augment": {"task": "text_classification", "training": {"augment": {"drop": 0.2, "swap": 0.2, "mask": 0.2, "replace": 0.2}}},
    "regression": {"task": {"name": "regression", "label": "score"}},
    "lora": {"task": "text_classification", "strategy": "lora"},
    "l2_sp": {"task": "text_classification", "strategy": {"name": "l2_sp", "alpha": 0.1, "beta": 10}},
    "distill": {"task": "text_classification", "training": {"class_weights": {"negative": 3.0, "positive": 0.5}}},
    "translation": {"task": {"name": "translation", "source": "original", "target": "translated", "beams": 2}},
}
BUDGET = 1000  # padded tokens of both sides in a window, instead of rows


class HeadThenAll(Strategy):
    """Two phases: only the head, then everything. Parameters unfrozen late must be synchronized too."""

    traits = StrategyTraits(owns_phases=True)

    def next_phase(self, state: State, view: View) -> Phase | None:
        names = [name for name, _ in view.model.named_parameters()]
        head = tuple(name for name in names if name.startswith("classifier"))
        phases = [Phase("head", trainable=head, epochs=1), Phase("all", trainable=tuple(names), epochs=2)]
        return phases[len(state.finished)] if len(state.finished) < len(phases) else None


def data(folder: Path) -> dict[str, str]:
    """Write train and test files with targets of every kind; two processes cannot divide the test rows evenly."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (text, label) in enumerate(sentiment_rows(ROWS + 21)):
        tags = "|".join(name for name, every in (("even", 2), ("third", 3)) if i % every == 0)
        rows.append((text, label, tags, i % 7, *sides(i)))
    header = ("text", "label", "tags", "score", "original", "translated")
    train, test = folder / "train.csv", folder / "test.csv"
    if not test.exists():
        write(train, rows[:ROWS], header)
        write(test, rows[ROWS:], header)
    return {"train": str(train), "test": str(test)}


def sides(row: int) -> tuple[str, str]:
    """Return a long source with a short target or, in one row of four, a short source with a long target."""
    generator = random.Random(row)
    long, short = generator.randint(14, 24), generator.randint(1, 3)
    source, target = (short, long) if generator.random() < 0.25 else (long, short)
    words = generator.choices(WORDS, k=source)
    return " ".join(words), " ".join((words[::-1] * target)[:target])


@contextmanager
def gradients(steps: tuple[int, ...]) -> Iterator[dict[int, torch.Tensor]]:
    """Record the full gradient before the given optimizer steps, as one fp64 vector."""
    found: dict[int, torch.Tensor] = {}
    original = Trainer._reduce_flags

    def record(self: Trainer, norm: Any, loss: torch.Tensor) -> Any:
        if self.position.step in steps:
            parts = [p.grad.flatten().double() for p in self.model.parameters() if p.grad is not None]
            found[self.position.step] = torch.cat(parts).clone()
        return original(self, norm, loss)

    Trainer._reduce_flags = record  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Trainer._reduce_flags = original  # type: ignore[method-assign]


def settings(checkpoint: Path, source: dict[str, str], case: dict[str, Any], output: Path, **training: Any) -> dict[str, Any]:
    fixed = {"max_steps": 3, "precision": "fp32", "dropout": 0, "attention_dropout": 0, "max_grad_norm": 0, "learning_rate": 1e-3}
    fixed |= {"logging_steps": 1, "seed": 1}  # the labels in seed 0's first window balance, and little but rounding is left
    shares = {"validation_share": 0}
    return {
        "model": str(checkpoint),
        "data": source | shares,
        **case,
        "training": fixed | case.get("training", {}) | training,
        "output_dir": str(output),
        "with_report": False,
    }


def gradient(checkpoint: Path, source: dict[str, str], name: str, output: Path, **cut: int) -> dict[int, torch.Tensor]:
    """Return the gradients of the first step and of the short last window (step 2) of a case."""
    case = CASES[name] | (taught(checkpoint, source) if name == "distill" else {})
    with gradients((0, 2)) as found:
        fine_tune(**settings(checkpoint, source, case, output / name, **cut))
    return found


def taught(checkpoint: Path, source: dict[str, str]) -> dict[str, Any]:
    """Create a teacher whose predictions differ between texts, and rows labeled only by it."""
    folder = Path(source["train"]).parent
    if not (folder / "teacher/config.json").exists():
        torch.manual_seed(5)
        names = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, **names)
        torch.nn.init.normal_(model.classifier.weight)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder / "teacher")
        write(folder / "unlabelled.csv", [(text,) for text, _ in sentiment_rows(ROWS + 41)[ROWS + 21 :]], ("text",))
        model.save_pretrained(folder / "teacher")
    rows = source | {"unlabelled": str(folder / "unlabelled.csv"), "validation_share": 0}
    strategy = {"name": "distill", "teacher": str(folder / "teacher"), "student_layers": 1, "hidden": 1.0, "alpha": 0.3}
    return {"data": rows, "strategy": strategy}


@contextmanager
def mean_of_means(micro_batches: int) -> Iterator[None]:
    """Compute the wrong gradient: each micro-batch is averaged over its own target tokens, then the averages."""
    loss, count = TokenCrossEntropy.loss, TokenCrossEntropy.count

    def own_mean(self: Any, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {name: value / count(self, batch)[name] for name, value in loss(self, outputs, batch).items()}

    def means(self: Any, batch: Any) -> dict[str, float]:
        return count(self, batch) | {"cross_entropy": float(micro_batches)}

    TokenCrossEntropy.loss, TokenCrossEntropy.count = own_mean, means  # type: ignore[method-assign]
    try:
        yield
    finally:
        TokenCrossEntropy.loss, TokenCrossEntropy.count = loss, count  # type: ignore[method-assign]


PHASES: dict[str, Any] = {"phases": HeadThenAll(), "gradual": {"name": "gradual_unfreezing"}}


def in_phases(checkpoint: Path, source: dict[str, str], name: str, output: Path, batch_size: int) -> dict[str, Any]:
    """Do a run with early stopping and several phases; return its metrics and the weights of this process."""
    case = {"task": "text_classification", "strategy": PHASES[name]}
    longer = {"max_steps": None, "epochs": 3, "early_stopping": 3}
    document = settings(checkpoint, source, case, output / name, batch_size=batch_size, **longer)
    document["data"] = {"train": source["train"], "validation": source["test"], "test": source["test"]}
    kept: dict[str, torch.Tensor] = {}
    original = Trainer.train

    def train(self: Trainer) -> Any:
        position = original(self)
        kept.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return position

    Trainer.train = train  # type: ignore[method-assign]
    try:
        run = fine_tune(**document)
    finally:
        Trainer.train = original  # type: ignore[method-assign]
    counts = {name: run.result["train"][name] for name in ("steps", "examples", "tokens", "best_step")}
    return {"metrics": run.metrics, **counts, "weights": kept}


def stops_early(checkpoint: Path, source: dict[str, str], output: Path, batch_size: int) -> dict[str, int]:
    """Return the steps of a run with a too high learning rate, and its best step."""
    too_fast = {"max_steps": 40, "early_stopping": 2, "evaluate_every": 1, "learning_rate": 1e-2}
    document = settings(checkpoint, source, {"task": "text_classification"}, output / "stops", batch_size=batch_size, **too_fast)
    document["data"] = {"train": source["train"], "validation": source["test"]}
    run = fine_tune(**document)
    return {name: run.result["train"][name] for name in ("steps", "best_step")}


def without_folder(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights of this process after training without output, with the second of four evaluations the best."""
    from nlp_transfer.training import validation_scores as validation

    figures = iter([0.5, 0.9, 0.6, 0.7])
    original = validation.score
    validation.score = lambda *_, **__: ({"accuracy": next(figures), "loss": 1.0}, {})
    try:
        loop = trainer(checkpoint, evaluate_every=1)
        assert loop.train().best_step == 2
    finally:
        validation.score = original
    return {name: p.detach().clone() for name, p in loop.model.named_parameters()}


def evaluate(run: Path, source: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the metrics of a saved model on a file read in chunks of four rows, and on one read at once."""
    inference.CHUNK_ROWS = 4
    by_glob = source["test"].replace("test.csv", "tes*.csv")
    return {
        how: evaluate_model(str(run), {"data": {"test": test}}, 4, "fp32")[0]
        for how, test in (("file", source["test"]), ("glob", by_glob))
    }


def learn(checkpoint: Path, source: dict[str, str], output: Path) -> None:
    """Train a translation model until its predictions differ between rows."""
    fine_tune(**settings(checkpoint, source, CASES["translation"], output, max_steps=100, learning_rate=5e-3))


def drafts(run: Path, source: dict[str, str]) -> dict[str, float]:
    """Return the metrics of a saved translation model as in training, where only some rows are translated."""
    predictor = load_predictor(run, settings={"translated_rows": 6})
    rows = read_rows(source["test"], "test", DataConfig(), [*predictor.task.inputs, *predictor.task.targets])
    accelerator = make_accelerator(TrainingConfig(), "fp32")
    return score(predictor.model, predictor.task, predictor.encode(rows, targets=True), accelerator, 4, draft=True)[0]


def decide(checkpoint: Path, source: dict[str, str], output: Path) -> dict[str, Any]:
    """Return the decisions of a process that alone would decide differently from the other."""
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic_settings, "resolve_precision", lambda *_: (("bf16", "fp32")[rank], f"of {rank}"))
        patch.setattr(automatic_settings, "resolve_kernels", lambda *_: (("plain", "fast")[rank], f"of {rank}"))
        patch.setattr(
            automatic_settings, "set_attention", lambda asked, *_: (("eager", "sdpa")[rank] if asked == "auto" else asked, "")
        )
        patch.setattr(
            automatic_settings, "fit_batch", lambda m, t, training, *_: (training.model_copy(update={"batch_size": 4 + rank}), "")
        )
        task = TextClassification(labels=["negative", "positive"])
        opened = Checkpoint.open(find_model(str(checkpoint)))
        rows = read_rows(source["train"], "train", DataConfig(), [*task.inputs, *task.targets])
        task = task.prepare(opened, rows)
        model, table = (
            task.build_model(opened, TrainingConfig()),
            encode_table(task, rows, opened.tokenizer, "none", True, "train"),
        )
        choice = automatic_settings.resolve_settings(model, table, TrainingConfig(batch_size="auto"))
        found["choices"] = (choice.precision, choice.accelerator.mixed_precision, choice.kernels, choice.attention)
        found["choices"] += (choice.training.batch_size, choice.reasons["precision"])
        patch.setattr(validation, "score", lambda *_, **__: ({"accuracy": 0.5 + rank / 4, "loss": 1.0}, {}))
        found["metrics"] = validation.score_validation(model, task, table, Strategy(), TrainingConfig(), choice.accelerator)[0][
            "accuracy"
        ]
    for step in (2, 4 + 2 * rank):  # rank 1 has gone further, in a folder of its own
        Checkpointer(model, output / f"own-{rank}", None).save(Position(step=step), best=False)
        Checkpointer(model, output / "shared", None, writes=rank == 0).save(Position(step=step), best=False)
    for name in ("shared", f"own-{rank}"):
        try:
            found[name.partition("-")[0]] = Checkpointer(model, output / name, None).resume().step
        except UserError as error:
            found["own"] = str(error)
    try:
        place = {"directory": f"at {rank}", "files": {f"{rank}.csv": "sum"}}  # where it is may differ
        settings = {"data": {"train": f"{rank}.csv", "shots": 4 + rank}, "output_dir": f"run {rank}"}
        check_same_on_all(settings | {"provenance": {**place, "content": {"data.train": [f"sum {rank}"]}}})
        found["same"] = ""
    except UserError as error:
        found["same"] = str(error)
    return found


def main(checkpoint: Path, output: Path) -> None:
    """Run all jobs in one of two processes."""
    assert os.environ["WORLD_SIZE"] == "2", "the launcher must start two processes"
    rank = int(os.environ["RANK"])
    source = data(output.parent / "data")
    found: dict[str, Any] = {name: gradient(checkpoint, source, name, output, batch_size=16) for name in CASES}
    assert torch.distributed.get_world_size() == 2, "the two processes must work together"
    found |= {name: in_phases(checkpoint, source, name, output, 16) for name in PHASES}
    found["stops"] = stops_early(checkpoint, source, output, 16)
    found["without folder"] = without_folder(checkpoint)
    found["token budget"] = gradient(checkpoint, source, "translation", output / "budget", batch_tokens=BUDGET // 2)
    found["evaluate"] = {name: evaluate(output.parent / name, source) for name in ("pair/phases", "learned")}
    found["decided"] = decide(checkpoint, source, output / "decided")
    found["drafts"] = drafts(output.parent / "learned", source)
    torch.save(found, output / f"rank-{rank}.pt")
    if rank == 0:
        (output / "done.json").write_text(json.dumps({"world_size": torch.distributed.get_world_size()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
