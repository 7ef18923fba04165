"""The report of one or several runs as one self-contained HTML file. Importing this module loads matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nlp_transfer.report.error_sections import error_sections
from nlp_transfer.report.model_card import data_name, strategy_label
from nlp_transfer.report.page_blocks import Section, shortened
from nlp_transfer.report.plots import plot_style
from nlp_transfer.report.rendering import render_html
from nlp_transfer.report.run_records import RunRecords
from nlp_transfer.report.run_sections import (
    choice_section,
    cost_section,
    curves_section,
    data_section,
    settings_section,
    summary_section,
)
from nlp_transfer.tasks import task_name
from nlp_transfer.utils.atomic_files import write_bytes

Columns = Mapping[str, Sequence[object]]


def write_report(path: Path, runs: Sequence[RunRecords], columns: Sequence[Columns] = ()) -> None:
    """Write the report of one run, or of several runs side by side, to an HTML file.

    Args:
        columns: For each run, the values of further columns by which the rows are divided into slices, by name.
    """
    if len({run.name for run in runs}) < len(runs):  # ids in the page are derived from the names
        runs = [replace(run, label=f"{run.name} ({i})") for i, run in enumerate(runs, 1)]
    with plot_style():
        sections: list[Section | None] = [summary_section(runs)]
        if len(runs) == 1:
            sections += [choice_section(runs[0]), data_section(runs[0]), curves_section(runs), *_errors(runs, columns)]
        else:
            sections += [curves_section(runs), cost_section(runs), settings_section(runs), *_errors(runs, columns)]
        if len(runs) == 1:
            sections += [cost_section(runs), settings_section(runs)]
    title = f"Report: {', '.join(run.name for run in runs)}" if len(runs) > 1 else f"Report of {runs[0].name}"
    page = render_html(
        "report.html", title=shortened(title, 200), subtitle="; ".join(_subtitle(run) for run in runs),
        sections=[section for section in sections if section is not None],
    )  # fmt: skip
    write_bytes(path, page.encode(errors="replace"))


def _errors(runs: Sequence[RunRecords], columns: Sequence[Columns]) -> list[Section]:
    """Return the sections about predictions; of several runs, each with the name of its run."""
    sections = []
    for i, run in enumerate(runs):
        for section in error_sections(run, dict(columns[i]) if columns else {}):
            several = len(runs) > 1
            sections.append(
                replace(section, id=f"{section.id}-{i}", title=f"{run.name}: {section.title}") if several else section
            )
    return sections


def _subtitle(run: RunRecords) -> str:
    """Return the task, strategy, model and test data of a run."""
    predictions = run.predictions
    parts = [task_name(run.task).replace("_", " "), f"strategy {strategy_label(run.result['strategy'])}"]
    parts.append(f"from {data_name(str(run.result['model']))}")
    if predictions is not None:
        parts.append(f"errors on {predictions.split} ({len(predictions.scored):,} rows)")
    return ", ".join(parts)
