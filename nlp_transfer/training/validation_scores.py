"""Figures of validation while training, and which of them decides."""

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
    own: UserMetrics | None = None,
) -> tuple[dict[str, float], str, bool]:  # fmt: skip
    """Metrics in fp32, as the saved model is scored; which of them decides, and whether more of it is better.

    Where several tasks are learned that is the mean of their own best metrics, unless the settings name one. Metrics of a task
    whose final predictions are made in another way come with what differs (`Task.draft_settings`).
    """
    metrics, _ = score(model, task, table, accelerator, draft=True, user_metrics=own)
    metrics = broadcast_from_main(metrics)  # CPU models round differently, and all processes must stop after the same step
    metrics |= task.draft_settings(len(table))
    further = strategy.auxiliary_jobs(model)
    decisive = [(task, metrics.get(task.best_metric, math.nan))]
    for name, (job, learned) in further.items():
        if "validation" in job.tables:
            figures, _ = score(learned, job.task, job.tables["validation"], accelerator, draft=True)
            figures = broadcast_from_main(figures)
            metrics |= {f"{name}/{key}": value for key, value in figures.items()}
            decisive.append((job.task, figures.get(job.task.best_metric, math.nan)))
    if not further or training.best_metric:
        best = training.best_metric or task.best_metric
        return metrics, best, own.higher_is_better(best) if own and best in own.names else task.higher_is_better(best)
    signs = [1 if task.higher_is_better(task.best_metric) else -1 for task, _ in decisive]
    mean = sum(sign * value for sign, (_, value) in zip(signs, decisive, strict=True)) / len(decisive)
    return metrics | {"mean": mean}, "mean", True
