"""The command `runs`: a table of finished and unfinished runs."""

from pathlib import Path

import click


@click.command(name="runs")
@click.argument("folder", metavar="[DIR]", default="runs", type=click.Path(path_type=Path))
@click.option(
    "--sort", "metric", metavar="METRIC", help="Show this metric, and list the best run first.  [default: the newest first]"
)
@click.option("--json", "as_json", is_flag=True, help="Print all metrics and full names as JSON.")
def command(folder: Path, metric: str | None, as_json: bool) -> None:
    """List the runs in a folder.

    DIR and its subfolders are searched (default: runs). For each run, the main metric on test or, without a test split, on
    validation is shown; for an unfinished run, its step and the last evaluation. Damaged runs are listed with the reason.

    \b
    nlp-transfer runs
    nlp-transfer runs experiments --sort f1_macro
    """
    from nlp_transfer.inference.standard_streams import writing_stdout
    from nlp_transfer.run.overview import documents, find_runs, table_of
    from nlp_transfer.utils.atomic_files import to_json
    from nlp_transfer.utils.console import print_table, say
    from nlp_transfer.utils.environment import expand
    from nlp_transfer.utils.errors import UserError

    runs = find_runs(expand(str(folder)), metric)
    if metric is not None and runs and all(run.value is None for run in runs):
        known = dict.fromkeys(name for run in runs for values in run.metrics.values() for name in values)
        raise UserError(
            f"--sort: no run has a metric {metric!r}; allowed: {', '.join(known) or 'none, since no run has metrics'}"
        )
    with writing_stdout():
        if as_json:
            print(to_json(documents(runs)), flush=True)
        elif runs:
            columns, rows, equal = table_of(runs)
            print_table(columns, rows)
    if runs and not as_json and equal:
        say(f"in all runs: {', '.join(f'{name} {value}' for name, value in equal.items() if value)}")
    if not runs:
        say(f"{folder}: there are no runs in it")
