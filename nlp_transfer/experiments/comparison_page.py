"""The comparison as one HTML file that stands by itself."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nlp_transfer.experiments.advice import show, show_seconds
from nlp_transfer.experiments.plan import shots_text
from nlp_transfer.experiments.results_table import notes, table
from nlp_transfer.experiments.summary_rows import Measured, Row, most
from nlp_transfer.report.plots import Mark, against_seconds, dots_and_intervals, learning_curves
from nlp_transfer.utils.atomic_files import write_bytes

STYLE = """
body { font: 15px/1.5 system-ui, Helvetica, Arial, sans-serif; color: #222; background: #fff; max-width: 1060px;
       margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin-bottom: .3rem; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.2rem 0 .6rem; }
.advice { border-left: 4px solid #0072b2; background: #f3f7fa; padding: .7rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .35rem .55rem; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { font-weight: 600; color: #555; border-bottom: 2px solid #ccc; } th:first-child, td:first-child { text-align: left; }
tr.best td { font-weight: 600; background: #f3f7fa; } tr.none td { color: #8a8a8a; }
svg { width: 100%; height: auto; display: block; } .notes { color: #555; font-size: 13px; padding-left: 1.1rem; }
"""


def write_page(path: Path, measured: Measured, seeds: Sequence[int]) -> None:
    """Table, plots and advice, with nothing that is fetched from elsewhere."""
    with_shots = len({row.shots for row in measured.rows}) > 1
    title = f"{measured.metric} on {measured.split}"
    body = [
        f"<h1>Strategies compared: {escape(title)}</h1>",
        f'<p class="advice">{escape(measured.advice)}</p>',
        f'<div class="scroll">{_table(measured, with_shots)}</div>',
        '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes(measured, seeds, with_shots)) + "</ul>",
    ]
    numbers = {label: i for i, label in enumerate(_labels(measured))}
    largest = most([row.shots for row in measured.rows])
    sign = -1 if measured.higher else 1
    shown = [row for row in measured.rows if row.shots == largest and row.mean is not None]
    shown.sort(key=lambda row: sign * (row.mean or 0.0))
    rows = f", {'all rows' if largest is None else f'{largest} rows of each label'}" if with_shots else ""
    if shown:
        marks = [_mark(row, row.seconds, numbers) for row in shown]
        better = "more" if measured.higher else "less"
        body += [
            f"<h2>{escape(title)}{rows}: means with 95 % intervals, the best first</h2>",
            dots_and_intervals(marks, measured.rows[0].label, f"{title} ({better} is better; dashed: the first strategy)", show),
            f"<h2>What it costs{rows}</h2>",
            against_seconds(marks, title, show, show_seconds),
        ]
    curves = [
        [_mark(row, row.shots, numbers) for row in measured.rows if row.label == label and row.mean is not None]
        for label in _labels(measured)
    ]
    if with_shots and any(curves):
        body += ["<h2>With more rows</h2>", learning_curves([curve for curve in curves if curve], title, show)]
    whole = "\n".join(body)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{whole}\n</body></html>\n"
    )
    write_bytes(path, page.encode(errors="replace"))  # a flag's bytes need not be UTF-8


def _labels(measured: Measured) -> list[str]:
    return list(dict.fromkeys(row.label for row in measured.rows))


def _mark(row: Row, x: float | None, numbers: dict[str, int]) -> Mark:
    mean = row.mean or 0.0
    return Mark(
        row.label, mean, mean if row.low is None else row.low, mean if row.high is None else row.high, x, numbers[row.label]
    )


def _table(measured: Measured, with_shots: bool) -> str:
    best: dict[int | None, Row] = {}
    for row in measured.rows:
        if row.mean is not None:
            known = best.setdefault(row.shots, row)
            if known.mean is not None and (row.mean > known.mean if measured.higher else row.mean < known.mean):
                best[row.shots] = row
    head, rows = table(measured, with_shots)
    lines = ["<table><thead><tr>", *(f"<th>{escape(name)}</th>" for name in head), "</tr></thead><tbody>"]
    for row, cells in zip(measured.rows, rows, strict=True):
        kind = "none" if row.mean is None else "best" if best[row.shots] is row else ""
        title = f' title="{escape(row.note or shots_text(row.shots))}"' if row.note else ""
        lines.append(f'<tr class="{kind}"{title}>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table>"])
