"""The command `label-errors`."""

from pathlib import Path
from typing import Any

import click

from nlp_transfer.commands.options import OVERWRITE
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import UserError

ADDED = ("suggested_label", "self_confidence", "suggested_probability")
TEXT_WIDTH = 100  # characters of a text in the terminal


@click.command("label-errors")
@click.argument("source", metavar="RUN|FOLDER|TABLE", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File for the list (.csv, .tsv, .jsonl or .parquet).  [default: label_errors.csv in the folder, or beside TABLE]",
)
@click.option(
    "--rank-by",
    type=click.Choice(["self_confidence", "normalized_margin"]),
    default="self_confidence",
    show_default=True,
    help="Order of the list: by the probability of the given label, or by its distance from that of the suggested label.",
)
@click.option("--show", type=click.IntRange(min=0), default=20, show_default=True, help="Number of rows to print.")
@OVERWRITE
def command(source: Path, output: Path | None, rank_by: Any, show: int, overwrite: bool) -> None:
    """List rows whose label is probably wrong.

    Applies confident learning (Northcutt et al. 2021) to predictions of rows that the model was not trained on: the validation
    split of a finished RUN, the out-of-fold predictions in the folder of a cross-validation, which cover all training rows, or
    a TABLE of such predictions.
    Prints the worst rows, and writes all to a file, with the suggested label of each. Counts are printed as JSON.
    """
    with importing():
        from nlp_transfer.data.sources.table_reader import ENDINGS
        from nlp_transfer.evaluation.label_errors import find_label_errors
        from nlp_transfer.inference.label_predictions import read_label_predictions
        from nlp_transfer.inference.standard_streams import writing_stdout
        from nlp_transfer.inference.writers import Writer
        from nlp_transfer.utils.atomic_files import to_json
        from nlp_transfer.utils.console import number, percent, say, show_table
        from nlp_transfer.utils.environment import expand

    source = expand(source)
    path = expand(output) if output else (source if source.is_dir() else source.parent) / "label_errors.csv"
    allowed = [ending for ending in ENDINGS if ending not in (".json", ".txt")]
    if path.suffix.lower() not in allowed:
        raise UserError(f"--output: found the file extension {path.suffix!r} of {path}; allowed: {', '.join(allowed)}")
    if not source.exists():
        raise UserError(f"{source}: does not exist; allowed: the folder of a finished run, or a table of held-out predictions")
    if path.exists() and (path.is_dir() or not overwrite or path.samefile(source)):
        raise UserError(f"--output: {path} already exists; allowed: another file, or --overwrite to replace a list")
    table = read_label_predictions(source)
    if taken := [name for name in ADDED if name in table.columns]:
        raise UserError(f"{table.path}: the column {taken[0]!r} has the name of a column of the list; rename it")
    errors = find_label_errors(table.probabilities, table.given, rank_by=rank_by)
    suggested = [table.labels[label] for label in errors.suggested]
    given = [table.labels[label] for label in table.given[errors.rows]]
    added = {
        "given_label" if "given_label" not in table.columns else "reference": given,
        "suggested_label": suggested,
        "self_confidence": table.probabilities[errors.rows, table.given[errors.rows]].round(6).tolist(),
        "suggested_probability": table.probabilities[errors.rows, errors.suggested].round(6).tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, path.suffix.lower()) as writer:
        writer.write({name: [cells[row] for row in errors.rows] for name, cells in table.columns.items()} | added)
    worst = [(table.describe(row), *cells) for row, *cells in zip(errors.rows[:show], *added.values(), strict=False)]
    if worst:
        rows = [
            (text if len(text) <= TEXT_WIDTH else f"{text[:TEXT_WIDTH]}...", f"{label} ({number(p)})", f"{better} ({number(q)})")
            for text, label, better, p, q in worst
        ]
        show_table("likely label errors (with the probability of the label)", ["text", "given label", "suggested label"], rows)
    agreed = int((table.probabilities.argmax(1) == table.given).sum())
    say(
        f"{len(errors.rows):,} of {len(table):,} rows have a label that is probably wrong, or are hard for the model, which "
        f"predicts the given label of {percent(agreed, len(table))};"
        " the weaker the model, the more rows in the list have a correct label",
        f"the list is in {path}",
    )
    with writing_stdout():
        counts = {
            "rows": len(table),
            "label_errors": len(errors.rows),
            "estimated_noise_share": round(errors.noise_share, 6),
            "model_accuracy": round(agreed / len(table), 6),
        }
        print(to_json(counts), flush=True)
