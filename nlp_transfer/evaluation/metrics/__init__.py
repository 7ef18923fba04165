"""Compute metrics locally with scikit-learn, scipy and sacreBLEU. These are imported only when a metric is computed.

`compute_label_metrics`, `compute_regression_metrics` and `compute_translation_metrics` take the predictions of a complete split.
`load` returns an `evaluate.Metric` for use in other code. `evaluate.combine` can combine several of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlp_transfer.evaluation.metrics.classification_metrics import LABEL_KEYS, MULTILABEL_KEYS, compute_label_metrics
from nlp_transfer.evaluation.metrics.hub_metrics import load_hub_metric
from nlp_transfer.evaluation.metrics.regression_metrics import REGRESSION_KEYS, compute_regression_metrics
from nlp_transfer.evaluation.metrics.scorer import KNOWN_KEYS, check_known, higher_is_better
from nlp_transfer.evaluation.metrics.translation_metrics import (
    TRANSLATION_KEYS,
    compute_translation_metrics,
    translation_signatures,
    translation_statistics,
)

if TYPE_CHECKING:
    import evaluate

__all__ = [
    "KNOWN_KEYS", "LABEL_KEYS", "MULTILABEL_KEYS", "REGRESSION_KEYS", "compute_label_metrics", "compute_regression_metrics",
    "compute_translation_metrics", "higher_is_better", "load", "load_hub_metric", "names", "translation_signatures",
    "translation_statistics",
]  # fmt: skip


def names() -> list[str]:
    """Return the names that `load` accepts, sorted."""
    label_names = {key.split("_")[0] for key in LABEL_KEYS}
    return sorted([*label_names, *REGRESSION_KEYS, *TRANSLATION_KEYS])


def load(name: str, config_name: str | None = None) -> evaluate.Metric:
    """Return a metric of this package as an `evaluate.Metric`.

    Instances are independent and hold their rows in memory; `evaluate` creates an empty cache folder for each.

    Args:
        name: One of `names()`.
        config_name: For classification, `"multilabel"` if each row is a vector of 0 and 1, or None if each row has one label.
            For translation, the code of the target language, or None for a language with spaces between words. For regression,
            None.

    Raises:
        ValueError: The metric or the config is unknown; the message lists the known ones.
    """
    check_known("metric", name, names())
    from nlp_transfer.evaluation.metrics.evaluate_adapter import MetricAdapter

    return MetricAdapter(name, config_name)
