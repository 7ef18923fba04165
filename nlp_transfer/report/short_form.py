"""The short form of a report, for the terminal."""

from nlp_transfer.evaluation.error_analysis import class_scores, largest_confusions, worst_rows
from nlp_transfer.report.error_sections import error_measure, show_value, text_lines
from nlp_transfer.report.page_blocks import shortened
from nlp_transfer.report.run_records import RunRecords
from nlp_transfer.utils.console import number, say, show_table

MOST_CLASSES, MOST_CONFUSIONS, MOST_ERRORS = 10, 3, 5
TEXT, VALUE = 80, 60  # characters of an input, and of a prediction or reference


def show_errors(run: RunRecords) -> None:
    """Print the worst classes, the largest confusions and the worst errors of a run."""
    if (predictions := run.predictions) is None:
        return
    split = predictions.split
    if scores := class_scores(run.scorer, predictions.scored):
        shown = scores[:MOST_CLASSES]
        title = (
            f"{split}: metrics by class"
            if len(shown) == len(scores)
            else f"{split}: the {len(shown)} worst of {len(scores)} classes"
        )
        rows = [[shortened(score.name, VALUE), score.precision, score.recall, score.f1, score.true] for score in shown]
        show_table(title, ["", "precision", "recall", "F1", "rows"], rows)
    for item in largest_confusions(run.scorer, predictions.scored, MOST_CONFUSIONS):
        true, predicted = (shortened(name, VALUE) for name in (item.true, item.predicted))
        say(f"confused: {true} with {predicted} in {item.rows} row{'s' * (item.rows > 1)}")
    if run.scorer.form == "texts":
        say(*text_lines(run, predictions))
    rows_, sizes = worst_rows(run.scorer, predictions.scored, MOST_ERRORS)
    measure = error_measure(run, predictions)
    measure = "" if measure == "error" else f"{measure} "
    for row, size in zip(rows_.tolist(), sizes.tolist(), strict=True):
        text = shortened(" | ".join(run.inputs(row)), TEXT)
        true, predicted = (shortened(show_value(predictions.columns[name][row]), VALUE) for name in ("reference", "prediction"))
        say(f"error ({measure}{number(size)}): {text!r}: {predicted}, should be {true}")
