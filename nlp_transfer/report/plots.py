"""Plots of a comparison as inline SVG, drawn with matplotlib.

Importing this module loads matplotlib, so it is imported only where a page is written.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from nlp_transfer.report.rendering import one_line

Format = Callable[[float], str]

WIDTH = 9.6  # inches; the page scales plots to its width
LABEL_HEIGHT = 13.0  # points from one label of a column to the next
LONGEST_LABEL = 40  # characters; the tooltip has the full label
INK, MUTED, GRID, EDGE = "#1f2328", "#6b6b6a", "#e4e4e5", "#fffffe"
# The colors of Okabe and Ito without black and yellow, plus purple. With the dash patterns, color-blind readers too can tell 21
# lines apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a4a9c")
DASHES = ("-", (0, (6, 3)), (0, (2, 2)))
# The page defines these CSS variables for light and dark mode.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", EDGE: "page"} | {color: f"series-{i}" for i, color in enumerate(COLORS)}
TICK_SECONDS = [
    *(digit * 10**power for power in (-3, -2, -1, 0) for digit in (1, 2, 5)), 10, 20,
    *(60 * minutes for minutes in (0.5, 1, 2, 5, 10, 30)),
    *(3600 * hours for hours in (1, 2, 5, 10, 24, 48, 120, 240, 480)),
]  # fmt: skip
STYLE: dict[Any, object] = {
    "svg.fonttype": "none", "text.parse_math": False,
    "font.family": "DejaVu Sans", "font.size": 9, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "xtick.color": GRID, "xtick.labelcolor": MUTED,
    "ytick.color": GRID, "ytick.labelcolor": MUTED,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """The mean of a metric with its 95 % interval from `low` to `high`."""

    label: str
    value: float
    low: float
    high: float
    x: float | None = None
    """Training time in seconds, or examples per label (None: all examples)."""
    series: int = 0
    """Index of the strategy, which determines its color in all plots."""

    @property
    def short_label(self) -> str:
        """The label on one line, truncated to `LONGEST_LABEL` characters."""
        text = one_line(self.label)
        return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"

    @property
    def color(self) -> str:
        """The color of the strategy."""
        return COLORS[self.series % len(COLORS)]

    def tooltip(self, text: str) -> str:
        """Return an artist id that `to_svg` turns into a tooltip."""
        return f"tooltip:{one_line(f'{self.label}: {text}')}"


@contextmanager
def plot_style() -> Iterator[None]:
    """Set the style of the plots within the context, and ignore the user's matplotlib settings."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # browsers have other fonts
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def to_svg(figure: Figure, description: str) -> Markup:
    """Return a figure as an `<svg>` element with tooltips and CSS colors. Equal figures give equal text.

    Args:
        description: what the plot shows, for screen readers.
    """
    file, description = io.StringIO(), one_line(description)
    # The salt makes ids reproducible, and different in each plot of a page.
    with matplotlib.rc_context({"svg.hashsalt": description}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Format", "Type", "Creator")))
    svg = file.getvalue().partition("<svg ")[2]
    svg = re.sub(r"""<g id=(["'])tooltip:(.*?)\1>""", r"<g><title>\2</title>", svg)
    svg = re.sub(r'<g id="[\w.]+_\d+">', "<g>", svg)  # equal in all plots, and not referenced
    svg = re.sub(r"\b(fill|stroke): (#\w{6})", lambda match: f"{match[1]}: var(--{VARIABLES.get(match[2], 'ink')})", svg)
    return Markup(f'<svg role="img" aria-label="{escape(description)}" {svg}')


def interval_plot(points: Sequence[Point], reference: str, title: str, show: Format) -> Figure:
    """Draw a row for each point with its interval, in the given order.

    Args:
        points: the first one is highlighted.
        reference: label of the point that is marked by a dashed line.
        title: title of the axis.
        show: formats a metric.
    """
    figure, axes = _figure(0.75 + 0.28 * len(points))
    for row, point in enumerate(points):
        color, weight = (COLORS[0], "bold") if row == 0 else (INK, "normal")
        errors = [[point.value - point.low], [point.high - point.value]]
        bar = axes.errorbar(point.value, row, xerr=errors, fmt="o", color=color, capsize=3, markersize=5)
        bar[0].set_gid(point.tooltip(f"{show(point.value)} ({show(point.low)} to {show(point.high)})"))
        at_left = axes.get_yaxis_transform()
        axes.text(-0.02, row, point.short_label, ha="right", va="center", weight=weight, transform=at_left, parse_math=False)
        axes.text(1.02, row, show(point.value), va="center", color=color, transform=at_left, parse_math=False)
        if point.label == reference:
            axes.axvline(point.value, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlim(*_padded([end for point in points for end in (point.low, point.high, point.value)]))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(one_line(title), parse_math=False)
    return figure


def bar_plot(values: Mapping[str, float], title: str) -> Figure:
    """Draw a horizontal bar for each value, in the given order.

    Args:
        values: numbers from 0 by label.
        title: title of the axis.
    """
    figure, axes = _figure(0.75 + 0.28 * len(values))
    axes.barh(range(len(values)), list(values.values()), color=COLORS[0], height=0.6)
    axes.set_yticks(range(len(values)), [one_line(name) for name in values], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(one_line(title), parse_math=False)
    return figure


def cost_plot(points: Sequence[Point], title: str, show: Format, show_seconds: Format) -> Figure:
    """Draw the metric against the training time (log scale)."""
    figure, axes = _figure(height := max(3.6, 0.8 + 0.2 * len(points)))
    seconds = [max(point.x or 0.0, 1e-3) for point in points]
    limits = min(seconds) / 1.8, max(seconds) * 1.8  # wide enough for at least one tick
    _log_axis(axes, limits, [tick for tick in TICK_SECONDS if limits[0] <= tick <= limits[1]], show_seconds)
    axes.set_xlabel("training time (log scale)")
    _value_axis(axes, [point.value for point in points], title)
    for point, x in zip(points, seconds, strict=True):
        gid = point.tooltip(f"{show(point.value)}, {show_seconds(x)}")
        axes.plot(x, point.value, "o", color=point.color, markeredgecolor=EDGE, gid=gid)
    _label_column(axes, height, points, seconds)
    return figure


def learning_curves(curves: Sequence[Sequence[Point]], title: str, show: Format) -> Figure:
    """Draw a learning curve for each strategy over the examples per label (log scale), and over all examples."""
    figure, axes = _figure(height := max(4.2, 0.8 + 0.2 * len(curves)))
    points = [point for curve in curves for point in curve]
    counts = sorted({point.x for point in points if point.x is not None})
    last = counts[-1] if counts else 1.0
    x_of_all = last * max(2.0, last / counts[-2] if len(counts) > 1 else 2.0)
    has_all = any(point.x is None for point in points)
    ticks = [*counts, x_of_all] if has_all else counts
    _log_axis(axes, (ticks[0] / 1.15, ticks[-1] * 1.15), ticks, lambda x: "all" if has_all and x == x_of_all else f"{x:g}")
    axes.set_xlabel(f"examples per label (log scale{'; all examples: one step to the right' * has_all})")
    _value_axis(axes, [end for point in points for end in (point.low, point.high, point.value)], title)
    ends: list[Point] = []
    for curve in curves:
        ordered = sorted(curve, key=lambda point: math.inf if point.x is None else point.x)
        xs = [x_of_all if point.x is None else point.x for point in ordered]
        color, dashes = curve[0].color, DASHES[curve[0].series // len(COLORS) % len(DASHES)]
        lows, highs = [point.low for point in ordered], [point.high for point in ordered]
        axes.fill_between(xs, lows, highs, color=color, alpha=0.16 if len(curves) <= 4 else 0.07, linewidth=0)
        axes.plot(xs, [point.value for point in ordered], color=color, linestyle=dashes)
        for x, point in zip(xs, ordered, strict=True):
            gid = point.tooltip(f"{show(point.value)} ({show(point.low)} to {show(point.high)})")
            axes.plot(x, point.value, "o", color=color, markeredgecolor=EDGE, gid=gid)
        ends.append(ordered[-1])
    _label_column(axes, height, ends, [x_of_all if point.x is None else point.x for point in ends])
    return figure


def spread(wanted: ArrayLike, gap: float) -> np.ndarray:
    """Move positions apart, so that labels do not overlap.

    Args:
        wanted: positions from 0 to 1, shape (labels,).
        gap: minimum distance; smaller if the positions would not fit.

    Returns:
        Positions from 0 to 1 close to the wanted ones, in the same order, shape (labels,).
    """
    order = np.argsort(wanted, kind="stable")
    steps = min(gap, 1 / max(1, len(order) - 1)) * np.arange(len(order))
    # Positions minus their steps are ascending if and only if the positions are at least one step apart.
    positions = np.maximum.accumulate(np.clip(np.asarray(wanted)[order] - steps, 0, 1 - steps[-1])) + steps
    spread_out = np.empty(len(order))
    spread_out[order] = positions
    return spread_out


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    padding = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-3)
    return low - padding, high + padding


def _log_axis(axes: Axes, limits: tuple[float, float], ticks: Sequence[float], show: Format) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_locator(FixedLocator(ticks, nbins=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show(x)))
    axes.xaxis.set_minor_locator(NullLocator())


def _value_axis(axes: Axes, values: Sequence[float], title: str) -> None:
    axes.set_ylim(*_padded(values))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylabel(one_line(title), parse_math=False)


def _label_column(axes: Axes, height: float, points: Sequence[Point], xs: Sequence[float]) -> None:
    """Draw the labels in a column to the right of the axes, without overlaps, with a line from each point to its label."""
    to_axes = axes.transData + axes.transAxes.inverted()
    starts = to_axes.transform([(x, point.value) for x, point in zip(xs, points, strict=True)])
    gap = LABEL_HEIGHT / (72 * height - 50)  # the axis below takes about 50 points
    for point, (x, y), place in zip(points, starts, spread(starts[:, 1], gap), strict=True):
        leader = [x, 1.01, 1.04, 1.05], [y, y, place, place]
        axes.plot(*leader, transform=axes.transAxes, color=point.color, linewidth=0.7, alpha=0.6, clip_on=False)
        axes.text(
            1.06, place, point.short_label, va="center", weight="bold", color=INK, transform=axes.transAxes, parse_math=False
        )
