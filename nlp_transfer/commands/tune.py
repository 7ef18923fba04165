"""The command `tune`."""

import sys
from pathlib import Path
from typing import Any

import click

from nlp_transfer.commands.options import CODE, HELP_ALL, OVERRIDES, SEEDS, CompareHelp
from nlp_transfer.commands.run_settings import run_document
from nlp_transfer.utils.environment import importing


@click.command("tune", cls=CompareHelp, context_settings=OVERRIDES)
@click.argument("file")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Number of trials.")
@SEEDS
@click.option(
    "--space",
    metavar="MAPPING",
    help="Search space, such as '{training.learning_rate: {low: 1e-5, high: 1e-3, log: true}, strategy.r: [8, 16]}'.  "
    "[default: `tune` in FILE, or a default for the strategy]",
)
@click.option("--output", type=click.Path(path_type=Path), help="Output folder.  [default: output_dir of FILE plus -tuning]")
@click.option("--verbose", is_flag=True, help="Show the output of each run.")
@CODE
@HELP_ALL
@click.pass_context
def command(
    ctx: click.Context, file: str, trials: int, seeds: tuple[str, ...], space: str | None, output: Path | None, verbose: bool
) -> None:  # fmt: skip
    """Search for better settings, and test them once.

    Trials are judged on validation and stored in study.db; the first one has the default settings. The best settings are trained
    with each seed, next to the defaults, and both are compared on test. If they are not measurably better on validation, the
    defaults are recommended. FILE is a YAML file or a table, as for train, and must come before the flags. If the command is
    interrupted, run it again to resume; no finished trial is repeated.
    """
    document = run_document([file, *ctx.args])
    with importing():
        from nlp_transfer.experiments.hyperparameter_search import tune
        from nlp_transfer.run.document import parse_overrides

    given = None if space is None else parse_overrides([f"--tune={space}"])[0][1]
    arguments: Any = (document, trials, seeds, given, output, verbose)
    if tune(*arguments).failed:
        sys.exit(1)
