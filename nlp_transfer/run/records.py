"""What a run says of itself: what was resolved, `config.yaml`, the figures of training, the records at the end."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from nlp_transfer.data.sources import HUB_DATA
from nlp_transfer.data.sources.portable_paths import portable
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.splits import Splits
from nlp_transfer.data.unused_settings import describe_unused, without_effect
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.models.checkpoint import Checkpoint, count_parameters, new_parameters
from nlp_transfer.models.device import device_type
from nlp_transfer.report.model_card import write_card
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.run.provenance import check_files, hash_inputs, hash_strategy, record_inputs
from nlp_transfer.run.resolve import Run
from nlp_transfer.saved_models.load import RECORD
from nlp_transfer.saved_models.save import add_to_record, versions
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import Task
from nlp_transfer.training.checkpointer import Position
from nlp_transfer.training.optimizer import idle_parts
from nlp_transfer.training.trainer import Trainer
from nlp_transfer.utils import environment
from nlp_transfer.utils.atomic_files import patiently, write_json
from nlp_transfer.utils.console import percent

FEW_STEPS = 100


def resolved_lines(trainer: Trainer) -> list[str]:
    """What was chosen automatically, and how much there is to do."""
    trainable, total = count_parameters(trainer.model)
    # What a strategy computes is not random by the time that it is used.
    new = sorted(new_parameters(trainer.model)) if trainer.strategy.takes_steps() else []
    lines = [
        f"{trainable:,} of {total:,} parameters are trained ({percent(trainable, total)})"
        + (f"; new, and so drawn at random: {', '.join(new[:4])}{' ...' if len(new) > 4 else ''}" if new else ""),
        *_choice_lines(trainer),
        *describe_unused(idle_parts(trainer.model, trainer.training, trainer.strategy).items()),
    ]
    if not trainer.strategy.takes_steps():
        return [*lines, f"no optimizer step is taken; what is needed is computed on {trainer.accelerator.device}"]
    steps, epochs, plan = trainer.planner.steps(), trainer.planner.epochs(), trainer.planner.window_plan()
    rows = plan.batch_size * plan.accumulation * plan.processes
    tokens = (plan.batch_tokens or 0) * plan.accumulation * plan.processes
    size = f"about {tokens:,} tokens" if plan.batch_tokens else f"{rows:,} rows"
    processes = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    lines += [
        f"learning rate {trainer.planner.learning_rate():g}, {float(f'{epochs:.3g}'):g} epoch{'s' * (epochs != 1)}, "
        f"{steps:,} step{'s' * (steps != 1)} of {size}, {processes} on {trainer.accelerator.device}",
    ]
    if smoothing := trainer.task.label_smoothing(trainer.training):
        lines.append(f"label smoothing {smoothing:g}; the loss of validation and test is without it")
    lines += _weighing_lines(trainer, plan)
    if steps < FEW_STEPS:
        lines.append(
            f"warning: few optimiser steps ({steps}); fine-tuning with so few often ends far from its best. More epochs or a "
            "smaller batch help (Mosbach et al. 2021, 2006.04884)"
        )
    return lines


def _choice_lines(trainer: Trainer) -> list[str]:
    """How the run computes, and why: a line a choice."""
    resolved, training = trainer.resolved, trainer.training
    found = {"precision": resolved.precision, "attention": resolved.attention, "kernels": resolved.kernels}
    lines = [f"{name} {value} ({resolved.reasons[name]})" for name, value in found.items()]
    if resolved.precision != PRECISION:
        lines[0] += f"; metrics are computed in {PRECISION}"
    if "batch_size" in resolved.reasons and training.batch_tokens is None:
        pieces = f", {training.gradient_accumulation_steps} accumulated" if training.gradient_accumulation_steps > 1 else ""
        lines.append(f"batch size {training.rows}{pieces} ({resolved.reasons['batch_size']})")
    return lines


def _weighing_lines(trainer: Trainer, plan: WindowPlan) -> list[str]:
    """What makes rows or words count otherwise than they stand in train."""
    training, lines = trainer.training, []
    if training.focal_gamma:
        lines.append(f"focal loss, gamma {training.focal_gamma:g}")
    if plan.repeats is not None:
        lines.append(f"oversampling: {plan.rows_in_epoch:,} rows an epoch instead of {len(plan.lengths):,}")
        if training.class_weights == "balanced":
            weights = trainer.task.loss_options(training, trainer.tables["train"]).class_weights
            assert weights is not None, "tasks without classes refuse both settings"
            lines.append(
                "class weights balanced: for the rows of an epoch after oversampling, which leaves weights from "
                f"{float(weights.min()):.3g} to {float(weights.max()):.3g}"
            )
    if training.augment is not None and trainer.augment is not None:
        shares = {name: value for name, value in training.augment.model_dump().items() if value}
        lines.append(f"augmentation, shares of words: {', '.join(f'{name} {value:g}' for name, value in shares.items())}")
    return lines


def resolved_document(run: Run, task: Task, trainer: Trainer, checkpoint: Checkpoint, splits: Splits) -> dict[str, Any]:
    """`config.yaml`: nothing is left to be resolved, so running it again repeats the run. Settings that had no effect stay as
    they were given. Secrets are left out.

    Raises:
        UserError: the settings come from such a document, and a file or revision is not the one it was made with.
    """
    config = run.config
    training = trainer.training.model_dump() | {
        "label_smoothing": trainer.task.label_smoothing(trainer.training),
        "precision": trainer.resolved.precision, "attention": trainer.resolved.attention, "kernels": trainer.resolved.kernels,
    }  # fmt: skip
    if trainer.strategy.takes_steps():
        training |= {"learning_rate": trainer.planner.learning_rate(), "epochs": trainer.planner.epochs()}
    unused = without_effect(config, task, run.strategy)
    training |= {name: value for name, value in config.training.model_dump().items() if f"training.{name}" in unused}
    further = [job.rows for job, _ in run.strategy.further_jobs(trainer.model).values()]
    inputs = hash_inputs(run, checkpoint.source, splits.rows)
    inputs |= hash_strategy(run.strategy, dict(zip(run.strategy.nested(), further, strict=True)))
    revisions = {name: found for name, found in splits.provenance().items() if name.startswith("hub:")}
    output = os.path.normpath(portable(config.output_dir))
    provenance: dict[str, Any] = {
        "directory": os.getcwd() if os.path.isabs(output) else os.path.relpath(os.getcwd(), output),
        "versions": versions(),
        "processes": trainer.accelerator.num_processes,  # another number divides windows otherwise
    }
    if checkpoint.revision:
        provenance["model_revision"] = checkpoint.revision
    document: dict[str, Any] = {
        "model": f"{checkpoint.source.path}@{checkpoint.revision}" if checkpoint.revision else config.model,
        "data": {name: _pinned(getattr(config.data, name), splits.rows.get(name)) for name in type(config.data).model_fields},
        "task": task.document(),
        "strategy": run.strategy.document(),
        "training": training,
        "output_dir": output,
        "provenance": provenance,
    }
    document = record_inputs(document, inputs, revisions)
    check_files(config.provenance, document["provenance"])
    cleaned: dict[str, Any] = clean(document)
    return cleaned


def _pinned(value: Any, rows: Rows | None) -> Any:
    """A source at the revision that was read, where it is a hub id."""
    match = HUB_DATA.match(value) if isinstance(value, str) and rows is not None and rows.revision else None
    if match is None or rows is None:
        return value
    config, split = (f"{mark}{match[part]}" if match[part] else "" for mark, part in ((":", "config"), ("#", "split")))
    return f"{match['id']}@{rows.revision}{config}{split}"


def training_figures(position: Position, parameters: tuple[int, int], memory: int, preparation: float = 0.0) -> dict[str, Any]:
    """`seconds` is the whole of training with its evaluations, and what the strategy prepared for it (`preparation_seconds`:
    loading, caching features); the rate is that of optimiser steps alone."""
    return {
        "seconds": round(position.seconds + preparation, 3),
        "preparation_seconds": round(preparation, 3),
        "step_seconds": round(position.step_seconds, 3),
        "steps": position.step,
        "best_step": position.best_step,
        "examples": position.examples,
        "tokens": position.tokens,
        "examples_per_second": round(position.examples / max(position.step_seconds, 1e-9), 3),
        "trainable_parameters": parameters[0],
        "total_parameters": parameters[1],
        "peak_memory_bytes": memory,
    }


def peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of this process."""
    return int(torch.cuda.max_memory_allocated()) if device_type() == "cuda" else environment.peak_memory()


def finish(
    folder: RunFolder,
    run: Run,
    task: Task,
    result: dict[str, Any],
    document: dict[str, Any],
    splits: Splits,
    further: Mapping[str, tuple[Job, Any]],
) -> None:
    """The cards and the records, also of an adapter and of further tasks; `result.json` comes last, since it says that the run is
    finished."""
    parts = [(folder.path / name, task, result, run.config.data, splits.rows) for name in ("model", "adapter")]
    for (name, (job, _)), (data, _) in zip(further.items(), run.strategy.nested().values(), strict=True):
        own = {"signatures": {}, **result, **result["tasks"][name]}
        parts.append((folder.path / "tasks" / name / "model", job.task, own, data, job.rows))
    for place, learned, figures, data, rows in parts:
        if (place / RECORD).is_file():
            add_to_record(place, {"metrics": figures["metrics"]})
            sources = {split: clean(getattr(data, split)) for split in ("train", "validation", "test")}
            counts = {"rows": {split: len(part) for split, part in rows.items()}}
            card = partial(write_card, place, learned, clean(figures), {**sources, **counts}, document["training"])
            patiently(card, "the model card", place)
    write_json(folder.path / "result.json", result)
    folder.clear_checkpoints()
