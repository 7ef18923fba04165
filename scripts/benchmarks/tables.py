"""Aggregates measurements and formats them as Markdown tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
BRACKETS = """A cell with brackets is the median with the minimum and the maximum of the turns or, where the table says so, the
mean with its 95 % interval. Ratios compare turns of the same round, so that a slow phase of the machine affects both."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum, maximum and number of measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Return mean and ends of the t interval; the ends of a single value are None."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "n": 1}  # type: ignore[dict-item]
    from scipy.stats import t

    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the spread of ours / theirs, round by round, so that a slow phase of the machine affects both.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def number(value: Any, digits: int = 3) -> str:
    """Format a value with `digits` significant digits; large numbers as integers with separators; None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).replace("|", "\\|")
    text = f"{value:.{digits}g}"
    if isinstance(value, int) or (abs(value) >= 1 and abs(float(text)) >= 10**digits):
        return f"{value:,.0f}"
    return f"{value:.1e}" if "e" in text else text


def cell(value: Any, digits: int = 3) -> str:
    """Format a number, a spread or an interval."""
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
    """Return a Markdown table; its columns are the keys of the rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---" for _ in columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(column), digits) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def megabytes(answers: Sequence[Mapping[str, Any]]) -> int:
    """Return the peak memory of a worker over all turns, in MB."""
    return round(max(answer["peak_memory_bytes"] for answer in answers) / 1e6)


def markdown(results: Mapping[str, Any]) -> str:
    """Return the content of `results.md`: the machine, then each benchmark with its tables and notes."""
    machine = results["machine"]
    lines = ["# Benchmarks", "", *[f"- {name}: {value}" for name, value in machine.items()], ""]
    if results.get("quick"):
        lines += ["**A trial (`--quick`): these numbers only show that everything works.**", ""]
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
