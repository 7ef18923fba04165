"""Score the saved model on validation and test, write its predictions, and compute hub and user metrics."""

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
from nlp_transfer.inference.rounding import rounded
from nlp_transfer.inference.scoring import score
from nlp_transfer.inference.writers import Writer
from nlp_transfer.saved_models.layout import PREDICTIONS
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import Arrays, Task
from nlp_transfer.utils.atomic_files import DiskFullError, retry_while_full
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import compute_on_main
from nlp_transfer.utils.errors import UserError

MAX_PROBABILITIES = 200  # with more labels, only the probability of the predicted one is written
TRIAL_ROWS = 32  # rows for the trial of user metrics


def score_splits(
    job: Job, model: Any, accelerator: Accelerator, hub_metrics: list[Any], folder: Path, user_metrics: UserMetrics | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, Arrays]]:
    """Score the validation and test splits, if present, in fp32; write `predictions/SPLIT.parquet` to `folder`.

    Returns:
        The metrics by split and name; and for each split the predictions, arrays of shape (rows, ...) by name, in row order.
    """
    metrics: dict[str, dict[str, float]] = {}
    predictions: dict[str, Arrays] = {}
    for split in [name for name in ("validation", "test") if name in job.tables]:
        table = job.tables[split]
        metrics[split], predictions[split] = score(
            model, job.task, table, accelerator, precision=PRECISION, user_metrics=user_metrics
        )
        metrics[split] |= compute_hub_metrics(hub_metrics, predictions[split], references(job.task, table))
        if accelerator.is_main_process:
            path = folder / PREDICTIONS / f"{split}.parquet"
            write = partial(_write_predictions, path, job, split, predictions[split])
            try:
                retry_while_full(write, f"the predictions of {split}", path.parent)
            except DiskFullError:
                raise
            except (UserError, OSError) as error:  # such as values of a user-defined task that Parquet cannot store
                say(f"warning: {path} was not written: {error}")
    return metrics, predictions


def _write_predictions(path: Path, job: Job, split: str, predictions: Arrays) -> None:
    """Write the rows of a split in order.

    The columns are the inputs, `reference`, the columns of `predict`, and the origin of each row as `file` and `row`. Each of
    these two gets the prefix `source_` if an input column has its name.
    """
    task, rows = job.task, job.rows[split]
    all_labels = task.traits.has_probabilities and len(task.scorer.labels) <= MAX_PROBABILITIES
    expected = references(task, job.tables[split])
    columns = task.columns(rounded(predictions, PRECISION), expected, probabilities=all_labels, cells=True)
    columns = {"prediction" if name == task.traits.output else name: column for name, column in columns.items()}
    inputs = task.inputs
    columns = {name: column for name, column in columns.items() if name not in inputs}  # such as probability:LABEL
    names = clean(rows.files)
    files = [names[i] for i in rows.file_of.tolist()]
    origin = {"file": files, "row": [position or None for position in rows.position.tolist()]}
    for name, column in origin.items():
        if name in inputs:
            say(f"{path.name}: {name!r} is an input column; the original {name} of each row is in column 'source_{name}'")
        columns[f"source_{name}" if name in inputs else name] = column
    start = 0
    with Writer(path, path.suffix) as writer:
        for block in rows.batches(BLOCK):
            end = start + len(next(iter(block.values())))
            writer.write({name: block[name] for name in inputs} | {name: column[start:end] for name, column in columns.items()})
            start = end


def references(task: Task, table: TokenTable) -> np.ndarray:
    """Return the references of all rows: texts (dtype object), label ids or numbers, of shape (rows, ...)."""
    return table.references[task.scorer.reference]


def compute_hub_metrics(metrics: list[Any], predictions: Arrays, expected: np.ndarray) -> dict[str, float]:
    """Compute metrics from the hub. Each value is named `METRIC/KEY`, since several metrics may use the same key.

    Raises:
        UserError: a metric does not support this task, or returns values that are not numbers.
    """
    values: dict[str, float] = {}
    for metric in metrics:
        try:
            computed = metric.compute(predictions=predictions["prediction"], references=expected)
            values |= {f"{metric.name}/{key}": float(value) for key, value in computed.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"training.hub_metrics: {metric.name} cannot score this task: {error}") from error
    return values


def try_metrics(
    hub_metrics: list[Any], user_metrics: UserMetrics, task: Task, table: TokenTable, training: TrainingConfig,
    accelerator: Accelerator,
) -> None:  # fmt: skip
    """Compute hub and user metrics with perfect predictions, to detect errors before training.

    Raises:
        UserError: a metric cannot be computed, or `training.best_metric` is unknown.
    """
    scorer, targets = task.scorer, references(task, table)
    compute_hub_metrics(hub_metrics, {"prediction": scorer.perfect(targets)}, targets)
    if not user_metrics:
        return
    sample = targets[np.unique(np.linspace(0, len(table) - 1, TRIAL_ROWS).astype(np.int64))]
    reserved = [*KNOWN_KEYS, *task.traits.metrics]
    predicted = scorer.perfect(sample)
    perfect = scorer.typed(predicted), predicted.tolist()
    user_metrics.trials = compute_on_main(
        accelerator, lambda: user_metrics.try_out(scorer.typed(sample), sample.tolist(), reserved, perfect)
    )
    user_metrics.check_best(training.best_metric, task.traits.metrics)
