"""The comparison as one self-contained HTML file. Importing this module loads matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from nlp_transfer.experiments.advice import show, show_seconds
from nlp_transfer.experiments.results_table import table
from nlp_transfer.experiments.summary_rows import Summary, SummaryRow, largest
from nlp_transfer.report.plots import Point, cost_plot, interval_plot, learning_curves, plot_style, to_svg
from nlp_transfer.report.rendering import render_html
from nlp_transfer.utils.atomic_files import write_bytes


def write_page(
    path: Path, summary: Summary, lines: Sequence[str], heading: str = "Strategies compared",
    further: Sequence[tuple[str, Markup]] = (),
) -> None:  # fmt: skip
    """Write the advice, the table, its notes and the plots to a self-contained HTML file.

    Args:
        lines: notes below the table.
        heading: beginning of the heading of the page.
        further: headings and plots to add.
    """
    with_shots = len({row.shots for row in summary.rows}) > 1
    title = f"{summary.metric} on {summary.split}"
    sign = -1 if summary.higher else 1
    ranked = sorted((row for row in summary.rows if row.mean is not None), key=lambda row: sign * (row.mean or 0.0))
    best = {row.shots: row for row in reversed(ranked)}
    head, cells = table(summary, with_shots)
    rows = [
        {"kind": "none" if row.mean is None else "best" if best[row.shots] is row else "", "note": row.note, "cells": texts}
        for row, texts in zip(summary.rows, cells, strict=True)
    ]
    page = render_html(
        "comparison.html", title=title, heading=heading, advice=summary.advice, head=head, rows=rows, notes=lines,
        plots=[*_plots(summary, ranked, title, with_shots), *further],
    )  # fmt: skip
    write_bytes(path, page.encode(errors="replace"))  # command-line arguments may contain bytes that are not UTF-8


def _plots(summary: Summary, ranked: Sequence[SummaryRow], title: str, with_shots: bool) -> list[tuple[str, Markup]]:
    """Return the plots and their headings: intervals and costs at the largest number of shots, and learning curves."""
    labels = list(dict.fromkeys(row.label for row in summary.rows))

    def point(row: SummaryRow, x: float | None) -> Point:
        mean = row.mean or 0.0
        low, high = mean if row.low is None else row.low, mean if row.high is None else row.high
        return Point(row.label, mean, low, high, x, labels.index(row.label))

    most_shots = largest([row.shots for row in summary.rows])
    shots = f", {'all examples' if most_shots is None else f'{most_shots} examples per label'}" if with_shots else ""
    points = [point(row, row.seconds) for row in ranked if row.shots == most_shots]
    curves = [[point(row, row.shots) for row in summary.rows if row.label == label and row in ranked] for label in labels]
    plots = []
    with plot_style():
        if points:
            axis = f"{title} ({'higher' if summary.higher else 'lower'} is better; dashed: the first strategy)"
            figure = interval_plot(points, labels[0], axis, show)
            plots.append((f"{title}{shots}: means with 95 % intervals, best first", to_svg(figure, axis)))
            figure = cost_plot(points, title, show, show_seconds)
            plots.append((f"{title} and training time{shots}", to_svg(figure, f"{title} against training time")))
        if with_shots and ranked:
            figure = learning_curves([curve for curve in curves if curve], title, show)
            plots.append(("Learning curves", to_svg(figure, f"{title} against examples per label")))
    return plots
