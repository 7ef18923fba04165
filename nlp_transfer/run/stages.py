"""The stages of a run, in order. Each takes the run and returns a copy with the results of the stage."""

import time
from dataclasses import replace

import numpy as np
from accelerate.utils import set_seed

from nlp_transfer.data.augmentation import make_augmenter
from nlp_transfer.data.bad_rows import write_skipped
from nlp_transfer.data.row_weights import with_weights
from nlp_transfer.data.sources import find_model
from nlp_transfer.data.splits import UNLABELLED, Splits, read_splits
from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.evaluation.metrics import load_hub_metric
from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.preparation import count_parameters, describe_head
from nlp_transfer.run.final_model import save_final_model
from nlp_transfer.run.final_scores import score_splits, try_metrics
from nlp_transfer.run.folder import RunFolder, check_same_on_all
from nlp_transfer.run.result import finish_run, make_result, save_further_tasks, show_report, training_metrics
from nlp_transfer.run.run import Run
from nlp_transfer.run.run_config import resolved_document
from nlp_transfer.run.start_summary import summary_lines
from nlp_transfer.run.trial_save import check_saving, check_saving_further
from nlp_transfer.run.validation_fit import calibration_result, fit_on_validation
from nlp_transfer.saved_models.custom_models import ensure_config
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import encode_table
from nlp_transfer.tasks.common.objectives import check_weighted
from nlp_transfer.tasks.common.pretrained_head import prefer_head
from nlp_transfer.training.automatic_settings import resolve_settings
from nlp_transfer.training.callbacks import Callback
from nlp_transfer.training.standard_callbacks import Augmentation, RowNames
from nlp_transfer.training.trackers import add_results, finish_trackers, start_trackers
from nlp_transfer.training.trainer import Trainer
from nlp_transfer.utils.console import Level, number, percent, say, show_metrics


def read(run: Run, allow_hub_metrics: bool = False, with_test: bool = True) -> Run:
    """Open the checkpoint, read and check the rows of every split, and fit the task to the training rows.

    Args:
        with_test: whether to keep the test split. Without it, its rows are still not trained on, but nothing is computed on them.
    """
    training = run.config.training
    hub_metrics = [load_hub_metric(name, allow_hub_metrics=allow_hub_metrics) for name in training.hub_metrics]
    set_seed(training.seed)
    checkpoint = Checkpoint.open(find_model(run.config.model))
    needs_validation = run.strategy.traits.needs_validation or run.task.traits.calibration(run.task) is not None
    splits, task = read_splits(run.config.data, run.task, training, training.seed, needs_validation)
    if not with_test:
        splits.rows.pop("test", None)
    notes = [*(task.describe(splits.train).lines if len(splits.train) else ()), *splits.notes]
    say(*notes)
    resolved = run.with_validation_share(splits.validation_share)
    say(*describe_unused(item for item in resolved.unused.items() if item[0] not in run.unused))
    return replace(resolved, task=task, checkpoint=checkpoint, splits=splits, hub_metrics=hub_metrics, data_notes=notes)


def encode(run: Run) -> Run:
    """Prepare the task for the checkpoint, and tokenize every split. Print sizes and how many texts are truncated."""
    task = prefer_head(run.task.prepare(run.checkpoint, run.splits.train), run.strategy.traits.head)
    tables = {}
    for name, rows in run.splits.rows.items():
        table = encode_table(task, rows, run.checkpoint.tokenizer, run.config.data.token_cache, name != UNLABELLED, name)
        truncated = f", {percent(table.truncated, len(table))} truncated to {task.max_length}" if table.truncated else ""
        say(f"{name}: {len(table):,} rows, {table.lengths.mean():.0f} tokens on average{truncated}")
        tables[name] = table
    if (weight := run.config.data.weight) and "train" in tables:
        check_weighted(task, run.config.training)
        tables["train"] = with_weights(tables["train"], run.splits.train, weight)
    job = Job(task, tables, run.splits.rows, run.checkpoint, run.config.training, skipped=run.splits.skipped)
    return replace(run, task=task, job=job)


def build(run: Run, folder: RunFolder, dry: bool = False) -> Run:
    """Build the model, resolve `auto` settings, and prepare model and data as the strategy requires.

    Check that the untrained model can be saved and scored. After all checks that are possible before training, create
    `folder` with `config.yaml` in it.

    Args:
        dry: whether to write nothing, neither now nor during training.
    """
    started, training, task, tables = time.monotonic(), run.config.training, run.task, run.job.tables
    with quiet():
        model = ensure_config(task.build_model(run.checkpoint, training), run.checkpoint)
        say(*describe_head(model))
        if (calibration := task.traits.calibration(task)) is not None:
            calibration.mark(model)
        model = run.strategy.prepare_model(model)
        if calibration is not None:
            calibration.check(model, run.job.sample())
        resolved = resolve_settings(model, tables.get("train"), training, folder.path, task=task)
        accelerator = resolved.accelerator
        for split in run.splits.labeled[:1]:
            try_metrics(run.hub_metrics, run.user_metrics, task, tables[split], training, accelerator)
        job = replace(run.job, training=resolved.training, device=accelerator.device, precision=resolved.precision)
        check_saving(run.strategy, job, model, folder.path, accelerator)
        data_started = time.monotonic()
        prepared = run.strategy.prepare_data(job, model)
        data_seconds = time.monotonic() - data_started
        model = model if prepared.model is None else prepared.model
        if calibration is not None and prepared.model is not None:
            calibration.check(model, run.job.sample())
        check_saving_further(run.strategy.auxiliary_jobs(model), folder.path, accelerator)
    trainer = Trainer(
        model, prepared.task, prepared.tables, run.strategy, replace(resolved, training=prepared.training), _callbacks(run),
        output_dir=None if dry else folder.path, objectives=prepared.objectives, user_metrics=run.user_metrics,
    )  # fmt: skip
    say(*summary_lines(trainer))
    run = replace(run, job=job, trainer=trainer, data_seconds=data_seconds)
    run = replace(run, document=resolved_document(run), preparation_seconds=time.monotonic() - started)
    check_same_on_all(run.document)
    if run.is_main and not dry:
        folder.begin(run.document)
        write_skipped(folder.path, prepared.skipped)
    accelerator.wait_for_everyone()
    return run


def train(run: Run, folder: RunFolder) -> Run:
    """Train the model; at the end it has the best weights."""
    start_trackers(run.trainer.accelerator, folder.path, run.document)
    parameters = count_parameters(run.trainer.model)
    position = run.trainer.train()
    return replace(run, speed=training_metrics(position, parameters, run.preparation_seconds))


def save(run: Run, folder: RunFolder) -> Run:
    """Fit probabilities on validation, save the model, and load it again: the saved model is the one that is scored."""
    run = fit_on_validation(run)
    auxiliary = run.strategy.auxiliary_jobs(run.trainer.model)
    model = save_final_model(run.strategy, run.job, run.trainer.model, folder, run.trainer.accelerator)
    return replace(run, model=model, auxiliary=auxiliary)


def score(run: Run, folder: RunFolder) -> Run:
    """Score the saved model on validation and test, and write its predictions; save and score auxiliary tasks."""
    accelerator = run.trainer.accelerator
    metrics, predictions = score_splits(run.job, run.model, accelerator, run.hub_metrics, folder.path, run.user_metrics)
    if metrics:
        last = list(metrics)[-1]
        say(*run.task.scorer.examples(predictions[last], run.job.tables[last].references))
    results = save_further_tasks(run.auxiliary, folder, accelerator)
    return replace(run, metrics=metrics, predictions=predictions, auxiliary_results=results)


def report(run: Run, folder: RunFolder, page: bool = True) -> Run:
    """Write the model card and `result.json`, which marks the run as finished, and print the metrics.

    Args:
        page: whether to write `report.html` and the plots of the model card, and to print the largest errors.
    """
    run = replace(run, calibration=calibration_result(run))
    run = replace(run, result=make_result(run))
    if run.is_main:
        finish_run(run, folder, page)
    run.trainer.accelerator.wait_for_everyone()
    show_metrics(run.metrics, f"metrics, computed in {PRECISION}")
    if run.is_main and page:
        show_report(folder.path)
    add_results(run.trainer.accelerator, folder.path, run.metrics, run.speed["steps"])
    finish_trackers(run.trainer.accelerator)
    metric = run.task.scorer.compare_by(run.config.training.best_metric)
    values = [f"{split} {metric} {number(scores[metric])}" for split, scores in run.metrics.items() if metric in scores]
    say(f"the model is in {folder.path / 'model'}{'; ' if values else ''}{', '.join(values)}", level=Level.QUIET)
    return run


def _callbacks(run: Run) -> list[Callback]:
    """Return the callbacks of the run: one that names rows in error messages, one for augmentation, and the user's own."""
    augment = None
    if run.strategy.traits.takes_steps:
        augment = make_augmenter(run.config.training, run.checkpoint.tokenizer, run.job.tables["train"], run.task.max_length)
    names = RowNames(lambda rows: _describe_rows(run.splits, rows))
    return [names, *([Augmentation(augment)] if augment else []), *run.callbacks]


def _describe_rows(splits: Splits, indices: np.ndarray) -> str:
    """Return the locations of up to five training rows in their files, leaving out rows that the strategy added."""
    named = [splits.train.where(int(row)) for row in indices[indices < len(splits.train)][:5]]
    more = f" and {len(indices) - len(named)} more" if len(indices) > len(named) else ""
    return "; ".join(named) + more
