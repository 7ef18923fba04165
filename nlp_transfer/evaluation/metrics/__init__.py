"""Metrics that come with the package: computed locally, with nothing to download.

`compute_label_metrics`, `compute_regression_metrics` and `compute_translation_metrics` take the answers of a whole split.
`load` and `label_metrics` give `evaluate.Metric` objects to use with other code. Importing this package imports none of the
libraries behind it.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from nlp_transfer.utils.errors import UserError

if TYPE_CHECKING:
    import evaluate
    import numpy as np

__all__ = [
    "KNOWN_KEYS",
    "LABEL_KEYS",
    "MULTILABEL_KEYS",
    "REGRESSION_KEYS",
    "compute_label_metrics",
    "compute_regression_metrics",
    "compute_translation_metrics",
    "higher_is_better",
    "label_metrics",
    "load",
    "load_hub_metric",
    "names",
    "translation_signatures",
    "translation_statistics",
]

_CLASSES = {
    "accuracy": ("classification_metrics", "Accuracy"),
    "precision": ("classification_metrics", "Precision"),
    "recall": ("classification_metrics", "Recall"),
    "f1": ("classification_metrics", "F1"),
    "mcc": ("classification_metrics", "MatthewsCorrelation"),
    "auc": ("classification_metrics", "RocAuc"),
    "pearson": ("regression_metrics", "Pearson"),
    "spearman": ("regression_metrics", "Spearman"),
    "mse": ("regression_metrics", "MeanSquaredError"),
    "mae": ("regression_metrics", "MeanAbsoluteError"),
    "rmse": ("regression_metrics", "RootMeanSquaredError"),
    "r2": ("regression_metrics", "RSquared"),
    "bleu": ("translation_metrics", "Bleu"),
    "chrf": ("translation_metrics", "Chrf"),
    "ter": ("translation_metrics", "Ter"),
}
_MULTILABEL = ("accuracy", "precision", "recall", "f1")
_SINGLE_LABEL = (*_MULTILABEL, "mcc")
_REGRESSION = ("r2", "pearson", "spearman", "mae", "rmse", "mse")
_TRANSLATION = ("bleu", "chrf", "ter")

_HIGHER_IS_BETTER = {
    "accuracy": True,
    "precision_micro": True,
    "precision_macro": True,
    "precision_weighted": True,
    "recall_micro": True,
    "recall_macro": True,
    "recall_weighted": True,
    "f1_micro": True,
    "f1_macro": True,
    "f1_weighted": True,
    "mcc": True,
    "auc": True,
    "pearson": True,
    "spearman": True,
    "mse": False,
    "mae": False,
    "rmse": False,
    "r2": True,
    "bleu": True,
    "chrf": True,
    "ter": False,
    "token_accuracy": True,
    "loss": False,
}
_HIGHER_IS_BETTER |= {f"{key}_{end}": _HIGHER_IS_BETTER[key] for key in _TRANSLATION for end in ("low", "high")}

KNOWN_KEYS = frozenset(_HIGHER_IS_BETTER)  # every name that a metric of this package can have
# The keys of `compute_label_metrics` (single label, multi-label) and of `compute_regression_metrics`.
REGRESSION_KEYS = _REGRESSION
LABEL_KEYS = tuple(key for key in _HIGHER_IS_BETTER if key.startswith(("accuracy", "precision", "recall", "f1", "mcc", "auc")))
MULTILABEL_KEYS = tuple(key for key in LABEL_KEYS if key != "mcc")


def names() -> list[str]:
    """The names that `load` knows, sorted."""
    return sorted(_CLASSES)


def load(name: str, config_name: str | None = None) -> evaluate.Metric:
    """A metric of this package, which keeps its rows in memory and shares nothing with other instances.

    `evaluate` creates an empty directory for it in its own cache.

    Args:
        name: one of `names()`.
        config_name: `"multilabel"` for labels given as rows of 0 and 1, and for translations the target's language; None for
            one label per row, for numbers, and for languages with spaces between words.

    Raises:
        ValueError: the name is not known, or the metric has no such config; the message lists the known ones.
    """
    return _load(name, config_name, cache_dir=None)


def label_metrics(multilabel: bool) -> evaluate.CombinedEvaluations:
    """All metrics that compare labels with labels, combined into one object with `add_batch` and `compute`.

    `auc` is not among them, because it compares scores with labels; `mcc` is among them for a single label only.
    """
    import evaluate

    config_name = "multilabel" if multilabel else None
    return evaluate.combine([load(name, config_name) for name in (_MULTILABEL if multilabel else _SINGLE_LABEL)])


def compute_label_metrics(
    predictions: np.ndarray, references: np.ndarray, scores: np.ndarray | None = None, multilabel: bool = False
) -> dict[str, float]:
    """All classification metrics of a whole split.

    Args:
        predictions: integers of shape `(rows,)`, the label ids; multi-label: 0 or 1, shape `(rows, num_labels)`.
        references: as `predictions`.
        scores: floats of shape `(rows, num_labels)`, one for each label id, the higher the more likely (probabilities
            or logits). For two labels also `(rows,)`, the score of id 1. Without scores there is no `auc`.
        multilabel: whether a row can have any number of labels.

    Returns:
        The value of each key that `accuracy`, `precision`, `recall`, `f1`, `mcc` (single label only) and `auc` have.
        An undefined value is left out: `auc` when the references have one label only, or when a score is not finite.

    Raises:
        ValueError: no rows, a wrong shape or dtype, or a label id out of range.

    See `nlp_transfer.evaluation.metrics.classification_metrics` for the averages.
    """
    config_name = "multilabel" if multilabel else None
    values = _compute(_MULTILABEL if multilabel else _SINGLE_LABEL, config_name, predictions=predictions, references=references)
    if scores is not None:
        values |= _compute(["auc"], config_name, prediction_scores=scores, references=references)
    return values


def compute_regression_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """All regression metrics of a whole split.

    Args:
        predictions: numbers of shape `(rows,)`.
        references: numbers of shape `(rows,)`.

    Returns:
        `r2` (1 and below), `pearson` and `spearman` (-1 to 1), and `mae`, `rmse` and `mse` (0 and above). An undefined value is
        left out: the correlation with a constant, `r2` of constant references, and everything when an input is not finite.

    Raises:
        ValueError: no rows, or a wrong shape.
    """
    return _compute(_REGRESSION, None, predictions=predictions, references=references)


def compute_translation_metrics(
    predictions: list[str], references: list[str], language: str | None = None, brief: bool = False
) -> dict[str, float]:
    """All translation metrics of a whole split.

    Args:
        predictions: detokenised, cased texts.
        references: as `predictions`, one for each.
        language: the target's code, which decides how words are split; None: by spaces and punctuation.
        brief: `bleu` and `chrf` alone, without their intervals, as they are wanted often while training.

    Returns:
        `bleu`, `chrf` (chrF++) and `ter`, from 0 to 100, each with its 95 % bootstrap interval: `bleu_low`, `bleu_high` ...

    Raises:
        ValueError: no texts, or not as many of both.
    """
    inputs: dict[str, Any] = {"predictions": predictions, "references": references}
    if brief:
        return _compute(("bleu", "chrf"), language, **inputs)
    from nlp_transfer.evaluation.metrics.translation_metrics import RESAMPLES

    return _compute(_TRANSLATION, language, **inputs, resamples=RESAMPLES)


def translation_signatures(language: str | None = None) -> dict[str, str]:
    """sacreBLEU's signatures of `bleu`, `chrf` and `ter` as `compute_translation_metrics` computes them."""
    from nlp_transfer.evaluation.metrics.translation_metrics import RESAMPLES, signatures

    return signatures(language, RESAMPLES)


def translation_statistics(
    key: str, predictions: list[str], references: list[str], language: str | None = None
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
    """What `bleu`, `chrf` or `ter` sums over rows, float64 of shape (rows, sums), and the metric of such sums, (draws, sums) to
    (draws,). None for another key."""
    if key not in _TRANSLATION:
        return None
    from nlp_transfer.evaluation.metrics.translation_metrics import statistics

    return statistics(key, predictions, references, language)


def load_hub_metric(name: str, *, allow_foreign_code: bool) -> evaluate.EvaluationModule:
    """A metric from the Hugging Face Hub. Needs the network, and runs Python code that is not part of this package.

    Args:
        name: what `evaluate.load` takes, such as `"rouge"` or `"user/metric"`.
        allow_foreign_code: whether that code may be downloaded and run.

    Raises:
        UserError: `allow_foreign_code` is False, or there is no such metric, or it cannot be downloaded, or `evaluate` would run
            a file of that name in the current folder in its place.
    """
    if not allow_foreign_code:
        raise UserError(
            f"training.hub_metrics: metric {name!r} was asked for from the Hugging Face Hub; a hub metric is Python code written "
            "by others, which is downloaded and run on this machine. Read that code first; if you trust it, allow it with "
            "allow_foreign_code=True (on the command line: --allow-hub-metrics). Metrics that need no such permission: "
            f"{', '.join(names())}"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or os.path.lexists(name):
        raise UserError(
            f"training.hub_metrics: found {name!r}, which is a path; code there would run in place of a metric from the hub. "
            "Allowed: NAME or ORG/NAME, where the current folder has nothing of that name. A metric of your own can be passed in "
            "Python: fine_tune(..., metrics=[f])"
        )
    import evaluate

    from nlp_transfer.hub.client import guarded

    try:
        with guarded(f"training.hub_metrics: {name}"):
            return evaluate.load(name)
    except Exception as error:  # the hub, the network and the metric's own code each have their own
        raise UserError(f"training.hub_metrics: cannot load {name!r} from the hub: {error}") from error


def higher_is_better(key: str) -> bool:
    """Whether a higher value of `key` means a better model. Knows the keys of all metrics, and `loss`.

    Raises:
        ValueError: the key is not known; the message lists the known ones.
    """
    if key not in _HIGHER_IS_BETTER:
        raise ValueError(_unknown("metric key", key, _HIGHER_IS_BETTER))
    return _HIGHER_IS_BETTER[key]


def _load(name: str, config_name: str | None, cache_dir: str | None) -> evaluate.Metric:
    if name not in _CLASSES:
        raise ValueError(_unknown("metric", name, names()))
    module, class_name = _CLASSES[name]
    metric_class = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    return metric_class(
        config_name=config_name,
        keep_in_memory=True,
        cache_dir=cache_dir,
        experiment_id=f"{name}-{uuid.uuid4().hex}",
    )


def _compute(metric_names: Iterable[str], config_name: str | None, **inputs: Any) -> dict[str, float]:
    """The defined values of several metrics.

    `Metric._compute` is called in place of `Metric.compute`, which copies the inputs into an Arrow table value by value
    in Python. That table serves rows that arrive in batches or from several processes; here the arrays are complete.
    """
    values: dict[str, float] = {}
    # A metric creates its cache directory even when it keeps everything in memory.
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in metric_names:
            values |= _load(name, config_name, cache_dir)._compute(**inputs)
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _unknown(what: str, word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"there is no {what} {word!r}{hint}; known: {', '.join(known)}"
