"""Options that commands share, and help that lists the settings which a command takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nlp_transfer.utils.environment import importing

PROCESSES = click.option(
    "--processes",
    type=int,
    default=1,
    show_default=True,
    help="Share the file among this many, each with the model and an even share of the cores: for CPUs with many cores.",
)
BASE = click.option("--base", metavar="PLACE", help="Of an adapter, where its base lies now.  [default: where it was trained]")


def _load_code(ctx: click.Context, parameter: click.Parameter, files: tuple[str, ...]) -> None:
    if files:
        from nlp_transfer.settings.extensions import load_code

        with importing():
            load_code(files)


CODE = click.option(
    "--code",
    metavar="FILE.py",
    multiple=True,
    expose_value=False,
    callback=_load_code,
    help="Python code of yours with tasks or strategies, which are named FILE:Class; may be given several times.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "auto", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp32 gives the same metrics and predictions everywhere; auto is what this machine is fastest in.",
)


OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
BATCH_SIZE = click.option("--batch-size", type=click.IntRange(min=1), help="Rows computed at once.  [default: what is fastest]")
FILES = (
    click.argument("texts", nargs=-1, metavar="[TEXT]...", type=click.UNPROCESSED),
    click.option("--input", "source", type=click.Path(path_type=Path), help="CSV, TSV, JSONL, Parquet, .txt; -: standard input."),
    click.option("--output", type=click.Path(path_type=Path), help="Same formats, by the ending; -: standard output."),
    click.option(
        "--format",
        "form",
        type=click.Choice(["csv", "tsv", "jsonl", "parquet", "txt"]),
        help="Of standard input and output.  [default: txt, one text per line; for output the input's]",
    ),
    OVERWRITE,
    click.option("--notes", is_flag=True, help="Add a column `note`: why a row has no prediction."),
    BATCH_SIZE,
    PRECISION,
    PROCESSES,
    CODE,
    BASE,
)


class SettingsHelp(click.Command):
    """A command whose help also lists the settings it takes, by `COMMAND_SETTINGS`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from nlp_transfer.settings.applicability import COMMAND_SETTINGS, takes
        from nlp_transfer.settings.validation import all_settings

        command = self.name if self.name in COMMAND_SETTINGS else "train"  # a recipe takes what `train` takes
        with formatter.section("Settings, by their dotted name"):
            chosen = [row for row in all_settings() if takes(str(command), row[0])]
            formatter.write_dl([(f"--{name} [{default}]", text) for name, default, text in chosen])


class TextsHelp(SettingsHelp):
    """With texts, which may begin with a dash where they stand after `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from nlp_transfer.inference.command_inputs import mark_verbatim

        return super().parse_args(ctx, mark_verbatim(args))


def how_to_train(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say how a run is carried out, not what it is: they are in no document."""
    flags = (
        click.option(
            "--resume",
            type=click.Choice(["auto", "must", "never"]),
            default="auto",
            show_default=True,
            help="Go on with an unfinished run in output_dir: where there is one, in any case, or in no case.",
        ),
        CODE,
        click.option("--allow-hub-metrics", is_flag=True, help="Let training.hub_metrics download and run foreign code."),
        click.option("--push-to", metavar="USER/NAME", help="Push the finished run to a hub; a new repository is private."),
    )
    for flag in reversed(flags):
        command = flag(command)
    return command


def on_files(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments of commands that take texts, or a file and give one."""
    for parameter in reversed(FILES):
        command = parameter(command)
    return click.pass_context(command)


class CompareHelp(SettingsHelp):
    """With flags that take several values."""

    several = ("--strategies", "--seeds", "--shots", "--rates")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from nlp_transfer.commands.flags import expand

        try:
            return super().parse_args(ctx, expand(args, self.several))
        except click.MissingParameter as error:
            if error.param is None or error.param.name != "file":
                raise
            raise click.UsageError(
                "Missing argument 'FILE', which stands before the flags: nlp-transfer compare FILE --strategies NAME ...", ctx
            ) from None
