"""The story: data -> tokens -> checkpoint + head -> strategy -> train -> save -> evaluate."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from nlp_transfer.evaluation.metrics.user_metrics import OwnMetrics
from nlp_transfer.hub.push import check_push, push_run
from nlp_transfer.inference.loading import load_predictor, load_translator
from nlp_transfer.inference.predictor import PRECISION, Predictor
from nlp_transfer.inference.translator import Translator
from nlp_transfer.models.checkpoint import Checkpoint, count_parameters, head_notes
from nlp_transfer.models.device import finish_trackers
from nlp_transfer.run import records
from nlp_transfer.run.folder import Resume, RunFolder, check_same_on_all
from nlp_transfer.run.outputs import finish_further, foreign_figures, right_answers, save, score_splits, try_own_metrics
from nlp_transfer.run.resolve import Run, resolve
from nlp_transfer.run.trial_save import check_saving, check_saving_further
from nlp_transfer.saved_models.custom_models import with_config
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.saved_models.save import is_plain, versions
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.settings.schema import Document, RunConfig
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import Arrays, Task
from nlp_transfer.training.automatic_settings import resolve_settings
from nlp_transfer.training.interruption import Signals
from nlp_transfer.training.trainer import Trainer
from nlp_transfer.utils.console import is_main, percent, say, show_metrics


@dataclass(frozen=True)
class FineTuned:
    """A finished run: where it lies and what it says of itself (`result.json`)."""

    output_dir: Path
    result: dict[str, Any]
    answers: dict[str, Arrays] = field(default_factory=dict, compare=False, repr=False)
    """The answers by scored split, in row order; in memory alone."""
    references: dict[str, Arrays] = field(default_factory=dict, compare=False, repr=False)
    """What they were scored against."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Figures by split."""
        found: dict[str, dict[str, float]] = self.result["metrics"]
        return found

    def predictor(self) -> Predictor:
        """The saved model, ready to answer."""
        return load_predictor(self.output_dir)

    def translator(self) -> Translator:
        """The saved translation model, ready for use."""
        return load_translator(self.output_dir)


def fine_tune(
    config: RunConfig | Document | str | Path | None = None,
    *,
    resume: Resume = "auto",
    allow_hub_metrics: bool = False,
    push_to: str | None = None,
    metrics: Sequence[Any] = (),
    **settings: Any,
) -> FineTuned:
    """Fine-tunes a checkpoint on text and leaves a saved, measured model in `output_dir`.

    Args:
        config: a YAML file, a document or typed settings; `settings` (model=, data=, task=, strategy=, training=,
            output_dir=) win over it. `data` may hold pandas DataFrames and datasets.Dataset objects.
        resume: `auto` goes on with an unfinished run in `output_dir` or begins one; `must` only goes on, `never` only begins.
        allow_hub_metrics: lets `training.hub_metrics` download and run foreign code.
        push_to: USER/NAME on a hub: whether the token may push there is asked first, and the finished run is pushed. Where the
            push fails the run is finished all the same.
        metrics: more metrics of validation and test: functions `f(predictions, references) -> {name: value}` of whole splits,
            and metrics of `evaluate`. `training.best_metric` may be one of them; more is better unless the metric has an
            attribute `higher_is_better` that is False.

    Raises:
        UserError: something in the settings or the data is wrong; all problems are listed and nothing is left behind.
        TrainingError: the loss is not a number, or memory does not suffice.
        DiskFullError: there was no room for a checkpoint or the model for ten minutes.
        Interrupted: a signal arrived (SIGTERM, SIGINT); the last step is kept. It is a KeyboardInterrupt.
    """
    check_launch()
    own = OwnMetrics(metrics)
    run = resolve(config, own_metrics=bool(own), **settings)
    say(*describe_unused(run.unused.items()))
    with RunFolder(run.config.output_dir, resume) as folder, Signals() as signals:
        folder.check()
        if push_to and is_main():
            check_push(push_to)
        done = _tell(run, folder, signals, allow_hub_metrics, own)
    if push_to and is_main():
        push_run(done.output_dir, push_to)
    return done


def _tell(run: Run, folder: RunFolder, signals: Signals, allow_hub_metrics: bool, own: OwnMetrics) -> FineTuned:
    """The story itself, in a folder that it may write in."""
    training = run.config.training
    foreign = [load_hub_metric(name, allow_foreign_code=allow_hub_metrics) for name in training.hub_metrics]
    set_seed(training.seed)

    checkpoint = Checkpoint.open(find_model(run.config.model))
    splits, task = read_splits(run.config.data, run.task, training, training.seed, run.strategy.needs_validation())
    train = splits.train
    say(*(task.report(train) if len(train) else ()), *splits.notes)
    run = _settle(run, splits)
    task = task.prepare(checkpoint, train).prefer_head(run.strategy.preferred_head())
    tables = _encode(splits, task, checkpoint, run.config.data.token_cache)
    augment = None
    if run.strategy.takes_steps():
        augment = make_augmenter(training, checkpoint.tokenizer, tables["train"], task.max_length)
    labelled = next((tables[name] for name in splits.labelled), None)
    if labelled is not None:
        foreign_figures(foreign, right_answers(labelled), labelled)  # better now than after training

    began = time.monotonic()
    with quiet():
        model = with_config(task.build_model(checkpoint, training), checkpoint)
        say(*head_notes(model))
        model = run.strategy.wrap(model)
        resolved = resolve_settings(model, tables.get("train"), training, folder.path, task=task)
        accelerator = resolved.accelerator
        if labelled is not None:
            try_own_metrics(own, task, labelled, training, accelerator)
        job = Job(
            task, tables, splits.rows, checkpoint, resolved.training, accelerator.device, resolved.precision,
            skipped=splits.skipped,
        )  # fmt: skip
        check_saving(run.strategy, job, model, folder.path, accelerator)
        prepared = run.strategy.prepare_data(job, model)
        check_saving_further(run.strategy.further_jobs(model), folder.path, accelerator)
    trainer = Trainer(
        model, prepared.task, prepared.tables, strategy=run.strategy, training=prepared.training, resolved=resolved,
        output_dir=folder.path, describe=lambda rows: _describe(splits, rows), objectives=prepared.objectives,
        augment=augment, signals=signals, own_metrics=own,
    )  # fmt: skip
    say(*records.resolved_lines(trainer))
    document = records.resolved_document(run, task, trainer, checkpoint, splits)
    check_same_on_all(document)
    if accelerator.is_main_process:
        folder.begin(document)
        write_skipped(folder.path, prepared.skipped)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("nlp_transfer")

    parameters, preparation = count_parameters(model), time.monotonic() - began
    position = trainer.train()
    figures = records.training_figures(position, parameters, records.peak_memory(), preparation)
    further = run.strategy.further_jobs(model)
    model = save(run.strategy, job, model, folder, accelerator)
    metrics, answers = score_splits(job, model, accelerator, foreign, folder.path, own)
    if metrics:
        last = list(metrics)[-1]
        say(*task.remarks(answers[last], tables[last].references))
    signatures = task.signatures()
    result = {
        "task": document["task"], "strategy": document["strategy"], "model": run.config.model, "seed": training.seed,
        "plain": is_plain(model), "metrics": metrics, "metrics_precision": PRECISION, "train": figures,
        "versions": versions(),
        **({"signatures": signatures} if metrics and signatures else {}),
        **finish_further(further, folder, accelerator),
    }  # fmt: skip
    if accelerator.is_main_process:
        records.finish(folder, run, task, result, document, splits, further)
    accelerator.wait_for_everyone()
    finish_trackers(accelerator)
    show_metrics(metrics, f"metrics, computed in {PRECISION}")
    say(f"the model is in {folder.path / 'model'}")
    return FineTuned(folder.path, result, answers, {split: tables[split].references for split in answers})


def _settle(run: Run, splits: Splits) -> Run:
    """The run with the validation share as it was resolved; says which settings have no effect without a validation split."""
    settled = run.with_validation_share(splits.validation_share)
    say(*describe_unused(item for item in settled.unused.items() if item[0] not in run.unused))
    return settled


def _encode(splits: Splits, task: Task, checkpoint: Checkpoint, keep: CachePolicy) -> dict[str, TokenTable]:
    tokenizer = checkpoint.tokenizer
    tables = {}
    for name, rows in splits.rows.items():
        table = task.table(rows, tokenizer, keep, name != UNLABELLED, name)
        cut = f", {percent(table.truncated, len(table))} of rows cut to {task.max_length} tokens" if table.truncated else ""
        say(f"{name}: {len(table):,} rows, {table.lengths.mean():.0f} tokens a row on average{cut}")
        tables[name] = table
    return tables


def _describe(splits: Splits, indices: np.ndarray) -> str:
    own = indices[indices < len(splits.train)]  # a strategy may have added rows that stand in no file
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return "; ".join(splits.train.where(int(row)) for row in own[:5]) + more
