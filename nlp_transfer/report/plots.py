"""Plots as SVG text: no script, no library, nothing from a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 960
LETTER = 7.0  # pixels a character of the labels takes, at most
LONGEST = 40  # characters of a label in a plot; the whole one is shown where the pointer rests
INK, FAINT, GRID, ACCENT = "#222", "#6b6b6b", "#e4e4e4", "#0072b2"
# Okabe and Ito's colours, without black and yellow; with the dashes they tell 21 lines apart, also for the colour-blind.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a4a9c")
DASHES = ("", "7 4", "2 3")


@dataclass(frozen=True)
class Mark:
    """A figure with its interval at some place: seconds, or rows of each label (None: all rows)."""

    label: str
    value: float
    low: float
    high: float
    x: float | None = None
    number: int = 0
    """Decides the colour, so that a strategy has the same one in every plot."""


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{more}/>'


def dot(x: float, y: float, colour: str, said: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}" stroke="#fff"><title>{escape(said)}</title></circle>'


def svg(height: float, parts: Sequence[str], what: str) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(what)}" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12">\n{inside}\n</svg>'
    )


def name(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def room_for(labels: Sequence[str]) -> float:
    """Pixels of the widest label."""
    return max((len(name(label)) for label in labels), default=0) * LETTER + 12


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about evenly many."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Seconds that are round as seconds, minutes or hours, from `low` to `high`; every second or third where there are many."""
    parts = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
    found = [
        tick
        for tick in [*parts, *_times(60, (0.5, 1, 2, 5, 10, 30)), *_times(3600, (1, 2, 5, 10, 24, 48, 120))]
        if low <= tick <= high
    ]
    return found[:: -(-len(found) // most) or 1]


def _times(unit: float, factors: Sequence[float]) -> list[float]:
    return [unit * factor for factor in factors]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """A range around the values with some air."""
    low, high = min(values), max(values)
    air = (high - low) * share or max(abs(high) * 0.05, 1e-3)
    return low - air, high + air


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, near the wanted ones and between `low` and `high` (where all fit), in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    places = [0.0] * len(wanted)
    floor = low
    for i in order:
        places[i] = floor = max(wanted[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        places[i] = ceiling = min(places[i], ceiling)
        ceiling -= gap
    return places


def dots_and_intervals(marks: Sequence[Mark], first: str, title: str, show: Callable[[float], str]) -> str:
    """A row for each mark, in the given order; the value of `first` is drawn through as a line to compare with."""
    left, right, top, row = room_for([mark.label for mark in marks]), WIDTH - 70.0, 12.0, 27.0
    bottom = top + row * len(marks)
    low, high = padded([end for mark in marks for end in (mark.low, mark.high, mark.value)])
    place = _linear(low, high, left + 10, right)
    parts = [line(place(tick), top, place(tick), bottom, GRID) for tick in ticks(low, high)]
    parts += [text(place(tick), bottom + 18, f"{tick:g}", "middle", FAINT) for tick in ticks(low, high)]
    parts.append(text((left + right) / 2, bottom + 38, title, "middle", FAINT))
    for mark in marks:
        if mark.label == first:
            parts.append(line(place(mark.value), top, place(mark.value), bottom, FAINT, 1, ' stroke-dasharray="3 3"'))
    for i, mark in enumerate(marks):
        y = top + row * (i + 0.5)
        colour = ACCENT if i == 0 else "#444"
        said = f"{mark.label}: {show(mark.value)} ({show(mark.low)} to {show(mark.high)})"
        parts.append(text(left, y + 4, name(mark.label), "end", more=' font-weight="600"' if i == 0 else ""))
        parts.append(line(place(mark.low), y, place(mark.high), y, colour, 2))
        parts += [line(place(end), y - 4, place(end), y + 4, colour, 2) for end in (mark.low, mark.high)]
        parts += [dot(place(mark.value), y, colour, said), text(WIDTH - 60, y + 4, show(mark.value), colour=colour)]
    return svg(bottom + 46, parts, title)


def against_seconds(marks: Sequence[Mark], title: str, show: Callable[[float], str], seconds: Callable[[float], str]) -> str:
    """A dot for each mark at its seconds (log axis); the labels stand in a column, where none can cover another."""
    left, top, bottom = 70.0, 14.0, max(330.0, 40 + 19.0 * len(marks))
    column = WIDTH - room_for([mark.label for mark in marks])
    right = column - 46
    low, high = padded([mark.value for mark in marks], 0.1)
    times = [max(mark.x or 0.0, 1e-3) for mark in marks]
    start, end = min(times) / 1.25, max(times) * 1.25
    up, along = _linear(low, high, bottom, top), _log(start, end, left, right)
    parts = _y_axis(low, high, up, left, right, title)
    for tick in time_ticks(start, end):
        parts += [
            line(along(tick), top, along(tick), bottom, GRID),
            text(along(tick), bottom + 18, seconds(tick), "middle", FAINT),
        ]
    parts.append(text((left + right) / 2, bottom + 38, "training time (log scale)", "middle", FAINT))
    places = spread([up(mark.value) for mark in marks], 18, top + 4, bottom - 4)
    dots = []
    for i, (mark, y) in enumerate(zip(marks, places, strict=True)):
        x, colour = along(times[i]), COLOURS[mark.number % len(COLOURS)]
        parts.append(_leader(x, up(mark.value), right + 8, y, column - 6))
        dots.append(dot(x, up(mark.value), colour, f"{mark.label}: {show(mark.value)}, {seconds(times[i])}"))
        dots.append(text(column, y + 4, name(mark.label), colour=colour, more=' font-weight="600"'))
    return svg(bottom + 46, [*parts, *dots], f"{title} against training time")


def learning_curves(curves: Sequence[Sequence[Mark]], title: str, show: Callable[[float], str]) -> str:
    """A line for each strategy over rows of each label (log axis; all rows stand one step to the right), with its interval."""
    left, top, bottom = 70.0, 14.0, max(380.0, 40 + 19.0 * len(curves))
    marks = [mark for curve in curves for mark in curve]
    column = WIDTH - room_for([mark.label for mark in marks])
    right = column - 46
    low, high = padded([end for mark in marks for end in (mark.low, mark.high, mark.value)], 0.03)
    counts = sorted({mark.x for mark in marks if mark.x is not None})
    beyond = counts[-1] * max(2.0, counts[-1] / counts[-2] if len(counts) > 1 else 2.0) if counts else 1.0
    known = [*counts, beyond] if any(mark.x is None for mark in marks) else counts
    up, along = _linear(low, high, bottom, top), _log(known[0] / 1.15, known[-1] * 1.15, left, right)
    parts = _y_axis(low, high, up, left, right, title)
    for tick in known:
        word = "all" if tick == beyond and tick not in counts else f"{tick:g}"
        parts += [line(along(tick), top, along(tick), bottom, GRID), text(along(tick), bottom + 18, word, "middle", FAINT)]
    words = (
        "rows of each label (log scale; all rows are one step further)"
        if len(known) > len(counts)
        else "rows of each label (log scale)"
    )
    parts.append(text((left + right) / 2, bottom + 38, words, "middle", FAINT))
    ordered = [sorted(curve, key=lambda mark: math.inf if mark.x is None else mark.x) for curve in curves]
    places = spread([up(curve[-1].value) for curve in ordered], 18, top + 4, bottom - 4)
    bands, lines = [], []
    for curve, y in zip(ordered, places, strict=True):
        number = curve[0].number
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        xs = [along(beyond if mark.x is None else mark.x) for mark in curve]
        edge = [(x, up(mark.high)) for x, mark in zip(xs, curve, strict=True)]
        edge += [(x, up(mark.low)) for x, mark in reversed(list(zip(xs, curve, strict=True)))]
        bands.append(f'<polygon points="{_points(edge)}" fill="{colour}" opacity="{0.16 if len(curves) <= 4 else 0.07}"/>')
        path = [(x, up(mark.value)) for x, mark in zip(xs, curve, strict=True)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        lines.append(f'<polyline points="{_points(path)}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
        for (x, height), mark in zip(path, curve, strict=True):
            lines.append(dot(x, height, colour, f"{mark.label}: {show(mark.value)} ({show(mark.low)} to {show(mark.high)})"))
        parts.append(_leader(xs[-1] + 6, path[-1][1], right + 8, y, column - 6, colour, dash))
        lines.append(text(column, y + 4, name(curve[0].label), colour=colour, more=' font-weight="600"'))
    return svg(bottom + 46, [*parts, *bands, *lines], f"{title} against rows of each label")


def _leader(x: float, y: float, bend: float, place: float, end: float, colour: str = "#bbb", dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    points = _points([(x, y), (bend, y), (end - 10, place), (end, place)])
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1" opacity="0.6"{dashed}/>'


def _y_axis(low: float, high: float, up: Callable[[float], float], left: float, right: float, title: str) -> list[str]:
    parts = []
    for tick in ticks(low, high):
        parts += [line(left, up(tick), right, up(tick), GRID), text(left - 8, up(tick) + 4, f"{tick:g}", "end", FAINT)]
    middle = (up(low) + up(high)) / 2
    return [*parts, text(18, middle, title, "middle", FAINT, f' transform="rotate(-90 18 {middle:.1f})"')]


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _log(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    inner = _linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(value))
