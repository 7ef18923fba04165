"""Plots of a run, drawn with matplotlib. Importing this module loads matplotlib."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nlp_transfer.evaluation.metrics.calibration_metrics import BINS, Reliability
from nlp_transfer.report.plots import COLORS, DASHES, EDGE, MUTED
from nlp_transfer.report.rendering import one_line

WIDTH, HEIGHT = 5.2, 3.2  # inches: small, so that the text is readable on a phone
LONGEST_LABEL, LONGEST_BAR_LABEL = 24, 48  # characters
MAX_POINTS = 2_000  # of a scatter plot
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""The x and y values of each curve by name."""


def curves(series: Series, y_title: str, x_title: str = "step", markers: bool = False) -> Figure:
    """Draw curves, with a legend if there is more than one."""
    figure, axes = _figure()
    for i, (name, (xs, ys)) in enumerate(series.items()):
        marker = "o" if markers or len(xs) == 1 else ""
        dashes = DASHES[i // len(COLORS) % len(DASHES)]
        axes.plot(xs, ys, color=COLORS[i % len(COLORS)], linestyle=dashes, marker=marker, markersize=4, label=_short(name))
    if len(series) > 1:
        axes.legend(frameon=False, loc="best")
    _titles(axes, x_title, y_title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure


def reliability_diagram(bins: Reliability) -> Figure:
    """Draw the share of true predictions against their probability, and how many predictions each bin has."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (3, 3)), linewidth=0.8)
    width = 1 / BINS
    gaps = zip(bins.low, bins.confidence, bins.accuracy, bins.size, strict=True)
    for edge, confidence, accuracy, count in gaps:
        gid = f"tooltip:{count} predictions: mean probability {confidence:.3f}, share of true ones {accuracy:.3f}"
        axes.bar(edge, accuracy, width * 0.92, align="edge", color=COLORS[0], alpha=0.75, gid=gid)
        axes.plot([edge, edge + width * 0.92], [confidence, confidence], color=COLORS[1])
        below.bar(edge, count, width * 0.92, align="edge", color=MUTED, alpha=0.6)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, 1)
    _titles(axes, "", "share that is true")
    _titles(below, "predicted probability (orange: mean of the bin)", "predictions")
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    return figure


def confusion_heat_map(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draw a confusion matrix: a row for each true label, colored by the share of its rows.

    Args:
        matrix: Numbers of rows, int64 of shape (labels, labels).
    """
    size = len(labels)
    side = 2.2 + 0.42 * size
    figure = Figure(figsize=(side + 0.4, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for row in range(size):
        for column in range(size):
            if not matrix[row, column]:
                continue
            count, share = int(matrix[row, column]), float(shares[row, column])
            gid = f"tooltip:{one_line(f'{labels[row]} predicted as {labels[column]}: {count} rows ({share:.1%})')}"
            color = COLORS[0] if row == column else COLORS[1]
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, alpha=0.08 + 0.62 * share, linewidth=0, gid=gid)
            )
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    names = [_short(label) for label in labels]
    axes.set_xticks(range(size), names, rotation=90 if size > 6 or max(map(len, names)) > 8 else 0)
    axes.set_yticks(range(size), names)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.grid(visible=False)
    _titles(axes, "predicted", "true")
    return figure


def class_bars(names: Sequence[str], values: Sequence[float], title: str) -> Figure:
    """Draw a horizontal bar for each class."""
    figure = Figure(figsize=(1.4 * WIDTH, 0.7 + 0.22 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(names)), values, color=COLORS[0], alpha=0.8)
    axes.set_yticks(range(len(names)), [_short(name, LONGEST_BAR_LABEL) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(title)
    return figure


def scatter(true: np.ndarray, predicted: np.ndarray) -> Figure:
    """Draw predicted numbers against true ones, at most `MAX_POINTS` of them."""
    figure, axes = _figure(4.2)
    rows = np.linspace(0, len(true) - 1, min(len(true), MAX_POINTS)).astype(np.int64)
    axes.plot(true[rows], predicted[rows], "o", color=COLORS[0], alpha=0.35, markersize=4, markeredgecolor=EDGE)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=MUTED, linestyle=(0, (3, 3)), linewidth=0.8)
    _titles(axes, "true value", "predicted value")
    return figure


def histogram(values: np.ndarray, x_title: str, y_title: str = "rows") -> Figure:
    """Draw how often values occur."""
    figure, axes = _figure()
    axes.hist(values, bins=min(30, max(5, len(np.unique(values)))), color=COLORS[0], alpha=0.8)
    axes.grid(visible=False, axis="x")
    _titles(axes, x_title, y_title)
    return figure


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file with a white background."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _titles(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(one_line(x))
    axes.set_ylabel(one_line(y))


def _short(label: str, longest: int = LONGEST_LABEL) -> str:
    text = one_line(label)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
