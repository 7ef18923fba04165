"""What a run leaves: a model that was saved, read again and scored; and the same for what was learned beside its own task."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from nlp_transfer.data.sources.rows import BLOCK
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics import KNOWN_KEYS
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.inference.rounding import round_predictions
from nlp_transfer.inference.scoring import score
from nlp_transfer.inference.writers import Writer
from nlp_transfer.models.regression_output import fold_outputs
from nlp_transfer.models.verification.weight_files import check_finite
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.saved_models.layout import PREDICTIONS
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.saved_models.save import is_adapted, is_plain, save_adapted, save_model, verify_adapter
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Job, Strategy
from nlp_transfer.tasks import Arrays, Task
from nlp_transfer.utils.atomic_files import DiskFullError, retry_while_full
from nlp_transfer.utils.console import say, show_metrics
from nlp_transfer.utils.distributed import compute_on_main
from nlp_transfer.utils.errors import UserError

MOST_PROBABILITIES = 50  # labels, up to which the probability of each is written
TRIED = 32  # rows with which metrics of the user's own are tried


def save(strategy: Strategy, job: Job, model: Any, folder: RunFolder, accelerator: Accelerator) -> Any:
    """The model that anyone can load, as read again from `model/`. Only the main process leaves files."""
    check_finite(model, "training: the trained model", "a lower training.learning_rate, or training.precision: fp32")
    fold_outputs(model)  # before an adapter is saved with the head
    if not accelerator.is_main_process:
        with tempfile.TemporaryDirectory() as elsewhere:
            return strategy.unwrap(model, Path(elsewhere))
    with quiet():
        plain = strategy.unwrap(model, folder.path)
    if is_adapted(plain):
        verify_adapter(folder.path / "adapter", job.checkpoint, job.task, plain, job.sample())
        return save_adapted(folder.path / "adapter", job.checkpoint.tokenizer, folder.path / "model").to(accelerator.device)
    place = folder.path / "model"
    saved = retry_while_full(partial(save_job, job, plain, place), "the model", place)
    if (folder.path / "adapter").is_dir():
        verify_adapter(folder.path / "adapter", job.checkpoint, job.task, plain, job.sample())
    return saved


def save_job(job: Job, model: Any, place: Path) -> Any:
    """The model that a job's task is learned with, as read again from the folder `place`."""
    return save_model(model, job.checkpoint.tokenizer, job.task, place, job.sample(), job.checkpoint)


def score_splits(
    job: Job, model: Any, accelerator: Accelerator, foreign: list[Any], folder: Path, own: UserMetrics | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, Arrays]]:
    """Metrics (in fp32) and predictions of validation and test, where there are such. The predictions are also written to
    `predictions/SPLIT.parquet` in `folder`."""
    metrics: dict[str, dict[str, float]] = {}
    answers: dict[str, Arrays] = {}
    for split in [name for name in ("validation", "test") if name in job.tables]:
        table = job.tables[split]
        metrics[split], answers[split] = score(model, job.task, table, accelerator, precision=PRECISION, user_metrics=own)
        metrics[split] |= foreign_figures(foreign, answers[split], table)
        if accelerator.is_main_process:
            path = folder / PREDICTIONS / f"{split}.parquet"
            try:
                retry_while_full(
                    partial(_write_predictions, path, job, split, answers[split]), f"the predictions of {split}", path.parent
                )
            except DiskFullError:
                raise
            except (UserError, OSError) as error:
                # The model is worth more: a task of a user's own may predict what Parquet cannot hold.
                say(f"warning: {path} was not written: {error}")
    return metrics, answers


def _write_predictions(path: Path, job: Job, split: str, answers: Arrays) -> None:
    """Write the rows of a split in their order: input columns, `reference`, what `predict` writes, and `file` and `row`, where
    they came from (`source_file` and `source_row` where an input column has such a name)."""
    task, rows = job.task, job.rows[split]
    floats = {name: round_predictions(name, array, PRECISION) for name, array in answers.items() if array.dtype == np.float32}
    every = task.prediction_kind in ("label", "labels") and len(getattr(task, "labels", None) or []) <= MOST_PROBABILITIES
    described = task.describe(answers | floats, probabilities=every)
    if "translation" in described:
        described["prediction"] = described.pop("translation")
    if task.prediction_kind == "number":  # all digits, so that the metrics can be computed again
        described["prediction"] = answers["prediction"].astype(float).tolist()
    found = task.cells({"reference": task.written(right_answers(job.tables[split])["prediction"]), **described})
    inputs = task.input_columns()
    found = {name: column for name, column in found.items() if name not in inputs}  # such as probability:LABEL
    names = clean(rows.files)
    files = [names[i] for i in rows.file_of.tolist()]
    origin = {"file": files, "row": [position or None for position in rows.position.tolist()]}
    for name, column in origin.items():
        if name in inputs:
            say(f"{path.name}: {name!r} is an input column, so that the {name} of a row in the data is in 'source_{name}'")
        found[f"source_{name}" if name in inputs else name] = column
    start = 0
    with Writer(path, path.suffix) as writer:
        for block in rows.batches(BLOCK):
            end = start + len(next(iter(block.values())))
            own = {name: block[name] for name in inputs}
            writer.write(own | {name: column[start:end] for name, column in found.items()})
            start = end


def finish_further(jobs: dict[str, tuple[Job, Any]], folder: RunFolder, accelerator: Accelerator) -> dict[str, Any]:
    """Saves and scores what was learned beside the run's own task, each as `tasks/NAME/model/`."""
    found = {}
    for name, (job, learned) in jobs.items():
        model, place = learned, folder.path / "tasks" / name / "model"
        if accelerator.is_main_process:
            model = retry_while_full(partial(save_job, job, model, place), name, place)
        metrics, _ = score_splits(job, model, accelerator, [], place.parent)
        found[name] = {"task": job.task.document(), "plain": is_plain(model), "metrics": metrics}
        if metrics and (signatures := job.task.signatures()):
            found[name]["signatures"] = signatures
        show_metrics({f"{name}: {split}": figures for split, figures in metrics.items()})
    return {"tasks": found} if found else {}


def right_answers(table: TokenTable) -> dict[str, np.ndarray]:
    """What a perfect model would answer: texts where there are such, else label ids or numbers."""
    found = table.references
    return {"prediction": found["references"] if "references" in found else found["labels"]}


def foreign_figures(metrics: list[Any], answers: dict[str, np.ndarray], table: TokenTable) -> dict[str, float]:
    """Figures of hub metrics, as `METRIC/KEY`: some have a key that ours have too, and mean something else by it.

    Raises:
        UserError: a metric cannot be computed for this task, or gives something other than numbers.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        try:
            figures = metric.compute(predictions=answers["prediction"], references=right_answers(table)["prediction"])
            found |= {f"{metric.name}/{key}": float(value) for key, value in figures.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"training.hub_metrics: {metric.name} cannot score this task: {error}") from error
    return found


def try_own_metrics(own: UserMetrics, task: Task, table: TokenTable, training: TrainingConfig, accelerator: Accelerator) -> None:
    """Call the user's own metrics with the targets of a few rows of train, before anything is trained: in the main process, for
    all of them.

    Raises:
        UserError: one of them cannot be computed, or `training.best_metric` is none that is.
    """
    if not own:
        return
    rows = np.unique(np.linspace(0, len(table) - 1, TRIED).astype(np.int64))
    wanted = right_answers(table)["prediction"][rows]
    taken = [*KNOWN_KEYS, *task.metric_names()]
    own.trials = compute_on_main(accelerator, lambda: own.try_out(task.written(wanted), wanted.tolist(), taken))
    own.check_best(training.best_metric, task.metric_names())
