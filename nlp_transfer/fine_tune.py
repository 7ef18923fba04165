"""The story: data -> tokens -> checkpoint + head -> strategy -> train -> save -> evaluate."""

import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from nlp_transfer.config import Document, RunConfig
from nlp_transfer.console import say, show_metrics
from nlp_transfer.data.splits import Splits, read_splits
from nlp_transfer.data.tokens import TokenTable, encode_rows
from nlp_transfer.errors import UserError
from nlp_transfer.export.card import write_card
from nlp_transfer.export.save import check_adapter, is_plain, load_predictor, quiet, record, save_model, versions, write_json
from nlp_transfer.inference import Predictor, score
from nlp_transfer.metrics import load_hub_metric
from nlp_transfer.models import Checkpoint, count_parameters
from nlp_transfer.resolve import Run, resolve
from nlp_transfer.run_folder import RunFolder
from nlp_transfer.sources import find_model
from nlp_transfer.sources.wheels import is_wheel
from nlp_transfer.tasks import Task
from nlp_transfer.training.device import make_accelerator, resolve_precision
from nlp_transfer.training.loop import Position, Trainer


@dataclass(frozen=True)
class FineTuned:
    """A finished run: where it lies and what it says of itself (`result.json`)."""

    output_dir: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Figures by split."""
        found: dict[str, dict[str, float]] = self.result["metrics"]
        return found

    def predictor(self) -> Predictor:
        """The saved model, ready to answer."""
        return load_predictor(self.output_dir)


def fine_tune(
    config: RunConfig | Document | str | Path | None = None, *, allow_hub_metrics: bool = False, **settings: Any
) -> FineTuned:
    """Fine-tunes a checkpoint on text and leaves a saved, measured model in `output_dir`.

    Args:
        config: a YAML file, a document or typed settings; `settings` (model=, data=, task=, strategy=, training=,
            output_dir=) win over it. `data` may hold pandas DataFrames and datasets.Dataset objects.
        allow_hub_metrics: lets `training.hub_metrics` download and run foreign code.

    Raises:
        UserError: something in the settings or the data is wrong; all problems are listed and nothing is left behind.
        TrainingFailed: the loss is not a number.
    """
    run = resolve(config, **settings)
    folder = RunFolder(run.config.output_dir)
    folder.check()
    extra = {name: load_hub_metric(name, allow_foreign_code=allow_hub_metrics) for name in run.config.training.hub_metrics}
    set_seed(run.config.training.seed)

    checkpoint = Checkpoint.open(find_model(run.config.model))
    splits, task = read_splits(run.config.data, run.task, lambda rows, problems: run.task.fit(rows, problems), run.config.training.seed)
    run = _check_with_labels(run, task)
    say(*task.report(splits.rows["train"]), *splits.notes)
    task = _set_max_length(task, checkpoint)
    tables = _encode(splits, task, checkpoint)

    precision, reason = resolve_precision(run.config.training.precision, checkpoint.config.model_type)
    accelerator = make_accelerator(run.config.training, precision, folder.path)
    with quiet():
        model = task.build_model(checkpoint, run.config.training)
    model = run.strategy.wrap(model)
    tables = run.strategy.prepare_data(tables, model)
    trainer = Trainer(
        model, task, tables, strategy=run.strategy, training=run.config.training, accelerator=accelerator,
        output_dir=folder.path, describe=_describe(splits),
    )  # fmt: skip
    say(*_resolved_lines(trainer, precision, reason))
    document = _resolved_document(run, task, trainer, precision, checkpoint, splits)
    if accelerator.is_main_process:
        folder.begin(document)
    accelerator.wait_for_everyone()
    if run.config.training.trackers:
        accelerator.init_trackers("nlp_transfer")

    trainable = count_parameters(model)
    position = trainer.train()
    memory = _peak_memory()
    saved = _save(run, task, model, checkpoint, tables, folder, accelerator)
    metrics = {
        split: score(saved, task, tables[split], accelerator, run.config.training.batch_size * 2)
        for split in ("validation", "test")
        if split in tables
    }
    figures = {split: found | _hub_figures(extra, answers, tables[split]) for split, (found, answers) in metrics.items()}
    result = {
        "task": document["task"], "strategy": document["strategy"], "model": run.config.model,
        "seed": run.config.training.seed, "plain": is_plain(saved), "metrics": figures,
        "train": _training_figures(position, trainable, memory), "versions": versions(),
    }  # fmt: skip
    if accelerator.is_main_process:
        _finish(folder, run, task, result, document, splits)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    show_metrics(figures)
    say(f"the model is in {folder.path / 'model'}")
    return FineTuned(folder.path, result)


def _check_with_labels(run: Run, task: Task) -> Run:
    """Settings that name labels can be checked once train is read."""
    from nlp_transfer.errors import Problems

    problems = Problems("settings")
    task.check_settings(run.config.training, problems)
    problems.raise_if_any()
    return replace(run, task=task)


def _set_max_length(task: Task, checkpoint: Checkpoint) -> Task:
    limit = checkpoint.max_length
    if task.max_length is not None and task.max_length > limit:
        raise UserError(f"task.max_length: found {task.max_length}; allowed: up to {limit}, the limit of {checkpoint.source.name}")
    return task.model_copy(update={"max_length": task.max_length or min(512, limit)})


def _encode(splits: Splits, task: Task, checkpoint: Checkpoint) -> dict[str, TokenTable]:
    tokenizer = checkpoint.tokenizer
    tables = {}
    for name, rows in splits.rows.items():
        table = encode_rows(rows, lambda columns: task.encode(columns, tokenizer), task.fill(tokenizer))
        share = table.truncated / len(table)
        cut = f", {share:.1%} of rows cut to {task.max_length} tokens" if table.truncated else ""
        say(f"{name}: {len(table)} rows, {table.lengths.mean():.0f} tokens a row on average{cut}")
        tables[name] = table
    return tables


def _describe(splits: Splits) -> Any:
    def describe(indices: np.ndarray) -> str:
        train = splits.rows["train"]
        more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
        return "; ".join(train.where(int(row)) for row in indices[:5]) + more

    return describe


def _resolved_lines(trainer: Trainer, precision: str, reason: str) -> list[str]:
    """What was chosen automatically, and how much there is to do."""
    steps, plan = trainer.total_steps(), trainer.plan()
    trainable, total = count_parameters(trainer.model)
    rows = plan.batch_size * plan.accumulation * plan.processes
    lines = [
        f"{trainable:,} of {total:,} parameters are trained ({trainable / total:.1%})",
        f"precision {precision} ({reason}), learning rate {trainer.learning_rate():g}, {trainer.epochs():g} epochs, {steps} steps of "
        f"{f'{plan.batch_tokens} tokens' if plan.batch_tokens else f'{rows} rows'} on {plan.processes} process(es), "
        f"device {trainer.accelerator.device}",
    ]
    if steps < 100:
        lines.append(
            f"warning: only {steps} optimiser steps; fine-tuning with so few often ends far from its best. More epochs or a "
            "smaller batch help (Mosbach et al. 2021, 2006.04884)"
        )
    return lines


def _resolved_document(
    run: Run, task: Task, trainer: Trainer, precision: str, checkpoint: Checkpoint, splits: Splits
) -> dict[str, Any]:
    """`config.yaml`: nothing is left to be resolved, so running it again repeats the run."""
    config = run.config
    data = {name: _absolute(getattr(config.data, name)) for name in sorted(config.data.model_fields_set)}
    training = config.training.model_dump()
    training |= {"precision": precision, "learning_rate": trainer.learning_rate(), "epochs": trainer.epochs()}
    provenance: dict[str, Any] = {"files": splits.provenance(), "versions": versions()}
    if checkpoint.revision:
        provenance["model_revision"] = checkpoint.revision
    _check_provenance(config.provenance, provenance)
    return {
        "model": _absolute(config.model),
        "data": data,
        "task": task.document(),
        "strategy": config.strategy,
        "training": training,
        "output_dir": str(Path(config.output_dir).absolute()),
        "provenance": provenance,
    }


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and not is_wheel(value) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().absolute())
    return value if isinstance(value, (str, int, float, list, dict, type(None))) else f"<{type(value).__name__} of {len(value)} rows>"


def _check_provenance(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A resolved document promises to repeat its run: files and revisions must be those it was made with."""
    for path, digest in before.get("files", {}).items():
        if now["files"].get(path, digest) != digest:
            raise UserError(
                f"provenance: {path} is not the file that this document was resolved with (its hash is {now['files'][path][:12]}..., "
                f"recorded is {str(digest)[:12]}...); restore the file, or remove `provenance` to train on the new one"
            )
    wanted = before.get("model_revision")
    if wanted and wanted != now.get("model_revision"):
        raise UserError(f"provenance: the model is at revision {now.get('model_revision')}, recorded is {wanted}; name it as ID@{wanted}")


def _save(
    run: Run, task: Task, model: Any, checkpoint: Checkpoint, tables: dict[str, TokenTable], folder: RunFolder, accelerator: Accelerator
) -> Any:
    """The model that anyone can load, as read again from `model/`. Only the main process leaves files."""
    probe = tables["train"].batch(np.arange(min(4, len(tables["train"]))))
    if not accelerator.is_main_process:
        with tempfile.TemporaryDirectory() as elsewhere:
            return run.strategy.unwrap(model, Path(elsewhere))
    shutil.rmtree(folder.path / "model", ignore_errors=True)
    with quiet():
        plain = run.strategy.unwrap(model, folder.path)
    saved = save_model(plain, checkpoint.tokenizer, task, folder.path / "model", probe)
    if (folder.path / "adapter").is_dir():
        check_adapter(folder.path / "adapter", checkpoint, task, plain, probe)
    return saved


def _hub_figures(extra: dict[str, Any], answers: dict[str, np.ndarray], table: TokenTable) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in extra.values():
        figures = metric.compute(predictions=answers["prediction"], references=table.dense["labels"])
        found |= {name: float(value) for name, value in (figures or {}).items()}
    return found


def _training_figures(position: Position, parameters: tuple[int, int], memory: int) -> dict[str, Any]:
    """`seconds` is the whole of training with its evaluations; the rate is that of optimiser steps alone."""
    return {
        "seconds": round(position.seconds, 3),
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


def _peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def _finish(folder: RunFolder, run: Run, task: Task, result: dict[str, Any], document: dict[str, Any], splits: Splits) -> None:
    """The card and the records; `result.json` comes last, since it is what says that the run is finished."""
    model = folder.path / "model"
    write_json(model / "nlp_transfer.json", record(task, result["plain"], result["metrics"]))
    data = run.config.data
    rows = {name: len(part) for name, part in splits.rows.items()}
    write_card(model, task, result, {"train": data.train, "test": data.test, "rows": rows}, document["training"])
    write_json(folder.path / "result.json", result)
    folder.clear_checkpoints()
