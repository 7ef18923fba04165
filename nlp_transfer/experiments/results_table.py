"""The table of a comparison, as text for the terminal and the HTML page, and as CSV and JSON files."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nlp_transfer.experiments.advice import show, show_bytes, show_p, show_seconds
from nlp_transfer.experiments.plan import shots_text
from nlp_transfer.experiments.summary_rows import Summary, SummaryRow
from nlp_transfer.utils.atomic_files import write_bytes, write_json


def table(summary: Summary, with_shots: bool, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table as text. Missing values are dashes.

    The p-values are those of the tests against the first strategy, and against the best one if it is not the first.

    Args:
        with_shots: whether to include the number of training rows per label.
        brief: whether to omit columns that do not fit on a narrow terminal.
    """
    with_deviation = any(row.deviation is not None for row in summary.rows)
    two_tests = any(row.p_best != row.p for row in summary.rows)
    columns: list[tuple[bool, str, Callable[[SummaryRow], str]]] = [
        (True, "strategy", _name),
        (with_shots, "per label", lambda row: shots_text(row.shots)),
        (True, summary.metric if brief else f"{summary.metric} ({summary.split})", lambda row: show(row.mean or 0)),
        (with_deviation, "sd", lambda row: show(row.deviation or 0)),
        (True, "interval" if brief else "95 % interval", lambda row: _interval(row.low, row.high, show)),
        (not brief, "to the first", _difference),
        (True, "p first" if two_tests else "p", lambda row: _p(row.p)),
        (two_tests, "p best", lambda row: _p(row.p_best)),
        (not brief, "trained", lambda row: f"{row.trainable_parameters:,}"),
        (True, "time", lambda row: show_seconds(row.seconds or 0)),
        (not brief, "memory", lambda row: show_bytes(row.peak_memory_bytes or 0)),
        (True, "stored", lambda row: show_bytes(row.stored_bytes or 0)),
    ]
    shown = [(name, text) for is_shown, name, text in columns if is_shown]
    always = 1 + with_shots  # these first columns need no metrics
    cells = [
        [text(row) if row.mean is not None or i < always else "-" for i, (_, text) in enumerate(shown)] for row in summary.rows
    ]
    return [name for name, _ in shown], cells


def notes(summary: Summary, seeds: Sequence[int], with_shots: bool) -> list[str]:
    """Return the notes below the table, on seeds, tests, the split, and rows without metrics."""
    first = summary.rows[0].label
    if len(seeds) > 1:
        lines = [
            f"means over seeds {', '.join(map(str, seeds))}; 95 % intervals over rows of {summary.split} and seeds",
            f"p of a paired test against {first} (the first) or the best, over rows and seeds",
        ]
        if len(seeds) == 2:
            lines.append(
                "two seeds say little about the variance between seeds: the test finds a difference between equal strategies in "
                "3 to 6 % of the comparisons instead of 5 %, and needs a much larger one than with three (--seeds 0 1 2)"
            )
    else:
        lines = [
            f"one seed ({seeds[0]}): 95 % intervals cover the rows of {summary.split} only, and there are no p-values. Another "
            "seed may change the order of the strategies; --seeds 0 1 2 gives p-values"
        ]
    if summary.split == "validation":
        lines.append(
            "there is no test split: the metrics are those of validation, which also selected the weights, so they are optimistic"
        )
    lines += [
        f"{row.label}{f', {shots_text(row.shots)} per label' if with_shots else ''}: {row.note}"
        for row in summary.rows
        if row.note
    ]
    return list(dict.fromkeys(lines))


def write_tables(folder: Path, summary: Summary, seeds: Sequence[int], name: str = "comparison") -> None:
    """Write `NAME.csv` with a line per row, and `NAME.json` with all results and the advice."""
    documents = [asdict(row) for row in summary.rows]
    lines = []
    for row, document in zip(summary.rows, documents, strict=True):
        line = {"strategy": document.pop("label"), **document}
        if line["deviation"] is None:
            del line["deviation"]
        del line["metrics"]
        line |= {"shots": shots_text(row.shots), "seeds": " ".join(map(str, row.seeds))}
        line |= {"metric": summary.metric, "split": summary.split}
        line |= {f"{split}.{name}": value for split, metrics in row.metrics.items() for name, value in metrics.items()}
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for line in lines for name in line))
    writer.writeheader()
    writer.writerows(lines)
    write_bytes(folder / f"{name}.csv", text.getvalue().encode())
    write_json(
        folder / f"{name}.json",
        {
            "metric": summary.metric, "split": summary.split, "higher_is_better": summary.higher, "seeds": list(seeds),
            "rows": [asdict(row) for row in summary.rows], "advice": summary.advice,
        },
    )  # fmt: skip


def _name(row: SummaryRow) -> str:
    return row.label + (f" ({row.rate:g} x rate)" if row.rate != 1 else "")


def _difference(row: SummaryRow) -> str:
    if row.difference is None:
        return ""
    interval = f" ({_interval(row.difference_low, row.difference_high, _signed)})" if row.difference_low is not None else ""
    return _signed(row.difference) + interval


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + show(abs(value))


def _interval(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    return "-" if low is None or high is None else f"{text(low)} to {text(high)}"


def _p(value: float | None) -> str:
    return "" if value is None else show_p(value)
