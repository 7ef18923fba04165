"""Figures out of turns, and tables out of figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
BRACKETS = """Where a cell has brackets, it is the median with the smallest and the largest of the turns, or, where the table says
so, the mean with its 95 % interval. Ratios are those of the turns of one round, so that a slow minute counts for both sides."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some measurements, and how many there are."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Mean with the ends of its t interval; of a single value the interval is not known (None)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "n": 1}  # type: ignore[dict-item]
    from scipy.stats import t

    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of ours / theirs, round by round: what slows the machine down for a while slows both.

    Raises:
        ValueError: the two do not come from the same rounds.
    """
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def number(value: Any, digits: int = 3) -> str:
    """A figure as a table shows it: `digits` significant ones; large numbers whole, with separators; None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).replace("|", "\\|")
    text = f"{value:.{digits}g}"
    if isinstance(value, int) or (abs(value) >= 1 and abs(float(text)) >= 10**digits):
        return f"{value:,.0f}"
    return f"{value:.1e}" if "e" in text else text


def cell(value: Any, digits: int = 3) -> str:
    """A figure, or a spread or interval with its ends."""
    if isinstance(value, Mapping) and "median" in value:
        if value["n"] == 1:
            return number(value["median"], digits)
        return f"{number(value['median'], digits)} ({number(value['min'], digits)} to {number(value['max'], digits)})"
    if isinstance(value, Mapping) and "mean" in value:
        if value["low"] is None:
            return number(value["mean"], digits)
        return f"{number(value['mean'], digits)} ({number(value['low'], digits)} to {number(value['high'], digits)})"
    return number(value, digits)


def table(rows: Sequence[Row], digits: int = 3) -> str:
    """A Markdown table; its columns are the keys of the rows in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---" for _ in columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(column), digits) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def megabytes(answers: Sequence[Mapping[str, Any]]) -> int:
    """The most memory that a worker has held, in MB."""
    return round(max(answer["peak_memory_bytes"] for answer in answers) / 1e6)


def markdown(results: Mapping[str, Any]) -> str:
    """`results.md`: the machine, then each benchmark with its tables and what they mean."""
    machine = results["machine"]
    lines = ["# Benchmarks", "", *[f"- {name}: {value}" for name, value in machine.items()], ""]
    if results.get("quick"):
        lines += ["**A trial run (`--quick`): these figures show that everything works, and nothing else.**", ""]
    lines += [BRACKETS, ""]
    for name, section in results["benchmarks"].items():
        lines += [f"## {name}", ""]
        if "error" in section:
            lines += ["Failed:", "", "```", section["error"], "```", ""]
            continue
        lines += [section["about"], ""]
        for part in section["tables"]:
            lines += [f"**{part['title']}**", "", table(part["rows"], part.get("digits", 3)), ""]
        sitting = ", ".join(f"{key} {value}" for key, value in section.get("sitting", {}).items())
        lines += [f"({sitting})", ""] if sitting else []
        lines += [f"- {note}" for note in section.get("notes", [])] + [""] * bool(section.get("notes"))
    return "\n".join(lines)
