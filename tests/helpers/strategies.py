"""Every registered strategy with settings that work on tiny models. One that needs none is found here by itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from nlp_transfer.settings import registry
from tests.builders import columns, write

HEADER = ("text", "other", "label", "tags", "score", "words", "answer", "answer_start")
TASKS: dict[str, dict[str, Any]] = {
    "single": {"name": "text_classification"},
    "pair": {"name": "text_classification", "text_pair": "other"},
    "multi_label": {"name": "multi_label", "label": "tags"},
    "regression": {"name": "regression", "label": "score"},
    "entities": {"name": "token_classification", "tokens": "text", "tags": "words"},
    "translation": {"name": "translation", "source": "text", "target": "other", "target_vocabulary": 300, "beams": 1},
    "summarization": {"name": "summarization", "summary": "other", "target_vocabulary": 300, "beams": 1},
    "question_answering": {
        "name": "question_answering", "question": "other", "context": "text", "answers": "answer", "answer_start": "answer_start",
        "max_length": 24, "stride": 3,
    },
}  # fmt: skip
GENERATING = ("translation", "summarization")
LABELS = {
    "single": ["negative", "positive"],
    "pair": ["negative", "positive"],
    "multi_label": ["even", "third"],
    "regression": ["score"],
    "entities": ["O", "B-bad", "I-bad", "B-good", "I-good"],
    "question_answering": ["start", "end"],
}
CLASSES = {"entities": AutoModelForTokenClassification, "question_answering": AutoModelForQuestionAnswering}
MODIFIERS = {"layerwise_lr", "l2_sp"}
# What a strategy cannot do, which it has to say in a UserError.
VECTORS = ("features", "few_shot", "prototypes", "zero_shot", "distill", "self_training", "multitask")
NOT_VECTORS = (*GENERATING, "entities", "question_answering")
IMPOSSIBLE = {(name, task) for name in VECTORS for task in NOT_VECTORS}
IMPOSSIBLE |= {("prune", task) for task in GENERATING}
IMPOSSIBLE |= {(name, "regression") for name in ("prototypes", "zero_shot", "self_training")}
CHOOSES = "auto"  # trains as another strategy
NAMES = [name for name in registry.names("strategy") if name != CHOOSES]
CASES = [(name, task) for name in NAMES for task in TASKS if (name, task) not in IMPOSSIBLE]
OWN_HEAD = {"features", "few_shot"}  # where it is named the head has no dropout, whose masks differ between processes
TUNED = {"prune"}  # starts from a model that was trained for the task
COMPUTED = {"few_shot", "prototypes", "zero_shot"}  # their last layer is computed, not trained


def rows_of(count: int, seed: int = 0) -> list[tuple[object, ...]]:
    """Rows with a target of every kind."""
    return list(zip(*columns(count, *HEADER, seed=seed).values(), strict=True))


def files(folder: Path) -> dict[str, str]:
    """train (32 rows), test (13, which two processes cannot share evenly) and unlabelled (20), as paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(65)
    parts = {"train": rows[:32], "test": rows[32:45], "unlabelled": rows[45:]}
    for name, part in parts.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            write(path, part, HEADER)
    return {name: str(folder / f"{name}.csv") for name in parts}


def teacher(checkpoint: Path, task: str, folder: Path) -> Path:
    """A model for a task, as someone else would have saved it; its head was drawn at random."""
    place = folder / f"teacher-{task}"
    if not place.exists():
        torch.manual_seed(7)
        labels = dict(enumerate(LABELS[task]))
        problem = {"multi_label": "multi_label_classification", "regression": "regression"}.get(
            task, "single_label_classification"
        )
        model = CLASSES.get(task, AutoModelForSequenceClassification).from_pretrained(
            checkpoint, id2label=labels, label2id={label: i for i, label in labels.items()}, problem_type=problem
        )
        model.save_pretrained(place)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(place)
    return place


def settings_of(name: str, task: str, checkpoint: Path, source: dict[str, str], folder: Path) -> dict[str, Any]:
    """The strategy's document."""
    if name == "distill" and task in LABELS and task not in NOT_VECTORS:
        return {"name": name, "student_layers": 1, "teacher": str(teacher(checkpoint, task, folder))}
    if name == "multitask":
        others = [other for other in ("multi_label", "regression", "pair") if other != task][:2]
        data = [{"train": source[split], "validation_share": 0} for split in ("train", "test")]  # of different size
        tasks = [{"name": other, "data": data[i], "task": TASKS[other]} for i, other in enumerate(others)]
        return {"name": name, "tasks": tasks, "temperature": 2.0}
    if name == "few_shot":  # by default the size of a group follows from the batch of a process
        return {"name": name, "group": 4, "epochs": 1}
    if name == "self_training":
        return {"name": name, "rounds": 1, "confidence": 0}
    return {"name": name}


def document(
    name: str, task: str, checkpoint: Path, source: dict[str, str], output: Path, shared: Path, **training: Any
) -> dict[str, Any]:
    """A run of four steps, or of a few in each phase."""
    fixed = {"max_steps": 4, "batch_size": 16, "precision": "fp32", "learning_rate": 2e-3, "logging_steps": 1, "max_grad_norm": 0}
    head = {"head": {"pooling": "mean", "dropout": 0}} if name in OWN_HEAD and task in LABELS and task not in NOT_VECTORS else {}
    unlabelled = {"unlabelled": source["unlabelled"]} if name in ("self_training", "distill") else {}
    model = teacher(checkpoint, task, shared) if name in TUNED and task in LABELS else checkpoint
    return {
        "model": str(model),
        "data": {"train": source["train"], "test": source["test"], "validation_share": 0} | unlabelled,
        "task": TASKS[task] | head,
        "strategy": settings_of(name, task, checkpoint, source, shared),
        "training": fixed | training,
        "output_dir": str(output),
    }
