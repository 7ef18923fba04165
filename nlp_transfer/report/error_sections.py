"""Sections of a report about the predictions of a run. What they show depends on the task's `Scorer`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nlp_transfer.evaluation.error_analysis import (
    MAX_SLICES,
    Slice,
    class_scores,
    column_slices,
    largest_confusions,
    quantile_slices,
    reliability_and_brier,
    slice_metric,
    worst_rows,
)
from nlp_transfer.evaluation.label_errors import find_label_errors
from nlp_transfer.evaluation.metrics.calibration_metrics import Reliability
from nlp_transfer.report.page_blocks import Block, Cell, Examples, Lines, Paragraph, Plot, Plots, Section, shortened, table
from nlp_transfer.report.plots import to_svg
from nlp_transfer.report.run_plots import confusion_heat_map, histogram, reliability_diagram, scatter
from nlp_transfer.report.run_records import Predictions, RunRecords
from nlp_transfer.utils.console import number, percent

MOST_CONFUSIONS, MOST_ERRORS, MOST_EXAMPLES = 25, 25, 5
HEAT_MAP_LABELS = 20  # up to which the whole confusion matrix is drawn
POOR_CALIBRATION = 0.05  # expected calibration error above which the report names the setting that corrects it


def error_sections(run: RunRecords, columns: dict[str, Sequence[object]]) -> list[Section]:
    """Return the sections about the predictions of a run; none if it has no predictions that can be analysed.

    Args:
        columns: Values of further columns for slices, by name, in the order of the rows of the predictions.
    """
    if (predictions := run.predictions) is None:
        return []
    sections = [
        _classes(run, predictions), _confusions(run, predictions), _numbers(run, predictions), _texts(run, predictions),
        _errors(run, predictions), _label_errors(run, predictions), _slices(run, predictions, columns),
        _calibration(run, predictions),
    ]  # fmt: skip
    return [section for section in sections if section is not None and section.blocks]


def show_value(value: Any) -> str:
    """Return a prediction or reference as text: of objects such as entities, their texts; numbers without trailing zeros."""
    if isinstance(value, (list, tuple)):
        return "; ".join(map(show_value, value)) or "(none)"
    if isinstance(value, dict):
        return ": ".join(inner for inner in value.values() if isinstance(inner, str))
    if isinstance(value, float):
        text = number(value)
        return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return "(none)" if value in (None, "") else str(value)


def show_interval(low: float, high: float) -> str:
    """Return a 95 % interval as text; empty if it is unknown."""
    return f"{number(low)} to {number(high)}" if np.isfinite(low + high) else ""


def _classes(run: RunRecords, predictions: Predictions) -> Section | None:
    scores = class_scores(run.scorer, predictions.scored)
    if not scores:
        return None
    trained = run.facts.get("classes", {})
    head = ["class", "precision", "recall", "F1", f"in {predictions.split}", "predicted", "correct"]
    head += ["in train"] if trained else []
    rows = [
        [
            shortened(score.name, 80), number(score.precision), number(score.recall), Cell(number(score.f1), score.f1),
            f"{score.true:,}", f"{score.predicted:,}", f"{score.correct:,}",
            *([f"{trained.get(score.name, 0):,}"] if trained else []),
        ]
        for score in scores
    ]  # fmt: skip
    return Section("classes", "Metrics by class", [table(head, rows, f"{len(rows)} classes, worst F1 first")])


def _confusions(run: RunRecords, predictions: Predictions) -> Section | None:
    confusions = largest_confusions(run.scorer, predictions.scored, MOST_CONFUSIONS)
    if not confusions:
        return None
    blocks: list[Block] = []
    matrix = run.scorer.confusions(predictions.scored.predictions, predictions.scored.references)
    one_label = matrix is not None and matrix.trace() > 0
    if matrix is not None and one_label and len(matrix) <= HEAT_MAP_LABELS:
        figure = confusion_heat_map(matrix, run.scorer.labels)
        plot = to_svg(figure, f"confusion matrix, {run.name}")
        caption = "confusion matrix: numbers of rows; the color shows the share of the true label"
        blocks.append(Plots(figures=[Plot(caption, plot, figure.get_figwidth())]))
    head = ["true label", "predicted label", "rows", "share of the true label"]
    rows = [
        [
            Cell(shortened(item.true, 80), is_long=True), Cell(shortened(item.predicted, 80), is_long=True),
            f"{item.rows:,}", Cell(percent(item.share), min(1.0, item.share)),
        ]
        for item in confusions
    ]  # fmt: skip
    if not one_label:
        blocks.append(Paragraph(text="Rows in which one label was missed and the other was predicted wrongly.", is_caption=True))
    blocks.append(table(head, rows, f"the {len(rows)} largest confusions" if len(rows) > 1 else "the largest confusion"))
    return Section("confusions", "Confusions", blocks)


def _errors(run: RunRecords, predictions: Predictions) -> Section | None:
    rows, sizes = worst_rows(run.scorer, predictions.scored, MOST_ERRORS)
    if not len(rows) or run.scorer.form == "texts":  # texts have a section of their own
        return None
    form = run.scorer.form
    head = ["row", *run.task.inputs, "reference", "prediction", error_measure(run, predictions)]
    cells = [
        [
            _origin(predictions, int(row)),
            *(Cell(shortened(text), is_long=True) for text in run.inputs(int(row))),
            *(Cell(shortened(show_value(predictions.columns[name][row])), is_long=True) for name in ("reference", "prediction")),
            number(float(size)),
        ]
        for row, size in zip(rows, sizes, strict=True)
    ]
    title = "Most confident mistakes" if form == "labels" else "Largest errors"
    return Section("errors", title, [table(head, cells, f"{predictions.split}, worst first")])


def error_measure(run: RunRecords, predictions: Predictions) -> str:
    """Return what the sizes of errors (`Scorer.error_sizes`) measure."""
    form = run.scorer.form
    if form == "labels" and {"confidence", "scores"} & set(predictions.scored.predictions):
        several = predictions.scored.predictions["prediction"].ndim > 1
        return "certainty of the worst wrong label" if several else "probability"
    lost = f"{run.scorer.row_metric or run.scorer.best_metric} lost"
    return {"labels": "wrong labels", "numbers": "error"}.get(form, lost)


def _label_errors(run: RunRecords, predictions: Predictions) -> Section | None:
    """List rows of the split whose label is probably wrong. The model was not trained on them."""
    scored = predictions.scored
    scores, given = scored.predictions.get("scores"), scored.references.get(run.scorer.reference)
    if scores is None or given is None or given.ndim != 1 or scores.shape[-1] < 2:
        return None
    errors = find_label_errors(scores, given)
    head = ["row", *run.task.inputs, "given label", "suggested label", "probability of the given label"]
    cells = [
        [
            _origin(predictions, int(row)),
            *(Cell(shortened(text), is_long=True) for text in run.inputs(int(row))),
            *(Cell(shortened(str(run.scorer.labels[label])), is_long=True) for label in (given[row], suggested)),
            number(float(scores[row, given[row]])),
        ]
        for row, suggested in zip(errors.rows[:MOST_ERRORS], errors.suggested, strict=False)
    ]
    found = (
        f"{len(errors.rows):,} of {len(given):,} rows of {predictions.split} have a label that is probably wrong, or are hard "
        f"for the model (confident learning, Northcutt et al. 2021). To check the training rows: nlp-transfer cross-validate, "
        f"then label-errors."
    )
    title = f"the {len(cells)} least probable given labels" if len(cells) > 1 else ""
    listed = [table(head, cells, title)] if cells else []
    return Section("label-errors", "Likely label errors", [Paragraph(text=found), *listed])


def _origin(predictions: Predictions, row: int) -> str:
    """Return the row number in the file of the data."""
    columns = predictions.columns
    found = columns.get("source_row", columns.get("row"))
    return str(found[row] if found is not None and found[row] is not None else row + 1)


def _slices(run: RunRecords, predictions: Predictions, columns: dict[str, Sequence[object]]) -> Section:
    scorer, scored = run.scorer, predictions.scored
    metric = scorer.compare_by(None)
    by_length = slice_metric(scorer, scored, metric, quantile_slices(run.lengths))
    blocks: list[Block] = [_slice_table(run, metric, "characters of the input", by_length)]
    for name, values in columns.items():
        slices = slice_metric(scorer, scored, metric, column_slices(values))
        blocks.append(_slice_table(run, metric, name, slices))
        if len(slices) == MAX_SLICES:
            blocks.append(Paragraph(text="Rarer values share a slice.", is_caption=True))
    return Section("slices", "Slices", blocks)


def _slice_table(run: RunRecords, metric: str, name: str, slices: list[Slice]) -> Block:
    low, high = run.scorer.bounds(metric)
    rows = [
        [
            shortened(item.name, 80), f"{item.rows:,}",
            Cell(number(value), (value - low) / (high - low) if np.isfinite(high - low + value) else None),
            show_interval(item.estimate.low, item.estimate.high),
        ]
        for item in slices
        for value in [item.estimate.value]
    ]  # fmt: skip
    return table([name, "rows", metric, "95 % interval"], rows, f"{metric} by {name}")


def _calibration(run: RunRecords, predictions: Predictions) -> Section | None:
    found = reliability_and_brier(run.scorer, predictions.scored)
    if found is None:
        return None
    plot = to_svg(reliability_diagram(found[0]), f"reliability diagram, {run.name}")
    uncalibrated = run.settings.get("task", {}).get("calibrate") is False and found[0].error > POOR_CALIBRATION
    advice = ["to correct the probabilities after training: task.calibrate: true"] if uncalibrated else []
    caption = "reliability diagram: bars on the dashed line are calibrated"
    return Section(
        "calibration", "Calibration of probabilities",
        [Lines(lines=[*calibration_lines(*found), *advice]), Plots(figures=[Plot(caption, plot)])],
    )  # fmt: skip


def calibration_lines(bins: Reliability, brier: float | None) -> list[str]:
    """Return the calibration error and the Brier score with what they mean, and whether probabilities are too high or too low."""
    mean, share = (float(bins.size @ values / bins.size.sum()) for values in (bins.confidence, bins.accuracy))
    gap = mean - share
    kind = "too high" if gap > 0 else "too low"
    lines = [
        f"expected calibration error (ECE) {number(bins.error)}: the mean distance between probability and share of true "
        f"predictions, in bins of equal width",
        f"on average, the probability is {number(mean)} and the share of true predictions {number(share)}: "
        f"probabilities are {number(abs(gap))} {kind}",
    ]
    return lines + ([f"Brier score {number(brier)} (0 is best)"] if brier is not None else [])


def _numbers(run: RunRecords, predictions: Predictions) -> Section | None:
    if run.scorer.form != "numbers":
        return None
    predicted, true = predictions.scored.predictions["prediction"], predictions.scored.references[run.scorer.reference]
    residuals = predicted - true
    plots = [
        Plot(
            "predicted and true values (dashed: equal)",
            to_svg(scatter(true, predicted), f"predicted and true values, {run.name}"),
        ),
        Plot("residuals: predicted minus true value", to_svg(histogram(residuals, "residual"), f"residuals, {run.name}")),
    ]
    line = f"residuals: mean {residuals.mean():.4g}, standard deviation {residuals.std():.4g}, median of the absolute values "
    return Section("residuals", "Residuals", [Lines(lines=[f"{line}{np.median(np.abs(residuals)):.4g}"]), Plots(figures=plots)])


def _texts(run: RunRecords, predictions: Predictions) -> Section | None:
    sizes = run.scorer.error_sizes(predictions.scored.predictions, predictions.scored.references)
    if run.scorer.form != "texts" or sizes is None:
        return None
    metric = run.scorer.row_metric or run.scorer.best_metric
    values = run.scorer.bounds(metric)[1] - sizes if run.scorer.higher_is_better(metric) else sizes
    order = np.argsort(-sizes, kind="stable")
    blocks: list[Block] = [Lines(lines=text_lines(run, predictions))]
    plot = to_svg(histogram(values, f"{metric} of a text", "texts"), f"{metric} of single texts, {run.name}")
    blocks.append(Plots(figures=[Plot(f"{metric} of single texts", plot)]))
    for title, rows in (("Worst", order[:MOST_EXAMPLES]), ("Best", order[::-1][:MOST_EXAMPLES])):
        examples = [
            [
                *zip(run.task.inputs, map(shortened, run.inputs(int(row))), strict=True),
                *((name, shortened(show_value(predictions.columns[name][row]))) for name in ("prediction", "reference")),
                (metric, number(float(values[row]))),
            ]
            for row in rows
        ]
        blocks.append(Examples(f"{title} by {metric}", examples=examples))
    return Section("texts", "Generated texts", blocks)


def text_lines(run: RunRecords, predictions: Predictions) -> list[str]:
    """Return facts about generated texts: how many are empty, copies of their source, or repeated, and their length."""
    generated, references = ([str(text) for text in predictions.columns[name]] for name in ("prediction", "reference"))
    sources = [" ".join(run.inputs(row)).strip() for row in range(len(generated))]
    total = len(generated)
    empty = sum(not text.strip() for text in generated)
    copies = sum(text.strip() == source for text, source in zip(generated, sources, strict=True))
    true_copies = sum(text.strip() == source for text, source in zip(references, sources, strict=True))
    exact = sum(text == reference for text, reference in zip(generated, references, strict=True))
    text, count = Counter(generated).most_common(1)[0]
    ratio = sum(map(len, generated)) / max(1, sum(map(len, references)))
    lines = [
        f"{empty:,} of {total:,} outputs are empty",
        f"{copies:,} outputs are copies of their input (of the references, {true_copies:,})",
        f"{exact:,} outputs are equal to their reference ({percent(exact, total)})",
        f"{total - len(set(generated)):,} outputs repeat another output",
        f"outputs are {ratio:.2f} times as long as the references, in characters",
    ]
    if count > 1:
        lines.append(f"the most frequent output occurs {count:,} times: {shortened(show_value(text), 120)}")
    return lines
