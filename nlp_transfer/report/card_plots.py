"""Plots of a run as PNG files, which its model card shows. Importing this module loads matplotlib."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nlp_transfer.evaluation.error_analysis import class_scores, reliability_and_brier
from nlp_transfer.report.error_sections import HEAT_MAP_LABELS
from nlp_transfer.report.label_fonts import drawable, find_fonts
from nlp_transfer.report.plots import plot_style
from nlp_transfer.report.run_plots import class_bars, confusion_heat_map, curves, reliability_diagram, scatter, to_png
from nlp_transfer.report.run_records import RunRecords
from nlp_transfer.utils.atomic_files import write_bytes

BARS = 20  # classes in a bar chart


def write_card_plots(folder: Path, run: RunRecords) -> list[tuple[str, str, str]]:
    """Write the plots of the model card as `plot_NAME.png` to the model's folder.

    Returns:
        For each plot its description, its file name, and the meaning of numbers that replace labels, if there are any.
    """
    plots = []
    families, missing = find_fonts(run.scorer.labels)
    with plot_style(), matplotlib.rc_context({"font.family": families}):
        for name, (description, figure, legend) in _figures(run, missing).items():
            file = f"plot_{name}.png"
            write_bytes(folder / file, to_png(figure))
            plots.append((description, file, legend))
    return plots


def _figures(run: RunRecords, missing: set[str]) -> dict[str, tuple[str, Figure, str]]:
    """Return figures with their descriptions and legends by name, at most three.

    Args:
        missing: Characters that cannot be drawn.
    """
    figures: dict[str, tuple[str, Figure, str]] = {}
    metric = run.scorer.compare_by((run.settings.get("training") or {}).get("best_metric"))
    lines = [(line["step"], (line.get("validation") or {}).get(metric)) for line in run.log]
    points = [(step, value) for step, value in lines if value is not None]
    if len(points) > 1:
        steps, values = zip(*points, strict=True)
        figures["learning_curve"] = (
            f"validation {metric} by step{f', on drafts ({run.draft})' if run.draft else ''}",
            curves({metric: (steps, values)}, f"validation {metric}", markers=True),
            "",
        )
    if (predictions := run.predictions) is None:
        return figures
    scored = predictions.scored
    matrix = run.scorer.confusions(scored.predictions, scored.references)
    if matrix is not None and matrix.trace() > 0 and len(matrix) <= HEAT_MAP_LABELS:
        names, legend = drawable(run.scorer.labels, missing)
        figures["confusions"] = f"confusion matrix on {predictions.split}", confusion_heat_map(matrix, names), legend
    elif scores := class_scores(run.scorer, scored)[:BARS]:
        title = f"F1 on {predictions.split}, worst classes"
        names, legend = drawable([score.name for score in scores], missing)
        figures["classes"] = title, class_bars(names, [score.f1 for score in scores], title), legend
    if run.scorer.form == "numbers":
        true = scored.references[run.scorer.reference]
        plot = scatter(true, scored.predictions["prediction"])
        figures["values"] = f"predicted and true values on {predictions.split}", plot, ""
    if (found := reliability_and_brier(run.scorer, scored)) is not None:
        figures["reliability"] = f"reliability diagram on {predictions.split}", reliability_diagram(found[0]), ""
    return figures
