"""Plots of a run as PNG files, which its model card shows. Importing this module loads matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure

from nlp_transfer.evaluation.error_analysis import class_scores, reliability_and_brier
from nlp_transfer.report.error_sections import HEAT_MAP_LABELS
from nlp_transfer.report.plots import plot_style
from nlp_transfer.report.run_plots import class_bars, confusion_heat_map, curves, reliability_diagram, scatter, to_png
from nlp_transfer.report.run_records import RunRecords
from nlp_transfer.utils.atomic_files import write_bytes

BARS = 20  # classes in a bar chart


def write_card_plots(folder: Path, run: RunRecords) -> list[tuple[str, str]]:
    """Write the plots of the model card as `plot_NAME.png` to the model's folder, and return descriptions and file names."""
    plots = []
    with plot_style():
        for name, (description, figure) in _figures(run).items():
            file = f"plot_{name}.png"
            write_bytes(folder / file, to_png(figure))
            plots.append((description, file))
    return plots


def _figures(run: RunRecords) -> dict[str, tuple[str, Figure]]:
    """Return figures with their descriptions by name, at most three."""
    figures: dict[str, tuple[str, Figure]] = {}
    metric = run.scorer.compare_by((run.settings.get("training") or {}).get("best_metric"))
    lines = [(line["step"], (line.get("validation") or {}).get(metric)) for line in run.log]
    points = [(step, value) for step, value in lines if value is not None]
    if len(points) > 1:
        steps, values = zip(*points, strict=True)
        figures["learning_curve"] = (
            f"validation {metric} by step",
            curves({metric: (steps, values)}, f"validation {metric}", markers=True),
        )
    if (predictions := run.predictions) is None:
        return figures
    scored = predictions.scored
    matrix = run.scorer.confusions(scored.predictions, scored.references)
    if matrix is not None and matrix.trace() > 0 and len(matrix) <= HEAT_MAP_LABELS:
        figures["confusions"] = f"confusion matrix on {predictions.split}", confusion_heat_map(matrix, run.scorer.labels)
    elif scores := class_scores(run.scorer, scored)[:BARS]:
        title = f"F1 on {predictions.split}, worst classes"
        figures["classes"] = title, class_bars([score.name for score in scores], [score.f1 for score in scores], title)
    if run.scorer.form == "numbers":
        true = scored.references[run.scorer.reference]
        figures["values"] = f"predicted and true values on {predictions.split}", scatter(true, scored.predictions["prediction"])
    if (found := reliability_and_brier(run.scorer, scored)) is not None:
        figures["reliability"] = f"reliability diagram on {predictions.split}", reliability_diagram(found[0])
    return figures
