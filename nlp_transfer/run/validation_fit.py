"""Fit the temperature of the probabilities and the thresholds on the validation split, between training and saving."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.run.final_scores import references
from nlp_transfer.run.run import Run
from nlp_transfer.tasks import Task
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import broadcast_from_main
from nlp_transfer.utils.errors import Problems


def check_calibration(task: Task, splits: Any, nested: Mapping[str, Task], problems: Problems) -> None:
    """Report settings that need a validation split if there is none, and those of tasks in a strategy, which are not fitted.

    Args:
        splits: Names of the splits that the data settings define.
        nested: Tasks in the settings of the strategy, by dotted name.
    """
    calibration = task.traits.calibration(task)
    if calibration is not None and "validation" not in splits:
        problems.add(
            f"{calibration.setting}: is fitted on a validation split, and there is none; set data.validation or "
            "data.validation_share"
        )
    for name, other in nested.items():
        if (unfitted := other.traits.calibration(other)) is not None:
            problems.add(f"{name}.{unfitted.setting}: only the main task is calibrated; allowed: false, or a number as threshold")


def fit_on_validation(run: Run) -> Run:
    """Fit what the task's settings ask for, in fp32, with the trained model; fold the temperature into its weights.

    Every process must call this.
    """
    calibration = run.task.traits.calibration(run.task)
    if calibration is None:
        return run
    trainer, table = run.trainer, run.trainer.data["validation"]
    model = trainer.model.to(trainer.accelerator.device)
    predictions, _ = predict_table(model, calibration.task, table, precision=PRECISION, accelerator=trainer.accelerator)
    predictions = broadcast_from_main(predictions)  # CPUs can round differently, but all processes must fit the same values
    task, fitted = calibration.fit(model, predictions, references(run.task, table))
    return replace(run, task=task, job=replace(run.job, task=task), calibration=fitted)


def calibration_result(run: Run) -> dict[str, Any]:
    """Return the entry `calibration` of `result.json`: what was fitted, and its effect on each split, which is also printed."""
    calibration = run.task.traits.calibration(run.task)
    fitted = dict(run.calibration)
    if calibration is None or "temperature" not in fitted:
        return fitted
    for split, predictions in run.predictions.items():
        effect = calibration.effect(predictions, references(run.task, run.job.tables[split]), fitted["temperature"])
        fitted[split] = effect
        changes = ", ".join(f"{name} {effect['before'][name]:.4f} -> {effect['after'][name]:.4f}" for name in effect["after"])
        say(f"{split}: temperature {fitted['temperature']:.4g}: {changes}")
    return fitted
