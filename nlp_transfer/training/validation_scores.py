"""Validation metrics during training, and the metric by which evaluations are compared."""

import math

from accelerate import Accelerator
from torch import nn

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.inference.scoring import score
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Strategy
from nlp_transfer.tasks import Task
from nlp_transfer.utils.distributed import broadcast_from_main


def score_validation(
    model: nn.Module, task: Task, table: TokenTable, strategy: Strategy, training: TrainingConfig, accelerator: Accelerator,
    user_metrics: UserMetrics | None = None,
) -> tuple[dict[str, float], str, bool]:  # fmt: skip
    """Compute the validation metrics in fp32, the precision in which the saved model is scored.

    With several tasks, evaluations are compared by the mean of the best metrics of all tasks, unless `training.best_metric` is
    set. If the task uses cheaper predictions during training, their settings (`Scorer.draft`) are included in the metrics.

    Returns:
        The metrics by name, the name of the metric by which evaluations are compared, and whether higher values of it are better.
    """
    metrics, _ = score(model, task, table, accelerator, draft=True, user_metrics=user_metrics)
    metrics = broadcast_from_main(metrics)  # CPUs can round differently, but all processes must stop after the same step
    metrics |= task.scorer.draft(len(table))[1]
    auxiliary = strategy.auxiliary_jobs(model)
    best_values = [(task, metrics.get(task.traits.best_metric, math.nan))]
    for name, (job, job_model) in auxiliary.items():
        if "validation" in job.tables:
            job_metrics, _ = score(job_model, job.task, job.tables["validation"], accelerator, draft=True)
            job_metrics = broadcast_from_main(job_metrics)
            metrics |= {f"{name}/{key}": value for key, value in job_metrics.items()}
            best_values.append((job.task, job_metrics.get(job.task.traits.best_metric, math.nan)))
    if not auxiliary or training.best_metric:
        best = training.best_metric or task.traits.best_metric
        owner = user_metrics if user_metrics and best in user_metrics.names else task.scorer
        return metrics, best, owner.higher_is_better(best)
    signs = [1 if task.scorer.higher_is_better(task.traits.best_metric) else -1 for task, _ in best_values]
    mean = sum(sign * value for sign, (_, value) in zip(signs, best_values, strict=True)) / len(best_values)
    return metrics | {"mean": mean}, "mean", True
