"""The command `report`."""

from pathlib import Path

import click

from nlp_transfer.commands.options import CODE, OVERWRITE
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.errors import UserError


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--slice", "names", multiple=True, metavar="COLUMN", help="Show the metric by the values of this column. Can be repeated."
)
@click.option("--output", type=click.Path(path_type=Path), help="The HTML file.  [default: report.html in RUN; of several: here]")
@click.option("--verbose", is_flag=True, help="Also print the metrics by class, the confusions and the worst errors of a run.")
@OVERWRITE
@CODE
def command(runs: tuple[Path, ...], names: tuple[str, ...], output: Path | None, verbose: bool, overwrite: bool) -> None:
    """Write a report of a finished run, or of several runs side by side.

    The report is one HTML file: metrics with intervals, data, learning curves, metrics by class, confusions, the worst errors,
    slices, calibration, cost and settings. A run writes it at its end. The file of a run is replaced; any other file only with
    --overwrite. The path of the report is printed.
    """
    from nlp_transfer.report.run_records import RunRecords
    from nlp_transfer.report.run_report import write_report
    from nlp_transfer.report.short_form import show_errors
    from nlp_transfer.report.slice_columns import slice_columns
    from nlp_transfer.saved_models.layout import REPORT
    from nlp_transfer.utils.console import Steps

    path = output or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    if path.suffix != ".html":
        raise UserError(f"--output: found {path}; allowed: a file that ends with .html")
    if path.exists() and not overwrite and not (len(runs) == 1 and path.resolve() == (runs[0] / REPORT).resolve()):
        raise UserError(f"--output: {path} already exists; allowed: another file, or --overwrite")
    records = [RunRecords.read(run) for run in runs]
    tasks = {str(record.result["task"]["name"]): record for record in records}
    if len(tasks) > 1:
        found = ", ".join(f"{name} ({record.folder})" for name, record in tasks.items())
        raise UserError(f"RUN: found runs of different tasks: {found}; allowed: runs of one task")
    columns = []
    with Steps("reading predictions", len(records)) as steps:
        for record in records:
            columns.append(slice_columns(record, names))
            steps.advance()
    if verbose:
        for record in records:
            show_errors(record)
    try:
        write_report(path, records, columns)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror}; allowed: a file in an existing folder") from None
    click.echo(printable(str(path)))
