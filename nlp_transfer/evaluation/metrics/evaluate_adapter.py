"""Adapter that makes the metrics of this package available as `evaluate.Metric` objects."""

import inspect
import math
import uuid
from functools import partial
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from nlp_transfer.evaluation.metrics.classification_metrics import compute_label_metrics, roc_auc
from nlp_transfer.evaluation.metrics.regression_metrics import REGRESSION_KEYS, compute_regression_metrics
from nlp_transfer.evaluation.metrics.translation_metrics import TRANSLATION_KEYS, score_translations


class MetricAdapter(evaluate.Metric):
    """A metric of this package as an `evaluate.Metric`. `compute` returns values by key; an undefined value is NaN.

    The inputs are `references` and `predictions` (for `auc`, `prediction_scores`), in the forms that the functions of this
    package use.
    """

    def __init__(self, name: str, config_name: str | None) -> None:
        self._name = name
        # Without a unique experiment id, instances would share a cache file.
        super().__init__(config_name=config_name, keep_in_memory=True, experiment_id=f"{name}-{uuid.uuid4().hex}")
        self.info.module_name = name

    def _info(self) -> evaluate.MetricInfo:
        """Return the description and the input types of the metric, and set the function that computes it."""
        name, config, multilabel = self._name, self.config_name, self.config_name == "multilabel"
        number, label = Value("float64"), Value("int64")
        configs = ("default",) if name == "mcc" else ("default", "multilabel")
        function: Any = compute_label_metrics
        columns: Any = Sequence(label) if multilabel else label
        self._function: Any = partial(function, multilabel=multilabel)
        if name in TRANSLATION_KEYS:
            function, columns, configs = score_translations, Value("string"), (config,)  # the config is a language code
            self._function = partial(function, name, language=config)
        elif name in REGRESSION_KEYS:
            function, columns, configs = compute_regression_metrics, number, ("default",)
            self._function = function
        if config not in configs:
            raise ValueError(f"metric {name!r} has no config {config!r}; known configs: {', '.join(configs)}")
        features: Any = Features({"predictions": columns, "references": columns})
        if name == "auc":
            function = roc_auc
            self._function = lambda prediction_scores, references: {name: function(prediction_scores, references, multilabel)}
            kinds = (Sequence(number),) if multilabel else (number, Sequence(number))
            features = [Features({"prediction_scores": scores, "references": columns}) for scores in kinds]
        return evaluate.MetricInfo(
            description=f"`{name}`: {inspect.getdoc(function)}", citation="", inputs_description="", features=features
        )

    def _compute(self, **inputs: Any) -> dict[str, float]:
        values = self._function(**inputs)
        return {key: value for key, value in values.items() if key.split("_")[0] == self._name} or {self._name: math.nan}
