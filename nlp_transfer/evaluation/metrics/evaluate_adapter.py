"""Adapter that makes the metrics of this package available as `evaluate.Metric` objects."""

import inspect
import math
import uuid
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from nlp_transfer.evaluation.metrics.classification_metrics import LABEL_KEYS, compute_label_metrics, roc_auc
from nlp_transfer.evaluation.metrics.regression_metrics import REGRESSION_KEYS, compute_regression_metrics
from nlp_transfer.evaluation.metrics.translation_metrics import TRANSLATION_KEYS, score_translations

MODULE_NAMES = {
    "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1", "mcc": "matthews_correlation",
    "auc": "roc_auc", "pearson": "pearson", "spearman": "spearman", "mse": "mean_squared_error", "mae": "mean_absolute_error",
    "rmse": "root_mean_squared_error", "r2": "r_squared", "bleu": "bleu", "chrf": "chrf", "ter": "ter",
}  # fmt: skip
"""Attribute `name` of the `evaluate.Metric` for each metric."""


class MetricAdapter(evaluate.Metric):
    """A metric of this package as an `evaluate.Metric`; `compute` returns values by key, NaN if undefined.

    Inputs are `references` and `predictions` (`auc`: `prediction_scores`), as in the functions of this package.
    """

    def __init__(self, name: str, config_name: str | None) -> None:
        self._name = name
        # Instances with the same experiment id would share a cache file.
        super().__init__(config_name=config_name, keep_in_memory=True, experiment_id=f"{name}-{uuid.uuid4().hex}")
        self.info.module_name = MODULE_NAMES[name]

    def _info(self) -> evaluate.MetricInfo:
        number, label = Value("float64"), Value("int64")
        multilabel = self.config_name == "multilabel"
        configs = ("default",) if self._name == "mcc" or self._name in REGRESSION_KEYS else ("default", "multilabel")
        function: Any
        columns: Any
        if self._name in TRANSLATION_KEYS:
            function, column, configs = score_translations, Value("string"), (self.config_name,)  # the config is a language
        elif self._name in REGRESSION_KEYS:
            function, column = compute_regression_metrics, number
        else:
            function, column = compute_label_metrics, Sequence(label) if multilabel else label
        columns = Features({"predictions": column, "references": column})
        if self._name == "auc":
            function = roc_auc
            columns = [Features({"prediction_scores": scores, "references": column}) for scores in (number, Sequence(number))]
            columns = columns[1] if multilabel else columns
        if self.config_name not in configs:
            raise ValueError(f"metric {self._name!r} has no config {self.config_name!r}; known configs: {', '.join(configs)}")
        return evaluate.MetricInfo(
            description=f"`{self._name}`: {inspect.getdoc(function)}", citation="", inputs_description="", features=columns
        )

    def _compute(self, **inputs: Any) -> dict[str, float]:
        multilabel = self.config_name == "multilabel"
        if self._name in TRANSLATION_KEYS:
            return score_translations(self._name, language=self.config_name, **inputs)
        if self._name == "auc":
            return {"auc": roc_auc(inputs["prediction_scores"], inputs["references"], multilabel)}
        if self._name in REGRESSION_KEYS:
            return {self._name: compute_regression_metrics(**inputs).get(self._name, math.nan)}
        values = compute_label_metrics(**inputs, multilabel=multilabel)
        return {key: values[key] for key in LABEL_KEYS if key.split("_")[0] == self._name}
