"""Metrics and examples of translations."""

from collections.abc import Callable

import numpy as np

from nlp_transfer.evaluation.metrics import TRANSLATION_KEYS, compute_translation_metrics, translation_statistics
from nlp_transfer.tasks import Arrays

EXAMPLES = 3


def score_translations(predictions: Arrays, targets: Arrays, language: str | None) -> dict[str, float]:
    """Return `token_accuracy` on texts truncated to `max_length`, and `compute_translation_metrics` on the translated rows."""
    metrics = {"token_accuracy": float(predictions["right"].sum() / predictions["of"].sum())}
    translated = np.array([text is not None for text in predictions["prediction"]])
    if translated.any():
        texts, references = (column[translated].tolist() for column in (predictions["prediction"], targets["references"]))
        metrics |= compute_translation_metrics(texts, references, language, brief=not translated.all())
    return metrics


def metric_sums(
    metric: str, predictions: Arrays, targets: Arrays, language: str | None
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
    """Implement `Task.sums` with the statistics that sacreBLEU computes for each row."""
    if metric == "token_accuracy":
        counts = np.stack([predictions["right"], predictions["of"]], 1).astype(float)
        return counts, lambda sums: np.asarray(sums[:, 0] / sums[:, 1])
    if metric not in TRANSLATION_KEYS:
        return None
    return translation_statistics(metric, predictions["prediction"].tolist(), targets["references"].tolist(), language)


def show_translations(predictions: Arrays, targets: Arrays) -> list[str]:
    """Return a few sources, spread over the split, with their translations and references."""
    lines = []
    columns = {"source": targets["sources"], "translation": predictions["prediction"], "reference": targets["references"]}
    for row in np.linspace(0, len(targets["references"]) - 1, EXAMPLES).astype(np.int64):
        lines += [f"{name + ':':<12} {texts[row]}" for name, texts in columns.items()]
        lines[-1] += "\n"
    return lines
