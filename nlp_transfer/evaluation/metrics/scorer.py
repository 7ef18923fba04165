"""The interface between tasks and evaluation: how predictions are scored, resampled and shown."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from nlp_transfer.evaluation.metrics.calibration_metrics import COVERAGE_KEYS, POSITIVE_KEYS, PROBABILITY_KEYS
from nlp_transfer.evaluation.metrics.classification_metrics import LABEL_KEYS
from nlp_transfer.evaluation.metrics.regression_metrics import REGRESSION_KEYS
from nlp_transfer.evaluation.metrics.translation_metrics import TRANSLATION_KEYS
from nlp_transfer.utils.errors import did_you_mean

Arrays = dict[str, np.ndarray]
"""Columns of predictions or targets by name. The first dimension of each array is rows."""

Sums = tuple[Any, Callable[[np.ndarray], np.ndarray]]
"""A dense or sparse matrix of shape (rows, statistics), and a function that computes a metric from sums of these rows. It maps
sums of shape (resamples, statistics) to values of shape (resamples,)."""

Form = Literal["labels", "numbers", "texts", "other"]

KNOWN_KEYS = (
    *LABEL_KEYS, *PROBABILITY_KEYS, *COVERAGE_KEYS, *POSITIVE_KEYS, *REGRESSION_KEYS, *TRANSLATION_KEYS,
    *(f"{key}_{end}" for key in TRANSLATION_KEYS for end in ("low", "high")), "token_accuracy", "loss",
)  # fmt: skip
"""Keys of all metrics of this package."""
LOWER_IS_BETTER = {"mae", "rmse", "mse", "ter", "ter_low", "ter_high", "loss", "ece", "brier"}
BOUNDS = (
    dict.fromkeys((*LABEL_KEYS, *COVERAGE_KEYS, *POSITIVE_KEYS, "token_accuracy", "ece"), (0.0, 1.0))
    | dict.fromkeys(("mcc", "pearson", "spearman"), (-1.0, 1.0))
    | dict.fromkeys(("bleu", "chrf"), (0.0, 100.0))
    | dict.fromkeys(("mse", "rmse", "mae", "ter"), (0.0, np.inf))
    | {"r2": (-np.inf, 1.0), "brier": (0.0, 2.0)}
)


def higher_is_better(key: str) -> bool:
    """Return whether a higher value of a metric, or of `loss`, is better.

    Raises:
        ValueError: The key is unknown; the message lists the known ones.
    """
    check_known("metric key", key, KNOWN_KEYS)
    return key not in LOWER_IS_BETTER


def check_known(kind: str, name: str, known: Any) -> None:
    """Raise a ValueError if a name is not in `known`."""
    if name not in known:
        raise ValueError(f"there is no {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Scorer(ABC):
    """Scores the predictions of a task.

    Predictions and references are columns of a complete split. Predictions include the column `prediction`. References include
    the column named by the attribute `reference`, in the same form.

    Attributes:
        best_metric: The metric by which finished models are compared, unless `training.best_metric` names another one.
        labels: Names of the labels, in the order of the model's outputs. Empty for tasks without labels.
        reference: Name of the column that contains the references.
        form: Form of the predictions, which determines what a report shows.
        row_metric: The metric that ranks single rows; must be one that `sums` supports. None: `best_metric`.
    """

    best_metric: str
    labels: tuple[str, ...] = ()
    reference: ClassVar[str] = "labels"
    form: ClassVar[Form] = "other"
    row_metric: ClassVar[str | None] = None

    @property
    def prediction_type(self) -> str:
        """Arrow type of `prediction` in files."""
        return "string"

    @abstractmethod
    def compute(self, predictions: Arrays, references: Arrays) -> dict[str, float]:
        """Compute the metrics of a split. Undefined metrics are omitted."""

    def compute_only(self, metrics: Collection[str], predictions: Arrays, references: Arrays) -> dict[str, float]:
        """Compute at least these metrics, for many resamples. Override it if some of them cost less than all metrics."""
        return self.compute(predictions, references)

    def perfect(self, references: np.ndarray) -> np.ndarray:
        """Return predictions that agree with the references, to try out metrics. Override it if their forms differ."""
        return references

    def typed(self, values: np.ndarray) -> list[Any]:
        """Convert predictions or references to labels, numbers or texts of the type in the data of the user."""
        typed: list[Any] = values.tolist()
        return typed

    def reference_column(self, references: np.ndarray | None) -> dict[str, list[Any]]:
        """Return the references as a column `reference`. If they are None, return no column."""
        return {} if references is None else {"reference": self.typed(references)}

    def compare_by(self, best_metric: str | None) -> str:
        """Return the metric by which finished models are compared, for a value of `training.best_metric`.

        It is never the loss, which depends on settings such as label smoothing.
        """
        return self.best_metric if best_metric in (None, "loss") else str(best_metric)

    def higher_is_better(self, metric: str) -> bool:
        """Return whether higher values of a metric are better. Override this for metrics that the toolkit does not know."""
        return higher_is_better(metric)

    def bounds(self, metric: str) -> tuple[float, float]:
        """Return the smallest and the largest possible value of a metric."""
        return BOUNDS.get(metric, (-np.inf, np.inf))

    def sums(self, metric: str, predictions: Arrays, references: Arrays) -> Sums | None:
        """Return statistics of each row, and a function that computes a metric from sums of these over rows.

        Bootstrap resampling is then cheap.

        Returns:
            The statistics and the function. None: the metric is not a function of such sums, so `compute` must score each
            resample.
        """
        return None

    def draft(self, rows: int) -> tuple[np.ndarray | None, dict[str, float]]:
        """Return which rows to predict in evaluations during training. Override this if predictions are expensive.

        Returns:
            The rows to predict, bool of shape (rows,), or None for all rows; and the numeric settings that make these
            predictions cheaper than final ones. The settings are logged with the validation metrics.
        """
        return None, {}

    def examples(self, predictions: Arrays, references: Arrays) -> list[str]:
        """Return examples and notes to print after a split has been scored."""
        return []

    def parse(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Arrays, Arrays]:
        """Return predictions and references from the columns of a predictions file, the inverse of `Task.columns`.

        Columns that are not in the file are missing in the result.
        """
        predicted, true = (_objects(columns[name]) for name in ("prediction", "reference"))
        return {"prediction": predicted}, {self.reference: true}

    def error_sizes(self, predictions: Arrays, references: Arrays) -> np.ndarray | None:
        """Return how wrong each prediction is, float64 of shape (rows,); 0: right. None: unknown."""
        metric = self.row_metric or self.best_metric
        if (sums := self.sums(metric, predictions, references)) is None:
            return None
        statistics, function = sums
        values = function(statistics)  # the sums of a single row are its statistics
        sizes = self.bounds(metric)[1] - values if self.higher_is_better(metric) else values
        pairs = zip(predictions["prediction"], references[self.reference], strict=True)
        return np.where([bool(np.array_equal(predicted, true)) for predicted, true in pairs], 0.0, sizes)

    def class_counts(self, predictions: Arrays, references: Arrays) -> tuple[tuple[str, ...], np.ndarray] | None:
        """Return the names of the classes and, for each, the numbers of correct, of predicted and of true occurrences.

        Returns:
            The names, and int64 of shape (3, classes). None: there are no classes.
        """
        return None

    def confusions(self, predictions: Arrays, references: Arrays) -> np.ndarray | None:
        """Return how often each label (row) was confused with each other label (column), int64 of shape (labels, labels).

        The diagonal holds the correct predictions, or 0 if a row can have several labels. None: there are no labels.
        """
        return None

    def confidences(self, predictions: Arrays, references: Arrays) -> tuple[np.ndarray, np.ndarray, float | None] | None:
        """Return probabilities, whether what they predict is true, and the Brier score.

        Returns:
            float64 and bool of equal shape (predictions,); the score is None if not all probabilities are known. None: there are
            no probabilities.
        """
        return None

    def signatures(self) -> dict[str, str]:
        """Return the signatures of metrics with several conventions, such as BLEU. They are saved in `result.json`."""
        return {}


def mean(sums: np.ndarray) -> np.ndarray:
    """Compute means from an array of shape (resamples, 2) with the sum of the values and the number of values."""
    return np.asarray(sums[:, 0] / sums[:, 1])


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Return an array of shape (values,) of any Python values, even if they are lists of equal length."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
