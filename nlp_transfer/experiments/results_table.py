"""The table on the screen, and as CSV and JSON."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlp_transfer.experiments.advice import show, show_bytes, show_p, show_seconds
from nlp_transfer.experiments.plan import shots_text
from nlp_transfer.experiments.summary_rows import Measured, Row
from nlp_transfer.utils.atomic_files import write_bytes, write_json

COSTS = ("trained", "time", "memory", "stored")


def table(measured: Measured, with_shots: bool, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the head of the table and its rows as text.

    Every p-value that the advice may quote is in it: against the first strategy, and against the best where that is another one.

    Args:
        brief: leave out what does not fit on a narrow screen.
    """
    both = any(row.p_best != row.p for row in measured.rows)
    tests = {"p first": "p", "p best": "p_best"} if both else {"p": "p"}
    shots = ["a label"] if with_shots else []
    if brief:
        head = ["strategy", *shots, measured.metric, "interval", *tests, "time", "stored"]
    else:
        head = ["strategy", *shots, f"{measured.metric} ({measured.split})", "95 % interval", "to the first", *tests, *COSTS]
    return head, [_cells(row, with_shots, list(tests.values()), brief) for row in measured.rows]


def _cells(row: Row, with_shots: bool, tests: list[str], brief: bool) -> list[str]:
    """A row as text, with a dash for what was not measured."""
    shots = [shots_text(row.shots)] if with_shots else []
    name = row.label + (f" ({row.rate:g} x rate)" if row.rate != 1 else "")
    if row.mean is None:
        return [name, *shots, *["-"] * (2 + (not brief) + len(tests) + (2 if brief else len(COSTS)))]
    difference = "" if row.difference is None else signed(row.difference)
    if row.difference_low is not None:
        difference += f" ({interval(row.difference_low, row.difference_high, signed)})"
    p_values = ["" if (p := getattr(row, test)) is None else show_p(p) for test in tests]
    seconds, stored = show_seconds(row.seconds or 0), show_bytes(row.stored_bytes or 0)
    start = [name, *shots, show(row.mean), interval(row.low, row.high, show)]
    if brief:
        return [*start, *p_values, seconds, stored]
    return [
        *start,
        difference,
        *p_values,
        f"{row.trainable_parameters:,}",
        seconds,
        show_bytes(row.peak_memory_bytes or 0),
        stored,
    ]


def signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + show(abs(value))


def interval(low: float | None, high: float | None, text: Any) -> str:
    return "-" if low is None or high is None else f"{text(low)} to {text(high)}"


def notes(measured: Measured, seeds: Sequence[int], with_shots: bool) -> list[str]:
    """What must be known to read the table."""
    first = measured.rows[0].label
    if len(seeds) > 1:
        lines = [
            f"means over seeds {', '.join(map(str, seeds))}; 95 % intervals over rows of {measured.split} and seeds",
            f"p of a paired test against {first} (the first) or the best, over rows and seeds",
        ]
    else:
        lines = [
            f"one seed ({seeds[0]}): 95 % intervals are over rows of {measured.split} alone, and there is no p: another seed may "
            "turn the order of the strategies, and how often cannot be known from one; --seeds 0 1 2 gives p-values"
        ]
    if measured.split == "validation":
        lines.append(
            "there is no test split, so figures are of validation, which also decided which weights were kept: they are too good"
        )
    lines += [
        f"{row.label}{f', {shots_text(row.shots)} a label' if with_shots else ''}: {row.note}"
        for row in measured.rows
        if row.note
    ]
    return list(dict.fromkeys(lines))


def write_tables(folder: Path, measured: Measured, seeds: Sequence[int]) -> None:
    """`comparison.csv`, a line a row, and `comparison.json`, which holds all there is."""
    documents = [asdict(row) for row in measured.rows]
    metrics = list(
        dict.fromkeys(f"{split}.{name}" for row in measured.rows for split, figures in row.metrics.items() for name in figures)
    )
    plain = [name for name in documents[0] if name != "metrics"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*("strategy" if name == "label" else name for name in plain), "metric", "split", *metrics])
    for row, document in zip(measured.rows, documents, strict=True):
        values = [shots_text(row.shots), " ".join(map(str, row.seeds))]
        own = [values[0] if name == "shots" else values[1] if name == "seeds" else document[name] for name in plain]
        figures = [row.metrics.get(split, {}).get(name) for split, _, name in (metric.partition(".") for metric in metrics)]
        writer.writerow([*own, measured.metric, measured.split, *figures])
    write_bytes(folder / "comparison.csv", text.getvalue().encode())
    write_json(
        folder / "comparison.json",
        {
            "metric": measured.metric, "split": measured.split, "higher_is_better": measured.higher, "seeds": list(seeds),
            "rows": documents, "advice": measured.advice,
        },
    )  # fmt: skip
