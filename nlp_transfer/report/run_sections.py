"""Sections of a report about one or several runs: metrics, data, learning curves, cost and settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlp_transfer.evaluation.error_analysis import metric_intervals
from nlp_transfer.report.choice_table import choice_table
from nlp_transfer.report.error_sections import show_interval
from nlp_transfer.report.model_card import strategy_label
from nlp_transfer.report.page_blocks import Block, Cell, Lines, Paragraph, Plot, Plots, Section, shortened, table
from nlp_transfer.report.plots import to_svg
from nlp_transfer.report.run_plots import Series, curves
from nlp_transfer.report.run_records import RunRecords
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.utils.console import number

QUANTILES = ("shortest", "5%", "25%", "median", "75%", "95%", "longest")
TOLERANCE = 1e-4  # relative; an interval is only shown for a metric that the file of predictions reproduces
TIMES = {"seconds": "time", "preparation_seconds": "of which preparation", "step_seconds": "of which training steps"}
UNITS = {"_bytes": (1 << 30, "GiB"), "seconds": (1, "s")}


def intervals_of(run: RunRecords) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals of the metrics of the analysed split, by name; from the metrics themselves if these have some."""
    if run.predictions is None:
        return {}
    metrics = run.metrics.get(run.predictions.split, {})
    found = {name: (metrics[f"{name}_low"], metrics[f"{name}_high"]) for name in metrics if f"{name}_low" in metrics}
    names = [name for name in metrics if name not in found and not _is_bound(name, metrics)]
    for name, estimate in metric_intervals(run.scorer, run.predictions.scored, names).items():
        if np.isclose(estimate.value, metrics[name], rtol=TOLERANCE, atol=TOLERANCE) and np.isfinite(
            estimate.low + estimate.high
        ):
            found[name] = (estimate.low, estimate.high)
    return found


def summary_section(runs: Sequence[RunRecords]) -> Section:
    """Return the metrics of each run with 95 % intervals, and notes on them."""
    columns: list[tuple[str, Mapping[str, float], Mapping[str, tuple[float, float]]]] = []
    for run in runs:
        intervals = intervals_of(run)
        for split in ("test", "validation"):
            if (metrics := run.metrics.get(split)) and (
                len(runs) == 1 or run.predictions is None or split == run.predictions.split
            ):
                is_analysed = run.predictions is not None and split == run.predictions.split
                name = split if len(runs) == 1 else f"{run.name}: {split}"
                columns.append((name, metrics, intervals if is_analysed else {}))
    names = list(dict.fromkeys(name for _, metrics, _ in columns for name in metrics if not _is_bound(name, metrics)))
    same = [
        name for name in names if _is_micro(name) and all(values.get(name) == values.get("accuracy") for _, values, _ in columns)
    ]
    names = [name for name in names if name not in same]
    head, rows = ["metric"], [[name] for name in names]
    for title, values, bounds in columns:
        head += [title, "95 % interval"] if bounds else [title]
        for name, row in zip(names, rows, strict=True):
            row.append(number(values[name]) if name in values else "")
            if bounds:
                row.append(show_interval(*bounds[name]) if name in bounds else "")
    blocks: list[Block] = [table(head, rows)] if columns else [Paragraph(text="No split was scored.")]
    notes = [f"{name}, signature: {text}" for name, text in dict(runs[0].result.get("signatures") or {}).items()]
    if same:
        notes.insert(0, f"{', '.join(same)}: equal to accuracy, since each row has exactly one label")
    if any(intervals for _, _, intervals in columns):
        notes.insert(0, "intervals are over the rows of the split, for this model; other seeds vary in addition")
    if len({_scored_rows(run) for run in runs}) > 1:
        notes.insert(0, "warning: the runs were scored on different rows, so their metrics cannot be compared")
    if runs[0].metrics.get("validation"):
        notes.append("the validation split selected the best weights, so its metrics are slightly too high")
    return Section("metrics", "Metrics", [*blocks, Lines(lines=notes)])


def data_section(run: RunRecords) -> Section | None:
    """Return what the run recorded about its data."""
    facts = run.facts
    if not facts.get("splits"):
        return None
    head = ["split", "rows", "truncated", "mean tokens", *QUANTILES]
    rows = [
        [
            name,
            f"{part['rows']:,}",
            f"{part['truncated']:,}",
            f"{part['mean']:.1f}",
            *(f"{value:,.0f}" for value in part["lengths"]),
        ]
        for name, part in facts["splits"].items()
    ]
    blocks: list[Block] = [table(head, rows, f"rows and lengths in tokens (maximum {facts['max_length']})")]
    if facts.get("notes"):
        blocks.append(Lines(lines=[shortened(line) for line in facts["notes"]]))
    if conflicts := facts.get("conflicts"):
        rows = [
            [Cell(shortened(item["input"]), is_long=True), Cell(shortened(item["labels"]), is_long=True)] for item in conflicts
        ]
        blocks.append(
            table(["input", "labels"], rows, f"{facts['conflict_inputs']:,} inputs occur in train with different labels")
        )
    return Section("data", "Data", blocks)


def choice_section(run: RunRecords) -> Section | None:
    """Return how trials chose the strategy."""
    choice = run.result.get("strategy_choice")
    if not choice:
        return None
    blocks: list[Block] = [Paragraph(text=f"{strategy_label(choice['strategy'])}: {shortened(choice['reason'], 500)}.")]
    if choice["folds"]:
        title, head, rows = choice_table(choice)
        blocks.append(table(head, [[*row[:-1], Cell(shortened(row[-1]), is_long=True)] for row in rows], title))
    return Section("choice", "Choice of the strategy", blocks)


def curves_section(runs: Sequence[RunRecords]) -> Section | None:
    """Return the learning curves from the log: loss, validation metric and learning rate."""
    training = {name: _series(runs, name) for name in ("loss", "learning_rate", "grad_norm")}
    metric = runs[0].scorer.compare_by((runs[0].settings.get("training") or {}).get("best_metric"))
    losses = {
        part if len(runs) == 1 else f"{name}, {part}": line
        for part, series in (("training", training["loss"]), ("validation", _series(runs, "loss", "validation")))
        for name, line in series.items()
    }
    plots = []
    for title, series, markers in (
        ("loss", losses, False), (f"validation {metric}", _series(runs, metric, "validation"), True),
        ("learning rate", training["learning_rate"], False), ("gradient norm", training["grad_norm"], False),
    ):  # fmt: skip
        if any(len(xs) > 1 for xs, _ in series.values()):
            svg = to_svg(curves(series, title, markers=markers), f"{title} by step, {', '.join(run.name for run in runs)}")
            plots.append(Plot(title, svg))
    blocks: list[Block] = [Plots(figures=plots)]
    if any((run.settings.get("training") or {}).get("label_smoothing") for run in runs):
        text = "With label smoothing, the training loss is higher than the validation loss, which is computed without it."
        blocks.append(Paragraph(text=text, is_caption=True))
    if drafts := dict.fromkeys(run.draft for run in runs if run.draft):
        text = (
            f"During training, validation {metric} was measured on drafts ({'; '.join(drafts)}), which are cheaper than final "
            "predictions. The metrics above are those of all rows with the settings of the model, and may be higher or lower."
        )
        blocks.append(Paragraph(text=text, is_caption=True))
    return Section("curves", "Learning curves", blocks) if plots else None


def cost_section(runs: Sequence[RunRecords]) -> Section:
    """Return time, speed, memory and size."""
    measures = [run.result.get("train") or {} for run in runs]
    names = list(dict.fromkeys(name for each in measures for name in each))
    if not any(each.get("best_step") for each in measures):  # 0: there was no validation
        names = [name for name in names if name != "best_step"]
    rows = [
        [TIMES.get(name, name.removesuffix("_bytes").replace("_", " ")), *(_measure(name, run) for run in runs)] for name in names
    ]
    return Section("cost", "Speed and memory", [table(["", *_names(runs)], rows)])


def settings_section(runs: Sequence[RunRecords]) -> Section:
    """Return the resolved settings; of several runs, first those that differ."""
    flat = [
        _flat(clean({name: run.settings.get(name) for name in ("model", "data", "task", "strategy", "training")})) for run in runs
    ]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [
        [name, *(Cell(shortened(settings.get(name, "")), is_long=True) for settings in flat)]
        for name in names
        if any(settings.get(name) for settings in flat)
    ]
    blocks: list[Block] = []
    if len(runs) > 1:
        different = [row for row in rows if len({cell.text for cell in row[1:] if isinstance(cell, Cell)}) > 1]
        blocks.append(table(["setting", *_names(runs)], different, "settings that differ"))
    blocks.append(table(["setting", *_names(runs)], rows, "all settings", is_folded=True))
    versions = ", ".join(f"{name} {version}" for name, version in (runs[0].result.get("versions") or {}).items())
    blocks.append(Paragraph(text=versions, is_caption=True))
    return Section("settings", "Settings", blocks)


def _names(runs: Sequence[RunRecords]) -> list[str]:
    return [run.name for run in runs] if len(runs) > 1 else ["value"]


def _scored_rows(run: RunRecords) -> int | None:
    """Return a number that differs between runs whose analysed predictions have different inputs or references."""
    if run.predictions is None:
        return None
    columns = run.predictions.columns
    return hash(str([columns[name] for name in (*run.task.inputs, "reference") if name in columns]))


def _is_bound(name: str, metrics: Mapping[str, float]) -> bool:
    return name.endswith(("_low", "_high")) and name.rpartition("_")[0] in metrics


def _is_micro(name: str) -> bool:
    """Return whether a metric equals the accuracy by definition if each row has exactly one label."""
    return name.endswith("_micro") or name == "recall_weighted"


def _series(runs: Sequence[RunRecords], name: str, part: str | None = None) -> Series:
    """Return the values of a logged number by run, without missing ones."""
    series = {}
    for run in runs:
        lines = [(line["step"], (line.get(part) or {}) if part else line) for line in run.log]
        points = [(step, line[name]) for step, line in lines if isinstance(line.get(name), (int, float))]
        if points:
            series[run.name] = tuple(zip(*points, strict=True))
    return series  # type: ignore[return-value]


def _measure(name: str, run: RunRecords) -> str:
    value = (run.result.get("train") or {}).get(name)
    if value is None:
        return ""
    unit, text = next((found for suffix, found in UNITS.items() if name.endswith(suffix)), (1, ""))
    return f"{value:,}" if isinstance(value, int) and not text else f"{value / unit:,.2f} {text}".strip()


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names and texts."""
    if isinstance(value, Mapping) and value:
        return {
            key: text
            for name, inner in value.items()
            for key, text in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return {key: text for i, inner in enumerate(value) for key, text in _flat(inner, f"{prefix}.{i}").items()}
    return {prefix: ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)}
