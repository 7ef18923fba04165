"""What is fitted on the validation split after training: the temperature of the probabilities, and thresholds.

The temperature is folded into the layer that computes the logits, so that any program that loads the saved model gets calibrated
probabilities. The layer is found by its shape (`output_layer`), in the model families of transformers and in the toolkit's heads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.tokens import model_inputs, to_device
from nlp_transfer.evaluation.metrics.calibration_metrics import (
    fit_temperature,
    negative_log_likelihood,
    probabilities_of,
    probability_metrics,
)
from nlp_transfer.evaluation.metrics.scorer import Arrays
from nlp_transfer.evaluation.metrics.thresholds import best_f1, best_f1_macro, highest_recall, lowest_cost
from nlp_transfer.settings.threshold_goals import Goal, ThresholdGoal
from nlp_transfer.tasks.common.pretrained_head import output_layer
from nlp_transfer.tasks.common.task import Task
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

MARK = "label_parameters"
TOLERANCE = 1e-4  # of logits, relative to the largest one


@dataclass(frozen=True)
class Calibration:
    """Fits the temperature and the threshold of a classification task on its validation split.

    Attributes:
        task: The task, whose predictions include the logits if they are needed.
        temperature: Whether to fit a temperature.
        goal: The goal for which a threshold is chosen; None: no threshold is chosen.
        positive: Index of the label that the threshold applies to; None: all labels.
    """

    task: Task
    temperature: bool
    goal: Goal | None
    positive: int | None = None

    @property
    def setting(self) -> str:
        """The setting that requires a validation split."""
        return "task.calibrate" if self.temperature else "task.threshold"

    def mark(self, model: PreTrainedModel) -> None:
        """Mark the parameters that compute the logits. Call this before a strategy changes the structure of the model.

        The marks are attributes of modules, so they are kept if a module is copied or renamed.
        """
        if not self.temperature:
            return
        try:
            names = list(output_layer(model))
        except Exception as error:  # a class of a user, which cannot be built from its configuration
            raise _not_foldable(model, f"its output layer was not found ({type(error).__name__})") from error
        for name in names:
            module, _, parameter = name.rpartition(".")
            vars(model.get_submodule(module)).setdefault(MARK, set()).add(parameter)

    def check(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        """Check that a temperature can be folded into the model: logits of a batch must scale exactly.

        Raises:
            UserError: They do not.
        """
        if not self.temperature:
            return
        if any(name.endswith("base_layer") and MARK in vars(module) for name, module in model.named_modules()):
            raise _not_foldable(model, "the strategy adds an adapter to its output layer")
        inputs = model_inputs(to_device(batch, next(model.parameters()).device))
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                before = model(**inputs).logits.float()
                fold(model, 2.0)
                after = model(**inputs).logits.float()
        finally:
            fold(model, 0.5)
            model.train(was_training)
        if not float((before - 2 * after).abs().max()) <= TOLERANCE * max(1e-3, float(before.abs().max())):
            raise _not_foldable(model, "its logits are not proportional to the weights of its last layer")

    def fit(self, model: nn.Module, predictions: Arrays, references: np.ndarray) -> tuple[Task, dict[str, Any]]:
        """Fit temperature and threshold, fold the temperature into the model, and print the results.

        Args:
            predictions: `scores` and, for a temperature, `logits` of the validation split, of shape (rows, labels).
            references: Its label ids of shape (rows,), or 0 and 1 of shape (rows, labels).

        Returns:
            The task with the chosen threshold; and `temperature` and `threshold`, those that were fitted.
        """
        fitted: dict[str, Any] = {}
        scores = predictions["scores"]
        if self.temperature:
            temperature = fit_temperature(predictions["logits"], references)
            if temperature is None:
                say(
                    f"warning: task.calibrate: the {len(references)} validation rows do not determine a temperature (all are "
                    "predicted correctly, or all at random); the probabilities are left as they are"
                )
            fitted["temperature"] = temperature = temperature or 1.0
            fold(model, temperature)
            scores = probabilities_of(predictions["logits"] / temperature, references.ndim == 2).astype(np.float32)
        task = self.task
        if self.goal is not None:
            fitted["threshold"] = self._choose(scores, references)
            task = task.model_copy(update={"threshold": fitted["threshold"]})
            say(f"threshold chosen on {len(references)} validation rows: {_shown(fitted['threshold'])}")
        return task, fitted

    def _choose(self, scores: np.ndarray, references: np.ndarray) -> float | list[float]:
        if self.positive is not None:
            scores, references = scores[:, [self.positive]], (references == self.positive)[:, None]
        if self.goal == "f1_per_label":
            if missing := int((references.sum(0) == 0).sum()):
                say(f"warning: task.threshold: no validation row has {missing} of the labels; they get the threshold 0.5")
            return [_rounded(best_f1(scores[:, i], references[:, i])) for i in range(scores.shape[1])]
        pooled = scores.ravel(), references.ravel() > 0
        if self.goal == "f1":
            return _rounded(best_f1_macro(scores, references))
        goal = self.goal
        assert isinstance(goal, ThresholdGoal)
        if goal.cost is not None:
            return _rounded(lowest_cost(*pooled, goal.cost.false_positive, goal.cost.false_negative))
        assert goal.recall_at_precision is not None
        if (threshold := highest_recall(*pooled, goal.recall_at_precision)) is None:
            say(
                f"warning: task.threshold: no threshold reaches the precision {goal.recall_at_precision:g} on validation; the "
                "threshold is 0.5"
            )
        return _rounded(threshold or 0.5)

    def effect(self, predictions: Arrays, references: np.ndarray, temperature: float) -> dict[str, dict[str, float]]:
        """Return `ece`, `brier` and `nll` of a split `before` and `after` calibration.

        Args:
            predictions: Predictions of the calibrated model, with `logits`.
        """
        logits = predictions["logits"].astype(np.float64)
        return {
            name: probability_metrics(probabilities_of(values, references.ndim == 2), references)
            | {"nll": negative_log_likelihood(values, references)}
            for name, values in (("before", logits * temperature), ("after", logits))
        }


def fold(model: nn.Module, temperature: float) -> None:
    """Divide the logits of a model by a temperature, by dividing the parameters that `Calibration.mark` has marked."""
    parameters = {
        id(parameter): parameter
        for module in model.modules()
        for name in vars(module).get(MARK, ())
        if (parameter := getattr(module, name)) is not None
    }
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.div_(temperature)


def _rounded(threshold: float) -> float:
    """Return the shortest decimal of a threshold that has the same effect in fp32."""
    return float(f"{threshold:.9g}")


def _shown(threshold: float | list[float]) -> str:
    if isinstance(threshold, float):
        return f"{threshold:.4g}"
    return f"{min(threshold):.3g} to {max(threshold):.3g} for {len(threshold)} labels"


def _not_foldable(model: Any, reason: str) -> UserError:
    return UserError(
        f"task.calibrate: a temperature cannot be folded into a {type(model).__name__}: {reason}; allowed: false, or a head such "
        "as task.head: {pooling: mean}"
    )
