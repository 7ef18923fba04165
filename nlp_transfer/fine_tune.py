"""Fine-tuning from start to end: data, tokens, model, strategy, training, saving, scoring."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from nlp_transfer.data.augmentation import make_augmenter
from nlp_transfer.data.bad_rows import write_skipped
from nlp_transfer.data.sources import find_model
from nlp_transfer.data.splits import UNLABELLED, Splits, read_splits
from nlp_transfer.data.token_cache import CachePolicy
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.evaluation.metrics import load_hub_metric
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.hub.push import check_push, push_run
from nlp_transfer.inference.loading import load_predictor, load_translator
from nlp_transfer.inference.predictor import PRECISION, Predictor
from nlp_transfer.inference.translator import Translator
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.preparation import count_parameters, describe_head
from nlp_transfer.run.final_model import save_final_model
from nlp_transfer.run.final_scores import score_splits, try_metrics
from nlp_transfer.run.folder import Resume, RunFolder, check_same_on_all
from nlp_transfer.run.resolve import Run, resolve
from nlp_transfer.run.result import finish_run, make_result, save_further_tasks, training_metrics
from nlp_transfer.run.run_config import resolved_document
from nlp_transfer.run.start_summary import summary_lines
from nlp_transfer.run.trial_save import check_saving, check_saving_further
from nlp_transfer.saved_models.custom_models import ensure_config
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.settings.schema import Document, RunConfig
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import Arrays, Task
from nlp_transfer.training.automatic_settings import resolve_settings
from nlp_transfer.training.callbacks import Callback, check_callbacks, note_on_callbacks
from nlp_transfer.training.interruption import Signals
from nlp_transfer.training.standard_callbacks import Augmentation, RowNames
from nlp_transfer.training.trainer import Trainer
from nlp_transfer.utils.console import is_main, percent, say, show_metrics


@dataclass(frozen=True)
class FineTuned:
    """A finished run: its folder and the content of its `result.json`."""

    output_dir: Path
    result: dict[str, Any]
    predictions: dict[str, Arrays] = field(default_factory=dict, compare=False, repr=False)
    """Predictions by scored split and name: arrays of shape (rows, ...), in memory only."""
    references: dict[str, Arrays] = field(default_factory=dict, compare=False, repr=False)
    """Targets of the predictions, by split and name: arrays of shape (rows, ...)."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by split and name."""
        metrics: dict[str, dict[str, float]] = self.result["metrics"]
        return metrics

    def predictor(self) -> Predictor:
        """Load the saved model for prediction."""
        return load_predictor(self.output_dir)

    def translator(self) -> Translator:
        """Load the saved translation model."""
        return load_translator(self.output_dir)


def fine_tune(
    config: RunConfig | Document | str | Path | None = None,
    *,
    resume: Resume = "auto",
    allow_hub_metrics: bool = False,
    push_to: str | None = None,
    metrics: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> FineTuned:
    """Fine-tune a checkpoint on text; save and score the model in `output_dir`.

    Args:
        config: a YAML file, a document or typed settings. `settings` (model=, data=, task=, strategy=, training=, output_dir=)
            override it. `data` may hold pandas DataFrames and datasets.Dataset objects.
        resume: `auto` resumes an unfinished run in `output_dir` or starts a new one; `must` only resumes; `never` only starts.
        allow_hub_metrics: allow `training.hub_metrics` to download and run code from the hub.
        push_to: USER/NAME on the hub, to which the finished run is pushed. Write access is checked before training. If the push
            fails, the run remains finished.
        metrics: additional metrics of validation and test: functions `f(predictions, references) -> {name: value}` of all rows
            of a split, and metrics of `evaluate`. `training.best_metric` may name one of them. Higher is better unless
            the metric has the attribute `higher_is_better = False`.
        callbacks: objects that run during training, after those of `training.callbacks`; see `Callback`. They are not recorded
            in `config.yaml`.

    Raises:
        UserError: settings or data are invalid. The message lists all problems; nothing is written.
        TrainingError: the loss is not finite, memory is insufficient, or another process has ended.
        DiskFullError: the disk stayed full for ten minutes.
        Interrupted: SIGTERM or SIGINT arrived; the last step is saved. A subclass of KeyboardInterrupt.
    """
    check_launch()
    user_metrics, callbacks = UserMetrics(metrics), check_callbacks(callbacks)
    run = resolve(config, user_metrics=bool(user_metrics), **settings)
    say(*describe_unused(run.unused.items()), *note_on_callbacks(callbacks))
    with RunFolder(run.config.output_dir, resume) as folder, Signals():
        folder.check()
        if push_to and is_main():
            check_push(push_to)
        finished = _run(run, folder, allow_hub_metrics, user_metrics, callbacks)
    if push_to and is_main():
        push_run(finished.output_dir, push_to)
    return finished


def _run(
    run: Run, folder: RunFolder, allow_hub_metrics: bool, user_metrics: UserMetrics, callbacks: Sequence[Callback]
) -> FineTuned:
    """Run every stage. `folder` has been checked; it is created after all checks that are possible before training."""
    training = run.config.training
    hub_metrics = [load_hub_metric(name, allow_hub_metrics=allow_hub_metrics) for name in training.hub_metrics]
    set_seed(training.seed)

    # Data and tokens.
    checkpoint = Checkpoint.open(find_model(run.config.model))
    splits, task = read_splits(run.config.data, run.task, training, training.seed, run.strategy.needs_validation())
    say(*(task.report(splits.train) if len(splits.train) else ()), *splits.notes)
    run = _with_validation_share(run, splits)
    task = task.prepare(checkpoint, splits.train).prefer_head(run.strategy.preferred_head())
    tables = _encode(splits, task, checkpoint, run.config.data.token_cache)
    augment = None
    if run.strategy.takes_steps():
        augment = make_augmenter(training, checkpoint.tokenizer, tables["train"], task.max_length)
    callbacks = [RowNames(lambda rows: _describe_rows(splits, rows)), *([Augmentation(augment)] if augment else []), *callbacks]

    # Model, strategy, and settings that are `auto`.
    began = time.monotonic()
    with quiet():
        model = ensure_config(task.build_model(checkpoint, training), checkpoint)
        say(*describe_head(model))
        model = run.strategy.wrap(model)
        resolved = resolve_settings(model, tables.get("train"), training, folder.path, task=task)
        accelerator = resolved.accelerator
        for split in splits.labeled[:1]:
            try_metrics(hub_metrics, user_metrics, task, tables[split], training, accelerator)
        job = Job(
            task, tables, splits.rows, checkpoint, resolved.training, accelerator.device, resolved.precision,
            skipped=splits.skipped,
        )  # fmt: skip
        check_saving(run.strategy, job, model, folder.path, accelerator)
        prepared = run.strategy.prepare_data(job, model)
        check_saving_further(run.strategy.auxiliary_jobs(model), folder.path, accelerator)
    trainer = Trainer(
        model, prepared.task, prepared.tables, run.strategy, replace(resolved, training=prepared.training), callbacks,
        output_dir=folder.path, objectives=prepared.objectives, user_metrics=user_metrics,
    )  # fmt: skip
    say(*summary_lines(trainer))
    document = resolved_document(run, task, trainer, checkpoint, splits)
    check_same_on_all(document)
    if accelerator.is_main_process:
        folder.begin(document)
        write_skipped(folder.path, prepared.skipped)
    accelerator.wait_for_everyone()

    # Training.
    parameters, preparation = count_parameters(model), time.monotonic() - began
    position = trainer.train()
    speed = training_metrics(position, parameters, preparation)

    # Saving and scoring.
    auxiliary = run.strategy.auxiliary_jobs(model)
    model = save_final_model(run.strategy, job, model, folder, accelerator)
    metrics, predictions = score_splits(job, model, accelerator, hub_metrics, folder.path, user_metrics)
    if metrics:
        last = list(metrics)[-1]
        say(*task.example_lines(predictions[last], tables[last].references))
    auxiliary_results = save_further_tasks(auxiliary, folder, accelerator)
    result = make_result(run, document, task, model, metrics, speed, auxiliary_results)
    if accelerator.is_main_process:
        finish_run(folder, run, task, result, document, splits, auxiliary)
    accelerator.wait_for_everyone()
    show_metrics(metrics, f"metrics, computed in {PRECISION}")
    say(f"the model is in {folder.path / 'model'}")
    return FineTuned(folder.path, result, predictions, {split: tables[split].references for split in predictions})


def _with_validation_share(run: Run, splits: Splits) -> Run:
    """Return the run with the actual validation share; print the settings that have no effect with it."""
    resolved = run.with_validation_share(splits.validation_share)
    say(*describe_unused(item for item in resolved.unused.items() if item[0] not in run.unused))
    return resolved


def _encode(splits: Splits, task: Task, checkpoint: Checkpoint, cache: CachePolicy) -> dict[str, TokenTable]:
    """Tokenize every split; print its size and how many of its texts are truncated."""
    tables = {}
    for name, rows in splits.rows.items():
        table = task.table(rows, checkpoint.tokenizer, cache, name != UNLABELLED, name)
        truncated = f", {percent(table.truncated, len(table))} truncated to {task.max_length}" if table.truncated else ""
        say(f"{name}: {len(table):,} rows, {table.lengths.mean():.0f} tokens on average{truncated}")
        tables[name] = table
    return tables


def _describe_rows(splits: Splits, indices: np.ndarray) -> str:
    """Name up to five training rows by file and row, without rows that the strategy added."""
    from_files = indices[indices < len(splits.train)]
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return "; ".join(splits.train.where(int(row)) for row in from_files[:5]) + more
