"""The command `cross-validate`."""

import sys
from pathlib import Path

import click

from nlp_transfer.commands.options import CODE, HELP_ALL, OVERRIDES, CompareHelp
from nlp_transfer.commands.run_settings import merged, run_document
from nlp_transfer.utils.environment import importing


@click.command("cross-validate", cls=CompareHelp, context_settings=OVERRIDES)
@click.argument("file")
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Number of folds.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Repetitions, with other folds and seeds."
)
@click.option("--group", metavar="COLUMN", help="Rows with the same value in this column are in the same fold; sets data.group.")
@click.option(
    "--strategies", multiple=True, metavar="NAME ...", help="Strategies to compare, as in compare.  [default: that of FILE]"
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Output folder.  [default: output_dir of FILE plus -cross-validation]"
)
@click.option("--keep-models", is_flag=True, help="Keep the model of each run, not only its predictions.")
@click.option("--verbose", is_flag=True, help="Show the output of each run.")
@CODE
@HELP_ALL
@click.pass_context
def command(
    ctx: click.Context, file: str, folds: int, repeats: int, group: str | None, strategies: tuple[str, ...],
    output: Path | None, keep_models: bool, verbose: bool,
) -> None:  # fmt: skip
    """Cross-validate: test every row with a model trained without it.

    Prints mean and spread of the metrics over the folds, and with several strategies a corrected test; writes the prediction of
    each row to out_of_fold.parquet. FILE is a YAML file or a table, as for train, and must come before the flags. If the command
    is interrupted, run it again to resume.
    """
    document = run_document([file, *ctx.args])
    if group is not None:
        document = merged(document, ["--data.group", group])
    with importing():
        from nlp_transfer.experiments.cross_validation import cross_validate

    if cross_validate(document, folds, repeats, strategies or None, output, keep_models, verbose).failed:
        sys.exit(1)
